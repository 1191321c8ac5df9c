"""Events: records in the ring buffer for the client, and what is counted when there is no room."""

from __future__ import annotations

from collections.abc import Sequence

from bpfseal.compiler.gen import Gen, is_signed
from bpfseal.compiler.ir import I32, I64, Function, Value, const
from bpfseal.compiler.layout import EVENT_HEADER, EventField, EventLayout
from bpfseal.compiler.unit import Declared
from bpfseal.dsl import typed, types
from bpfseal.dsl.source import Span
from bpfseal.dsl.types import Type, align_of, is_scalar, size_of

_LOST = 0  # slot of the counters
_FORCE_WAKEUP = 2  # BPF_RB_FORCE_WAKEUP


def add_event(
    g: Gen,
    action: str,
    span: Span,
    *,
    format: bytes = b"",
    map: str = "",
    types: Sequence[Type] = (),
    options: dict[str, int | str] | None = None,
) -> tuple[int, tuple[int, ...], int]:
    """Describe a call to the reader: (event number, offset of each value, record's size).

    Memory values are 8-byte aligned; the largest comes last, since records may be cut behind it.
    """
    offsets, size = _layout(types)
    fields = tuple(EventField(offset=at, shape=g.unit.shapes.of(type)) for at, type in zip(offsets, types, strict=True))
    number = len(g.unit.events)
    options = dict(options or {})
    if span.via is not None and action in ("errorf", "warnf"):
        options["via"] = _call_sites(g, span)
    g.unit.events.append(
        EventLayout(
            action=action,
            size=size,
            format=format,
            map=map,
            fields=fields,
            options=dict(sorted(options.items())),
            where=where(g, span),
        )
    )
    return number, offsets, size


def _layout(types: Sequence[Type]) -> tuple[tuple[int, ...], int]:
    """Offsets of values in a record: numbers first, then memory by growing size."""
    order = sorted(
        range(len(types)),
        key=lambda n: (not is_scalar(types[n]), size_of(types[n]) if not is_scalar(types[n]) else -size_of(types[n])),
    )
    offsets = [0] * len(types)
    at = EVENT_HEADER
    for n in order:
        align = align_of(types[n]) if is_scalar(types[n]) else 8
        at = (at + align - 1) & -align
        offsets[n] = at
        at += size_of(types[n])
    return tuple(offsets), at


def where(g: Gen, span: Span) -> str:
    """ "file:line:col-col" of a place in the script, see EventLayout.where."""
    sources = g.unit.script.sources
    if not 0 <= span.source < len(sources):
        return ""
    source = sources[span.source]
    line, column = source.position(span.start)
    last_line, end = source.position(span.end)
    return f"{source.name}:{line}:{column}-{end}" if last_line == line else f"{source.name}:{line}:{column}"


def _call_sites(g: Gen, span: Span) -> str:
    """A line for each place that the macro of `span` was called from, innermost first."""
    places = []
    while span.via is not None:
        span = span.via
        places.append(where(g, span))
    return "\n".join(places)


# --- sending ----------------------------------------------------------------------------------------------------


def send(g: Gen, number: int, offsets: Sequence[int], size: int, values: Sequence[typed.Expr]) -> None:
    """Reserve a record, fill it in place, submit it. Values with side effects, and those before them, are made before:
    in the order in which they stand, and even when the record is lost. In deferred blocks all are: while a record waits
    for a page, nobody gets at those behind it."""
    effects = max((n for n, value in enumerate(values) if g.deferred or has_effects(value)), default=-1)
    early = {n: evaluated(g, value) for n, value in enumerate(values[: effects + 1])}
    record = reserve(g, size)
    with g.unless(g.fn.is_null(record), "room"):
        header(g, record, number)
        for n, (at, value) in enumerate(zip(offsets, values, strict=True)):
            target = g.fn.add(record, at)
            if n in early:
                place = early[n]
                if is_scalar(value.type):
                    g.store_scalar(place, value.type, target)
                else:
                    g.copy(target, place, size_of(value.type))
            else:
                g.store(value, target, clean=False)
        g.helper("ringbuf_submit", record, const(0))


