"""Which system calls a program on sys_enter or sys_exit acts on: by hand, and against the kernel running it."""

from __future__ import annotations

import ctypes
import os
import platform
import random
import struct

import pytest

from bpfseal.signer import bpf
from bpfseal.signer import helpers as known
from bpfseal.signer.bundle import Attach, Bundle, MapSpec, SealRequest
from bpfseal.signer.cfg import split
from bpfseal.signer.check import check
from bpfseal.signer.filter import NUMBERS, passing
from bpfseal.signer.identity import Identity
from bpfseal.signer.insn import decode
from bpfseal.signer.kernel_ids import Kernel
from bpfseal.signer.policy import Policy, decide
from bpfseal.signer.syscall_names import names
from tests.hostile.case import KERNEL
from tests.signer_analysis.kit import (
    COUNT,
    COUNTED,
    RETURN,
    addi,
    bundle,
    call,
    declare,
    ja,
    jeqi,
    jnei,
    ld64,
    ldvalue,
    ldx,
    mov,
    movi,
    program,
    raw,
    st,
    stx,
)

BITMAP = bytes([0b1010, 0, 0b1])
CONSTANT = MapSpec(name="set", type=2, key_size=4, value_size=3, max_entries=1, initial=BITMAP, frozen=True)
VALUE = MapSpec(name="value", type=2, key_size=4, value_size=8, max_entries=1)
MAPS = (CONSTANT, VALUE)
NR = ldx(1, 1, 8)
WORK = ldvalue(3, 1) + st(3, 0, 1)
PT_REGS = {"x86_64": 120, "aarch64": 280}.get(platform.machine(), 0)
EXIT_NR = ldx(1, 1) + ldx(1, 1, PT_REGS, 0)
EVERYTHING = set(range(NUMBERS))


def numbers(insns: bytes, *, entry: bool = True) -> set[int] | None:
    decoded = decode(insns)
    found = passing(decoded, split(decoded), MAPS, entry=entry)
    return None if found is None else set(found)


BIT_TEST = (
    mov(4, 1) + raw(0x77, 4, imm=3) + ldvalue(2, 0) + raw(0x0F, 2, 4) + ldx(2, 2, 0, 0x10)
    + raw(0x57, 1, imm=7) + raw(0x7F, 2, 1) + raw(0x57, 2, imm=1) + jeqi(2, 0, 3) + WORK + RETURN
)  # fmt: skip
FILTERS = {
    "equal": (NR + jeqi(1, 257, 2) + RETURN + WORK + RETURN, {257}),
    "not equal": (NR + jnei(1, 257, 3) + WORK + RETURN, {257}),
    "either": (NR + jeqi(1, 0, 3) + jeqi(1, 1, 2) + RETURN + WORK + RETURN, {0, 1}),
    "range": (NR + addi(1, -10) + raw(0x25, 1, 0, 3, 4) + WORK + RETURN, set(range(10, 15))),
    "signed": (NR + raw(0x65, 1, 0, 3, 2) + WORK + RETURN, {0, 1, 2}),
    "32 bits": (NR + raw(0x56, 1, 0, 3, 7) + WORK + RETURN, {7}),
    "all but one": (NR + jeqi(1, 3, 3) + WORK + RETURN, EVERYTHING - {3}),
    "mask": (NR + raw(0x57, 1, imm=1) + jeqi(1, 0, 3) + WORK + RETURN, set(range(1, NUMBERS, 2))),
    "bits of a constant": (NR + ld64(2, 0b1001) + raw(0x25, 1, 0, 6, 63) + raw(0x7F, 2, 1) + raw(0x57, 2, imm=1)
                           + jeqi(2, 0, 3) + WORK + RETURN, {0, 3}),
    "bits of a frozen map": (NR + raw(0x25, 1, 0, 13, 23) + BIT_TEST, {1, 3, 16}),
    "through the stack pointer": (NR + stx(10, -8, 1) + jnei(1, 5, 3) + WORK + RETURN, {5}),
    "nothing at all": (NR + RETURN, set()),
}  # fmt: skip
NOT_FILTERS = {
    "no filter": WORK + RETURN,
    "work first": mov(6, 1) + WORK + ldx(1, 6, 8) + jnei(1, 5, 0) + RETURN,
    "call first": mov(6, 1) + call("get_prandom_u32") + ldx(1, 6, 8) + jnei(1, 5, 3) + WORK + RETURN,
    "another argument": ldx(1, 1) + jnei(1, 5, 3) + WORK + RETURN,
    "half of the number's word": ldx(1, 1, 8, 0x00) + jnei(1, 5, 3) + WORK + RETURN,
    "both ways": NR + jeqi(1, 5, 0) + WORK + RETURN,
    "a map that can change": NR + ldvalue(2, 1) + ldx(2, 2) + raw(0x1D, 1, 2, 3) + WORK + RETURN,
    "number through the stack": NR + stx(10, -8, 1) + ldx(2, 10, -8) + jnei(2, 5, 3) + WORK + RETURN,
    "sign-extended": NR + raw(0xBF, 1, 1, 8) + jnei(1, 5, 3) + WORK + RETURN,
    "endless": NR + ja(-1) + RETURN[:0],
}


