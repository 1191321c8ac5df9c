"""Functions on network data."""

from __future__ import annotations

from bpfseal.compiler.gen import Gen, Memory, Scalar
from bpfseal.compiler.ir import I64, Value, const
from bpfseal.compiler.memory import address_operand, place_of, read_bytes
from bpfseal.dsl import typed, types
from bpfseal.dsl.types import is_scalar, size_of

_MAC = 6


def _ntop(g: Gen, node: typed.Call, target: Value, clean: bool) -> None:
    """Inet: i64 family, 16 bytes of address."""
    family, address = node.args
    size = min(size_of(address.type), 16)
    g.fn.store(g.fn.integer(g.scalar(family), I64, signed=True), target, 8)
    bytes_at = g.fn.add(target, 8)
    if is_scalar(address.type):
        g.store(address, bytes_at)
    else:
        _bytes(g, address, bytes_at, size)
    g.clear_tail(target, 8 + size, 24)


def _bytes(g: Gen, source: typed.Expr, target: Value, size: int) -> None:
    """The first bytes of a value in memory, wherever it is."""
    place = place_of(g, source)
    if place.space == "bpf":
        g.copy(target, g.fn.add(place.base, place.offset), size, 4 if size % 4 == 0 else 1)
    else:
        read_bytes(g, place.space, target, const(size), address_operand(g, place))


def _pton(g: Gen, node: typed.Call, target: Value, clean: bool) -> None:
    from bpfseal.compiler.values import words

    data = node.options["bytes"]
    assert isinstance(data, bytes)
    for at, word, width in words(data):
        g.fn.store(const(word, f"i{8 * width}"), g.fn.add(target, at), width)


def _macaddr(g: Gen, node: typed.Call, target: Value, clean: bool) -> None:
    (source,) = node.args
    if isinstance(source.type, types.Ptr):
        pointed: typed.Expr = typed.Deref(source, types.Array(types.U8, _MAC), node.span)
        _bytes(g, pointed, target, _MAC)
    else:
        _bytes(g, source, target, _MAC)


def _bswap(g: Gen, node: typed.Call) -> Value:
    value = g.scalar(node.args[0])
    if value.type == "i8":
        return value
    g.unit.kfuncs.add(f"{value.type} @llvm.bswap.{value.type}({value.type})")
    return g.fn.op(value.type, f"call {value.type} @llvm.bswap.{value.type}({value})")


def _socket_cookie(g: Gen, node: typed.Call) -> Value:
    return g.helper("get_socket_cookie", g.fn.pointer(g.scalar(node.args[0])))


SCALARS: dict[str, Scalar] = {"bswap": _bswap, "socket_cookie": _socket_cookie}
MEMORIES: dict[str, Memory] = {"ntop": _ntop, "pton": _pton, "macaddr": _macaddr}
