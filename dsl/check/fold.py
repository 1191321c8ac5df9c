"""Arithmetic of literals, exact: an operation whose result no 64-bit integer holds is an error."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from bpfseal.dsl import typed
from bpfseal.dsl.types import Bool, Enum, Int

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}

LEAST, MOST = -(1 << 63), (1 << 64) - 1


class FoldError(Exception):
    """The message says what is wrong with the operation."""


def literal(expr: typed.Expr) -> int | bool | bytes | None:
    """The value of a literal: number, truth value or text. None for anything else, casts included."""
    match expr:
        case typed.Int(value=value, type=Int()):
            return value
        case typed.Int(value=value, type=Bool()):
            return bool(value)
        case typed.StrLit(value=text):
            return text
        case _:
            return None


def is_literal(expr: typed.Expr) -> bool:
    """Whether a value is a literal, or a tuple of literals."""
    if isinstance(expr, typed.TupleExpr):
        return all(is_literal(e) for e in expr.elements)
    return literal(expr) is not None


def equal(a: typed.Expr, b: typed.Expr) -> bool:
    """Whether two literals are the same; records by name."""
    if isinstance(a, typed.TupleExpr) and isinstance(b, typed.TupleExpr):
        if len(a.elements) != len(b.elements) or sorted(a.type.names) != sorted(b.type.names):
            return False
        other = [b.elements[b.type.names.index(n)] for n in a.type.names] if a.type.names else b.elements
        return all(equal(x, y) for x, y in zip(a.elements, other, strict=True))
    return literal(a) == literal(b)


def constant(expr: typed.Expr) -> int | None:
    """The value of an integer that is known now: a literal, an enum constant, or a cast of one."""
    match expr:
        case typed.Int(value=value, type=Int() | Bool() | Enum()):
            return value
        case typed.Cast(operand=operand, type=Int(bits=bits, signed=signed)):
            known = constant(operand)
            if known is None:
                return None
            known &= (1 << bits) - 1
            return known - (1 << bits) if signed and known >> (bits - 1) else known
        case _:
            return None


def integers(op: str, a: int, b: int) -> int:
    """`a op b`. Raises FoldError when the result is undefined or too large."""
    match op:
        case "+":
            result = a + b
        case "-":
            result = a - b
        case "*":
            result = a * b
        case "/" | "%":
            if b == 0:
                raise FoldError("division by zero")
            # C rounds towards zero
            quotient = abs(a) // abs(b)
            quotient = -quotient if (a < 0) != (b < 0) else quotient
            result = quotient if op == "/" else a - quotient * b
        case "&":
            result = a & b
        case "|":
            result = a | b
        case "^":
            result = a ^ b
        case "<<" | ">>":
            if not 0 <= b < 64:
                raise FoldError(f"shift by {b}, which is not between 0 and 63")
            if op == ">>":
                result = a >> b
            else:
                result = (a << b) & MOST if a >= 0 else a << b
        case _:
            raise FoldError(f"{op} cannot be used on numbers")
    if not LEAST <= result <= MOST:
        raise FoldError(f"the result of {a} {op} {b} is too large for 64 bits")
    return result


def strings(op: str, a: bytes, b: bytes) -> bytes | bool:
    """`a op b` of two texts."""
    if op in COMPARISONS:
        return COMPARISONS[op](a, b)
    if op == "+":
        return a + b
    if op == "&&":
        return bool(a) and bool(b)
    if op == "||":
        return bool(a) or bool(b)
    raise FoldError(f"{op} cannot be used on strings")
