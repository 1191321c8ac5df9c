"""Functions on maps: delete, has_key, find, len."""

from __future__ import annotations

from collections.abc import Sequence

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check import arguments, maps, scopes
from bpfseal.dsl.check.arguments import Rule
from bpfseal.dsl.check.state import MapInfo, State, nothing
from bpfseal.dsl.types import BOOL, I64, Aggregate, Stack


def _entry(c: State, node: ast.Call) -> tuple[MapInfo, typed.Expr | None] | None:
    """Map and key of `f(@m, key)`; None (and a report) when they are wrong."""
    first, second = node.args[0], node.args[1]
    info = maps.raw(c, first, node.name, keyed=True)
    if info is None:
        return None
    if isinstance(second, ast.TypeName | ast.TypeOf):
        c.error(second.span, f"{node.name}() needs a key here, not a type")
        return None
    key = maps.key_of(c, info, second, second.span)
    return None if key is None else (info, key)


def delete(c: State, node: ast.Call, discarded: bool = False) -> typed.Expr:
    options: dict[str, object] = {"discarded": True} if discarded else {}
    first = node.args[0]
    if len(node.args) == 2:
        found = _entry(c, node)
        if found is None:
            return nothing(node.span)
        return typed.Call("delete", (), BOOL, node.span, options, found[0].definition, found[1])
    if not isinstance(first, ast.Map):
        return c.error(first.span, "delete() expects a map argument", "delete(@x, key)")
    info = maps.lookup(c, first.name, first.span)
    if first.key is None and info.keyed:
        return c.error(
            node.span,
            f"delete() of @{first.name}, which has keys, needs to know which",
            f"delete(@{first.name}, key) removes one, clear(@{first.name}) all",
        )
    accessed, key = maps.access(c, first)
    if accessed is None:
        return nothing(node.span)
    return typed.Call("delete", (), BOOL, node.span, options, accessed.definition, key)


def delete_statement(c: State, node: ast.Call) -> Sequence[typed.Stmt]:
    value = delete(c, node, discarded=True)
    return (typed.Do(value, node.span),) if isinstance(value, typed.Call) else ()


def has_key(c: State, node: ast.Call) -> typed.Expr:
    found = _entry(c, node)
    if found is None:
        return nothing(node.span)
    return typed.Call("has_key", (), BOOL, node.span, {}, found[0].definition, found[1])


def find(c: State, node: ast.Call) -> typed.Expr:
    target = node.args[2]
    found = _entry(c, node)
    if found is None:
        return nothing(node.span)
    if not isinstance(target, ast.Variable):
        return c.error(target.span, "find() expects a variable for the value", "find(@x, key, $value)")
    info, key = found
    value = maps.value_type(info)
    if isinstance(value, Aggregate):
        return c.error(node.args[0].span, f"the value of a {value.kind}() map cannot be kept in a variable")
    variable = scopes.find(c, target.name)
    if variable is None:
        variable = scopes.declare(c, target.name, target, target.span, "assigned")
    variable.assigned = True
    if info.value is None:
        maps.self_started(c, info)
        return nothing(node.span)
    if (variable.fixed and variable.var.type != value) or (not variable.fixed and not c.grow_variable(variable, value)):
        return c.error(
            target.span, f"${target.name} is of type {variable.var.type}, the values of @{info.name} are {value}"
        )
    place = typed.VarRef(variable.var, variable.var.type, target.span)
    return typed.Call("find", (place,), BOOL, node.span, {}, info.definition, key)


def length(c: State, node: ast.Call) -> typed.Expr:
    first = node.args[0]
    if isinstance(first, ast.Map) and first.key is None:
        info = maps.raw(c, first, "len", keyed=True)
        if info is None:
            return nothing(node.span)
        return typed.Call("len", (), I64, node.span, {}, info.definition)
    expr = arguments.value(c, node, 0)
    if expr is None:
        return nothing(node.span)
    if not isinstance(expr.type, Stack):
        hint = "use strlen() for strings" if str(expr.type).startswith("string") else None
        return c.error(expr.span, f"len() expects a map, ustack or kstack, not {expr.type}", hint)
    return typed.Call("len", (expr,), I64, node.span)


RULES: dict[str, Rule] = {"delete": delete, "has_key": has_key, "find": find, "len": length}

STATEMENTS = {"delete": delete_statement}
