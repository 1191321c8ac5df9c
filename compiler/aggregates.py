"""Aggregations: what one event does to its CPU's value, and reading an element's total."""

from __future__ import annotations

from collections.abc import Callable

from bpfseal.compiler.gen import STATEMENTS, Gen
from bpfseal.compiler.ir import I64, Value, const
from bpfseal.compiler.layout import SESSION_WALL_OFFSET_NS, lhist_buckets
from bpfseal.compiler.loops import counted
from bpfseal.compiler.mapping import ScriptMap, key_pointer, look_up, update
from bpfseal.dsl import typed, types

_BPF_ANY = 0
_BPF_NOEXIST = 1


def aggregate(g: Gen, node: typed.Aggregate) -> None:
    kind = node.map.value
    assert isinstance(kind, types.Aggregate)
    map = g.unit.script_maps[node.map]
    measured = g.fn.integer(g.scalar(node.value), I64, signed=True) if node.value is not None else const(1)
    g.declared.use(map.index, "write")
    match kind.kind:
        case "count" | "sum":
            _sum(g, map, node.key, measured)
        case "min" | "max":
            _extreme(g, map, node.key, measured, kind)
        case "avg" | "stats":
            _average(g, map, node.key, measured)
        case "hist":
            _sum(g, map, node.key, const(1), hist_bucket(g, measured, int(kind.params[0]) if kind.params else 0))
        case "lhist":
            low, high, step = (int(p) for p in kind.params)
            _sum(g, map, node.key, const(1), lhist_bucket(g, measured, low, high, step))
        case "tseries":
            _series(g, map, node.key, measured, kind)


def _upsert(
    g: Gen,
    map: ScriptMap,
    key: Value,
    change: Callable[[Value], None],
    first: tuple[Value, ...],
) -> None:
    """Change the element that is there, or make it of the words `first`. Elements of arrays are always there."""
    found = look_up(g, map, key)
    if map.array:
        with g.unless(g.fn.is_null(found), "hit"):
            change(found)
        return
    hit, miss, after = g.fn.fresh("hit"), g.fn.fresh("miss"), g.fn.fresh("after")
    g.fn.branch(g.fn.is_null(found), miss, hit)
    g.fn.start(hit)
    change(found)
    g.fn.jump(after)
    g.fn.start(miss)
    value = g.buffer(8 * len(first))
    for number, word in enumerate(first):
        g.fn.store(word, g.fn.add(value, 8 * number), 8)
    if g.deferred:  # another task may have come between
        _insert_or_change(g, map, key, value, change)
    else:
        update(g, map, key, value, _BPF_ANY)
    g.fn.start(after)


def _insert_or_change(g: Gen, map: ScriptMap, key: Value, value: Value, change: Callable[[Value], None]) -> None:
    """Make the element, or change the one that is there by now on this CPU."""
    failed = g.helper_on_map("map_update_elem", map.index, "write", key, value, const(_BPF_NOEXIST))
    with g.unless(g.fn.compare("eq", failed, const(0)), "raced"):
        found = look_up(g, map, key)
        there, full, after = g.fn.fresh("there"), g.fn.fresh("full"), g.fn.fresh("after")
        g.fn.branch(g.fn.is_null(found), full, there)
        g.fn.start(there)
        change(found)
        g.fn.jump(after)
        g.fn.start(full)
        update(g, map, key, value, _BPF_ANY)  # counts the failure
        g.fn.start(after)


def _sum(g: Gen, map: ScriptMap, key: typed.Expr | None, amount: Value, bucket: Value | None = None) -> None:
    def change(found: Value) -> None:
        _accumulate(g, found, amount)
        if map.present >= 0:
            g.fn.store(const(1), g.fn.add(found, map.present), 8)

    _upsert(g, map, key_pointer(g, map, key, bucket), change, (amount,))


def _accumulate(g: Gen, target: Value, amount: Value) -> None:
    if g.deferred:  # may be interrupted by its like on the same CPU
        g.fn.atomic_add(amount, target)
        return
    g.fn.store(g.fn.binary("add", g.fn.load(I64, target, 8), amount), target, 8)


def _extreme(g: Gen, map: ScriptMap, key: typed.Expr | None, value: Value, kind: types.Aggregate) -> None:
    def change(found: Value) -> None:
        there = g.fn.add(found, 8)
        with g.unless(g.truth(g.fn.load(I64, there, 8)), "first"):
            g.fn.store(value, found, 8)
            g.fn.store(const(1), there, 8)
        with g.when(_better(g, value, g.fn.load(I64, found, 8), kind), "better"):
            g.fn.store(value, found, 8)

    _upsert(g, map, key_pointer(g, map, key), change, (value, const(1)))


