"""Scratch variables: blocks, declarations, first assignments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check.conversions import UNKNOWN, same
from bpfseal.dsl.check.state import State, Variable, nothing
from bpfseal.dsl.source import Span
from bpfseal.dsl.table import near
from bpfseal.dsl.types import Ptr, Type


@contextmanager
def block(c: State) -> Iterator[dict[str, Variable]]:
    """Variables that are declared inside end with it."""
    scope: dict[str, Variable] = {}
    c.scopes.append(scope)
    try:
        yield scope
    finally:
        c.scopes.pop()
        for variable in scope.values():
            if variable.read and variable.var.type is UNKNOWN:
                c.unresolved.append(variable)
            if not variable.assigned and variable.what == "declared" and not c.silent:
                c.warn(variable.span, f"variable ${variable.var.name} was never assigned to")


def find(c: State, name: str) -> Variable | None:
    for scope in reversed(c.scopes):
        variable = scope.get(name)
        if variable is not None:
            return variable
    return None


def declare(c: State, name: str, node: object, span: Span, what: str, type: Type | None = None) -> Variable:
    """A new variable in the innermost block. `node` is the syntax that declares it, `what` how."""
    key = (c.place.id, c.copy, id(node), name)
    known = c.memory.variables.get(key, UNKNOWN)
    if type is not None and not same(known, type):
        known = c.memory.variables[key] = type
    variable = Variable(typed.Var(name, known), key, span, what=what)
    c.scopes[-1][name] = variable
    return variable


def shadowed(c: State, name: str, span: Span, what: str) -> bool:
    """Report a declaration of a name that is in use."""
    old = find(c, name)
    if old is None:
        return False
    c.error(
        span,
        f"{what} ${name} has the name of a variable that exists already",
        "give one of them another name",
        (f"${name} was first {old.what} here", old.span),
    )
    return True


def read(c: State, node: ast.Variable) -> typed.Expr:
    """The value of a variable."""
    variable = find(c, node.name)
    if variable is None:
        names = [n for scope in c.scopes for n in scope]
        close = near(node.name, names)
        hint = f"did you mean ${close[0]}?" if close else "assign it or declare it with let first"
        return c.error(node.span, f"undefined or undeclared variable: ${node.name}", hint)
    if not variable.assigned and not c.silent and not variable.warned:
        variable.warned = True
        c.warn(node.span, f"variable used before it was assigned: ${node.name}")
    for captured in c.captures:
        captured.setdefault(node.name, variable)
    variable.read = True
    type = variable.var.type
    if type is UNKNOWN:
        return nothing(node.span)
    return typed.VarRef(variable.var, _kept(c, variable, type, node.span), node.span)


def captured(c: State, name: str) -> bool:
    """Whether a name is a variable outside of the deferred block that is being looked at."""
    return c.deferred >= 0 and not any(name in scope for scope in c.scopes[c.deferred :])


def _kept(c: State, variable: Variable, type: Type, span: Span) -> Type:
    """What a variable is inside of a deferred block: an address is a mere number by then."""
    if not isinstance(type, Ptr) or not captured(c, variable.var.name):
        return type
    if type.space in ("bpf", "ctx"):
        what = "a variable or map" if type.space == "bpf" else "the probe's context"
        c.error(
            span,
            f"${variable.var.name} points into {what}, which a deferred block cannot reach",
            "put the value itself into a variable before the block",
        )
    return Ptr(type.to, "kernel") if type.space == "btf" else type
