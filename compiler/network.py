"""Functions on network data."""

from __future__ import annotations

from bpfseal.compiler.gen import Gen, Memory, Scalar
from bpfseal.compiler.ir import I64, Value, const
from bpfseal.compiler.memory import Place, address_operand, place_of, read_bytes, read_scalar
from bpfseal.dsl import typed, types
from bpfseal.dsl.types import is_scalar, size_of
from bpfseal.errors import BpfsealError

_MAC = 6
_PACKET = 4096  # most bytes that are kept of a packet


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


def _skboutput(g: Gen, node: typed.Call) -> Value:
    """The linear part of a packet, as much as was asked for, in a record as long as it is. 0, or a negative error."""
    from bpfseal.compiler import events

    fn = g.fn
    pointer, length, offset = node.args
    path = node.options["path"]
    assert isinstance(path, bytes)
    assert isinstance(pointer.type, types.Ptr)
    skb = g.scalar(pointer)
    data, size, paged = (_skb_field(g, pointer.type.space, skb, name) for name in ("data", "len", "data_len"))
    number, (at,), _ = events.add_event(g, "skboutput", node.span, format=path, types=[types.Array(types.U8, _PACKET)])
    start = g.scalar(offset)
    have = fn.binary("sub", fn.binary("sub", size, paged), start)
    result = fn.slot(I64)
    fn.store(const(-22), result, 8)
    with g.when(fn.compare("sgt", have, const(0)), "linear"):
        wanted = g.scalar(length)
        wanted = fn.select(fn.compare("ult", wanted, have), wanted, have)
        wanted = fn.select(fn.compare("ult", wanted, const(_PACKET)), wanted, const(_PACKET))
        record = g.locate(g.reserve_scratch(at + _PACKET))
        events.header(g, record, number)
        read_bytes(g, "kernel", fn.add(record, at), wanted, fn.binary("add", data, start))
        total = fn.binary("add", wanted, const(at))
        ring = g.unit.ring_index()
        fn.store(g.helper_on_map("ringbuf_output", ring, "output", record, total, const(0)), result, 8)
    return fn.load(I64, result, 8)


def _skb_field(g: Gen, space: str, skb: Value, name: str) -> Value:
    info = g.unit.kernel.record("struct sk_buff")
    field = info.field(name) if info is not None else None
    if field is None:
        raise BpfsealError(f"the kernel's type information has no struct sk_buff with a member {name}")
    type = types.Int(8 * size_of(field.type), False)
    return g.fn.integer(read_scalar(g, Place(space, skb, field.offset), type), I64)


SCALARS: dict[str, Scalar] = {"bswap": _bswap, "socket_cookie": _socket_cookie, "skboutput": _skboutput}
MEMORIES: dict[str, Memory] = {"ntop": _ntop, "pton": _pton, "macaddr": _macaddr}
