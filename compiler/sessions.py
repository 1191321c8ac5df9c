"""A block on entries and one on returns of the same functions: one program, one link, where the kernel has sessions.

The kernel calls a program of a session at both ends, and `bpf_session_is_return` tells it which end it is
(kernel/trace/bpf_trace.c; Linux 6.10 for kernel functions, 6.13 for those of programs). Attaching costs half as much,
and so does every call: entry and return are one hook and not two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from bpfseal.compiler.analysis import nodes
from bpfseal.compiler.gen import Gen
from bpfseal.compiler.ir import Value, const
from bpfseal.compiler.plan import KPROBE_MULTI, UPROBE_MULTI, Program
from bpfseal.compiler.unit import Unit
from bpfseal.dsl import typed

KPROBE_SESSION, UPROBE_SESSION = 56, 57
IS_RETURN: Final = "bpf_session_is_return"
_SESSIONS: Final = {KPROBE_MULTI: KPROBE_SESSION, UPROBE_MULTI: UPROBE_SESSION}
_RETURNS: Final = {"kprobe": "kretprobe", "uprobe": "uretprobe"}


class Part(Struct, frozen=True):
    """A program before its code, with what it is made from."""

    program: Program
    probe: typed.Probe
    bodies: Sequence[tuple[typed.Stmt, ...]]


def paired(unit: Unit, parts: Sequence[Part]) -> list[tuple[Part, ...]]:
    """The parts one by one, but those that make a session together: (entry, return). Only where it is clear which
    belongs to which: exactly one of each for the same functions."""
    entries: dict[object, list[Part]] = {}
    returns: dict[object, list[Part]] = {}
    for part in parts:
        if (key := _place(part)) is not None:
            side = returns if part.program.kind in _RETURNS.values() else entries
            side.setdefault(key, []).append(part)
    # The kernel's types are opened for this question only, by programs that need no other of them.
    if not entries.keys() & returns.keys() or not unit.kernel.kfunc(IS_RETURN):
        return [(part,) for part in parts]
    found: list[tuple[Part, ...]] = []
    taken: set[str] = set()
    for part in parts:
        program = part.program
        if program.name in taken:
            continue
        key = _place(part)
        here, there = entries.get(key, []), returns.get(key, [])
        if key is None or len(here) != 1 or len(there) != 1:
            found.append((part,))
            continue
        entry, leaving = here[0], there[0]
        taken |= {entry.program.name, leaving.program.name}
        found.append((replace(entry, program=_in_session(entry.program)), leaving))
    return found


def _place(part: Part) -> tuple[object, ...] | None:
    """What two programs of a session have in common; None for those that cannot be in one."""
    program = part.program
    if len(program.attach) != 1 or not (program.expected in _SESSIONS or _alone(part)):
        return None
    attach = program.attach[0]
    params = tuple(sorted((name, value) for name, value in attach.params.items() if name != "retprobe"))
    return attach.kind, attach.target, attach.symbols, attach.offsets, attach.cookies, params


def _alone(part: Part) -> bool:
    """Whether a probe on one kernel function can do with what a link of many has: a session's programs see the
    registers of arguments and results, and not the others (kernel/trace/bpf_trace.c, ftrace_partial_regs)."""
    points = part.program.points
    if len(points) != 1 or points[0].kind not in ("kprobe", "kretprobe") or ("multi", 1) not in points[0].params:
        return False
    return not any(isinstance(node, typed.Call) and node.name == "reg" for node in nodes(part.bodies))


def _in_session(program: Program) -> Program:
    (attach,) = program.attach
    if attach.kind == "kprobe":
        attach = replace(attach, kind="kprobe_multi", target="", symbols=(attach.target,), cookies=(0,))
        program = replace(program, expected=KPROBE_MULTI)
    return replace(
        program,
        expected=_SESSIONS[program.expected],
        attach=(replace(attach, params={**attach.params, "session": 1}),),
    )


def returning(g: Gen) -> Value:
    """Whether the function returns now."""
    # Until Linux 7.0 it takes no argument; then it takes the context. A register more than is looked at does no harm.
    return g.fn.compare("ne", g.kfunc("i8", IS_RETURN, g.ctx), const(0, "i8"))
