"""Conversions between types."""

from __future__ import annotations

from bpfseal.compiler.gen import MEMORIES, SCALARS, Gen, impossible, is_signed, register_type
from bpfseal.compiler.ir import I64, PTR, Value, const
from bpfseal.compiler.memory import place_of, read_scalar
from bpfseal.compiler.values import clear_gaps, literal
from bpfseal.dsl import typed, types
from bpfseal.dsl.types import is_scalar, size_of, tuple_layout


def _cast(g: Gen, node: typed.Cast) -> Value:
    source, wanted = node.operand.type, node.type
    if not is_scalar(source):
        if isinstance(source, types.Array | types.Buf | types.Str):  # the bytes in memory order
            return read_scalar(g, place_of(g, node.operand), wanted)
        raise impossible(f"a cast of {source} to {wanted}")
    value = g.scalar(node.operand)
    if isinstance(wanted, types.Bool):
        return g.truth(value)
    return _as_cast(g, value, source, wanted)


def _as_cast(g: Gen, value: Value, source: types.Type, wanted: types.Type) -> Value:
    """The sign extends, but not into an address."""
    type = register_type(wanted)
    if value.type == type:
        return value
    signed = is_signed(source) and not isinstance(wanted, types.Ptr)
    if type == PTR:
        return g.fn.pointer(g.fn.integer(value, I64))
    return g.fn.integer(value, type, signed=signed)


def _cast_memory(g: Gen, node: typed.Cast, target: Value, clean: bool) -> None:
    source, wanted = node.operand.type, node.type
    size = size_of(wanted)
    match source, wanted:
        case (types.Int() | types.Bool() | types.Enum(), types.Array()):
            g.store_scalar(g.scalar(node.operand), source, target)
        case types.Str(), types.Str():
            _cast_string(g, node.operand, size, target, clean)
        case types.Buf(), types.Buf():
            _cast_buffer(g, node.operand, size, target)
        case types.Tuple(), types.Tuple():
            _cast_tuple(g, node.operand, source, wanted, target)
        case _:
            have = size_of(source)
            if have >= size:
                g.copy(target, g.address(node.operand), size)
            else:
                g.store(node.operand, target)
                g.clear_tail(target, have, size)
            if isinstance(wanted, types.Str) and have >= size:
                g.fn.store(const(0, "i8"), g.fn.add(target, size - 1), 1)


def _cast_string(g: Gen, operand: typed.Expr, size: int, target: Value, clean: bool) -> None:
    have = size_of(operand.type)
    if isinstance(operand, typed.StrLit):
        literal(g, typed.StrLit(operand.value, types.Str(size), operand.span), target, clean)
    elif have <= size:
        g.store(operand, target, clean=clean)
        if clean:
            g.clear_tail(target, have, size)
    else:
        g.copy(target, g.address(operand), size)
        g.fn.store(const(0, "i8"), g.fn.add(target, size - 1), 1)


def _cast_buffer(g: Gen, operand: typed.Expr, size: int, target: Value) -> None:
    have = size_of(operand.type)
    if have <= size:
        g.store(operand, target)
        g.clear_tail(target, have, size)
        return
    g.copy(target, g.address(operand), size)
    length = g.fn.load("i32", target, 4)
    most = const(size - 4, "i32")
    g.fn.store(g.fn.select(g.fn.compare("ult", length, most), length, most), target, 4)


def _cast_tuple(g: Gen, operand: typed.Expr, source: types.Tuple, wanted: types.Tuple, target: Value) -> None:
    at = g.address(operand)
    from_offsets, to_offsets = tuple_layout(source)[0], tuple_layout(wanted)[0]
    clear_gaps(g, wanted, target)
    for number, element in enumerate(wanted.elements):
        other = source.names.index(wanted.names[number]) if wanted.names and source.names else number
        part = _Located(g.fn.add(at, from_offsets[other]), source.elements[other])
        converted: typed.Expr = part  # type: ignore[assignment]
        if source.elements[other] != element:
            converted = typed.Cast(converted, element)
        g.store(converted, g.fn.add(target, to_offsets[number]))


class _Located:
    """A value that is in memory of ours already: a leaf for casts of parts."""

    def __init__(self, place: Value, type: types.Type) -> None:
        self.place = place
        self.type = type


def _located(g: Gen, node: _Located) -> Value:
    return g.load_scalar(node.type, node.place)


def _located_memory(g: Gen, node: _Located, target: Value, clean: bool) -> None:
    g.copy(target, node.place, size_of(node.type), 1)


SCALARS.update({typed.Cast: _cast, _Located: _located})
MEMORIES.update({typed.Cast: _cast_memory, _Located: _located_memory})
