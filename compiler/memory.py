"""Reaching into memory: places, reads by address space, the tree's nodes for members and elements.

A `Place` is an address with its space and a constant offset, so that a chain of members costs one read. Spaces
"btf", "ctx" and "bpf" are loaded directly, the others through the probe_read helpers, which give zeros for what
cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from msgspec.structs import replace

from bpfseal.compiler.gen import (
    ADDRESSES,
    MEMORIES,
    SCALARS,
    Gen,
    impossible,
    memory_type,
    register_type,
)
from bpfseal.compiler.ir import I64, PTR, Value, const
from bpfseal.dsl import typed, types
from bpfseal.dsl.source import Span
from bpfseal.dsl.types import Field, Type, size_of, tuple_layout

DIRECT: Final = frozenset({"btf", "ctx", "bpf"})

_READ: Final = dict.fromkeys(("kernel", "btf", "ctx", "bpf"), "probe_read_kernel") | {"user": "probe_read_user"}
_READ_STR: Final = {space: f"{name}_str" for space, name in _READ.items()}
_INLINE_CONTEXT: Final = 64


class Place(NamedTuple):
    """`maybe_null`: the verifier wants the base tested before it is loaded through."""

    space: str
    base: Value
    offset: int = 0
    maybe_null: bool = False

    def moved(self, offset: int) -> Place:
        return self._replace(offset=self.offset + offset)


def read_bytes(g: Gen, space: str, target: Value, count: Value, address: Value) -> Value:
    """Read memory of a space through a helper; its result, negative if it failed, when `target` is all zeros. Where the
    space is unknown ("none"), the helper is the one that looks at the address."""
    if address.type == PTR and space != "user":
        space = "kernel"
    if _faults(g, space, address):
        from bpfseal.compiler.deferred_reads import read_bytes as read_later

        return read_later(g, space, target, count, address)
    return g.reading_helper(_READ.get(space, "probe_read"), target, count, address)


def _faults(g: Gen, space: str, address: Value) -> bool:
    """Whether the read may sleep until the page is there. In such places an address tells what it is of: type
    information often takes the user's for the kernel's."""
    if g.element is None or not g.element.faults:
        return False
    return space == "user" or (space not in DIRECT and address.type != PTR)


def read_text(g: Gen, space: str, target: Value, count: Value, address: Value) -> Value:
    """Likewise for a string; the result is its length with the NUL. Bytes behind the NUL stay as they were."""
    if address.type == PTR and space != "user":
        space = "kernel"
    if _faults(g, space, address):
        from bpfseal.compiler.deferred_reads import read_text as read_later

        return read_later(g, space, target, count, address)
    return g.reading_helper(_READ_STR.get(space, "probe_read_str"), target, count, address)


# --- places -----------------------------------------------------------------------------------------------------


def place_of(g: Gen, expr: typed.Expr) -> Place:
    """Where the value of an expression lies: in foreign memory where it is still there, else in ours."""
    match expr:
        case typed.FieldOf(base=base, field=field):
            return _target(g, base).moved(field.offset)
        case typed.IndexOf():
            return _element(g, expr)
        case typed.Deref(pointer=pointer):
            return _pointed(g, pointer)
        case typed.ElementOf(base=base, index=index):
            assert isinstance(base.type, types.Tuple)
            return place_of(g, base).moved(tuple_layout(base.type)[0][index])
        case typed.ArgField():
            from bpfseal.compiler.args import argument_place

            return argument_place(g, expr)
        case _:
            return Place("bpf", g.address(expr))


def _target(g: Gen, base: typed.Expr) -> Place:
    """The record that `.member` is looked up in: a value or what a pointer points to."""
    return _pointed(g, base) if isinstance(base.type, types.Ptr) else place_of(g, base)


def _pointed(g: Gen, pointer: typed.Expr) -> Place:
    assert isinstance(pointer.type, types.Ptr)
    space = pointer.type.space
    if isinstance(pointer, typed.AddressOf) and isinstance(pointer.target, typed.FieldOf | typed.IndexOf):
        return place_of(g, pointer.target)
    base = g.scalar(pointer)
    if space == "ctx" and not _is_context(pointer):
        space = "btf"  # what a context points to is an object of the kernel
    if space in DIRECT:
        base = g.fn.pointer(base)
    return Place(space, base, 0, _nullable(g, pointer, space))


_CONTEXTS: Final = ("struct bpf_iter__", "struct pt_regs", "struct bpf_perf_event_data")


def _is_context(pointer: typed.Expr) -> bool:
    """Whether an address of the space "ctx" is that of the context itself."""
    if isinstance(pointer, typed.Builtin):
        return True
    to = pointer.type.to if isinstance(pointer.type, types.Ptr) else None
    return isinstance(to, types.Record) and to.name.startswith(_CONTEXTS)


def _nullable(g: Gen, pointer: typed.Expr, space: str) -> bool:
    """Whether the verifier may know the pointer as "or null". Arguments of fentry programs are not, nor is the current
    task; what is loaded from objects can be (lists BTF_TYPE_SAFE_* in kernel/bpf/verifier.c), arguments of raw
    tracepoints too (raw_tp_null_args)."""
    if space != "btf":
        return space == "bpf"
    if isinstance(pointer, typed.Builtin) and pointer.name == "curtask":
        return False
    return not (isinstance(pointer, typed.ArgField) and g.program is not None and g.program.kind in ("fentry", "fexit"))


def _element(g: Gen, node: typed.IndexOf) -> Place:
    stride = size_of(node.type)
    base_type = node.base.type
    if isinstance(base_type, types.Ptr):
        place = _pointed(g, node.base)
        stride = size_of(base_type.to) if base_type.to is not None else stride
        count = 0
    else:
        place = place_of(g, node.base)
        match base_type:
            case types.Array(element=element, count=count):
                stride = size_of(element)
            case types.Str(size=count):
                pass
            case types.Buf(capacity=count):
                place = place.moved(4)
            case _:
                raise impossible(f"an index of {base_type}")
    if isinstance(node.index, typed.Int):
        return place.moved(node.index.value * stride)
    return _at_index(g, place, g.scalar(node.index), stride, count, node.span)


def _at_index(g: Gen, place: Place, index: Value, stride: int, count: int, span: Span) -> Place:
    """An element whose index is known at run time only. Where the number of elements is known (`count`), one that is
    out of bounds reads as zeros, and the client is told."""
    fn = g.fn
    index = fn.integer(index, I64)
    direct = place.space == "bpf"  # else offsets must be constant, or are nobody's business
    slot = fn.slot(PTR if direct else I64)
    if count and direct:
        index = g.opaque(index)
    if count:
        fn.store(zeros(g, stride) if direct else const(0), slot, 8)
        inside, outside, after = fn.fresh("inside"), fn.fresh("outside"), fn.fresh("after")
        fn.branch(fn.compare("ult", index, const(count)), inside, outside)
        fn.start(outside)
        from bpfseal.compiler.events import runtime_error

        runtime_error(g, "array_bounds", span)
        fn.jump(after)
        fn.start(inside)
    offset = index if stride == 1 else fn.binary("mul", index, const(stride))
    if direct:
        fn.store(fn.index(fn.add(place.base, place.offset), offset), slot, 8)
    else:
        fn.store(fn.binary("add", address_value(g, place), offset), slot, 8)
    if count:
        fn.start(after)
    space = place.space if place.space not in ("btf", "ctx") else "kernel"
    found = fn.load(PTR if direct else I64, slot, 8)
    return Place(space, found, 0, direct and not count and place.maybe_null)


def zeros(g: Gen, size: int) -> Value:
    """At least `size` zero bytes."""
    at = g.unit.constant(bytes((size + 63) & -64))
    index = g.unit.constants_index()
    g.declared.use(index, "read")
    return g.fn.add(g.unit.value(index), at)


def address_value(g: Gen, place: Place) -> Value:
    """The address as an i64."""
    base = place.base
    if base.type == PTR:
        base = g.fn.op(I64, f"ptrtoint {base} to i64")
    return g.fn.binary("add", base, const(place.offset)) if place.offset else base


def address_operand(g: Gen, place: Place) -> Value:
    """The address as a helper's argument."""
    return g.fn.add(place.base, place.offset) if place.base.type == PTR else address_value(g, place)


