"""What the rules of functions share: arguments as literals, integers, pointers, strings."""

from __future__ import annotations

from collections.abc import Callable

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check import fold
from bpfseal.dsl.check.access import place_of
from bpfseal.dsl.check.conversions import as_int, is_unknown, to_int
from bpfseal.dsl.check.state import State
from bpfseal.dsl.types import I8, U64, Array, Bool, Buf, Enum, Int, Ptr, Record, Str, Tuple, Type, size_of

Rule = Callable[[State, ast.Call], typed.Expr]


def value(c: State, node: ast.Call, index: int) -> typed.Expr | None:
    """Argument `index` as a value; None when it is wrong, which has been reported."""
    arg = node.args[index]
    if isinstance(arg, ast.TypeName | ast.TypeOf):
        c.error(arg.span, f"{node.name}() needs a value here, not a type")
        return None
    expr = c.expr(arg)
    return None if is_unknown(expr.type) else expr


def values(c: State, node: ast.Call, start: int = 0) -> list[typed.Expr] | None:
    """All arguments from `start`; None when one is wrong."""
    found = [value(c, node, n) for n in range(start, len(node.args))]
    good = [e for e in found if e is not None]
    return good if len(good) == len(found) else None


def word(node: ast.Call, index: int) -> str | None:
    """An argument that is a bare word, such as a mode or a clock."""
    arg = node.args[index]
    return arg.name if isinstance(arg, ast.Identifier) else None


def text(c: State, node: ast.Call, index: int) -> bytes | None:
    """A string literal; None (and a report) when the argument is none."""
    arg = node.args[index]
    # formats may be longer than any string that a program handles
    if isinstance(arg, ast.String):
        return arg.value
    expr = value(c, node, index)
    if expr is None:
        return None
    found = fold.literal(expr)
    if isinstance(found, bytes):
        return found
    hint = None
    if isinstance(arg, ast.Positional):
        hint = f"use str(${arg.number}) to treat ${arg.number} as a string"
    c.error(arg.span, f"{node.name}() expects a string literal here, not {expr.type}", hint)
    return None


def name(c: State, node: ast.Call, index: int) -> str | None:
    """A string literal that is text."""
    data = text(c, node, index)
    return None if data is None else data.decode("utf-8", "replace")


def number(c: State, node: ast.Call, index: int, what: str, least: int = 0) -> int | None:
    """A literal number of at least `least`; None (and a report) when the argument is none."""
    expr = value(c, node, index)
    if expr is None:
        return None
    found = fold.constant(expr)
    if found is None:
        c.error(expr.span, f"{node.name}(): {what} must be a literal number, not {expr.type}")
        return None
    if found < least:
        c.error(expr.span, f"{node.name}(): {what} must be at least {least}, it is {found}")
        return None
    return found


def integer(c: State, node: ast.Call, index: int, type: Type) -> typed.Expr | None:
    """An integer argument as `type`; None (and a report) when it is none."""
    expr = value(c, node, index)
    return None if expr is None else as_integer(c, expr, node.name, type)


def as_integer(c: State, expr: typed.Expr, function: str, type: Type) -> typed.Expr | None:
    if as_int(expr.type) is None and not isinstance(expr.type, Bool):
        hint = f"cast it: ({type})" if isinstance(expr.type, Ptr) else None
        c.error(expr.span, f"{function}() only supports integer arguments here, not {expr.type}", hint)
        return None
    return to_int(expr, type)


def space(c: State, expr: typed.Expr) -> str:
    """The address space of an address in an integer or pointer."""
    match expr.type:
        case Ptr(space=found) | Int(space=found) if found and found != "none":
            return found
        case _:
            return c.place.space


def pointer(c: State, expr: typed.Expr, to: Type | None = I8) -> typed.Expr | None:
    """An address (integer or pointer) as Ptr with its space decided; None for other types."""
    match expr.type:
        case Ptr(to=known):
            wanted = Ptr(known, space(c, expr))
            return expr if expr.type == wanted else typed.Cast(expr, wanted, expr.span)
        case Int() | Enum():
            return typed.Cast(to_int(expr, U64), Ptr(to, space(c, expr)), expr.span)
        case _:
            return None


def address(c: State, expr: typed.Expr) -> typed.Expr | None:
    """A pointer, or the address of memory that a value lies in; None where there is none."""
    found = pointer(c, expr)
    if (
        found is None
        and isinstance(expr.type, Array | Record)
        and isinstance(expr, typed.FieldOf | typed.IndexOf | typed.Deref)
    ):
        where = place_of(expr)
        return typed.AddressOf(expr, Ptr(expr.type, "kernel" if where == "btf" else where), expr.span)
    return found


def in_memory(type: Type) -> bool:
    """Whether values of `type` are kept in memory rather than in a register."""
    return isinstance(type, Str | Buf | Array | Record | Tuple) and size_of(type) > 0


def described(type: Type) -> str:
    return "nothing" if str(type).startswith("Void") else str(type)
