"""Functions on maps: has_key, find, delete."""

from __future__ import annotations

from bpfseal.compiler.aggregates import read
from bpfseal.compiler.gen import Gen, is_signed, register_type
from bpfseal.compiler.ir import I64, Value, const
from bpfseal.compiler.loops import counted
from bpfseal.compiler.mapping import (
    ScriptMap,
    direct_value,
    element,
    key_pointer,
    look_up,
    store_bucket,
    store_variable,
)
from bpfseal.dsl import typed, types
from bpfseal.dsl.types import is_scalar, size_of


def has_key(g: Gen, node: typed.Call) -> Value:
    assert node.map is not None
    map = g.unit.script_maps[node.map]
    if map.array:
        return g.truth(g.fn.load(I64, g.fn.add(direct_value(g, map, "read"), map.present), 8))
    found = look_up(g, map, key_pointer(g, map, node.key))
    return g.fn.op("i1", f"icmp ne ptr {found.text}, null")


def find(g: Gen, node: typed.Call) -> Value:
    """find(@map, key, $variable)"""
    assert node.map is not None
    (target,) = node.args
    assert isinstance(target, typed.VarRef)
    found = element(g, node.map, node.key)
    there = g.fn.op("i1", f"icmp ne ptr {found.text}, null")
    with g.when(there, "found"):
        place = g.locate(g.vars[target.var])
        if isinstance(node.map.value, types.Aggregate):
            g.store_scalar(g.fn.integer(read(g, node.map, node.key), register_type(target.type)), target.type, place)
        elif is_scalar(target.type):
            value = g.load_scalar(node.map.value, found)
            value = g.fn.integer(value, register_type(target.type), signed=is_signed(node.map.value))
            store_variable(g, value, place)
        else:
            g.copy(place, found, size_of(target.type))
    return there


def delete(g: Gen, node: typed.Call) -> Value:
    """Whether it was there."""
    assert node.map is not None
    map = g.unit.script_maps[node.map]
    if map.direct:
        value = direct_value(g, map, "write")
        there = g.fn.load(I64, g.fn.add(value, map.present), 8)
        g.clear(value, map.value_size)
        return g.truth(there)
    if map.array:
        return _clear_array(g, map)
    if map.bucket >= 0:
        return _delete_buckets(g, map, node.key)
    result = g.helper_on_map("map_delete_elem", map.index, "delete", key_pointer(g, map, node.key))
    if node.options.get("discarded") and g.unit.options.helper_errors:
        g.report_failure("map_delete_elem", result)
    return g.fn.compare("eq", result, const(0))


def _clear_array(g: Gen, map: ScriptMap) -> Value:
    """Zero all values, on all CPUs, of a scalar aggregation."""
    g.declared.use(map.index, "write")
    there = g.fn.slot("i1")
    key = g.buffer(4)
    with counted(g, map.entries) as element_number:
        g.fn.store(g.fn.integer(element_number, "i32"), key, 4)
        with counted(g, g.unit.options.cpu_count) as cpu:
            found = g.helper_on_map("map_lookup_percpu_elem", map.index, "read", key, cpu)
            with g.unless(g.fn.is_null(found), "found"):
                if map.present >= 0:
                    was = g.truth(g.fn.load(I64, g.fn.add(found, map.present), 8))
                    g.fn.store(g.fn.binary("or", was, g.fn.load("i1", there, 1)), there, 1)
                g.clear(found, map.value_size)
    return g.fn.load("i1", there, 1)


def _delete_buckets(g: Gen, map: ScriptMap, key: typed.Expr | None) -> Value:
    """All buckets of one element of a histogram or series."""
    there = g.fn.slot("i1")
    target = key_pointer(g, map, key, const(0, "i32"))
    with counted(g, map.buckets) as bucket:
        store_bucket(g, map, target, bucket)
        result = g.helper_on_map("map_delete_elem", map.index, "delete", target)
        with g.when(g.fn.compare("eq", result, const(0)), "deleted"):
            g.fn.store(Value("i1", "true"), there, 1)
    return g.fn.load("i1", there, 1)
