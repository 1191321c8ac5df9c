"""The script's maps: which kernel map each becomes, keys, reads, writes."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from bpfseal.compiler.gen import ADDRESSES, MEMORIES, SCALARS, Gen, register_type
from bpfseal.compiler.ir import I64, PTR, Value, const
from bpfseal.compiler.layout import MapLayout, hist_buckets, lhist_buckets
from bpfseal.compiler.unit import (
    ARRAY,
    HASH,
    LRU_HASH,
    LRU_PERCPU_HASH,
    PERCPU_ARRAY,
    PERCPU_HASH,
    Unit,
)
from bpfseal.dsl import typed, types
from bpfseal.dsl.source import Span
from bpfseal.dsl.typed import MapDef
from bpfseal.dsl.types import is_scalar, size_of
from bpfseal.signer.bundle import MapSpec

_DECLARED = {"hash": HASH, "lruhash": LRU_HASH, "percpuhash": PERCPU_HASH, "percpulruhash": LRU_PERCPU_HASH}
_PER_CPU = frozenset({PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH})
_ARRAYS = frozenset({ARRAY, PERCPU_ARRAY})
_LARGEST_BUCKET_ARRAY = 4096
_VALUES = {"count": 8, "sum": 8, "min": 16, "max": 16, "avg": 16, "stats": 16, "hist": 8, "lhist": 8, "tseries": 24}


class ScriptMap(Struct, frozen=True):
    """A map of the script as the kernel has it; members as in `layout.MapLayout`. `buckets` 0: no buckets."""

    index: int
    type: int
    key_size: int
    value_size: int
    entries: int
    bucket: int = -1
    present: int = -1
    buckets: int = 0

    @property
    def array(self) -> bool:
        return self.type in _ARRAYS

    @property
    def per_cpu(self) -> bool:
        return self.type in _PER_CPU

    @property
    def direct(self) -> bool:
        """One value that is addressed without a look-up."""
        return self.type == ARRAY


def _buckets(value: types.Aggregate) -> int:
    numbers = [p for p in value.params if isinstance(p, int)]
    match value.kind:
        case "hist":
            return hist_buckets(numbers[0] if numbers else 0)
        case "lhist":
            return lhist_buckets(*numbers[:3])
        case "tseries":
            return numbers[1]
        case _:
            return 0


def plan(definition: MapDef, index: int) -> ScriptMap:
    """Which kernel map a map of the script becomes. Scalar ones are arrays, where an element is found fastest."""
    value, key = definition.value, definition.key
    auto = definition.kind == "auto"
    if isinstance(value, types.Aggregate):
        buckets = _buckets(value)
        size = _VALUES[value.kind]
        if key is None and auto and buckets <= _LARGEST_BUCKET_ARRAY:
            if buckets:
                return ScriptMap(index, PERCPU_ARRAY, 4, size, buckets, bucket=0, buckets=buckets)
            return ScriptMap(index, PERCPU_ARRAY, 4, 16, 1, present=8)
        type = PERCPU_HASH if auto else _DECLARED[definition.kind]
        if buckets:
            at = (size_of(key) + 3) & -4 if key is not None else 0
            # The kernel compares keys by words of 8 bytes, and what is left of them byte by byte.
            whole = at + 8 if at % 8 == 0 else at + 4
            return ScriptMap(index, type, whole, size, definition.entries, bucket=at, buckets=buckets)
        return ScriptMap(index, type, _key_size(key), size, definition.entries)
    size = size_of(value)
    if key is None and auto:
        present = (size + 7) & -8
        return ScriptMap(index, ARRAY, 4, present + 8, 1, present=present)
    type = HASH if auto else _DECLARED[definition.kind]
    return ScriptMap(index, type, _key_size(key), max(size, 1), definition.entries)


def _key_size(key: types.Type | None) -> int:
    """Whole words: the kernel hashes keys by words of 4 bytes and compares them by words of 8; the rest it takes byte
    by byte (kernel/bpf/hashtab.c htab_map_hash, lib/string.c memcmp)."""
    if key is None:
        return 4
    size = size_of(key)
    return size if is_scalar(key) or size < 8 else (size + 7) & -8


def declare(unit: Unit, definition: MapDef) -> None:
    """Add a map of the script to the bundle."""
    found = plan(definition, len(unit.maps))
    unit.script_maps[definition] = found
    kernel_name = "".join(c if c.isalnum() or c in "_." else "_" for c in definition.name)
    unit.add_map(
        MapSpec(
            name=f"at_{kernel_name}"[:15],
            type=found.type,
            key_size=found.key_size,
            value_size=found.value_size,
            max_entries=found.entries,
        )
    )
    unit.layouts.append(
        MapLayout(
            name=f"@{definition.name}",
            index=found.index,
            key=unit.shapes.of(definition.key) if definition.key is not None else None,
            value=unit.shapes.of(definition.value),
            per_cpu=found.per_cpu,
            max_entries=found.entries,
            array=found.array,
            key_size=found.key_size,
            value_size=found.value_size,
            bucket=found.bucket,
            present=found.present,
        )
    )


# --- keys and elements ------------------------------------------------------------------------------------------


def key_pointer(g: Gen, map: ScriptMap, key: typed.Expr | None, bucket: Value | None = None) -> Value:
    """Memory that holds the kernel's key."""
    if key is not None and bucket is None and not is_scalar(key.type):
        if size_of(key.type) == map.key_size or _filled_up(key, map.key_size):
            return g.address(key)
        if isinstance(key, typed.StrLit):
            from bpfseal.compiler.values import constant_text

            return constant_text(g, key.value, map.key_size)
    target = g.buffer(map.key_size)
    if key is None:
        if bucket is None:
            g.fn.store(const(0, "i32"), target, 4)
    else:
        size = size_of(key.type)
        end = map.bucket if map.bucket >= 0 else map.key_size
        if size < end:
            g.clear_tail(target, size, end)
        g.store(key, target)
    if bucket is not None:
        store_bucket(g, map, target, bucket)
    return target


