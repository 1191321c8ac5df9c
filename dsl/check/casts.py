"""`(type)value`."""

from __future__ import annotations

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check import fold, typenames
from bpfseal.dsl.check.access import place_of
from bpfseal.dsl.check.conversions import as_int, is_unknown, promote, same, to_int, wrap
from bpfseal.dsl.check.state import State, is_aggregate_read, nothing
from bpfseal.dsl.source import Span
from bpfseal.dsl.types import (
    I8,
    U8,
    U64,
    Array,
    Bool,
    Buf,
    Enum,
    Int,
    Ptr,
    Record,
    Str,
    Type,
    Username,
    Void,
    size_of,
)


def cast(c: State, node: ast.Cast) -> typed.Expr:
    target = typenames.of(c, node.type)
    operand = c.expr(node.operand)
    if is_unknown(target) or is_unknown(operand.type):
        return nothing(node.span)
    return convert(c, operand, target, node.span)


def convert(c: State, operand: typed.Expr, target: Type, span: Span) -> typed.Expr:
    """An explicit conversion."""
    have = operand.type
    if is_aggregate_read(operand) and isinstance(target, Int):
        return typed.Cast(operand, target, span)
    if isinstance(have, Record) and not (isinstance(target, Record) and target.name == have.name):
        return c.error(span, f'cannot cast from C type "{have}"', "take a member of it, or its address with &")
    if same(have, target) and not (isinstance(have, Int) and (have.flexible or have.space)):
        if not c.silent:
            c.warn(span, f"unnecessary cast: the expression is of type {have} already")
        # what has been cast is no literal any more: it is not folded, and keeps its sign
        return typed.Cast(operand, target, span) if isinstance(operand, typed.Int) else operand
    match target:
        case Int() | Bool() | Enum():
            return _to_number(c, operand, target, span)
        case Ptr():
            return _to_pointer(c, operand, target, span)
        case Str():
            return _to_string(c, operand, target, span)
        case Array():
            return _to_array(c, operand, target, span)
        case Username() if as_int(have) is not None:
            return typed.Cast(to_int(operand, U64), target, span)
        case Buf() if isinstance(have, Buf) and target.capacity >= have.capacity:
            return typed.Cast(operand, target, span)
        case _:
            return _refuse(c, have, target, span)


def _refuse(c: State, have: Type, target: Type, span: Span, hint: str | None = None) -> typed.Expr:
    return c.error(span, f'cannot cast from "{have}" to "{target}"', hint)


def _to_number(c: State, operand: typed.Expr, target: Int | Bool | Enum, span: Span) -> typed.Expr:
    have = operand.type
    if isinstance(target, Enum):
        problem = _enum_value(c, operand, target)
        if problem:
            return c.error(span, problem)
        c.note_type(target)
    match have:
        case Int(space=space) if isinstance(target, Int) and space:
            target = Int(target.bits, target.signed, False, space)
        case Ptr(space=space) if isinstance(target, Int) and space in ("kernel", "user", "btf"):
            target = Int(target.bits, target.signed, False, "kernel" if space == "btf" else space)
        case _:
            pass
    if isinstance(have, Int | Bool | Enum | Ptr):
        return typed.Cast(operand, target, span)
    if isinstance(have, Array) and isinstance(target, Int):
        if size_of(have) != size_of(target):
            return _refuse(
                c, have, target, span, f"an array of {size_of(have)} bytes needs an integer of the same size"
            )
        raw = operand.options.get("bytes") if isinstance(operand, typed.Call) and operand.name == "pton" else None
        if isinstance(raw, bytes):
            value = int.from_bytes(raw, "little")
            return typed.Cast(typed.Int(wrap(value, target), target, span), target, span)
        return typed.Cast(operand, target, span)
    if isinstance(have, Str) and isinstance(target, Bool):
        text = fold.literal(operand)
        if text is not None:
            return typed.Int(int(bool(text)), target, span)
        first = typed.IndexOf(operand, typed.Int(0, U64, span), I8, span)
        return typed.Binary("!=", first, typed.Int(0, I8, span), target, span)
    if isinstance(have, Str) and isinstance(target, Int) and have.size == size_of(target) and _foreign(operand):
        # an array of 8-bit integers that is shown as a string
        return typed.Cast(typed.Cast(operand, Array(U8, have.size), span), target, span)
    hint = "use str() the other way round, or strlen() for its length" if isinstance(have, Str) else None
    return _refuse(c, have, target, span, hint)


