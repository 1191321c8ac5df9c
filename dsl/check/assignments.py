"""Assignments and declarations of variables; `maps` has those of maps."""

from __future__ import annotations

from collections.abc import Sequence

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check import maps, scopes, typenames
from bpfseal.dsl.check.conversions import UNKNOWN, as_int, coerce, is_unknown, same
from bpfseal.dsl.check.state import State, Variable, is_aggregate_read
from bpfseal.dsl.source import Span
from bpfseal.dsl.types import Aggregate, Array, Buf, Int, Ptr, Record, Str, Type, Void, is_scalar, size_of


def assign(c: State, node: ast.Assign) -> Sequence[typed.Stmt]:
    value = node.value
    target = node.target
    if isinstance(target, ast.Identifier) and target.name == "_" and node.op == "=":
        return _discarded(c, value, node.span)
    if node.op != "=":
        if not isinstance(target, ast.Variable | ast.Map):
            return _no_target(c, target)
        value = ast.Binary(node.op[:-1], target, value, node.span)
    match target:
        case ast.Variable():
            return _assign_variable(c, target, value, node.span)
        case ast.Map():
            return maps.assign(c, target, value, node.span)
        case _:
            return _no_target(c, target)


def _discarded(c: State, value: ast.Expr, span: Span) -> Sequence[typed.Stmt]:
    """`_ = value`: evaluated, and not worth a warning."""
    if isinstance(value, ast.Block | ast.IfExpr | ast.Ternary):
        c.warnings_off += 1
        done = c.statement(ast.ExprStatement(value, span))
        c.warnings_off -= 1
        return done
    expr = c.expr(value)
    return () if is_unknown(expr.type) else (typed.Do(expr, span),)


def _no_target(c: State, target: ast.Expr) -> Sequence[typed.Stmt]:
    if isinstance(target, ast.Member | ast.Index):
        c.error(
            target.span, "members and elements cannot be assigned to", "tuples, records and traced memory are constant"
        )
    elif isinstance(target, ast.Identifier):
        c.error(target.span, f"'{target.name}' cannot be assigned to", f"variables start with $: ${target.name}")
    else:
        c.error(target.span, "only variables and maps can be assigned to")
    return ()


def _assign_variable(c: State, target: ast.Variable, value: ast.Expr, span: Span) -> Sequence[typed.Stmt]:
    expr = c.expr(value)
    variable = scopes.find(c, target.name)
    if variable is None:
        variable = scopes.declare(c, target.name, target, target.span, "assigned")
    for captured in c.captures:
        captured.setdefault(target.name, variable)
    return store(c, variable, expr, span)


def store(c: State, variable: Variable, expr: typed.Expr, span: Span) -> Sequence[typed.Stmt]:
    """Give a variable a value; it grows for it unless it was declared with a type."""
    variable.assigned = True
    name = variable.var.name
    if is_unknown(expr.type):
        return ()
    if isinstance(expr.type, Void | Aggregate):
        c.error(expr.span, "something that has no value cannot be assigned to a variable")
        return ()
    if is_aggregate_read(expr) and not is_unknown(variable.var.type) and as_int(variable.var.type) is None:
        c.error(span, f"type mismatch for ${name}: it is of type {variable.var.type}, the map's value is a number")
        return ()
    if not variable.fixed and not c.grow_variable(variable, expr.type):
        return _mismatch(c, variable, expr, span)
    if variable.fixed and same(variable.var.type, expr.type):
        # which memory pointers point to is no part of a declaration
        c.grow_variable(variable, expr.type)
    converted = coerce(expr, variable.var.type, c.narrowing)
    if converted is None:
        return _mismatch(c, variable, expr, span)
    return (typed.AssignVar(variable.var, converted, span),)


def _mismatch(c: State, variable: Variable, expr: typed.Expr, span: Span) -> Sequence[typed.Stmt]:
    type, have = expr.type, variable.var.type
    hint = None
    if isinstance(have, Int) and isinstance(expr, typed.Int) and isinstance(type, Int):
        c.error(
            expr.span,
            f"type mismatch for ${variable.var.name}: {expr.value} does not fit into {have}",
            f"cast it: ({have})",
            (f"${variable.var.name} was {variable.what} here", variable.span),
        )
        return ()
    if isinstance(have, Str) and isinstance(type, Str):
        hint = f"the string needs {type.size} bytes with its NUL"
    elif isinstance(have, Int) and isinstance(type, Ptr):
        hint = f"cast the pointer: ({have}), or use another variable"
    name = variable.var.name
    c.error(
        span,
        f"type mismatch for ${name}: it is of type {have}, a value of type {type} does not fit",
        hint,
        (f"${name} was {variable.what} here", variable.span),
    )
    return ()


def let(c: State, node: ast.Let) -> Sequence[typed.Stmt]:
    type = typenames.of(c, node.type) if node.type is not None else None
    # the value is evaluated before the name exists
    value = c.expr(node.value) if node.value is not None else None
    if scopes.shadowed(c, node.name, node.span, "variable"):
        return ()
    if type is not None and not is_unknown(type) and not _declarable(c, type, node):
        type = UNKNOWN
    complete = type is not None and not is_unknown(type) and not _open(type)
    variable = scopes.declare(c, node.name, node, node.span, "declared", type if complete else None)
    variable.fixed = complete
    if type is not None and not complete and not is_unknown(type):
        c.grow_variable(variable, type)
    if value is not None:
        return store(c, variable, value, node.span)
    if is_unknown(variable.var.type):
        return ()
    return (typed.AssignVar(variable.var, zero(variable.var.type, node.span), node.span),)


def _open(type: Type) -> bool:
    """Whether a declared type leaves its size to the assignments."""
    return isinstance(type, Str | Buf) and size_of(type) in (0, 4)


def _declarable(c: State, type: Type, node: ast.Let) -> bool:
    span = node.type.span if node.type is not None else node.span
    if isinstance(type, Aggregate | Void):
        c.error(span, f"a variable cannot be of type {type if isinstance(type, Aggregate) else 'void'}")
        return False
    if isinstance(type, Array) and type.count == 0:
        c.error(span, "an array needs a size here")
        return False
    if isinstance(type, Record) and c.record(type.name) is None:
        c.error(span, f"unknown struct or union '{type.name}'")
        return False
    return True


def zero(type: Type, span: Span) -> typed.Expr:
    """All bytes zero."""
    if is_scalar(type):
        return typed.Int(0, type, span)
    if isinstance(type, Str):
        return typed.StrLit(b"", type, span)
    return typed.Call("zeroed", (), type, span)
