"""Instructions of a linked program as a list that can be edited: jumps name the instruction that they go to.

Opcodes after RFC 9669. Besides what its callers edit, `Code` does two things: it makes the bounds of loops out of the
code generator's markers, and small improvements that LLVM's BPF back end leaves on the table (`tidy`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from bpfseal.errors import BpfsealError

BOUND, FENCE = 15, 14
"""Kinds of ld_imm64, which do not exist, as markers: of a loop's bound, and of where its body begins."""

_SLOT: Final = struct.Struct("<BBhi")
_LD_IMM64, _CALL, _EXIT, _JA, _MAY_GOTO = 0x18, 0x85, 0x95, 0x05, 0xE5
_JEQ, _JNE = 0x10, 0x50
_LSH32, _RSH32, _MOV32 = 0x67, 0x77, 0xBC
_STX_DW, _ST_W = 0x7B, 0x62
_PSEUDO_FUNC, _PSEUDO_CALL = 4, 1


class EditError(BpfsealError):
    """The code is not of the form that the code generator relies on."""


class Insn:
    """One instruction. `target` is where a jump, a call of a subprogram or a function's address goes to; `second` the
    upper half of an ld_imm64."""

    __slots__ = ("code", "imm", "off", "regs", "second", "target")

    def __init__(self, code: int, regs: int, off: int = 0, imm: int = 0, second: int = 0) -> None:
        self.code = code
        self.regs = regs
        self.off = off
        self.imm = imm
        self.second = second
        self.target: Insn | None = None

    @property
    def dst(self) -> int:
        return self.regs & 15

    @property
    def src(self) -> int:
        return self.regs >> 4

    @property
    def size(self) -> int:
        return 2 if self.code == _LD_IMM64 else 1

    def is_jump(self) -> bool:
        return self.code & 7 in (5, 6) and self.code not in (_CALL, _EXIT)

    def is_branch(self) -> bool:
        return self.is_jump() and self.code != _JA


class Code:
    """A program's instructions. `starts`: first slots of its functions, kept up to date by `encode`."""

    def __init__(self, data: bytes | bytearray, starts: Sequence[int]) -> None:
        by_slot: list[Insn | None] = []
        insns: list[Insn] = []
        pending = False
        for code, regs, off, imm in _SLOT.iter_unpack(data):
            if pending:
                insns[-1].second = imm
                by_slot.append(None)
                pending = False
                continue
            insn = Insn(code, regs, off, imm)
            insns.append(insn)
            by_slot.append(insn)
            pending = code == _LD_IMM64
        for slot, found in enumerate(by_slot):
            if found is None:
                continue
            goes = _distance(found)
            if goes is not None:
                found.target = by_slot[slot + 1 + goes]
        self.insns = insns
        self._starts = [by_slot[slot] for slot in starts]

    def encode(self) -> tuple[bytes, list[int]]:
        """(bytes, first slots of the functions)."""
        slots: dict[int, int] = {}
        at = 0
        for insn in self.insns:
            slots[id(insn)] = at
            at += insn.size
        out = bytearray()
        pack = _SLOT.pack
        for insn in self.insns:
            off, imm = insn.off, insn.imm
            if insn.target is not None:
                goes = slots[id(insn.target)] - slots[id(insn)] - 1
                if insn.code in (_CALL, _LD_IMM64):
                    imm = goes
                else:
                    off = goes
            out += pack(insn.code, insn.regs, off, imm)
            if insn.code == _LD_IMM64:
                out += pack(0, 0, 0, insn.second)
        return bytes(out), [slots[id(start)] for start in self._starts]

    # Editing

    def replace(self, at: int, count: int, new: list[Insn]) -> None:
        """Put `new` in the place of `count` instructions; what jumped to the first goes to the first of the new, or
        to what follows."""
        old = self.insns[at : at + count]
        self.insns[at : at + count] = new
        landing = self.insns[at]
        gone = {id(insn) for insn in old if insn not in new}
        for insn in self.insns:
            if insn.target is not None and id(insn.target) in gone:
                insn.target = landing
        self._starts = [landing if id(s) in gone else s for s in self._starts]

    def targets(self) -> set[int]:
        """Ids of instructions that something goes to."""
        return {id(insn.target) for insn in self.insns if insn.target is not None} | {id(s) for s in self._starts}

    # Bounds of loops

    def bound_loops(self) -> None:
        """`rX = marker; if rX != 0 goto L` becomes `may_goto L`. Fences vanish."""
        at = 0
        while at < len(self.insns):
            insn = self.insns[at]
            if insn.code == _LD_IMM64 and insn.src in (BOUND, FENCE):
                if insn.src == BOUND:
                    self._bound(at + 1, insn.dst)
                self.replace(at, 1, [])
                continue
            at += 1

    def _bound(self, at: int, register: int) -> None:
        """The branch on `register`, with nothing but straight code before it."""
        while True:
            insn = self.insns[at]
            kind = insn.code & 0xF0
            if (
                insn.is_branch()
                and insn.dst == register
                and kind in (_JEQ, _JNE)
                and not insn.code & 8
                and not insn.imm
            ):
                break
            if insn.is_jump() or insn.code in (_CALL, _EXIT):
                raise EditError("internal error: a loop's bound is not followed by its branch")
            at += 1
        bound = Insn(_MAY_GOTO, 0)
        if kind == _JNE:
            bound.target = insn.target
            self.replace(at, 1, [bound])
            return
        stay = Insn(_JA, 0)
        stay.target = insn.target
        bound.target = self.insns[at + 1]
        self.replace(at, 1, [bound, stay])

    # Improvements

    def tidy(self) -> None:
        """Fewer instructions for the same effect."""
        self._narrow()
        self._drop_empty_jumps()

    def _narrow(self) -> None:
        """`rX <<= 32; rX >>= 32` is `wX = wX`."""
        landing = self.targets()
        at = 0
        while at + 1 < len(self.insns):
            one, two = self.insns[at], self.insns[at + 1]
            if (
                one.code == _LSH32
                and two.code == _RSH32
                and one.imm == two.imm == 32
                and one.dst == two.dst
                and id(two) not in landing
            ):
                self.replace(at, 2, [Insn(_MOV32, one.dst | one.dst << 4)])
            at += 1

    def _drop_empty_jumps(self) -> None:
        at = 0
        while at + 1 < len(self.insns):
            insn = self.insns[at]
            if insn.code == _JA and insn.target is self.insns[at + 1]:
                self.replace(at, 1, [])
                continue
            at += 1


def _distance(insn: Insn) -> int | None:
    """Slots from the next instruction to where this one goes, None if it goes nowhere."""
    if insn.is_jump():
        return insn.off
    if (insn.code == _CALL and insn.src == _PSEUDO_CALL) or (insn.code == _LD_IMM64 and insn.src == _PSEUDO_FUNC):
        return insn.imm
    return None