def _filled_up(key: typed.Expr, size: int) -> bool:
    """Whether zeros follow the key where it lies, up to `size` bytes: names of probes are in a table of whole words."""
    return isinstance(key, typed.Builtin) and key.name == "probe" and (size_of(key.type) + 7) & -8 == size


def store_bucket(g: Gen, map: ScriptMap, target: Value, bucket: Value) -> None:
    """The bucket's number into the kernel's key at `target`."""
    width = 8 if map.key_size - map.bucket == 8 else 4
    g.fn.store(g.fn.integer(bucket, f"i{8 * width}"), g.fn.add(target, map.bucket), width)


def look_up(g: Gen, map: ScriptMap, key: Value) -> Value:
    """Pointer to the value in the kernel, of this CPU where there is one per CPU; null when absent."""
    return g.helper_on_map("map_lookup_elem", map.index, "read", key)


def direct_value(g: Gen, map: ScriptMap, operation: str) -> Value:
    """The one value of a scalar map."""
    g.declared.use(map.index, "read", operation)
    return g.unit.value(map.index)


def element(g: Gen, definition: MapDef, key: typed.Expr | None) -> Value:
    """Pointer to an element's value, null when absent."""
    map = g.unit.script_maps[definition]
    if map.direct:
        value = direct_value(g, map, "write")
        present = g.fn.load(I64, g.fn.add(value, map.present), 8)
        return g.fn.select(g.truth(present), value, Value(PTR, "null"))
    g.declared.use(map.index, "write")
    return look_up(g, map, key_pointer(g, map, key))


def update(g: Gen, map: ScriptMap, key: Value, value: Value, flags: int = 0) -> None:
    """Write an element; one that finds no room is counted."""
    result = g.helper_on_map("map_update_elem", map.index, "write", key, value, const(flags))
    from bpfseal.compiler.events import count_failure

    with g.when(g.fn.compare("ne", result, const(0)), "full"):
        count_failure(g, 1 + map.index)


# --- reads ------------------------------------------------------------------------------------------------------


def _read_scalar(g: Gen, node: typed.MapRead) -> Value:
    map = g.unit.script_maps[node.map]
    if isinstance(node.map.value, types.Aggregate):
        from bpfseal.compiler.aggregates import read

        return g.fn.integer(read(g, node.map, node.key), register_type(node.type))
    if map.direct:
        return g.load_scalar(node.map.value, direct_value(g, map, "read"))
    found = look_up(g, map, key_pointer(g, map, node.key))
    _report_missing(g, found, node.span)
    slot = g.fn.slot(register_type(node.type))
    with g.unless(g.fn.is_null(found), "found"):
        value = g.load_scalar(node.map.value, found)
        g.fn.store(value, slot, _register_align(value.type))
    return g.fn.load(register_type(node.type), slot, _register_align(register_type(node.type)))


def _report_missing(g: Gen, found: Value, span: Span) -> None:
    if g.unit.options.helper_errors > 1:
        from bpfseal.compiler.events import runtime_error

        with g.when(g.fn.is_null(found), "missing"):
            runtime_error(g, "helper", span, const(0), "map_lookup_elem")


