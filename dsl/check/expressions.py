"""Expressions that are neither operators, access, names nor calls: literals, tuples, casts, blocks."""

from __future__ import annotations

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check import (
    access,
    calls,
    casts,
    fold,
    introspection,
    maps,
    names,
    operators,
    scopes,
    statements,
)
from bpfseal.dsl.check.conversions import is_unknown, literal_type
from bpfseal.dsl.check.state import Handler, State, nothing
from bpfseal.dsl.types import BOOL, VOID, Aggregate, Str, Tuple, Void


def integer(c: State, node: ast.Integer) -> typed.Expr:
    try:
        return typed.Int(node.value, literal_type(node.value), node.span)
    except OverflowError:
        return c.error(node.span, f"the number {node.text or node.value} does not fit into 64 bits")


def string(c: State, node: ast.String) -> typed.Expr:
    limit = int(c.config["max_strlen"])
    if len(node.value) >= limit:
        return c.error(
            node.span,
            f"the string is too long: {len(node.value) + 1} bytes with its NUL, at most {limit} are possible",
            f"set config = {{ max_strlen = {len(node.value) + 1} }}",
        )
    return typed.StrLit(node.value, Str(len(node.value) + 1), node.span)


def boolean(c: State, node: ast.Boolean) -> typed.Expr:
    return typed.Int(int(node.value), BOOL, node.span)


def positional(c: State, node: ast.Positional) -> typed.Expr:
    """Parameters are literals by now; one that is left was not given."""
    if node.number == 0:
        return typed.Int(0, literal_type(0), node.span)
    c.warn(node.span, f"positional parameter ${node.number} is empty or not provided")
    return typed.Int(0, literal_type(0), node.span)


def tuple_of(c: State, node: ast.TupleExpr) -> typed.Expr:
    elements = [c.expr(e) for e in node.elements]
    if any(is_unknown(e.type) for e in elements):
        return nothing(node.span)
    for element, written in zip(elements, node.elements, strict=True):
        if isinstance(element.type, Void | Aggregate):
            return c.error(written.span, "something that has no value cannot be part of a tuple")
    for n, name in enumerate(node.names):
        if name in node.names[:n]:
            return c.error(node.elements[n].span, f"the name '{name}' appears twice in the record")
    type = Tuple(tuple(e.type for e in elements), node.names)
    return typed.TupleExpr(tuple(elements), type, node.span)


def block(c: State, node: ast.Block) -> typed.Expr:
    """`{ …; value }`."""
    with scopes.block(c):
        body = statements.body(c, node.statements)
        if node.result is None:
            return typed.BlockExpr(tuple(body), typed.Int(0, VOID, node.span), VOID, node.span)
        result = c.expr(node.result)
    if not body:
        return result
    if is_unknown(result.type):
        return result
    return typed.BlockExpr(tuple(body), result, result.type, node.span)


def if_value(c: State, node: ast.IfExpr) -> typed.Expr:
    """`if (c) { a } else { b }` as a value."""
    if isinstance(node.condition, ast.Comptime):
        value = introspection.decide(c, node.condition)
        if value is None:
            return nothing(node.span)
        return block(c, node.then if value else node.otherwise)
    test = operators.condition(c, node.condition)
    then, otherwise = block(c, node.then), block(c, node.otherwise)
    return operators.choose(c, test, then, otherwise, node.span)


def comptime(c: State, node: ast.Comptime) -> typed.Expr:
    value = c.expr(node.operand)
    if is_unknown(value.type) or fold.is_literal(value):
        return value
    return c.error(node.span, "this is not known when the script is compiled", "comptime needs a constant")


def stray_type(c: State, node: ast.TypeOf) -> typed.Expr:
    return c.error(node.span, "typeof() is a type and cannot be used as a value", "use it in a cast or after let $x :")


def table() -> dict[type, Handler]:
    """Handlers by class of node."""
    return {
        ast.Integer: integer,
        ast.String: string,
        ast.Boolean: boolean,
        ast.Identifier: names.identifier,
        ast.Positional: positional,
        ast.Variable: scopes.read,
        ast.Map: maps.read,
        ast.Unary: access.unary,
        ast.IncDec: operators.inc_dec,
        ast.Binary: operators.binary,
        ast.Ternary: operators.ternary,
        ast.Member: access.member,
        ast.Index: access.index,
        ast.Cast: casts.cast,
        ast.TypeOf: stray_type,
        ast.SizeOf: introspection.size_of_node,
        ast.OffsetOf: introspection.offset_of,
        ast.TypeInfo: introspection.type_info,
        ast.TupleExpr: tuple_of,
        ast.Call: calls.call,
        ast.Block: block,
        ast.Comptime: comptime,
        ast.IfExpr: if_value,
    }
