"""Loops: counted ones of the compiler's own, while, ranges, and loops over maps.

The verifier wants to see that a loop ends. Loops with a constant count are plain: it runs through them. For the others
each round passes a `may_goto`, the kernel's own bound on loops (8 million rounds), so that the verifier is content to
see one round. LLVM knows no such instruction: `edit` makes it of a marker, which has to be followed by its branch; the
fence behind that keeps LLVM from joining the branch with another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bpfseal.compiler.analysis import nodes
from bpfseal.compiler.edit import BOUND, FENCE
from bpfseal.compiler.gen import STATEMENTS, Buffer, Gen, Loop, is_signed, register_type
from bpfseal.compiler.ir import I64, Value, const
from bpfseal.compiler.mapping import store_variable
from bpfseal.dsl import typed, types
from bpfseal.dsl.types import size_of


@contextmanager
def counted(g: Gen, count: int) -> Iterator[Value]:
    """Run what is written inside `count` times; the value is the round, an i64 from 0."""
    fn = g.fn
    counter = fn.slot(I64)
    again, after = fn.fresh("again"), fn.fresh("after")
    fn.store(const(0), counter, 8)
    fn.start(again)
    number = fn.load(I64, counter, 8)
    yield number
    up = fn.binary("add", number, const(1))
    fn.store(up, counter, 8)
    fn.branch(fn.compare("ult", up, const(count)), again, after)
    fn.start(after)


def may_leave(g: Gen, leave: str) -> None:
    """A may_goto to `leave`: what makes the verifier believe in the end of a loop."""
    inside = g.fn.fresh("round")
    spent = g.fn.op(I64, f"call i64 @llvm.bpf.pseudo(i64 {BOUND}, i64 0)")
    g.fn.branch(g.fn.compare("eq", spent, const(0)), inside, leave)
    g.fn.start(inside)
    g.fn.op(I64, f"call i64 @llvm.bpf.pseudo(i64 {FENCE}, i64 0)")


def make_unknown(g: Gen, body: object, places: dict[typed.Var, Buffer]) -> None:
    """Let the verifier forget the values of the integers that a loop changes and tests: else it would take each round
    for a new case."""
    changed = set()
    for node in nodes(body):
        match node:
            case typed.AssignVar(var=var) | typed.IncDec(target=typed.VarRef(var=var)):
                changed.add(var)
            case _:
                pass
    tested = {n.var for n in _tests(body) if isinstance(n, typed.VarRef)}
    for var in places:
        if var in changed and var in tested and isinstance(var.type, types.Int):
            place = g.locate(places[var])
            type = register_type(var.type)
            align = size_of(var.type)
            known = g.fn.load(type, place, align)
            g.fn.store(g.fn.binary("add", known, g.fn.integer(g.unknown_zero(), type)), place, align)


def _tests(body: object) -> Iterator[object]:
    for node in nodes(body):
        if isinstance(node, typed.If | typed.While | typed.Ternary):
            yield from nodes(node.condition)
        elif isinstance(node, typed.Logical | typed.ForRange):
            yield from nodes(node)


def while_(g: Gen, node: typed.While) -> None:
    fn = g.fn
    make_unknown(g, node, g.vars)
    again, after = fn.fresh("while"), fn.fresh("after")
    fn.start(again)
    may_leave(g, after)
    inside = fn.fresh("body")
    fn.branch(g.scalar(node.condition), inside, after)
    fn.start(inside)
    _body(g, node.body, again, after)
    fn.jump(again)
    fn.start(after)


def _body(g: Gen, body: tuple[typed.Stmt, ...], again: str, leave: str) -> None:
    g.loops.append(Loop(again, leave))
    g.statements(body)
    g.loops.pop()


def for_range(g: Gen, node: typed.ForRange) -> None:
    fn = g.fn
    type = register_type(node.variable.type)
    align = size_of(node.variable.type)
    low, high = g.scalar(node.low), g.scalar(node.high)
    counter = fn.slot(type)
    fn.store(fn.binary("add", low, fn.integer(g.unknown_zero(), type)), counter, align)
    make_unknown(g, node.body, g.vars)
    head, step, after = fn.fresh("for"), fn.fresh("step"), fn.fresh("after")
    fn.start(head)
    may_leave(g, after)
    inside = fn.fresh("body")
    now = fn.load(type, counter, align)
    fn.branch(fn.compare("slt" if is_signed(node.variable.type) else "ult", now, high), inside, after)
    fn.start(inside)
    store_variable(g, now, g.locate(g.vars[node.variable]))
    _body(g, node.body, step, after)
    fn.start(step)
    fn.store(fn.binary("add", fn.load(type, counter, align), const(1, type)), counter, align)
    fn.jump(head)
    fn.start(after)


STATEMENTS[typed.While] = while_
STATEMENTS[typed.ForRange] = for_range
