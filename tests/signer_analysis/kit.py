"""Instructions, BTF and bundles by hand, for tests of the analysis.

Deliberately not the project's assembler: what is tested should not have come out of the code under test.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from bpfseal.signer import helpers as known
from bpfseal.signer.bundle import BUNDLE_VERSION, Attach, Attributes, Bundle, MapSpec, ProgramSpec

U8, U16, U32, U64 = 0x10, 0x08, 0x00, 0x18


def raw(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("<BBhI", code, dst | src << 4, off, imm & 0xFFFFFFFF)


def movi(dst: int, imm: int) -> bytes:
    return raw(0xB7, dst, imm=imm)


def mov(dst: int, src: int) -> bytes:
    return raw(0xBF, dst, src)


def addi(dst: int, imm: int) -> bytes:
    return raw(0x07, dst, imm=imm)


def add(dst: int, src: int) -> bytes:
    return raw(0x0F, dst, src)


def ldx(dst: int, src: int, off: int = 0, size: int = U64) -> bytes:
    return raw(0x61 | size, dst, src, off)


def stx(dst: int, off: int, src: int, size: int = U64) -> bytes:
    return raw(0x63 | size, dst, src, off)


def st(dst: int, off: int, imm: int, size: int = U64) -> bytes:
    return raw(0x62 | size, dst, 0, off, imm)


def atomic(dst: int, off: int, src: int, operation: int, size: int = U64) -> bytes:
    return raw(0xC3 | size, dst, src, off, operation)


def ld64(dst: int, value: int, src: int = 0, high: int | None = None) -> bytes:
    low, top = value & 0xFFFFFFFF, (value >> 32 if high is None else high)
    return raw(0x18, dst, src, 0, low) + raw(0, imm=top)


def ldmap(dst: int, index: int) -> bytes:
    return ld64(dst, index, 5)


def ldvalue(dst: int, index: int, offset: int = 0) -> bytes:
    return ld64(dst, index, 6, offset)


def ldfunc(dst: int, delta: int) -> bytes:
    return ld64(dst, delta & 0xFFFFFFFF, 4)


def call(helper: str | int) -> bytes:
    return raw(0x85, imm=known.HELPER_BY_NAME[helper].id if isinstance(helper, str) else helper)


def callsub(delta: int) -> bytes:
    return raw(0x85, 0, 1, 0, delta)


def kfunc(id: int) -> bytes:
    return raw(0x85, 0, 2, 0, id)


def ja(off: int) -> bytes:
    return raw(0x05, off=off)


def jeqi(dst: int, imm: int, off: int) -> bytes:
    return raw(0x15, dst, off=off, imm=imm)


def jnei(dst: int, imm: int, off: int) -> bytes:
    return raw(0x55, dst, off=off, imm=imm)


def jeq(dst: int, src: int, off: int) -> bytes:
    return raw(0x1D, dst, src, off)


def jne(dst: int, src: int, off: int) -> bytes:
    return raw(0x5D, dst, src, off)


EXIT = raw(0x95)
RETURN = movi(0, 0) + EXIT


def key_on_stack(register: int = 2) -> bytes:
    """An 8-byte zero key at r10-8, its address in a register: 3 slots."""
    return st(10, -8, 0) + mov(register, 10) + addi(register, -8)


def lookup(index: int = 0) -> bytes:
    """Value of map `index` for key 0 in r0: 6 slots."""
    return key_on_stack() + ldmap(1, index) + call("map_lookup_elem")


HASH = MapSpec(name="counts", type=1, key_size=8, value_size=8, max_entries=128)
ARRAY = MapSpec(name="data", type=2, key_size=4, value_size=64, max_entries=1)
RING = MapSpec(name="events", type=27, key_size=0, value_size=0, max_entries=1 << 16)
OPENAT = Attach(
    kind="perf_tracepoint", probe="tracepoint:syscalls:sys_enter_openat", target="syscalls:sys_enter_openat"
)
ALL = Attributes(insns=1_000_000, subprograms=1000, helpers=tuple(sorted(known.HELPER_BY_NAME)))


def declare(insns: bytes, *helpers: str, subprograms: int = 0, **more: Any) -> Attributes:
    return Attributes(insns=len(insns) // 8, subprograms=subprograms, helpers=tuple(sorted(helpers)), **more)


def program(insns: bytes = RETURN, declared: Attributes | None = None, **more: Any) -> ProgramSpec:
    fields: dict[str, Any] = {"name": "probe_1", "type": known.TRACEPOINT, "attach": (OPENAT,)}
    return ProgramSpec(insns=insns, declared=declared or declare(insns), **fields | more)


COUNT = lookup() + jeqi(0, 0, 2) + movi(1, 1) + atomic(0, 0, 1, 0) + RETURN
COUNTED = declare(COUNT, "map_lookup_elem", maps=((0, ("read", "write")),))


def bundle(*programs: ProgramSpec, maps: tuple[MapSpec, ...] = (HASH, ARRAY, RING), **more: Any) -> Bundle:
    return Bundle(version=BUNDLE_VERSION, programs=programs or (program(COUNT, COUNTED),), maps=maps, **more)


def simple(insns: bytes, *helpers: str, **more: Any) -> Bundle:
    """A bundle of one program that declares the helpers and every operation on every map."""
    operations = tuple((n, tuple(sorted(known.MAP_OPS))) for n in range(3))
    declared = declare(insns, *helpers, subprograms=100, maps=operations)
    return bundle(program(insns, declared), **more)


@dataclass
class BtfWriter:
    """Raw BTF from pieces; ids count from 1 in the order of the calls."""

    types: list[bytes] = field(default_factory=list)
    strings: bytes = b"\0"

    def string(self, text: str) -> int:
        if not text:
            return 0
        self.strings += text.encode() + b"\0"
        return len(self.strings) - len(text.encode()) - 1

    def add(self, kind: int, name: str = "", third: int = 0, vlen: int = 0, tail: bytes = b"", kflag: int = 0) -> int:
        info = vlen | kind << 24 | kflag << 31
        self.types.append(struct.pack("<III", self.string(name), info, third) + tail)
        return len(self.types)

    def int(self, name: str = "int", size: int = 4) -> int:
        return self.add(1, name, size, tail=struct.pack("<I", 1 << 24 | size * 8))

    def struct(self, name: str, size: int, *members: tuple[str, int, int]) -> int:
        tail = b"".join(struct.pack("<III", self.string(n), t, at * 8) for n, t, at in members)
        return self.add(4, name, size, len(members), tail)

    def func(self, name: str, linkage: int = 1) -> int:
        result = self.int(f"{name}_result")
        return self.add(12, name, self.add(13, "", result), linkage)

    def bytes(self, base: tuple[int, int] | None = None) -> bytes:
        types = b"".join(self.types)
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(self.strings))
        return header + types + self.strings