def evaluated(g: Gen, value: typed.Expr) -> Value:
    return g.scalar(value) if is_scalar(value.type) else g.address(value)


def has_effects(value: typed.Expr) -> bool:
    from bpfseal.compiler.mapping import mentions

    return mentions(value, lambda e: isinstance(e, typed.IncDec | typed.CallUser | typed.BlockExpr))


def reserve(g: Gen, size: int) -> Value:
    """A record of the event ring, null when there is no room; the loss is counted."""
    index = g.unit.ring_index()
    record = g.helper_on_map("ringbuf_reserve", index, "output", const(size), const(0))
    with g.when(g.fn.is_null(record), "lost"):
        count_failure(g, _LOST)
    return record


def output(g: Gen, record: Value, size: int) -> None:
    """Copy a record to the event ring; the loss is counted when there is no room."""
    failed = g.helper_on_map("ringbuf_output", g.unit.ring_index(), "output", record, const(size), const(0))
    with g.unless(g.fn.compare("eq", failed, const(0)), "lost"):
        count_failure(g, _LOST)


def header(g: Gen, target: Value, number: int) -> None:
    probe = g.probe_number
    if probe.text.isdigit():
        g.fn.store(const(number | int(probe.text) << 32), target, 8)
    else:
        g.fn.store(const(number, I32), target, 4)
        g.fn.store(probe, g.fn.add(target, 4), 4)


def control(g: Gen, number: int, values: Sequence[tuple[int, Value]] = (), size: int = EVENT_HEADER) -> None:
    """An event that must not be lost: to the event ring, and if that is full to the small one beside it."""
    if not values and g.probe_number.text.isdigit():
        if "send_control" not in g.unit.declared:
            _write_sender(g)
        g.fn.do(f"call void @send_control(i64 {number | int(g.probe_number.text) << 32})")
        return
    target = g.buffer(size)
    header(g, target, number)
    for at, value in values:
        g.fn.store(value, g.fn.add(target, at), 8)
    _output(g, target, size)


def _output(g: Gen, record: Value, size: int) -> None:
    ring, spare = g.unit.ring_index(), g.unit.control_index()
    wake = const(_FORCE_WAKEUP)
    failed = g.helper_on_map("ringbuf_output", ring, "output", record, const(size), wake)
    with g.unless(g.fn.compare("eq", failed, const(0)), "full"):
        failed = g.helper_on_map("ringbuf_output", spare, "output", record, const(size), wake)
        with g.unless(g.fn.compare("eq", failed, const(0)), "lost"):
            count_failure(g, _LOST)


def _write_sender(g: Gen) -> None:
    """A subprogram that sends an event which is nothing but its header."""
    fn = _subprogram(g, "send_control", Value(I64, "%header"))
    inner = Gen(g.unit, fn)
    record = inner.buffer(EVENT_HEADER)
    fn.store(Value(I64, "%header"), record, 8)
    _output(inner, record, EVENT_HEADER)
    fn.ret()
    g.unit.add_function(fn, inner.declared)


def _subprogram(g: Gen, name: str, parameter: Value) -> Function:
    """One for what is called from many places and seldom."""
    g.unit.declared[name] = Declared()  # known from here on, should writing it need it
    return Function(name, "void", (parameter,), "internal ", f'cold noinline section ".f.{name}" ')


def count_failure(g: Gen, slot: int) -> None:
    """Add one to a slot of the counters."""
    g.unit.counters_index()
    if "count_failure" not in g.unit.declared:
        _write_counter(g)
    g.fn.do(f"call void @count_failure(i32 {slot})")


def _write_counter(g: Gen) -> None:
    """A subprogram of its own: it is called from many places and hardly ever run."""
    unit = g.unit
    fn = _subprogram(g, "count_failure", Value(I32, "%slot"))
    inner = Gen(unit, fn)
    key = inner.buffer(4, 4)
    fn.store(Value(I32, "%slot"), key, 4)
    index = unit.counters_index()
    found = inner.helper_on_map("map_lookup_elem", index, "read", key)
    inner.declared.use(index, "write")
    with inner.unless(fn.is_null(found), "found"):
        fn.atomic_add(const(1), found)
    fn.ret()
    unit.add_function(fn, inner.declared)