@pytest.mark.parametrize("name", FILTERS)
def test_filter(name: str) -> None:
    insns, expected = FILTERS[name]
    assert numbers(insns) == expected


@pytest.mark.parametrize("name", NOT_FILTERS)
def test_no_filter(name: str) -> None:
    assert numbers(NOT_FILTERS[name]) is None


@pytest.mark.skipif(not PT_REGS, reason="pt_regs of this machine are not known")
def test_sys_exit_has_the_number_in_its_registers() -> None:
    assert numbers(EXIT_NR + jnei(1, 9, 3) + WORK + RETURN, entry=False) == {9}
    assert numbers(EXIT_NR + jnei(1, 9, 3) + WORK + RETURN, entry=True) == {9}
    assert numbers(NR + jnei(1, 9, 3) + WORK + RETURN, entry=False) is None


def on(which: str, insns: bytes, type: int = known.RAW_TRACEPOINT) -> Bundle:
    attach = Attach(kind="raw_tracepoint", probe="tracepoint:syscalls:whatever", target=which)
    return bundle(
        program(insns, declare(insns, maps=((1, ("read", "write")),)), type=type, attach=(attach,)), maps=MAPS
    )


def granted(found: Bundle, probes: str, deny: str = "[]") -> bool:
    text = f'[[rule]]\nanyone=true\nprobes={probes}\ndeny_probes={deny}\nclasses="*"\nmap_types="*"\n'
    findings = check(found, kernel=Kernel(lambda: KERNEL))
    return decide(Policy.parse(text.encode()), Identity(1, 1), findings, SealRequest(bundle=b"")).allowed


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64")
def test_policy_sees_the_system_calls() -> None:
    openat = on("sys_enter", NR + jnei(1, 257, 3) + WORK + RETURN)
    assert check(openat, kernel=Kernel(lambda: KERNEL)).programs[0].targets == ("tracepoint:syscalls:sys_enter_openat",)
    assert granted(openat, '"tracepoint:syscalls:sys_enter_open*"')
    assert granted(openat, '"rawtracepoint:sys_enter"')
    assert not granted(openat, '"rawtracepoint:sys_exit"')
    assert not granted(openat, '"tracepoint:syscalls:sys_enter_read"')
    assert not granted(openat, '"*"', '"tracepoint:syscalls:sys_enter_openat"')
    everything = on("sys_enter", WORK + RETURN)
    assert check(everything, kernel=Kernel(lambda: KERNEL)).programs[0].targets == ("rawtracepoint:sys_enter",)
    assert granted(everything, '"tracepoint:syscalls:*"')
    assert granted(everything, '"rawtracepoint:*"')
    assert not granted(everything, '"tracepoint:syscalls:sys_enter_open*"')
    assert not granted(everything, '"*"', '"tracepoint:syscalls:sys_enter_read"')
    idle = on("sys_enter", NR + RETURN)
    assert check(idle, kernel=Kernel(lambda: KERNEL)).programs[0].targets == ("rawtracepoint:sys_enter",)


