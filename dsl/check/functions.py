"""User-defined functions: checked before the probes, the called before the callers."""

from __future__ import annotations

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check import scopes, statements, typenames, walk
from bpfseal.dsl.check.conversions import UNKNOWN, is_unknown
from bpfseal.dsl.check.state import Place, State
from bpfseal.dsl.table import AGGREGATES, BUILTINS, FUNCTIONS
from bpfseal.dsl.types import Type, Void, is_scalar

MAX_PARAMETERS = 5  # registers that BPF passes arguments in, kernel Documentation/bpf/standardization/abi.rst


def translate(c: State, script: ast.Script) -> tuple[typed.Function, ...]:
    """All functions of the script; reports recursion."""
    by_name: dict[str, ast.Function] = {}
    for node in script.functions:
        if node.name in by_name:
            c.error(node.span, f"function {node.name} is defined twice", None, ("first here", by_name[node.name].span))
        elif node.name in FUNCTIONS or node.name in BUILTINS or node.name in AGGREGATES:
            c.error(node.span, f"{node.name} is a function of the language and cannot be defined again")
        else:
            by_name[node.name] = node
    done: dict[str, typed.Function] = {}
    for node in by_name.values():
        _visit(c, node, by_name, done, ())
    return tuple(done.values())


def _visit(
    c: State,
    node: ast.Function,
    by_name: dict[str, ast.Function],
    done: dict[str, typed.Function],
    callers: tuple[str, ...],
) -> None:
    if node.name in done:
        return
    if node.name in callers:
        c.error(node.span, f"function {node.name} calls itself", "programs in the kernel cannot recurse")
        done[node.name] = typed.Function(node.name, (), Void(), (), node.span)
        c.functions[node.name] = done[node.name]
        return
    for name in sorted(walk.words(node.body) & by_name.keys()):
        _visit(c, by_name[name], by_name, done, (*callers, node.name))
    if node.name not in done:
        done[node.name] = c.functions[node.name] = _one(c, node)


def _one(c: State, node: ast.Function) -> typed.Function:
    c.scopes, c.loops, c.callbacks, c.copy = [], 0, 0, ()
    if len(node.params) > MAX_PARAMETERS:
        c.error(
            node.span, f"a function can have at most {MAX_PARAMETERS} parameters, {node.name} has {len(node.params)}"
        )
    c.place = Place(("fn", node.name), "", space="kernel")
    with scopes.block(c):
        params = _parameters(c, node)
        returns = typenames.of(c, node.returns)
        if not isinstance(returns, Void) and not is_scalar(returns):
            c.error(node.returns.span, f"a function cannot return a {returns}", "it can return numbers and pointers")
            returns = UNKNOWN
        c.place.function = typed.Function(node.name, (), returns, (), node.span)
        body = statements.nested(c, node.body)
    if not isinstance(returns, Void) and not statements.leaves(body):
        c.error(node.span, f"not every path of {node.name} returns a value of type {returns}")
    return typed.Function(node.name, params, returns, body, node.span)


def _parameters(c: State, node: ast.Function) -> tuple[typed.Var, ...]:
    """Those with a type of their own first, so that the others may be typeof() them."""
    declared: dict[str, typed.Var] = {}
    for name, written in sorted(node.params, key=lambda p: isinstance(p[1], ast.TypeOf)):
        type: Type = typenames.of(c, written)
        if not is_unknown(type) and not is_scalar(type):
            c.error(written.span, f"a parameter cannot be a {type}", "pass a pointer to it")
            type = UNKNOWN
        name = name.removeprefix("$")
        variable = scopes.declare(c, name, written, written.span, "made a parameter", type)
        variable.assigned = variable.fixed = True
        declared[name] = variable.var
    return tuple(declared[name.removeprefix("$")] for name, _ in node.params)
