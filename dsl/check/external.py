"""Calls of functions in imported C files."""

from __future__ import annotations

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check import arguments
from bpfseal.dsl.check.conversions import coerce, to_int
from bpfseal.dsl.check.state import State, nothing
from bpfseal.dsl.env import CFunction
from bpfseal.dsl.types import U64, Bool, Int, Ptr, Void, is_scalar


def call(c: State, node: ast.Call, function: CFunction) -> typed.Expr:
    if len(node.args) != len(function.params):
        return c.error(
            node.span,
            f"{function.name}() takes {len(function.params)} arguments, {len(node.args)} given",
            spelled(function),
        )
    given = arguments.values(c, node)
    if given is None:
        return nothing(node.span)
    args = []
    for expr, (name, type) in zip(given, function.params, strict=True):
        fitting = _argument(c, expr, type)
        if fitting is None:
            what = f"'{name}'" if name else "this argument"
            return c.error(
                expr.span, f"{function.name}() expects {type} for {what}, not {expr.type}", spelled(function)
            )
        args.append(fitting)
    options: dict[str, object] = {"function": function.name, "params": tuple(type for _, type in function.params)}
    return typed.Call("external", tuple(args), function.returns, node.span, options)


def _argument(c: State, expr: typed.Expr, type: object) -> typed.Expr | None:
    """Pointers take pointers to anything, integers, and the address of what is in memory; as C would with a cast."""
    if isinstance(type, Ptr):
        if isinstance(expr.type, Ptr) or (not is_scalar(expr.type) and not isinstance(expr.type, Void)):
            return expr
        return to_int(expr, U64) if isinstance(expr.type, Int) else None
    if isinstance(type, Int | Bool):
        if isinstance(expr.type, Ptr) and isinstance(type, Int) and type.bits == 64:
            return to_int(expr, type)
        return coerce(expr, type, c.narrowing)
    return None


def spelled(function: CFunction) -> str:
    """As C declares it, for messages."""
    params = ", ".join(f"{type} {name}".rstrip() for name, type in function.params)
    return f"{function.returns} {function.name}({params})"