# --- actions ----------------------------------------------------------------------------------------------------


def formatted(g: Gen, node: typed.Call) -> None:
    """printf and its family."""
    format = node.options["format"]
    assert isinstance(format, bytes)
    number, offsets, size = add_event(
        g, node.name, node.span, format=format, types=[a.type for a in node.args], options=_signs(node)
    )
    send(g, number, offsets, size, node.args)


def _signs(node: typed.Call) -> dict[str, int | str] | None:
    return None


def print_(g: Gen, node: typed.Call) -> None:
    if node.map is not None and not node.options.get("element"):
        options: dict[str, int | str] = {
            name: value for name in ("top", "div") if isinstance(value := node.options.get(name, 0), int) and value
        }
        number, _, _ = add_event(g, "print_map", node.span, map=f"@{node.map.name}", options=options)
        control(g, number)
        return
    if node.map is not None:
        _print_element(g, node)
        return
    (value,) = node.args
    number, offsets, size = add_event(g, "print", node.span, types=[value.type])
    send(g, number, offsets, size, node.args)


def _print_element(g: Gen, node: typed.Call) -> None:
    """print(@m[k]) of stats(): count, average and total of the element."""
    from bpfseal.compiler.aggregates import read_stats

    assert node.map is not None
    kind = node.map.value
    assert isinstance(kind, types.Aggregate)
    number_type = types.Int(64, kind.signed)
    type = types.Tuple((types.U64, number_type, number_type), ("count", "average", "total"))
    number, (at,), size = add_event(g, "print", node.span, types=[type])
    values = read_stats(g, node.map, node.key)
    record = reserve(g, size)
    with g.unless(g.fn.is_null(record), "room"):
        header(g, record, number)
        for n, value in enumerate(values):
            g.fn.store(value, g.fn.add(record, at + 8 * n), 8)
        g.helper("ringbuf_submit", record, const(0))


def whole_map(g: Gen, node: typed.Call) -> None:
    """clear and zero."""
    assert node.map is not None
    number, _, _ = add_event(g, node.name, node.span, map=f"@{node.map.name}")
    control(g, number)


def exit_(g: Gen, node: typed.Call) -> None:
    number, offsets, size = add_event(g, "exit", node.span, types=[a.type for a in node.args])
    values = [(at, g.fn.integer(g.scalar(a), I64, is_signed(a.type))) for at, a in zip(offsets, node.args, strict=True)]
    control(g, number, values, size)
    g.leave(None)


def time(g: Gen, node: typed.Call) -> None:
    format = node.options["format"]
    assert isinstance(format, bytes)
    number, _, size = add_event(g, "time", node.span, format=format)
    send(g, number, (), size, ())


def unwatch(g: Gen, node: typed.Call) -> None:
    number, offsets, size = add_event(g, "unwatch", node.span, types=[types.U64])
    send(g, number, offsets, size, node.args)


def capture(g: Gen, node: typed.Call) -> None:
    from bpfseal.compiler.capture import capture

    capture(g, node)


def runtime_error(g: Gen, kind: str, span: Span, result: Value | None = None, helper: str = "") -> None:
    """Tell the client that something went wrong. `kind`: divide_by_zero, array_bounds, kstack, ustack, helper."""
    options: dict[str, int | str] = {"kind": kind}
    if helper:
        options["helper"] = helper
    number, (at,), size = add_event(g, "runtime_error", span, types=[types.I32], options=options)
    code = g.fn.integer(result, I32) if result is not None else const(0, I32)
    record = reserve(g, size)
    with g.unless(g.fn.is_null(record), "room"):
        header(g, record, number)
        g.fn.store(code, g.fn.add(record, at), 4)
        g.helper("ringbuf_submit", record, const(0))


EFFECTS = {
    "printf": formatted,
    "errorf": formatted,
    "warnf": formatted,
    "cat": formatted,
    "system": formatted,
    "print": print_,
    "clear": whole_map,
    "zero": whole_map,
    "exit": exit_,
    "time": time,
    "unwatch": unwatch,
    "capture": capture,
}
