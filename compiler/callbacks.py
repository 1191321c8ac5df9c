"""Loops over maps: the kernel calls a subprogram back for each element.

What the loop's body shares with the code around it lies in a *frame*, a piece of the outer function's stack whose
address the callback gets. A frame starts with four words: the frame of the function that the outer one is itself a
callback of, whether `return` was met, the value returned, and the program's context, or in deferred blocks the map
element that they have their memory in.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, field

from bpfseal.compiler.analysis import nodes, variables
from bpfseal.compiler.gen import STATEMENTS, Buffer, Element, Gen, Loop, impossible, memory_type, register_type
from bpfseal.compiler.ir import I64, PTR, Function, Value, const
from bpfseal.compiler.unit import Declared, Unit
from bpfseal.dsl import typed, types
from bpfseal.dsl.typed import Stmt, Var
from bpfseal.dsl.types import is_scalar, size_of, tuple_layout

_PARAMETERS = (Value(PTR, "%map"), Value(PTR, "%key"), Value(PTR, "%value"), Value(PTR, "%context"))
_OUTER, _RETURNED, _RESULT, _CONTEXT, _FIRST = 0, 8, 16, 24, 32


class Frame(Struct):
    """Offsets of shared variables; `pointer` is the frame in the function being written."""

    pointer: Value
    offsets: dict[Var, int] = field(default_factory=dict)
    size: int = _FIRST
    outer: Frame | None = None


def empty_callback(unit: Unit) -> Value:
    """A callback that goes on to the next element."""
    name = "each_nothing"
    if name not in unit.declared:
        fn = Function(name, I64, _PARAMETERS, "internal ", f'section ".f.{name}" ')
        fn.ret(const(0))
        unit.add_function(fn, Declared())
    return Value(PTR, f"@{name}")


def loops(body: object) -> list[typed.ForMap]:
    """Loops over maps in a body, not those inside of others."""
    found: list[typed.ForMap] = []
    inside: set[int] = set()
    for node in nodes(body):
        if isinstance(node, typed.ForMap) and id(node) not in inside:
            found.append(node)
            inside |= {id(n) for n in nodes(node.body)}
    return found


def shared_variables(body: Sequence[Stmt]) -> list[Var]:
    """Variables of a body that its loops over maps use, too."""
    shared: dict[Var, None] = {}
    for loop in loops(body):
        within = {id(n) for n in nodes(loop)}
        outside = {n.var for n in nodes(body) if isinstance(n, typed.VarRef | typed.AssignVar) and id(n) not in within}
        for var in variables(loop.body):
            if var in outside:
                shared.setdefault(var)
    return list(shared)


def declare_variables(g: Gen, body: tuple[Stmt, ...], unset: set[Var]) -> None:
    """Places for the variables of a body; those in `unset` are zeroed."""
    looping = loops(body)
    inside = {var for loop in looping for var in variables(loop)}
    shared = shared_variables(body)
    if looping:
        g.frame = _new_frame(g, shared)
    for var in variables(body):
        if var in g.vars or (var in inside and var not in shared):
            continue
        if not is_scalar(var.type):
            g.vars[var] = g.reserve(size_of(var.type))
        else:
            g.vars[var] = Buffer(g.fn.slot(register_type(var.type)))
            continue
        if var in unset:
            g.clear(g.locate(g.vars[var]), size_of(var.type))


def _new_frame(g: Gen, shared: list[Var]) -> Frame:
    """Room for the shared variables, in the function's stack. Large ones are in scratch memory anyway."""
    frame = Frame(Value(PTR, ""), outer=g.frame)
    for var in shared:
        if var in g.vars:  # in memory already: what a deferred block has captured
            continue
        size = 8 if is_scalar(var.type) else size_of(var.type)
        if size <= max(8, g.unit.on_stack_limit):
            frame.offsets[var] = frame.size
            frame.size += (size + 7) & -8
    frame.pointer = g.fn.alloca(frame.size)
    g.stack_bytes += frame.size
    g.clear(frame.pointer, frame.size)
    for var, offset in frame.offsets.items():
        g.vars[var] = Buffer(g.fn.add(frame.pointer, offset))
    context = g.element.value if g.element is not None else g.ctx
    g.fn.store(context, g.fn.add(frame.pointer, _CONTEXT), 8)
    if frame.outer is not None:
        g.fn.store(frame.outer.pointer, g.fn.add(frame.pointer, _OUTER), 8)
    return frame


