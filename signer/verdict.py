"""Whether a program of a type whose result decides something can return another result than "go on".

What an LSM program returns denies an operation, what an XDP or tc program returns drops or redirects a packet. A
program that only looks always returns the neutral value; that it does so is shown here by following constants through
the registers (and words of the stack, where compilers keep them) of the main program. Whatever cannot be shown counts
as deciding, so the answer errs on one side only.

Values: 0 allows in security hooks; enum xdp_action and enum tcx_action_base, include/uapi/linux/bpf.h.
"""

from __future__ import annotations

from typing import Final

from bpfseal.signer import helpers as known
from bpfseal.signer import insn as isa
from bpfseal.signer.cfg import Flow
from bpfseal.signer.insn import Insn, imm64

NEUTRAL: Final[dict[int, frozenset[int]]] = {
    known.LSM: frozenset((0,)),
    known.XDP: frozenset((2,)),  # XDP_PASS
    # TCX_NEXT, and TCX_PASS, which is TC_ACT_OK: nobody behind sees the packet, but it goes on
    known.SCHED_CLS: frozenset((0xFFFFFFFF, 0)),
    # 1 allows. More bits tell of congestion, or spare a bind() its privilege (include/linux/bpf-cgroup.h).
    **dict.fromkeys(
        (known.CGROUP_SKB, known.CGROUP_SOCK, known.CGROUP_DEVICE, known.CGROUP_SOCK_ADDR, known.CGROUP_SOCKOPT),
        frozenset((1,)),
    ),
    known.CGROUP_SYSCTL: frozenset(),  # the context has the position in the file, which moves what is read or written
    known.SOCK_OPS: frozenset(),  # the result answers questions of TCP's, each with a neutral value of its own
    known.EXT: frozenset(),  # stands in for a function of which nothing is known
}
_TAIL_CALL: Final = 12
_MAX_STEPS: Final = 1 << 18
_U64: Final = (1 << 64) - 1

_Known = dict[int, int]  # constants by register, and by stack offset (negative) of 8-byte words


def decides(type: int, insns: list[Insn], flow: Flow) -> bool:
    """True unless every result of the main program is neutral. Types that decide nothing: False."""
    neutral = NEUTRAL.get(type)
    if neutral is None:
        return False
    end = flow.starts[1] if len(flow.starts) > 1 else len(insns)
    at_entry: dict[int, _Known] = {0: {}}
    work = [0]
    steps = 0
    while work:
        at = work.pop()
        known_here = dict(at_entry[at])
        while True:
            steps += 1
            if steps > _MAX_STEPS or at >= end:
                return True
            kind = isa.FORMS[insns[at].head][0]
            if kind == isa.OP_EXIT:
                if known_here.get(0, -1) & _U64 not in _widened(neutral):
                    return True
                break
            if kind == isa.OP_HELPER and insns[at].imm == _TAIL_CALL:
                return True  # another program's result counts
            step = _effect(insns, at, kind, known_here)
            after = _after(insns, flow, at, kind, step)
            if len(after) == 1 and not flow.leaders[after[0]]:
                at = after[0]
                continue
            for place in after:
                if _join(at_entry, place, known_here):
                    work.append(place)
            break
    return False


def _widened(neutral: frozenset[int]) -> frozenset[int]:
    """The kernel takes 32 bits of the result."""
    return neutral | {value | 0xFFFFFFFF << 32 for value in neutral if value >> 31}


def _join(at_entry: dict[int, _Known], place: int, arriving: _Known) -> bool:
    """Keep what all ways to `place` agree on; whether that has changed."""
    before = at_entry.get(place)
    if before is None:
        at_entry[place] = dict(arriving)
        return True
    kept = {key: value for key, value in before.items() if arriving.get(key) == value}
    if len(kept) == len(before):
        return False
    at_entry[place] = kept
    return True


def _after(insns: list[Insn], flow: Flow, at: int, kind: int, step: int) -> list[int]:
    if kind in (isa.OP_JUMP, isa.OP_JUMP_LONG):
        return [flow.targets[at]]
    if kind == isa.OP_BRANCH:
        return [flow.targets[at], at + 1]
    return [at + step]


def _effect(insns: list[Insn], at: int, kind: int, values: _Known) -> int:
    """What one instruction does to the constants; the slots that it takes."""
    insn = insns[at]
    _, dst, src, _uses = isa.FORMS[insn.head]
    if kind in (isa.OP_HELPER, isa.OP_KFUNC, isa.OP_CALL, isa.OP_PACKET):
        # They may write to the stack through pointers that they are given.
        for key in [key for key in values if key < 6]:
            del values[key]
        return 1
    if kind == isa.OP_LD_IMM64:
        _set(values, dst, None if src else imm64(insn, insns[at + 1]) & _U64)
        return 2
    if kind in (isa.OP_SPILL, isa.OP_STORE, isa.OP_ATOMIC):
        _store(values, insn, kind, dst, src)
        return 1
    if kind in (isa.OP_BRANCH, isa.OP_JUMP, isa.OP_JUMP_LONG):
        return 1
    value = None
    if kind == isa.OP_MOVE and not insn.off:
        value = values.get(src)
    elif insn.code in (isa.ALU64 | isa.MOV, isa.ALU | isa.MOV):
        value = insn.imm & (_U64 if insn.code & 7 == isa.ALU64 else 0xFFFFFFFF)
    elif insn.code == isa.LDX | isa.MEM | isa.DW and src == 10:
        value = values.get(insn.off)
    _set(values, dst, value)
    return 1


def _store(values: _Known, insn: Insn, kind: int, dst: int, src: int) -> None:
    if dst != 10:  # may be a pointer to anywhere on the stack
        for key in [key for key in values if key < 0]:
            del values[key]
        if kind == isa.OP_ATOMIC:
            values.pop(src, None)
            values.pop(0, None)
        return
    for key in [key for key in values if key < 0 and insn.off - 8 < key < insn.off + 8]:
        del values[key]
    if kind == isa.OP_SPILL and insn.code == isa.STX | isa.MEM | isa.DW and src in values:
        values[insn.off] = values[src]
    elif kind == isa.OP_ATOMIC:
        values.pop(src, None)
        values.pop(0, None)


def _set(values: _Known, register: int, value: int | None) -> None:
    if value is None:
        values.pop(register, None)
    else:
        values[register] = value
