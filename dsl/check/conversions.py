"""Types meeting types: what two become (`promote`), what fits where, and the casts that follow.

The rules are the language reference's: integers grow to hold both, a sign mismatch that nothing can hold becomes
int64, strings and buffers take the larger size, tuples and records element by element.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from bpfseal.dsl import typed
from bpfseal.dsl.types import (
    BOOL,
    Array,
    Bool,
    Buf,
    Enum,
    Int,
    Ptr,
    Record,
    Str,
    Timestamp,
    Tuple,
    Type,
    Void,
)


class Unknown(Void, frozen=True):
    """The type of an expression that is wrong or not yet known; everything accepts it silently, so that one mistake
    is reported once."""


UNKNOWN = Unknown()

Warn = Callable[[typed.Expr, Type, Type], None]


def is_unknown(type: Type) -> bool:
    return isinstance(type, Unknown)


def literal_type(value: int) -> Type:
    """Smallest type of an integer literal: signed unless only uint64 holds it. Raises OverflowError beyond."""
    if value >= 0:
        for bits in (8, 16, 32, 64):
            if value < 1 << (bits - 1):
                return Int(bits, True, flexible=True)
        if value < 1 << 64:
            return Int(64, False)
    else:
        for bits in (8, 16, 32, 64):
            if value >= -(1 << (bits - 1)):
                return Int(bits, True)
    raise OverflowError(value)


def fits(value: int, type: Int) -> bool:
    """Whether `value` is in the range of `type`."""
    if type.signed:
        return -(1 << (type.bits - 1)) <= value < 1 << (type.bits - 1)
    return 0 <= value < 1 << type.bits


def wrap(value: int, type: Type) -> int:
    """`value` cut to the width of an integer type."""
    if isinstance(type, Bool):
        return int(value != 0)
    bits = type.bits if isinstance(type, Int | Enum) else 64
    signed = type.signed if isinstance(type, Int | Enum) else False
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >> (bits - 1) else value


def as_int(type: Type) -> Int | None:
    """The integer type behind an integer or enum."""
    match type:
        case Int():
            return type
        case Enum(bits=bits, signed=signed):
            return Int(bits, signed)
        case _:
            return None


def meet(a: str, b: str) -> str:
    """Address space of a value that is sometimes of one and sometimes of the other."""
    if a == b or not b or b == "none":
        return a
    return b if not a or a == "none" else ""


def promote_int(a: Int, b: Int) -> Int:
    flexible = a.flexible and b.flexible
    space = meet(a.space, b.space)
    if a.signed != b.signed:
        if a.flexible or b.flexible:
            signed = (a.signed and not a.flexible) or (b.signed and not b.flexible)
            return Int(max(a.bits, b.bits), signed, flexible, space)
        signed_one, unsigned_one = (a, b) if a.signed else (b, a)
        if signed_one.bits > unsigned_one.bits:
            return replace(signed_one, space=space)
        return Int(min(64, max(a.bits, b.bits) * 2), True, False, space)
    return Int(max(a.bits, b.bits), a.signed, flexible, space)


def promote(a: Type | None, b: Type) -> Type | None:
    """The type that holds values of both; None when there is none. `a` None or unknown: no type yet."""
    if a is None or isinstance(a, Unknown):
        return b
    if isinstance(b, Unknown):
        return a
    match a, b:
        case (Enum(), Enum()) if a.name == b.name:
            return a if a.bits >= b.bits else b
        case (Int() | Enum(), Int() | Enum()):
            left, right = as_int(a), as_int(b)
            assert left is not None
            assert right is not None
            return promote_int(left, right)
        case Str(), Str():
            return Str(max(a.size, b.size))
        case Buf(), Buf():
            return Buf(max(a.capacity, b.capacity))
        case Ptr(), Ptr():
            return _promote_pointer(a, b)
        case Tuple(), Tuple():
            return _promote_tuple(a, b)
        case Timestamp(), Timestamp():
            return a
        case Record(), Record():
            return a if a.name == b.name else None
        case Array(), Array() if a.count == b.count and same(a.element, b.element):
            element = promote(a.element, b.element)
            return a if element is None else Array(element, a.count)
        case _:
            return a if a == b else None


def _promote_pointer(a: Ptr, b: Ptr) -> Type | None:
    space = a.space if a.space == b.space else (meet(a.space, b.space) or "none")
    if {a.space, b.space} == {"btf", "kernel"}:
        space = "kernel"
    if a.to is None or b.to is None:
        return Ptr(a.to if b.to is None else b.to, space)
    if isinstance(a.to, Void) or isinstance(b.to, Void):
        return Ptr(b.to if isinstance(a.to, Void) else a.to, space)
    to = promote(a.to, b.to)
    return Ptr(to, space) if to is not None else None


def _promote_tuple(a: Tuple, b: Tuple) -> Type | None:
    if len(a.elements) != len(b.elements) or sorted(a.names) != sorted(b.names):
        return None
    other = b.elements if not b.names else tuple(b.elements[b.names.index(n)] for n in a.names)
    elements = []
    for left, right in zip(a.elements, other, strict=True):
        both = promote(left, right)
        if both is None:
            return None
        elements.append(both)
    return Tuple(tuple(elements), a.names)


def same(a: Type, b: Type) -> bool:
    """Equal but for the checker's own remarks and the address spaces of pointers."""
    match a, b:
        case Ptr(), Ptr():
            return a.to is b.to if a.to is None or b.to is None else same(a.to, b.to)
        case Array(), Array():
            return a.count == b.count and same(a.element, b.element)
        case Tuple(), Tuple():
            return (
                len(a.elements) == len(b.elements)
                and a.names == b.names
                and all(same(x, y) for x, y in zip(a.elements, b.elements, strict=True))
            )
        case _:
            return a == b