def test_a_perf_tracepoint_is_not_granted_by_the_raw_one() -> None:
    attach = Attach(kind="perf_tracepoint", probe="x", target="syscalls:sys_enter_openat")
    assert not granted(bundle(program(COUNT, COUNTED, attach=(attach,))), '"rawtracepoint:sys_enter"')


def test_names_are_those_of_this_kernels_tracepoints() -> None:
    try:
        events = {name[10:] for name in os.listdir("/sys/kernel/tracing/events/syscalls") if name[:10] == "sys_enter_"}
    except OSError:
        pytest.skip("no tracefs")
    assert len(events & set(names().values())) > 0.95 * len(events)


def _may_load() -> bool:
    try:
        os.close(bpf.prog_load(known.RAW_TRACEPOINT, RETURN))
    except OSError:
        return False
    return True


def random_filter(rng: random.Random) -> bytes:
    """Arithmetic and branches on the number, then an effect or none. r1 number, r2 to r5 numbers."""
    code = NR + b"".join(movi(r, rng.choice((0, 1, 3, 7, 64, 255, -1))) for r in (2, 3, 4, 5))
    for _ in range(rng.randrange(1, 8)):
        dst, src, imm = rng.randrange(1, 6), rng.randrange(1, 6), rng.choice((0, 1, 2, 7, 31, 128, 255, -1, -5))
        code += rng.choice(
            (
                raw(rng.choice((0x0F, 0x1F, 0x4F, 0x5F, 0xAF, 0xBF, 0x0C, 0x1C, 0x4C, 0x5C, 0xAC, 0xBC)), dst, src),
                raw(rng.choice((0x07, 0x17, 0x47, 0x57, 0xA7, 0x04, 0x54, 0xB4)), dst, imm=imm),
                raw(rng.choice((0x67, 0x77, 0xC7, 0x64, 0x74, 0xC4)), dst, imm=rng.randrange(32)),
                raw(rng.choice((0x15, 0x55, 0x25, 0x35, 0xA5, 0xB5, 0x45, 0x65, 0x75, 0xC5, 0x16, 0x26, 0xC6)), dst, 0,
                    rng.randrange(1, 3), imm)
                + mov(5, rng.randrange(1, 6)) + mov(4, rng.randrange(1, 6)),
            )
        )  # fmt: skip
    code += raw(rng.choice((0x15, 0x55, 0x25, 0xA5, 0x45, 0x1D, 0x5D, 0x2D)), rng.randrange(1, 6), 0, 3, 0)
    if code[-8] & 8:
        code = code[:-7] + bytes([code[-7] | rng.randrange(1, 6) << 4]) + code[-6:]
    return code + WORK + RETURN


@pytest.mark.host
@pytest.mark.skipif(not _may_load(), reason="needs root and bpf(2)")
def test_against_the_kernel_running_it() -> None:
    value = bpf.map_create(2, 4, 8, 1)
    constant = bpf.map_create(2, 4, 3, 1)
    key, cell = ctypes.create_string_buffer(4), ctypes.create_string_buffer(8)
    exact = 0
    try:
        for seed in range(60):
            insns = random_filter(random.Random(seed))
            claimed = numbers(insns)
            prog = bpf.prog_load(known.RAW_TRACEPOINT, insns, fds=(constant, value))
            acted = set()
            for number in range(0, NUMBERS, 3):
                bpf.map_update(value, bytes(4), bytes(8))
                bpf.prog_run(prog, struct.pack("<QQ", 0, number))
                bpf.bpf(1, struct.pack("<IxxxxQQQ", value, ctypes.addressof(key), ctypes.addressof(cell), 0))
                if cell.raw != bytes(8):
                    acted.add(number)
            os.close(prog)
            if claimed is not None:
                assert acted <= claimed, f"seed {seed}: acts on {acted - claimed} unseen"
                exact += acted == {n for n in claimed if n % 3 == 0}
            else:
                exact += len(acted) == len(range(0, NUMBERS, 3))
    finally:
        os.close(value)
        os.close(constant)
    assert exact == 60
