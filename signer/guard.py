"""The guard of programs whose attach target no signature covers: `bpf_get_func_ip(ctx) == address`, at the entry.

A kprobe program runs wherever its client attaches it. One that begins with this comparison, and leaves without any
effect when it fails, does its work at the addresses it was signed for and nowhere else. The shape is checked on the
instructions: whatever can be reached from the entry without passing an equality of the address with a constant must
be without effect, that is, only change registers and the own stack, ask for the address, jump or exit.
"""

from __future__ import annotations

from typing import Final

from bpfseal.signer import insn as isa
from bpfseal.signer.cfg import Flow
from bpfseal.signer.insn import Insn, imm64

GET_FUNC_IP: Final = 173
_MAX_STEPS: Final = 1 << 16  # some 20,000 addresses
_U64: Final = (1 << 64) - 1

_OTHER, _CONTEXT, _ADDRESS = -1, -2, -3  # values of registers; constants are themselves
_State = tuple[int, ...]


def guarded(insns: list[Insn], flow: Flow) -> frozenset[int] | None:
    """The addresses at which the program does anything, None if it is not guarded. Linear in the guard's length."""
    work: list[tuple[int, _State]] = [(0, (_OTHER, _CONTEXT, *(_OTHER,) * 9))]
    seen = set(work)
    found: set[int] = set()
    steps = 0
    while work:
        at, regs = work.pop()
        steps += 1
        after = _step(insns, flow, at, regs, found)
        if after is None or steps > _MAX_STEPS:
            return None
        for state in after:
            if state not in seen:
                seen.add(state)
                work.append(state)
    return frozenset(found) or None


def _step(insns: list[Insn], flow: Flow, at: int, regs: _State, found: set[int]) -> list[tuple[int, _State]] | None:
    """Where one instruction leads to without having matched; None if it has an effect and so no place in a guard."""
    insn = insns[at]
    kind, dst, src, _uses = isa.FORMS[insn.head]
    if kind in (isa.OP_SPILL, isa.OP_STORE):
        return [(at + 1, regs)] if dst == 10 else None
    if kind < isa.OP_ATOMIC:
        value = _OTHER
        if kind == isa.OP_MOVE and not insn.off:
            value = regs[src]
        elif insn.code == isa.ALU64 | isa.MOV:
            value = insn.imm & _U64
        return [(at + 1, _set(regs, dst, value))]
    if kind == isa.OP_LD_IMM64:
        return [(at + 2, _set(regs, dst, _OTHER if src else imm64(insn, insns[at + 1])))]
    if kind == isa.OP_HELPER and insn.imm == GET_FUNC_IP and regs[1] == _CONTEXT:
        return [(at + 1, (_ADDRESS, *(_OTHER,) * 5, *regs[6:]))]
    if kind in (isa.OP_JUMP, isa.OP_JUMP_LONG):
        return [(flow.targets[at], regs)]
    if kind == isa.OP_EXIT:
        return []
    if kind != isa.OP_BRANCH:
        return None
    taken, not_taken = (flow.targets[at], regs), (at + 1, regs)
    operation = insn.code & 0xF0
    if insn.code & 7 == isa.JMP and operation in (isa.JEQ, isa.JNE):
        left, right = regs[dst], regs[src] if insn.code & isa.X else insn.imm & _U64
        if _ADDRESS in (left, right) and (left >= 0 or right >= 0):
            found.add(max(left, right))
            return [not_taken if operation == isa.JEQ else taken]
    return [taken, not_taken]


def _set(regs: _State, number: int, value: int) -> _State:
    return (*regs[:number], value, *regs[number + 1 :])
