"""Functions on time, processes, files, and what acts on the traced process."""

from __future__ import annotations

from bpfseal.compiler import addresses, events
from bpfseal.compiler.gen import Gen, Memory, Scalar, Statement
from bpfseal.compiler.ir import I32, I64, Value, const
from bpfseal.compiler.layout import SESSION_WALL_OFFSET_NS
from bpfseal.compiler.loops import counted
from bpfseal.compiler.memory import place_of, read_bytes, read_text
from bpfseal.compiler.plan import RAW_TRACEPOINT
from bpfseal.dsl import typed, types
from bpfseal.dsl.types import is_scalar, size_of
from bpfseal.errors import BpfsealError

_CLOCKS = {"boot": "ktime_get_boot_ns", "monotonic": "ktime_get_ns", "tai": "ktime_get_tai_ns"}
_JOIN_WORDS = 16  # the reference's limits
_JOIN_SIZE = 1024


def _nsecs(g: Gen, node: typed.Call) -> Value:
    clock = str(node.options["clock"])
    if clock == "sw_tai":
        from bpfseal.compiler.names import session_word

        return g.fn.binary("add", g.helper("ktime_get_boot_ns"), session_word(g, SESSION_WALL_OFFSET_NS))
    return g.helper(_CLOCKS[clock])


def _strftime(g: Gen, node: typed.Call, target: Value, clean: bool) -> None:
    format = node.options["format"]
    assert isinstance(format, bytes)
    g.fn.store(const(g.unit.format(format)), target, 8)
    g.fn.store(g.scalar(node.args[0]), g.fn.add(target, 8), 8)


def _cgroup_path(g: Gen, node: typed.Call, target: Value, clean: bool) -> None:
    filter = node.options.get("filter", b"")
    assert isinstance(filter, bytes)
    g.fn.store(const(g.unit.format(filter)), target, 8)
    g.fn.store(g.scalar(node.args[0]), g.fn.add(target, 8), 8)


def _path(g: Gen, node: typed.Call, target: Value, clean: bool) -> None:
    size = size_of(node.type)
    if g.deferred:
        from bpfseal.compiler.paths import walk

        g.clear(target, size)
        walk(g, g.fn.integer(g.scalar(node.args[0]), I64), target, size)
        return
    place = place_of(g, typed.Deref(node.args[0], types.Record("struct path", 16), node.span))
    g.clear(target, size)

    def read() -> None:
        g.helper("d_path", g.fn.add(g.fn.pointer(place.base), place.offset), target, const(size))

    if place.maybe_null:
        with g.unless(g.fn.is_null(g.fn.pointer(place.base)), "present"):
            read()
    else:
        read()


def length(g: Gen, node: typed.Call) -> Value:
    """Frames of a stack, or elements of a map."""
    if node.map is not None:
        return _map_length(g, node.map)
    (stack,) = node.args
    assert isinstance(stack.type, types.Stack)
    if isinstance(stack, typed.Call):
        return addresses.count_frames(g, stack.type, stack.name)
    return g.fn.load(I64, g.fn.add(g.address(stack), 16), 8)


def _map_length(g: Gen, definition: typed.MapDef) -> Value:
    """By walking over it with a callback that counts; the result of the walk is the number of elements."""
    from bpfseal.compiler.callbacks import empty_callback

    map = g.unit.script_maps[definition]
    g.declared.use(map.index, "iterate")
    callback = empty_callback(g.unit)
    return g.helper("for_each_map_elem", g.unit.map(map.index), callback, Value("ptr", "null"), const(0))


def _comm(g: Gen, node: typed.Call, target: Value, clean: bool) -> None:
    """The name of a process by its id: the task is held while it is read."""
    if g.program is None or g.program.type == RAW_TRACEPOINT:
        raise BpfsealError("comm(pid) cannot be used in begin and end probes: the kernel has no look-up of tasks there")
    g.clear(target, size_of(node.type))
    task = g.kfunc("ptr", "bpf_task_from_pid", g.fn.integer(g.scalar(node.args[0]), I32))
    with g.unless(g.fn.is_null(task), "task"):
        field = g.unit.kernel.record("struct task_struct")
        comm = field.field("comm") if field is not None else None
        offset = comm.offset if comm is not None else 0
        g.helper("probe_read_kernel_str", target, const(size_of(node.type)), g.fn.add(task, offset))
        g.kfunc("void", "bpf_task_release", task)


