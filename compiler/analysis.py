"""What the code generator asks about variables before it writes: which there are, which need zeroing."""

from __future__ import annotations

from collections.abc import Iterator

from bpfseal.dsl import typed
from bpfseal.dsl.typed import Var


def nodes(tree: object) -> Iterator[object]:
    """Every node of a tree of statements and expressions, parents first. Functions that are called are not entered."""
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, tuple | list):
            stack.extend(reversed(node))
            continue
        names = getattr(node, "__struct_fields__", None)
        if names is None or isinstance(node, Var | typed.MapDef | typed.Function):
            continue
        yield node
        stack.extend(
            getattr(node, name) for name in reversed(names) if name not in ("span", "type", "options", "field")
        )


def variables(body: object) -> list[Var]:
    """Variables that a body uses, in order of first mention."""
    found: dict[Var, None] = {}
    for node in nodes(body):
        match node:
            case typed.VarRef(var=var) | typed.AssignVar(var=var):
                found.setdefault(var)
            case typed.ForMap(variable=var) | typed.ForRange(variable=var):
                found.setdefault(var)
            case typed.Defer(captures=captures):
                for var in captures:
                    found.setdefault(var)
            case _:
                pass
    return list(found)


def unset_variables(body: tuple[typed.Stmt, ...]) -> set[Var]:
    """Variables of which it is not certain that they are assigned before they are read."""
    unset: set[Var] = set()
    _walk(body, set(), unset)
    return unset


def _walk(body: tuple[typed.Stmt, ...], known: set[Var], unset: set[Var]) -> None:
    """`known` grows by what is assigned for certain."""
    for statement in body:
        match statement:
            case typed.AssignVar(var=var, value=value):
                _expressions(value, known, unset)
                known.add(var)
            case typed.If(condition=condition, then=then, otherwise=otherwise):
                _expressions(condition, known, unset)
                one, other = set(known), set(known)
                _walk(then, one, unset)
                _walk(otherwise, other, unset)
                known |= _after(then, one, otherwise, other)
            case typed.Scope(body=inner):
                _walk(inner, known, unset)
            case typed.While(condition=condition, body=inner):
                _expressions(condition, known, unset)
                _walk(inner, set(known), unset)
            case typed.ForMap(variable=var, body=inner):
                _walk(inner, known | {var}, unset)
            case typed.ForRange(variable=var, body=inner, low=low, high=high):
                _expressions((low, high), known, unset)
                _walk(inner, known | {var}, unset)
            case _:
                _expressions(statement, known, unset)


def _after(then: tuple[typed.Stmt, ...], one: set[Var], otherwise: tuple[typed.Stmt, ...], other: set[Var]) -> set[Var]:
    """What is assigned behind an `if`: in both branches, or in the one that goes on."""
    if then and isinstance(then[-1], typed.Jump):
        return other
    if otherwise and isinstance(otherwise[-1], typed.Jump):
        return one
    return one & other


def _expressions(tree: object, known: set[Var], unset: set[Var]) -> None:
    for node in nodes(tree):
        match node:
            case typed.BlockExpr(body=body):
                _walk(body, set(known), unset)
            case typed.VarRef(var=var) if var not in known:
                if not _assigned_inside(tree, var):
                    unset.add(var)
            case typed.Defer(captures=captures):
                unset |= {var for var in captures if var not in known}
            case _:
                pass


def _assigned_inside(tree: object, var: Var) -> bool:
    """Whether a block expression in the tree assigns the variable first."""
    for node in nodes(tree):
        if isinstance(node, typed.BlockExpr):
            unset: set[Var] = set()
            _walk(node.body, set(), unset)
            if var not in unset and any(isinstance(n, typed.AssignVar) and n.var is var for n in nodes(node.body)):
                return True
    return False
