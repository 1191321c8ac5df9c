"""Which system calls a program on `sys_enter` or `sys_exit` acts on.

All system calls share these two tracepoints, so a program for one of them begins by looking at the number. Here that
beginning is run for all numbers at once: registers hold constants, or one value for each number, and a branch on such
a value divides the numbers. A number counts as soon as it can reach anything with an effect; what leaves without one
is filtered out. Nothing has to be recognised, and what cannot be computed counts for both ways of a branch.

Numbers are those of native system calls. 32-bit programs on a 64-bit kernel have others, and are not told apart.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Final

from msgspec import Struct

from bpfseal.signer import insn as isa
from bpfseal.signer.bundle import MapSpec
from bpfseal.signer.cfg import Flow
from bpfseal.signer.insn import Insn, imm64
from bpfseal.signer.syscall_names import names

SHARED: Final = ("sys_enter", "sys_exit")
NUMBERS: Final = 512  # more than any architecture has system calls
_MAX_STEPS: Final = 512
_ALL: Final = tuple(range(NUMBERS))
_SIZES: Final = {isa.DW: 8, isa.W: 4, isa.H: 2}
_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1

# Where `struct pt_regs` keeps the number of the system call: orig_ax; on arm64 syscallno.
_PT_REGS: Final = {"x86_64": 120, "aarch64": 280}


class _Const(Struct, frozen=True):
    """Address in the value of a frozen map, which nobody can change."""

    map: int
    offset: int | tuple[int, ...]


_CONTEXT, _REGS = "context", "pt_regs"
# A register: None (anything), a constant, one constant for each number, or one of the pointers above.
_Value = int | tuple[int, ...] | str | _Const | None
_State = tuple[int, list[_Value], tuple[int, ...]]

_OPERATIONS: Final[dict[int, Callable[[int, int, int], int]]] = {
    isa.ADD: lambda a, b, _: a + b,
    isa.SUB: lambda a, b, _: a - b,
    isa.OR: lambda a, b, _: a | b,
    isa.AND: lambda a, b, _: a & b,
    isa.XOR: lambda a, b, _: a ^ b,
    isa.LSH: lambda a, b, bits: a << (b & bits - 1),
    isa.RSH: lambda a, b, bits: a >> (b & bits - 1),
    isa.ARSH: lambda a, b, bits: _signed(a, bits) >> (b & bits - 1),
    isa.MOV: lambda _a, b, _: b,
}
_COMPARISONS: Final[dict[int, Callable[[int, int, int], bool]]] = {
    isa.JEQ: lambda a, b, _: a == b,
    isa.JNE: lambda a, b, _: a != b,
    isa.JGT: lambda a, b, _: a > b,
    isa.JGE: lambda a, b, _: a >= b,
    isa.JLT: lambda a, b, _: a < b,
    isa.JLE: lambda a, b, _: a <= b,
    isa.JSET: lambda a, b, _: bool(a & b),
    isa.JSGT: lambda a, b, bits: _signed(a, bits) > _signed(b, bits),
    isa.JSGE: lambda a, b, bits: _signed(a, bits) >= _signed(b, bits),
    isa.JSLT: lambda a, b, bits: _signed(a, bits) < _signed(b, bits),
    isa.JSLE: lambda a, b, bits: _signed(a, bits) <= _signed(b, bits),
}


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> bits - 1 else value


def passing(insns: list[Insn], flow: Flow, maps: Sequence[MapSpec], *, entry: bool) -> frozenset[int] | None:
    """Numbers below NUMBERS for which a BTF tracepoint program on sys_enter (`entry`) or sys_exit does anything;
    None if it is not known to leave any of them out."""
    return _Filter(insns, flow, maps, entry).run()


def system_calls(targets: tuple[str, ...], insns: list[Insn], flow: Flow, maps: Sequence[MapSpec]) -> tuple[str, ...]:
    """Targets for policy: for a program on all system calls that acts on some of them, those, by the names of their
    own tracepoints. Other targets stay as they are."""
    which = targets[0].removeprefix("rawtracepoint:")
    if which not in SHARED or len(targets) > 1:
        return targets
    found = passing(insns, flow, maps, entry=which == "sys_enter")
    return tuple(name_of(which, number) for number in sorted(found)) if found else targets


def name_of(which: str, number: int) -> str:
    """The tracepoint of one system call; `which` is "sys_enter" or "sys_exit"."""
    return f"tracepoint:syscalls:{which}_{names().get(number, f'nr{number}')}"


@cache
def all_names(which: str) -> tuple[str, ...]:
    """The tracepoints of all system calls."""
    return tuple(name_of(which, number) for number in names())


@lru_cache(maxsize=64)
def _all_but(number: int) -> tuple[int, ...]:
    return tuple([n for n in _ALL if n != number])


class _Filter:
    def __init__(self, insns: list[Insn], flow: Flow, maps: Sequence[MapSpec], entry: bool) -> None:
        self.insns, self.flow, self.maps, self.entry = insns, flow, maps, entry
        self.pt_regs = _PT_REGS.get(platform.machine(), -1)

    def run(self) -> frozenset[int] | None:
        work: list[_State] = [(0, [None, _CONTEXT, *[None] * 9], _ALL)]
        found: set[int] = set()
        for _ in range(_MAX_STEPS):
            if not work:
                return frozenset(found) if len(found) < NUMBERS else None
            at, regs, numbers = work.pop()
            if after := self._step(at, regs, numbers):
                work += [state for state in after if not found.issuperset(state[2])]
            elif after is None:
                found.update(numbers)
        return None

    def _step(self, at: int, regs: list[_Value], numbers: tuple[int, ...]) -> list[_State] | None:
        """States after one instruction; none for an exit, None for something with an effect."""
        insn = self.insns[at]
        kind, dst, src, _uses = isa.FORMS[insn.head]
        if kind in (isa.OP_STORE, isa.OP_SPILL):
            return [(at + 1, regs, numbers)] if dst == 10 else None
        if kind == isa.OP_EXIT:
            return []
        if kind in (isa.OP_JUMP, isa.OP_JUMP_LONG):
            return [(self.flow.targets[at], regs, numbers)]
        if kind == isa.OP_BRANCH:
            return self._branch(at, insn, regs, numbers)
        if kind == isa.OP_LD_IMM64:
            value: _Value = imm64(insn, self.insns[at + 1]) if src == 0 else None
            if src == isa.PSEUDO_MAP_IDX_VALUE and self.maps[insn.imm].frozen:
                value = _Const(insn.imm, self.insns[at + 1].imm)
            return [(at + 2, [*regs[:dst], value, *regs[dst + 1 :]], numbers)]
        if kind >= isa.OP_ATOMIC:
            return None
        value = self._load(insn, regs[src]) if kind == isa.OP_LOAD else self._compute(insn, regs)
        return [(at + 1, [*regs[:dst], value, *regs[dst + 1 :]], numbers)]

    def _load(self, insn: Insn, base: _Value) -> _Value:
        size, off = _SIZES.get(insn.code & 0x18, 1), insn.off
        if insn.code & 0xE0 != isa.MEM:
            return None
        if base == _CONTEXT and size == 8:  # (regs, number) on entry, (regs, result) on exit
            return _REGS if off == 0 else _ALL if off == 8 and self.entry else None
        if base == _REGS and off == self.pt_regs and size >= 4:
            return _ALL
        if not isinstance(base, _Const):
            return None
        data = self.maps[base.map].initial

        def read(offset: int) -> int:
            # Numbers that cannot get here may point anywhere; what the verifier lets be read is inside.
            at = max(_signed(offset + off & _U64, 64), 0)
            return int.from_bytes(data[at : at + size], "little")

        return read(base.offset) if isinstance(base.offset, int) else tuple(map(read, base.offset))

    def _compute(self, insn: Insn, regs: list[_Value]) -> _Value:
        operation = insn.code & 0xF0
        bits = 64 if insn.code & 7 == isa.ALU64 else 32
        left: _Value = regs[insn.dst]
        right: _Value = regs[insn.src] if insn.code & isa.X else insn.imm & _U64
        if operation == isa.MOV and bits == 64 and not insn.off:
            return right
        if operation == isa.ADD and bits == 64 and isinstance(left, _Const):
            moved = _each(_OPERATIONS[isa.ADD], left.offset, right, 64)
            return None if moved is None else _Const(left.map, moved)
        function = _OPERATIONS.get(operation)
        if function is None or insn.off:
            return None
        return _each(function, 0 if operation == isa.MOV else left, right, bits)

    def _branch(self, at: int, insn: Insn, regs: list[_Value], numbers: tuple[int, ...]) -> list[_State]:
        taken, falls = numbers, numbers
        compare = _COMPARISONS.get(insn.code & 0xF0)
        left: _Value = regs[insn.dst]
        right: _Value = regs[insn.src] if insn.code & isa.X else insn.imm & _U64
        if left is _ALL and isinstance(right, int) and compare is _COMPARISONS[isa.JEQ]:  # the common case, fast
            wanted = right & (_U64 if insn.code & 7 == isa.JMP else _U32)
            falls = _all_but(wanted) if numbers is _ALL else tuple([n for n in numbers if n != wanted])
            taken = (wanted,) if len(falls) < len(numbers) else ()
            return [(t, regs, those) for t, those in ((self.flow.targets[at], taken), (at + 1, falls)) if those]
        verdict = None if compare is None else _each(compare, left, right, 64 if insn.code & 7 == isa.JMP else 32)
        if isinstance(verdict, tuple):
            taken = tuple([n for n in numbers if verdict[n]])
            falls = tuple([n for n in numbers if not verdict[n]])
        elif verdict is not None:
            taken, falls = (numbers, ()) if verdict else ((), numbers)
        ways = ((self.flow.targets[at], taken), (at + 1, falls))
        return [(target, regs, those) for target, those in ways if those]


def _each(
    function: Callable[[int, int, int], int], left: _Value, right: _Value, bits: int
) -> int | tuple[int, ...] | None:
    """A function of two values, for each number where one of them depends on it; None if one is not known."""
    mask = _U64 if bits == 64 else _U32
    if isinstance(left, int) and isinstance(right, int):
        return function(left & mask, right & mask, bits) & mask
    if isinstance(left, tuple) and isinstance(right, int):
        right &= mask
        return tuple([function(a & mask, right, bits) & mask for a in left])
    if isinstance(left, int | tuple) and isinstance(right, tuple):
        lefts = left if isinstance(left, tuple) else (left,) * NUMBERS
        return tuple([function(a & mask, b & mask, bits) & mask for a, b in zip(lefts, right, strict=True)])
    return None
