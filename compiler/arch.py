"""Registers in struct pt_regs: offsets by name, and which of them carry what.

x86-64: arch/x86/include/uapi/asm/ptrace.h, arguments of functions and system calls by the System V ABI and
arch/x86/include/asm/syscall.h. arm64: struct user_pt_regs and arch/arm64/include/asm/syscall.h.
"""

from __future__ import annotations

import platform
from functools import cache

from msgspec import Struct

from bpfseal.dsl.registers import X86_64
from bpfseal.errors import BpfsealError


class Registers(Struct, frozen=True):
    """Offsets in bytes. `stack_argument`: distance from the stack pointer of the first argument that is not in a
    register, at a function's entry; the next ones are 8 bytes apart."""

    names: dict[str, int]
    arguments: tuple[int, ...]
    syscall_arguments: tuple[int, ...]
    syscall_number: int
    result: int
    stack: int
    ip: int
    stack_argument: int


def _x86() -> Registers:
    at = {name: 8 * n for n, name in enumerate(X86_64)}
    return Registers(
        at,
        tuple(at[name] for name in ("di", "si", "dx", "cx", "r8", "r9")),
        tuple(at[name] for name in ("di", "si", "dx", "r10", "r8", "r9")),
        at["orig_ax"],
        at["ax"],
        at["sp"],
        at["ip"],
        8,
    )


def _arm64() -> Registers:
    at = {f"x{n}": 8 * n for n in range(31)} | {f"r{n}": 8 * n for n in range(31)}
    at |= {"fp": 29 * 8, "lr": 30 * 8, "sp": 31 * 8, "pc": 32 * 8, "ip": 32 * 8, "pstate": 33 * 8}
    orig_x0, syscallno = 34 * 8, 35 * 8
    return Registers(
        at,
        tuple(8 * n for n in range(8)),
        (orig_x0, *(8 * n for n in range(1, 6))),
        syscallno,
        0,
        at["sp"],
        at["pc"],
        0,
    )


@cache
def registers() -> Registers:
    """Of this machine. Raises BpfsealError where we do not know them."""
    known = {"x86_64": _x86, "aarch64": _arm64}.get(platform.machine())
    if known is None:
        raise BpfsealError(f"registers of {platform.machine()} are not known")
    return known()