def _better(g: Gen, new: Value, old: Value, kind: types.Aggregate) -> Value:
    return g.fn.compare(("s" if kind.signed else "u") + ("lt" if kind.kind == "min" else "gt"), new, old)


def _average(g: Gen, map: ScriptMap, key: typed.Expr | None, value: Value) -> None:
    def change(found: Value) -> None:
        _accumulate(g, found, value)
        _accumulate(g, g.fn.add(found, 8), const(1))

    _upsert(g, map, key_pointer(g, map, key), change, (value, const(1)))


def _series(g: Gen, map: ScriptMap, key: typed.Expr | None, value: Value, kind: types.Aggregate) -> None:
    """One slot per interval; see layout.MapLayout for what is in it."""
    fn = g.fn
    interval, slots, how = int(kind.params[0]), int(kind.params[1]), str(kind.params[2])
    now = _wall_clock(g)
    epoch = fn.binary("udiv", now, const(interval))
    bucket = fn.integer(fn.binary("urem", epoch, const(slots)), "i32")
    meta = now if how == "none" else const(1)

    def change(found: Value) -> None:
        value_at, meta_at = fn.add(found, 8), fn.add(found, 16)
        same = fn.compare("eq", fn.load(I64, found, 8), epoch)
        there = fn.binary("and", same, g.truth(fn.load(I64, meta_at, 8)))
        old, fresh, after = fn.fresh("old"), fn.fresh("fresh"), fn.fresh("after")
        fn.branch(there, old, fresh)
        fn.start(fresh)
        for word, at in ((epoch, found), (value, value_at), (meta, meta_at)):
            fn.store(word, at, 8)
        fn.jump(after)
        fn.start(old)
        _combine(g, value_at, meta_at, value, meta, types.Aggregate(how, kind.signed))
        fn.start(after)

    _upsert(g, map, key_pointer(g, map, key, bucket), change, (epoch, value, meta))


def _wall_clock(g: Gen) -> Value:
    """Nanoseconds since 1970, so that intervals begin where people expect it. The reference's own tests set the clock
    by naming a map."""
    from bpfseal.compiler.mapping import direct_value
    from bpfseal.compiler.names import session_word

    for definition, map in g.unit.script_maps.items():
        if f"@{definition.name}" == g.unit.options.clock_map and map.direct and map.value_size >= 16:
            return g.fn.load(I64, direct_value(g, map, "read"), 8)
    return g.fn.binary("add", g.helper("ktime_get_boot_ns"), session_word(g, SESSION_WALL_OFFSET_NS))


def _combine(g: Gen, value_at: Value, meta_at: Value, value: Value, meta: Value, how: types.Aggregate) -> None:
    match how.kind:
        case "none":
            g.fn.store(value, value_at, 8)
            g.fn.store(meta, meta_at, 8)
        case "sum":
            _accumulate(g, value_at, value)
        case "avg":
            _accumulate(g, value_at, value)
            _accumulate(g, meta_at, const(1))
        case _:
            with g.when(_better(g, value, g.fn.load(I64, value_at, 8), how), "better"):
                g.fn.store(value, value_at, 8)


# --- buckets ----------------------------------------------------------------------------------------------------


def hist_bucket(g: Gen, value: Value, bits: int) -> Value:
    """Number of the bucket of hist(n, bits) as an i32; see layout.hist_bucket_low."""
    fn = g.fn
    slot = fn.slot("i32")
    with g.unless(fn.compare("slt", value, const(0)), "positive"):
        fn.store(fn.integer(_linear(g, value, bits), "i32"), slot, 4)
    return fn.load("i32", slot, 4)


def _linear(g: Gen, value: Value, bits: int) -> Value:
    """1 + the bucket number among non-negative values: the value itself below 2^(bits+1), else exponent and the
    `bits` bits behind the first one."""
    fn = g.fn
    if bits == 0:
        # 0 → 1, and for others the number of significant bits + 1
        return fn.binary("add", _significant_bits(g, value), const(1))
    slot = fn.slot(I64)
    fn.store(value, slot, 8)
    with g.unless(fn.compare("ult", value, const(2 << bits)), "large"):
        exponent = fn.binary("sub", _significant_bits(g, value), const(1 + bits))
        top = fn.binary("lshr", value, exponent)
        fn.store(fn.binary("add", fn.binary("shl", exponent, const(bits)), top), slot, 8)
    return fn.binary("add", fn.load(I64, slot, 8), const(1))