# --- reads ------------------------------------------------------------------------------------------------------


def read_scalar(g: Gen, place: Place, type: Type) -> Value:
    """A scalar from a place."""
    size = size_of(type)
    if place.space in DIRECT:
        if place.maybe_null:
            return _guarded(g, place, type)
        return _load(g, place, type)
    target = g.buffer(size)
    read_bytes(g, place.space, target, const(size), address_value(g, place))
    return g.load_scalar(type, target)


def _load(g: Gen, place: Place, type: Type) -> Value:
    if place.space == "ctx":
        value = g.load_context(place.base, place.offset, memory_type(type))
        return g.truth(value) if isinstance(type, types.Bool) else value
    size = size_of(type)
    aligned = place.space != "bpf" or place.offset % max(size, 1) == 0
    return g.load_scalar(type, g.fn.add(place.base, place.offset), 0 if aligned else place.offset & -place.offset)


def _guarded(g: Gen, place: Place, type: Type) -> Value:
    """A load that gives zero for a null pointer."""
    slot = g.fn.slot(register_type(type))
    with g.unless(g.fn.is_null(place.base), "present"):
        value = _load(g, place, type)
        g.fn.store(value, slot, 8 if value.type == PTR else max(1, int(value.type[1:]) // 8))
    return g.fn.load(register_type(type), slot, max(1, size_of(type)))


def read_memory(g: Gen, place: Place, type: Type, target: Value, clean: bool = True) -> None:
    """Bytes from a place to memory of ours."""
    size = size_of(type)
    if place.space == "ctx" and size <= _INLINE_CONTEXT and place.offset % min(size, 8) == 0:
        for at, width in pieces(size):
            word = g.load_context(place.base, place.offset + at, f"i{8 * width}")
            g.fn.store(word, g.fn.add(target, at), width)
        return
    if place.space == "bpf":
        source = g.fn.add(place.base, place.offset)
        if place.maybe_null:
            is_null = g.fn.is_null(place.base)
            source = g.fn.select(is_null, zeros(g, size), source)
        g.copy(target, source, size, _alignment(place, size))
        return
    if place.maybe_null:
        g.clear(target, size)
        with g.unless(g.fn.is_null(place.base), "present"):
            _read_foreign(g, place, type, target)
        return
    if clean and isinstance(type, types.Str):
        _read_clean(g, place, size, target)
    else:
        _read_foreign(g, place, type, target)


def _read_foreign(g: Gen, place: Place, type: Type, target: Value) -> None:
    """The bytes as they are. What is behind a string's NUL comes along."""
    read_bytes(g, place.space, target, const(size_of(type)), address_operand(g, place))


def _read_clean(g: Gen, place: Place, size: int, target: Value) -> None:
    """An array of characters, which may be full: the string helpers always end with a NUL, so they get room for one
    more."""
    room = g.buffer(size + 1)
    g.clear(room, size)
    read_text(g, place.space, room, const(size + 1), address_operand(g, place))
    g.copy(target, room, size)


def pieces(size: int, start: int = 0) -> list[tuple[int, int]]:
    """(offset, bytes) of naturally aligned accesses that cover `start` to before `size`."""
    found = []
    while start < size:
        width = next(w for w in (8, 4, 2, 1) if start % w == 0 and start + w <= size)
        found.append((start, width))
        start += width
    return found


def _alignment(place: Place, size: int) -> int:
    for align in (8, 4, 2):
        if place.offset % align == 0:
            return align
    return 1


def read_bits(g: Gen, place: Place, field: Field, type: Type) -> Value:
    """A bit-field. As in the reference, never negative, whatever its type."""
    fn = g.fn
    value = fn.integer(read_scalar(g, place, types.Int(size_of(field.type) * 8, False)), I64)
    if field.bits < 64:
        value = fn.binary("lshr", value, const(field.bit_offset))
        value = fn.binary("and", value, const((1 << field.bits) - 1))
    return g.truth(value) if isinstance(type, types.Bool) else fn.integer(value, register_type(type))


# --- nodes ------------------------------------------------------------------------------------------------------


def _scalar(g: Gen, node: typed.FieldOf | typed.IndexOf | typed.Deref | typed.ElementOf) -> Value:
    place = place_of(g, node)
    with _reported_at(g, node):
        if isinstance(node, typed.FieldOf) and node.field.bits:
            return read_bits(g, place, node.field, node.type)
        return read_scalar(g, place, node.type)


def _memory(
    g: Gen, node: typed.FieldOf | typed.IndexOf | typed.Deref | typed.ElementOf, target: Value, clean: bool
) -> None:
    place = place_of(g, node)
    with _reported_at(g, node):
        read_memory(g, place, node.type, target, clean)


@contextmanager
def _reported_at(g: Gen, node: typed.Expr) -> Iterator[None]:
    """A failure to read is told with the place of the expression that was read."""
    base = node
    while isinstance(base, typed.FieldOf | typed.IndexOf | typed.ElementOf):
        base = base.base
    outer = g.span
    if base.span.source == node.span.source >= 0:
        g.span = replace(node.span, start=base.span.start)
    try:
        yield
    finally:
        g.span = outer


def _address(g: Gen, node: typed.FieldOf | typed.IndexOf | typed.Deref | typed.ElementOf) -> Value | None:
    """Parts of what is in memory of ours already need no copy."""
    base: typed.Expr = node
    while isinstance(base, typed.FieldOf | typed.IndexOf | typed.ElementOf):
        base = base.base
        if isinstance(base.type, types.Ptr) and base.type.space != "bpf":
            return None
    if isinstance(base, typed.Deref | typed.ArgField):
        return None
    place = place_of(g, node)
    if place.space != "bpf":
        return None
    found = g.fn.add(place.base, place.offset)
    return g.fn.select(g.fn.is_null(place.base), zeros(g, size_of(node.type)), found) if place.maybe_null else found


def _address_of(g: Gen, node: typed.AddressOf) -> Value:
    match node.target:
        case typed.VarRef(var=var):
            return g.locate(g.vars[var])
        case typed.MapRead() as read:
            from bpfseal.compiler.mapping import element

            return element(g, read.map, read.key)
        case _:
            place = place_of(g, node.target)
            if place.space == "bpf" or register_type(node.type) == PTR:
                return g.fn.add(g.fn.pointer(place.base), place.offset)
            return address_value(g, place)


for _node in (typed.FieldOf, typed.IndexOf, typed.Deref, typed.ElementOf):
    SCALARS[_node] = _scalar
    MEMORIES[_node] = _memory
    ADDRESSES[_node] = _address
SCALARS[typed.AddressOf] = _address_of