def fits_into(a: Type, b: Type) -> bool:
    """Whether every value of `a` is one of `b`."""
    left, right = as_int(a), as_int(b)
    if left is not None and right is not None:
        if left.signed == right.signed or left.flexible:
            return left.bits <= right.bits
        return not left.signed and left.bits < right.bits
    match a, b:
        case Str(), Str():
            return a.size <= b.size
        case Buf(), Buf():
            return a.capacity <= b.capacity
        case Tuple(), Tuple():
            other = b.elements if not b.names else tuple(b.elements[b.names.index(n)] for n in a.names if n in b.names)
            return len(a.elements) == len(other) and all(
                fits_into(x, y) for x, y in zip(a.elements, other, strict=True)
            )
        case _:
            return same(a, b)


def truth(expr: typed.Expr) -> typed.Expr:
    """A condition as Bool."""
    if isinstance(expr.type, Bool | Unknown):
        return expr
    if isinstance(expr, typed.Int):
        return typed.Int(int(expr.value != 0), BOOL, expr.span)
    return typed.Cast(expr, BOOL, expr.span)


def to_int(expr: typed.Expr, target: Type) -> typed.Expr:
    """An integer, boolean, enum or pointer as `target`, cut or extended without remarks."""
    if isinstance(expr.type, Unknown) or expr.type == target:
        return expr
    if isinstance(expr, typed.Int):
        return typed.Int(wrap(expr.value, target), target, expr.span)
    return typed.Cast(expr, target, expr.span)


def coerce(expr: typed.Expr, target: Type, warn: Warn) -> typed.Expr | None:
    """`expr` as `target` where the language converts by itself; None where it does not.

    `warn` is called for integers that may not fit. Literals that do not fit are refused.
    """
    type = expr.type
    if isinstance(type, Unknown) or isinstance(target, Unknown) or type == target:
        return expr
    if as_int(type) is not None and as_int(target) is not None:
        return _coerce_int(expr, target, warn)
    match type, target:
        case Str(), Str():
            if type.size > target.size:
                return None
            if isinstance(expr, typed.StrLit):
                return typed.StrLit(expr.value, target, expr.span)
            return typed.Cast(expr, target, expr.span)
        case Buf(), Buf():
            return typed.Cast(expr, target, expr.span) if type.capacity <= target.capacity else None
        case Tuple(), Tuple():
            return _coerce_tuple(expr, type, target, warn)
        case Ptr(), Ptr():
            return typed.Cast(expr, target, expr.span) if promote(type, target) is not None else None
        case Timestamp(), Timestamp():
            return expr
        case (Record(), Record()) | (Array(), Array()):
            return expr if same(type, target) else None
        case _:
            return None


def _coerce_int(expr: typed.Expr, target: Type, warn: Warn) -> typed.Expr | None:
    if isinstance(expr, typed.Int) and isinstance(expr.type, Int):
        number = as_int(target)
        assert number is not None
        return typed.Int(expr.value, target, expr.span) if fits(expr.value, number) else None
    if not fits_into(expr.type, target):
        warn(expr, expr.type, target)
    return typed.Cast(expr, target, expr.span)


def _coerce_tuple(expr: typed.Expr, type: Tuple, target: Tuple, warn: Warn) -> typed.Expr | None:
    if len(type.elements) != len(target.elements) or sorted(type.names) != sorted(target.names):
        return None
    wanted = target.elements
    if type.names:
        wanted = tuple(target.elements[target.names.index(n)] for n in type.names)
    if isinstance(expr, typed.TupleExpr):
        elements = [coerce(e, t, warn) for e, t in zip(expr.elements, wanted, strict=True)]
        if any(e is None for e in elements):
            return None
        mine = Tuple(wanted, type.names)
        rebuilt = typed.TupleExpr(tuple(e for e in elements if e is not None), mine, expr.span)
        # only the order of the names differs: elements are evaluated as written, then moved
        return rebuilt if mine == target else typed.Cast(rebuilt, target, expr.span)
    for have, want in zip(type.elements, wanted, strict=True):
        dummy = typed.Cast(expr, have, expr.span)
        if coerce(dummy, want, warn) is None:
            return None
    return typed.Cast(expr, target, expr.span)