def _foreign(expr: typed.Expr) -> bool:
    return isinstance(expr, typed.FieldOf | typed.IndexOf | typed.ArgField | typed.Deref)


def _enum_value(c: State, operand: typed.Expr, target: Enum) -> str:
    names = c.env.enum(target)
    if names is None:
        return f"unknown enum: {target.name}"
    value = fold.literal(operand)
    if value is not None and value not in names:
        return f"enum {target.name} has no constant with the value {value!r}"
    return ""


def _to_pointer(c: State, operand: typed.Expr, target: Ptr, span: Span) -> typed.Expr:
    have = operand.type
    match have:
        case Ptr(space=space):
            pass
        case Int(space=space):
            pass
        case Bool() | Enum():
            space = ""
        case Array() if size_of(have) == 8:
            return typed.Cast(operand, Ptr(target.to, c.place.space), span)
        case Array() | Str():
            where = place_of(operand)
            where = "kernel" if where == "btf" else where
            return typed.Cast(typed.AddressOf(operand, Ptr(have, where), span), Ptr(target.to, where), span)
        case _:
            hint = "use & for the address of a variable" if isinstance(operand, typed.VarRef) else None
            return _refuse(c, have, target, span, hint)
    if target.space != "none":
        space = target.space
    elif not space or space == "none":
        space = c.place.space if c.place.kind else "kernel"
    if space == "btf":
        # another type than the verifier knows it by is read with a helper
        known = isinstance(have, Ptr) and have.to is not None and target.to is not None and same(have.to, target.to)
        space = "btf" if known else "kernel"
    return typed.Cast(operand, Ptr(target.to, space), span)


def _to_string(c: State, operand: typed.Expr, target: Str, span: Span) -> typed.Expr:
    have = operand.type
    if isinstance(have, Str):
        if target.size == 0:
            return operand
        if target.size < have.size:
            return _refuse(c, have, target, span, f"str(…, {max(0, target.size - 1)}) makes a shorter string")
        if isinstance(operand, typed.StrLit):
            return typed.StrLit(operand.value, target, span)
        return typed.Cast(operand, target, span)
    if isinstance(have, Array) and size_of(have.element) == 1 and (target.size == 0 or target.size >= have.count):
        return typed.Cast(operand, Str(target.size or have.count), span)
    return _refuse(c, have, target, span, "use str() to read a string from an address")


def _to_array(c: State, operand: typed.Expr, target: Array, span: Span) -> typed.Expr:
    have = operand.type
    element = size_of(target.element)
    if not isinstance(target.element, Int | Bool):
        return _refuse(c, have, target, span, "only arrays of integers can be made by a cast")
    if isinstance(have, Enum | Bool | Int):
        size = size_of(have)
    elif isinstance(have, Str):
        size = have.size
    else:
        return _refuse(c, have, target, span)
    count = target.count
    if count == 0:
        if size % element:
            return c.error(span, f"cannot determine the array's size: {size} bytes are not a multiple of {element}")
        count = size // element
    total = count * element
    if isinstance(have, Str):
        if total != size:
            return _refuse(c, have, target, span, f"the string takes {size} bytes")
        return typed.Cast(operand, Array(target.element, count), span)
    if total != size and not (total <= 8 and total > size):
        return _refuse(c, have, target, span, f"the sizes differ: {size} and {total} bytes")
    if total > size:
        wide = Int(64 if total > 4 else 32 if total > 2 else 16, False)
        number = as_int(have)
        if number is not None and number.signed:
            wide = Int(wide.bits, True)
        operand = to_int(operand, wide)
    return typed.Cast(operand, Array(target.element, count), span)


def compatible(a: Type, b: Type) -> bool:
    """Whether a value of one type may stand where the other is expected."""
    return not isinstance(a, Void) and promote(a, b) is not None
