"""Small hand-made bundles for the loader's tests."""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec

from bpfseal.signer.asm import PSEUDO_MAP_IDX, Asm, R
from bpfseal.signer.btf import FUNC, TYPEDEF, Btf
from bpfseal.signer.bundle import BUNDLE_VERSION, Attach, Attributes, Bundle, MapSpec, ProgramSpec

ARRAY, RINGBUF = 2, 27
SYSCALL, RAW_TRACEPOINT, TRACING, LSM = 31, 17, 26, 29


def counting(map_index: int = 0) -> bytes:
    """Adds one to slot 0 of an array map."""
    a = Asm()
    a.st(4, R.R10, -4, 0)
    a.ld_pseudo(R.R1, PSEUDO_MAP_IDX, map_index)
    a.mov(R.R2, R.R10)
    a.add(R.R2, -4)
    a.call(1)
    a.jump_if(R.R0, "==", 0, "out")
    a.mov(R.R1, 1)
    a.atomic_add(8, R.R0, 0, R.R1)
    a.label("out")
    a.ret(0)
    return a.code()


def counting_and_telling(count_map: int, ring: int) -> bytes:
    """Adds one to the counter, then sends the 8 bytes "counted!" through a ring buffer."""
    a = Asm()
    a.st(4, R.R10, -4, 0)
    a.ld_pseudo(R.R1, PSEUDO_MAP_IDX, count_map)
    a.mov(R.R2, R.R10)
    a.add(R.R2, -4)
    a.call(1)
    a.jump_if(R.R0, "==", 0, "tell")
    a.mov(R.R1, 1)
    a.atomic_add(8, R.R0, 0, R.R1)
    a.label("tell")
    a.ld_imm64(R.R1, int.from_bytes(b"counted!", "little"))
    a.stx(8, R.R10, -16, R.R1)
    a.ld_pseudo(R.R1, PSEUDO_MAP_IDX, ring)
    a.mov(R.R2, R.R10)
    a.add(R.R2, -16)
    a.mov(R.R3, 8)
    a.mov(R.R4, 0)
    a.call(130)  # bpf_ringbuf_output
    a.ret(0)
    return a.code()


def broken() -> bytes:
    """Reads an uninitialised register: no verifier takes it."""
    a = Asm()
    a.mov(R.R0, R.R5)
    a.exit()
    return a.code()


def program(name: str, insns: bytes, type: int = RAW_TRACEPOINT, **more: object) -> ProgramSpec:
    attach = Attach(kind="raw_tracepoint", probe="rawtracepoint:sys_enter", target="sys_enter")
    declared = Attributes(insns=len(insns) // 8)
    return ProgramSpec(name=name, type=type, insns=insns, declared=declared, attach=(attach,), **more)  # type: ignore[arg-type]


def counter_map(name: str = "counter", start: int = 0, *, frozen: bool = False) -> MapSpec:
    initial = struct.pack("<Q", start) if start or frozen else b""
    return MapSpec(name=name, type=ARRAY, key_size=4, value_size=8, max_entries=1, initial=initial, frozen=frozen)


def bundle(programs: tuple[ProgramSpec, ...], maps: tuple[MapSpec, ...], btf: bytes = b"") -> Bundle:
    return Bundle(version=BUNDLE_VERSION, programs=programs, maps=maps, btf=btf)


def tiny() -> Bundle:
    """One counter, one program that counts."""
    return bundle((program("count", counting()),), (counter_map(),))


def small() -> Bundle:
    """A counter that starts at 40, a ring, a frozen constant; one program."""
    ring = MapSpec(name="ring", type=RINGBUF, key_size=0, value_size=0, max_entries=4096)
    maps = (counter_map(start=40), ring, counter_map("limit", 7, frozen=True))
    return bundle((program("count_and_tell", counting_and_telling(0, 1)),), maps)


def kernel_id(target: str) -> int:
    """BTF id of a function or a tracepoint of this kernel."""
    return Btf.vmlinux().find(target, TYPEDEF if target.startswith("btf_trace_") else FUNC)


def linked(*functions: tuple[str, int], id_of: Callable[[str], int], cookie: int = 0) -> Bundle:
    """A counter for each (target in BTF, attach type), attached by the loader."""
    programs = tuple(
        program(
            f"linked{number}",
            counting(number),
            LSM if target.startswith("bpf_lsm_") else TRACING,
            expected_attach_type=kind,
            attach_btf=target,
            attach_btf_id=id_of(target),
            linked=True,
        )
        for number, (target, kind) in enumerate(functions)
    )
    point = Attach(kind="trace", probe="fentry:x", cookies=(cookie,) if cookie else ())
    return bundle(
        tuple(msgspec.structs.replace(p, attach=(point,)) for p in programs),
        tuple(counter_map(f"counter{number}") for number in range(len(programs))),
    )


def named(sample: Bundle, suffix: str) -> Bundle:
    """The same with `suffix` at the end of every name."""
    return msgspec.structs.replace(
        sample,
        programs=tuple(msgspec.structs.replace(p, name=p.name[:8] + suffix) for p in sample.programs),
        maps=tuple(msgspec.structs.replace(m, name=m.name[:8] + suffix) for m in sample.maps),
    )


def many(maps: int, programs: int) -> Bundle:
    return bundle(
        tuple(program(f"p{i}", counting(i % maps)) for i in range(programs)),
        tuple(counter_map(f"m{i}", i) for i in range(maps)),
    )