def _signal(name: str) -> Statement:
    def make(g: Gen, node: typed.Call) -> None:
        result = g.helper(name, g.scalar(node.args[0]))
        if g.unit.options.helper_errors:
            g.report_failure(name, result)

    return make


def _override(g: Gen, node: typed.Call) -> None:
    g.helper("override_return", g.ctx, g.scalar(node.args[0]))


def _write_user(g: Gen, node: typed.Call) -> Value:
    target, source, count = node.args
    if isinstance(source.type, types.Ptr):
        from_where = g.fn.pointer(g.scalar(source))
        most = size_of(source.type.to) if source.type.to is not None else 0
    else:
        from_where, most = g.address(source), size_of(source.type)
    number = g.fn.integer(g.scalar(count), I64)
    if not isinstance(count, typed.Int):
        limit = const(most)
        number = g.fn.select(g.fn.compare("ult", number, limit), number, limit)
    result = g.helper("probe_write_user", g.fn.integer(g.scalar(target), I64), from_where, number)
    return g.fn.compare("eq", result, const(0))


def _join(g: Gen, node: typed.Call) -> None:
    """An event with room for the reference's 16 words of 1 KiB; the client drops empty ones at the end."""
    (words,) = node.args
    separator = node.options["separator"]
    assert isinstance(separator, bytes)
    assert isinstance(words.type, types.Ptr)
    space = words.type.space
    number, offsets, size = events.add_event(
        g, "join", node.span, format=separator, types=[types.Str(_JOIN_SIZE)] * _JOIN_WORDS
    )
    array = g.fn.integer(g.scalar(words), I64)
    # While a record waits for a page nobody gets at those behind it: deferred blocks make theirs elsewhere.
    record = g.locate(g.reserve_scratch(size)) if g.deferred else events.reserve(g, size)
    fn = g.fn
    done = fn.slot("i1")
    with g.unless(fn.is_null(record), "room"):
        events.header(g, record, number)
        word_at = g.buffer(8)
        with counted(g, _JOIN_WORDS) as n:
            target = fn.index(fn.add(record, offsets[0]), fn.binary("mul", n, const(_JOIN_SIZE)))
            fn.store(const(0, "i8"), target, 1)
            with g.unless(fn.load("i1", done, 1), "more"):
                at = fn.binary("add", array, fn.binary("shl", n, const(3)))
                read_bytes(g, space, word_at, const(8), at)
                word = fn.load(I64, word_at, 8)
                fn.store(fn.compare("eq", word, const(0)), done, 1)
                with g.when(g.truth(word), "word"):
                    read_text(g, space, target, const(_JOIN_SIZE), word)
        if g.deferred:
            events.output(g, record, size)
        else:
            g.helper("ringbuf_submit", record, const(0))


def _debugf(g: Gen, node: typed.Call) -> None:
    format = node.options["format"]
    assert isinstance(format, bytes)
    text = format + b"\0"
    index = g.unit.constants_index()
    g.declared.use(index, "read")
    place = g.fn.add(g.unit.value(index), g.unit.constant(text))
    values = [g.scalar(a) if is_scalar(a.type) else g.address(a) for a in node.args]
    values = [v if v.type == "ptr" else g.fn.integer(v, I64) for v in values]
    g.helper("trace_printk", place, const(len(text)), *values)


SCALARS: dict[str, Scalar] = {"nsecs": _nsecs, "write_user": _write_user}
MEMORIES: dict[str, Memory] = {
    "strftime": _strftime,
    "cgroup_path": _cgroup_path,
    "path": _path,
    "comm": _comm,
}
EFFECTS: dict[str, Statement] = {
    "signal": _signal("send_signal"),
    "signal_thread": _signal("send_signal_thread"),
    "override": _override,
    "join": _join,
    "debugf": _debugf,
}
