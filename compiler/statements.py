"""Statements."""

from __future__ import annotations

from bpfseal.compiler import mapping
from bpfseal.compiler.gen import STATEMENTS, Gen, impossible, is_signed, register_type
from bpfseal.compiler.ir import I64
from bpfseal.compiler.values import branch
from bpfseal.dsl import typed, types
from bpfseal.dsl.types import is_scalar, size_of


def assign_variable(g: Gen, node: typed.AssignVar) -> None:
    place = g.vars[node.var]
    value = node.value
    if is_scalar(node.var.type):
        made = g.scalar(value)
        wanted = register_type(node.var.type)
        if made.type != wanted:
            made = g.fn.pointer(made) if wanted == "ptr" else g.fn.integer(made, wanted)
        mapping.store_variable(g, made, g.locate(place))
        return
    size, have = size_of(node.var.type), size_of(value.type)
    if mapping.mentions(value, lambda e: isinstance(e, typed.VarRef) and e.var is node.var):
        source = g.buffer(have)
        g.store(value, source)
        g.copy(g.locate(place), source, have)
    else:
        g.store(value, g.locate(place))
    if have < size:
        g.clear_tail(g.locate(place), have, size)


def if_(g: Gen, node: typed.If) -> None:
    yes, after = g.fn.fresh("then"), g.fn.fresh("after")
    no = g.fn.fresh("else") if node.otherwise else after
    branch(g, node.condition, yes, no)
    g.fn.start(yes)
    g.statements(node.then)
    if node.otherwise:
        g.fn.jump(after)
        g.fn.start(no)
        g.statements(node.otherwise)
    g.fn.start(after)


def do(g: Gen, node: typed.Do) -> None:
    """An expression for its effect: what has a value has it dropped."""
    expr = node.expr
    if isinstance(expr, typed.Call):
        from bpfseal.compiler.calls import effect

        if effect(g, expr):
            return
    if isinstance(expr, typed.IncDec) and isinstance(expr.target, typed.MapRead):
        mapping.increment(g, expr, used=False)
        return
    if isinstance(expr.type, types.Void):
        if isinstance(expr, typed.CallUser) or (isinstance(expr, typed.Call) and expr.name == "external"):
            g.scalar(expr)
        elif isinstance(expr, typed.BlockExpr):
            g.statements(expr.body)
            do(g, typed.Do(expr.result, node.span))
        return
    if is_scalar(expr.type):
        g.scalar(expr)
    else:
        g.address(expr)


def scope(g: Gen, node: typed.Scope) -> None:
    g.statements(node.body)


def jump(g: Gen, node: typed.Jump) -> None:
    match node.kind:
        case "break":
            g.fn.jump(g.loops[-1].leave)
        case "continue":
            g.fn.jump(g.loops[-1].again)
        case _:
            _return(g, node.value)


def _return(g: Gen, value: typed.Expr | None) -> None:
    if value is None or isinstance(value.type, types.Void):
        g.leave(None)
    elif is_scalar(value.type):
        g.leave(g.fn.integer(g.scalar(value), I64, is_signed(value.type)) if not g.calls else g.scalar(value))
    else:
        if g.result_target is None:
            raise impossible(f"a result of type {value.type}")
        g.store(value, g.result_target)
        g.leave(None)


STATEMENTS.update(
    {
        typed.AssignVar: assign_variable,
        typed.AssignMap: mapping.assign,
        typed.If: if_,
        typed.Do: do,
        typed.Scope: scope,
        typed.Jump: jump,
    }
)