def _significant_bits(g: Gen, value: Value) -> Value:
    """Bits up to the highest one that is set, 0 for 0: by halving."""
    fn = g.fn
    rest, count = fn.slot(I64), fn.slot(I64)
    fn.store(value, rest, 8)
    fn.store(const(0), count, 8)
    for step in (32, 16, 8, 4, 2, 1):
        have = fn.load(I64, rest, 8)
        with g.when(fn.compare("ugt", have, const((1 << step) - 1)), "high"):
            fn.store(fn.binary("lshr", have, const(step)), rest, 8)
            fn.store(fn.binary("add", fn.load(I64, count, 8), const(step)), count, 8)
    # what is left is 0 or 1
    return fn.binary("add", fn.load(I64, count, 8), fn.load(I64, rest, 8))


def lhist_bucket(g: Gen, value: Value, low: int, high: int, step: int) -> Value:
    """Number of the bucket of lhist(n, low, high, step) as an i32."""
    fn = g.fn
    slot = fn.slot("i32")
    with g.unless(fn.compare("slt", value, const(low)), "not_below"):
        fn.store(const(lhist_buckets(low, high, step) - 1, "i32"), slot, 4)
        with g.when(fn.compare("slt", value, const(high)), "not_above"):
            offset = fn.binary("sub", value, const(low)) if low else value
            number = fn.binary("udiv", offset, const(step)) if step != 1 else offset
            fn.store(fn.integer(fn.binary("add", number, const(1)), "i32"), slot, 4)
    return fn.load("i32", slot, 4)


# --- totals -----------------------------------------------------------------------------------------------------


def read(g: Gen, definition: typed.MapDef, key: typed.Expr | None) -> Value:
    """An element's total over CPUs as an i64: sums, extremes, averages; zero when absent."""
    map = g.unit.script_maps[definition]
    return total(g, definition, key_pointer(g, map, key))


def read_stats(g: Gen, definition: typed.MapDef, key: typed.Expr | None) -> tuple[Value, Value, Value]:
    """Count, average and total of a stats() element."""
    value, count = _totals(g, definition, key_pointer(g, g.unit.script_maps[definition], key))
    kind = definition.value
    assert isinstance(kind, types.Aggregate)
    return count, _quotient(g, value, count, kind.signed), value


def _quotient(g: Gen, sum: Value, count: Value, signed: bool) -> Value:
    from bpfseal.compiler.values import divide_signed

    safe = g.fn.select(g.truth(count), count, const(1))
    return divide_signed(g, sum, safe) if signed else g.fn.binary("udiv", sum, safe)


def total(g: Gen, definition: typed.MapDef, key: Value) -> Value:
    """As `read`, of the element whose kernel key is at `key`."""
    kind = definition.value
    assert isinstance(kind, types.Aggregate)
    value, count = _totals(g, definition, key)
    return _quotient(g, value, count, kind.signed) if kind.kind in ("avg", "stats") else value


def _totals(g: Gen, definition: typed.MapDef, key: Value) -> tuple[Value, Value]:
    """The value over all CPUs, and of averages the count."""
    fn = g.fn
    kind = definition.value
    assert isinstance(kind, types.Aggregate)
    map = g.unit.script_maps[definition]
    value, count = fn.slot(I64), fn.slot(I64)

    def add(found: Value) -> None:
        mine = fn.load(I64, found, 8)
        if kind.kind in ("count", "sum"):
            fn.store(fn.binary("add", fn.load(I64, value, 8), mine), value, 8)
            return
        number = fn.load(I64, fn.add(found, 8), 8)
        if kind.kind in ("avg", "stats"):
            fn.store(fn.binary("add", fn.load(I64, value, 8), mine), value, 8)
            fn.store(fn.binary("add", fn.load(I64, count, 8), number), count, 8)
            return
        with g.when(g.truth(number), "set"):
            first = fn.compare("eq", fn.load(I64, count, 8), const(0))
            better = fn.binary("or", first, _better(g, mine, fn.load(I64, value, 8), kind))
            fn.store(fn.select(better, mine, fn.load(I64, value, 8)), value, 8)
            fn.store(const(1), count, 8)

    if map.per_cpu:
        with counted(g, g.unit.options.cpu_count) as cpu:
            found = g.helper_on_map("map_lookup_percpu_elem", map.index, "read", key, cpu)
            with g.unless(fn.is_null(found), "found"):
                add(found)
    else:
        found = look_up(g, map, key)
        with g.unless(fn.is_null(found), "found"):
            add(found)
    return fn.load(I64, value, 8), fn.load(I64, count, 8)


STATEMENTS[typed.Aggregate] = aggregate