def for_map(g: Gen, node: typed.ForMap) -> None:
    unit, outer = g.unit, g.frame
    assert outer is not None
    map = unit.script_maps[node.map]
    if map.array:
        raise impossible("a loop over a map without keys")
    name = unit.fresh_name("each")
    fn = Function(name, I64, _PARAMETERS, "internal ", f'section ".f.{name}" ')
    inner = Gen(unit, fn, g.program, g.probe)
    inner.deferred = g.deferred
    inner.probe_number = g.probe_number
    _enter(inner, outer)
    if g.element is not None:  # its memory is the loop's, too; the kernel walks over a map without sleeping
        inner.element = Element(inner.handed_down, g.element.size, faults=False)
    inner.vars |= {var: place for var, place in g.vars.items() if place.stack is None}
    again, leave = fn.fresh("next"), fn.fresh("stop")
    inner.leave = _leaver(inner, leave)
    from bpfseal.compiler.analysis import unset_variables

    declare_variables(
        inner,
        (typed.Scope(node.body), typed.Do(typed.VarRef(node.variable, node.variable.type))),
        unset_variables(node.body) - {node.variable},
    )
    _element(inner, node)
    inner.loops.append(Loop(again, leave))
    inner.statements(node.body)
    fn.start(again)
    fn.ret(const(0))
    fn.start(leave)
    fn.ret(const(1))
    if g.element is not None and inner.element is not None:
        g.element.size = inner.element.size
    unit.add_function(fn, inner.declared)
    g.declared.use(map.index, "iterate")
    from bpfseal.compiler.loops import make_unknown

    make_unknown(g, node.body, g.vars)
    g.helper("for_each_map_elem", unit.map(map.index), Value(PTR, f"@{name}"), outer.pointer, const(0))
    if _returns(node.body):
        returned = g.fn.load(I64, g.fn.add(outer.pointer, _RETURNED), 8)
        with g.when(g.truth(returned), "returned"):
            # A constant where the script gives no value: the signing helper is to see what the program returns.
            result = g.fn.load(I64, g.fn.add(outer.pointer, _RESULT), 8) if _returns_values(node.body) else None
            g.leave(result)


def _enter(inner: Gen, outer: Frame) -> None:
    """Make the variables of the frames around a callback known in it."""
    pointer = Value(PTR, "%context")
    frame: Frame | None = outer
    mine: Frame | None = None
    first: Frame | None = None
    while frame is not None:
        here = Frame(pointer, frame.offsets, frame.size)
        for var, offset in frame.offsets.items():
            if var not in inner.vars:
                inner.vars[var] = Buffer(inner.fn.add(pointer, offset))
        if mine is not None:
            mine.outer = here
        else:
            first = here
        mine = here
        frame = frame.outer
        if frame is not None:
            pointer = inner.fn.load(PTR, inner.fn.add(pointer, _OUTER), 8)
    inner.frame = first
    if first is not None:
        inner.handed_down = inner.fn.load(PTR, inner.fn.add(first.pointer, _CONTEXT), 8)


def _leaver(inner: Gen, leave: str):  # type: ignore[no-untyped-def]
    """`return` in a callback: note it in the frame, and end the walk."""

    def done(value: Value | None) -> None:
        assert inner.frame is not None
        frame = inner.callback_frame or inner.frame
        inner.fn.store(const(1), inner.fn.add(frame.pointer, _RETURNED), 8)
        if value is None:
            value = const(inner.program.result if inner.program is not None else 0)
        inner.fn.store(inner.fn.integer(value, I64, signed=True), inner.fn.add(frame.pointer, _RESULT), 8)
        inner.fn.jump(leave)

    inner.callback_frame = inner.frame
    return done


def _returns(body: object) -> bool:
    return any(isinstance(n, typed.Jump) and n.kind == "return" for n in nodes(body)) or any(
        isinstance(n, typed.Call) and n.name == "exit" for n in nodes(body)
    )


def _returns_values(body: object) -> bool:
    return any(isinstance(n, typed.Jump) and n.kind == "return" and n.value is not None for n in nodes(body))


def _element(g: Gen, node: typed.ForMap) -> None:
    """The loop variable: a tuple of copies of key and value."""
    type = node.variable.type
    assert isinstance(type, types.Tuple)
    key_at, value_at = tuple_layout(type)[0]
    key_type, value_type = type.elements
    target = g.locate(g.vars[node.variable])
    from bpfseal.compiler.values import clear_gaps

    clear_gaps(g, type, target)
    _copy(g, g.fn.add(target, key_at), Value(PTR, "%key"), key_type)
    if isinstance(node.map.value, types.Aggregate):
        from bpfseal.compiler.aggregates import total

        value = g.fn.integer(total(g, node.map, Value(PTR, "%key")), register_type(value_type))
        g.store_scalar(value, value_type, g.fn.add(target, value_at))
        return
    g.declared.use(g.unit.script_maps[node.map].index, "read")
    _copy(g, g.fn.add(target, value_at), Value(PTR, "%value"), value_type)


def _copy(g: Gen, target: Value, source: Value, type: types.Type) -> None:
    size = size_of(type)
    if is_scalar(type):
        g.fn.store(g.fn.load(memory_type(type), source, size), target, size)
    else:
        align = 8 if size % 8 == 0 else size & -size
        g.copy(target, source, size, min(align, 8))


STATEMENTS[typed.ForMap] = for_map