def _register_align(type: str) -> int:
    return 8 if type == PTR else max(1, int(type[1:]) // 8)


def _read_address(g: Gen, node: typed.MapRead) -> Value:
    from bpfseal.compiler.memory import zeros

    map = g.unit.script_maps[node.map]
    if map.direct:
        return direct_value(g, map, "read")
    found = look_up(g, map, key_pointer(g, map, node.key))
    _report_missing(g, found, node.span)
    return g.fn.select(g.fn.is_null(found), zeros(g, size_of(node.type)), found)


def _read_memory(g: Gen, node: typed.MapRead, target: Value, clean: bool) -> None:
    g.copy(target, _read_address(g, node), size_of(node.type))


# --- writes -----------------------------------------------------------------------------------------------------


def assign(g: Gen, node: typed.AssignMap) -> None:
    map = g.unit.script_maps[node.map]
    if map.direct:
        target = direct_value(g, map, "write")
        if not is_scalar(node.value.type) and mentions(node.value, lambda e: _reads(e, node.map)):
            g.copy(target, g.address(node.value), size_of(node.value.type))
        else:
            g.store(node.value, target)
        g.fn.store(const(1), g.fn.add(target, map.present), 8)
        return
    if is_scalar(node.value.type):
        value = g.buffer(size_of(node.value.type))
        g.store(node.value, value)
    else:
        value = g.address(node.value)
    update(g, map, key_pointer(g, map, node.key), value)


def _reads(expr: typed.Expr, definition: MapDef) -> bool:
    return isinstance(expr, typed.MapRead) and expr.map is definition


def mentions(expr: object, test: Callable[[typed.Expr], bool]) -> bool:
    """Whether an expression in the tree `expr` passes `test`."""
    if isinstance(expr, tuple):
        return any(mentions(part, test) for part in expr)
    fields = getattr(expr, "__struct_fields__", None)
    if fields is None or isinstance(expr, typed.Var | typed.MapDef | typed.Function):
        return False
    if (type(expr) in SCALARS or type(expr) in MEMORIES) and test(expr):  # type: ignore[arg-type]
        return True
    return any(mentions(getattr(expr, name), test) for name in fields if name not in ("span", "type", "options"))


def increment(g: Gen, node: typed.IncDec, *, used: bool = True) -> Value:
    """++ and -- of an element. One that is there is added to atomically, so that no count of another CPU is lost."""
    assert isinstance(node.target, typed.MapRead)
    map = g.unit.script_maps[node.target.map]
    type = register_type(node.type) if register_type(node.type) != PTR else I64
    delta = const(node.delta, type)
    if map.direct:
        value = direct_value(g, map, "write")
        old = _add(g, value, delta, used)
        g.fn.store(const(1), g.fn.add(value, map.present), 8)
        return _result(g, node, old, delta)
    key = key_pointer(g, map, node.target.key)
    found = look_up(g, map, key)
    g.declared.use(map.index, "write")
    slot = g.fn.slot(type)
    hit, miss, after = g.fn.fresh("hit"), g.fn.fresh("miss"), g.fn.fresh("after")
    g.fn.branch(g.fn.is_null(found), miss, hit)
    g.fn.start(hit)
    if map.per_cpu:
        old = g.fn.load(type, found, _register_align(type))
        g.fn.store(g.fn.binary("add", old, delta), found, _register_align(type))
    else:
        old = _add(g, found, delta, used)
    g.fn.store(old, slot, _register_align(type))
    g.fn.jump(after)
    g.fn.start(miss)
    first = g.buffer(size_of(node.type))
    g.fn.store(delta, first, _register_align(type))
    update(g, map, key, first)
    g.fn.start(after)
    return _result(g, node, g.fn.load(type, slot, _register_align(type)), delta)


def _add(g: Gen, target: Value, delta: Value, used: bool) -> Value:
    """Atomic addition; the old value. The kernel adds atomically to 4 and 8 bytes only.

    LLVM 22 makes a monotonic addition one that does not fetch, even where its result is used."""
    if delta.type in ("i32", "i64"):
        return g.fn.op(delta.type, f"atomicrmw add ptr {target.text}, {delta} {'seq_cst' if used else 'monotonic'}")
    align = _register_align(delta.type)
    old = g.fn.load(delta.type, target, align)
    g.fn.store(g.fn.binary("add", old, delta), target, align)
    return old


def _result(g: Gen, node: typed.IncDec, old: Value, delta: Value) -> Value:
    value = g.fn.binary("add", old, delta) if node.prefix else old
    return g.fn.pointer(value) if register_type(node.type) == PTR else value


def store_variable(g: Gen, value: Value, place: Value) -> None:
    """A register value to a scalar variable's slot."""
    g.fn.store(value, place, _register_align(value.type) if value.type != "i1" else 1)


SCALARS[typed.MapRead] = _read_scalar
MEMORIES[typed.MapRead] = _read_memory
ADDRESSES[typed.MapRead] = _read_address
