"""Control flow of one program: where subprograms and blocks begin, and that no jump leaves its subprogram.

The rules are those of `check_subprogs` and `check_cfg` in `kernel/bpf/verifier.c`, and stricter in two places: code
that nothing reaches is refused, and so is recursion, before the kernel is asked.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

from msgspec import Struct

from bpfseal.signer.insn import (
    FORMS,
    JMP,
    JMP32,
    LD_IMM64,
    OP_BRANCH,
    OP_CALL,
    OP_EXIT,
    OP_JUMP,
    OP_LD_IMM64,
    PSEUDO_FUNC,
    Insn,
)
from bpfseal.signer.refusal import Refusal

MAX_SUBPROGRAMS: Final = 256  # BPF_MAX_SUBPROGS
# Opcodes that matter here: jumps, calls and exits, and the two halves of ld_imm64.
_CONTROL_CODES: Final = frozenset(code for code in range(256) if code & 7 in (JMP, JMP32)) | {LD_IMM64, 0}


class Flow(Struct, frozen=True):
    """Shape of a program.

    starts    first slot of each subprogram, ascending; the main program is at 0
    leaders   one byte per slot: 1 where a jump, a call or a callback can arrive
    targets   jump target by slot, for jumps and branches; callee's first slot for calls and callbacks
    """

    starts: list[int]
    leaders: bytearray
    targets: dict[int, int]

    def subprogram(self, slot: int) -> int:
        """Number of the subprogram that a slot is in."""
        return bisect_right(self.starts, slot) - 1


def split(insns: list[Insn]) -> Flow:
    """Subprograms and jump targets of a decoded program; linear but for sorting the subprograms.

    Raises Refusal for jumps and calls that leave their place, code that falls off an end, code after an exit that
    nothing jumps to, and recursion.
    """
    count, forms = len(insns), FORMS
    targets: dict[int, int] = {}
    jumps: list[int] = []
    calls: list[int] = []
    ends: list[int] = []
    starts = {0}
    halves: set[int] = set()
    codes = _CONTROL_CODES
    for at, (head, off, imm) in [(at, insn) for at, insn in enumerate(insns) if insn[0] & 255 in codes]:
        if not head:
            halves.add(at)
            continue
        kind, _dst, src, _uses = forms[head]
        if kind in (OP_BRANCH, OP_JUMP):
            targets[at] = at + 1 + off
            jumps.append(at)
            if kind == OP_JUMP:
                ends.append(at)
        elif kind == OP_CALL or (kind == OP_LD_IMM64 and src == PSEUDO_FUNC):
            target = at + 1 + imm
            if not 0 <= target < count:
                raise Refusal("call", f"call to {target}, outside the program", insn=at)
            targets[at] = target
            starts.add(target)
            calls.append(at)
        elif kind >= OP_EXIT:
            ends.append(at)
        elif kind > OP_JUMP:
            targets[at] = at + 1 + imm
            jumps.append(at)
            ends.append(at)
    if len(starts) > MAX_SUBPROGRAMS:
        raise Refusal("call", f"{len(starts)} subprograms are over the limit of {MAX_SUBPROGRAMS}")
    if halves & starts:
        at = min(at for at, target in targets.items() if target in halves and target in starts)
        raise Refusal("call", "call into the second half of ld_imm64", insn=at)
    flow = Flow(sorted(starts), bytearray(count + 1), targets)
    _confine(flow, jumps, halves, count)
    for start in starts:
        flow.leaders[start] = 1
    _check_ends(flow, set(ends), count)
    if calls:
        _refuse_recursion(flow, calls)
    return flow


def _confine(flow: Flow, jumps: list[int], halves: set[int], count: int) -> None:
    """Every jump stays in its subprogram and lands on a whole instruction."""
    number, low, high = -1, 0, 0
    leaders, targets = flow.leaders, flow.targets
    for at in jumps:
        while at >= high:
            number += 1
            low = flow.starts[number]
            high = flow.starts[number + 1] if number + 1 < len(flow.starts) else count
        target = targets[at]
        if not low <= target < high:
            raise Refusal("jump", f"jump to {target}, outside the subprogram at {low}..{high - 1}", insn=at)
        if target in halves:
            raise Refusal("jump", f"jump into the second half of ld_imm64 at {target}", insn=at)
        leaders[target] = 1


def _check_ends(flow: Flow, ends: set[int], count: int) -> None:
    """Each subprogram ends with an exit or a jump, and what follows such an end can be reached somehow."""
    for start in [*flow.starts[1:], count]:
        if start - 1 not in ends:
            raise Refusal("fallthrough", "last instruction of a subprogram is neither exit nor jump", insn=start - 1)
    leaders = flow.leaders
    for end in sorted(ends):
        if end + 1 < count and not leaders[end + 1]:
            raise Refusal("unreachable", "no path reaches this instruction", insn=end + 1)


def _refuse_recursion(flow: Flow, calls: list[int]) -> None:
    callees: dict[int, list[int]] = {}
    for at in calls:
        callees.setdefault(flow.subprogram(at), []).append(at)
    state: dict[int, int] = {}  # 1 on the current path, 2 done
    for root in callees:
        path = [(root, iter(callees[root]))] if root not in state else []
        state.setdefault(root, 1)
        while path:
            number, rest = path[-1]
            at = next(rest, -1)
            if at < 0:
                state[number] = 2
                path.pop()
                continue
            callee = flow.subprogram(flow.targets[at])
            if state.get(callee) == 1:
                raise Refusal("recursion", "a subprogram calls itself, directly or through others", insn=at)
            if callee not in state:
                state[callee] = 1
                path.append((callee, iter(callees.get(callee, ()))))
