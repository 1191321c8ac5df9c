"""Trees without spans, so that what was parsed can be compared with what was meant."""

from __future__ import annotations

from typing import Any

from bpfseal.dsl import ast
from bpfseal.dsl.node import Node
from bpfseal.dsl.parse import parse
from bpfseal.dsl.source import NOWHERE, Source, Span


def bare(node: Any) -> Any:
    """`node` with every span NOWHERE, integers without the text they were written as."""
    if isinstance(node, Span):
        return NOWHERE
    if isinstance(node, tuple):
        return tuple(bare(item) for item in node)
    if isinstance(node, ast.Integer):
        return ast.Integer(node.value)
    if isinstance(node, Source):
        return Source("", "")
    if isinstance(node, Node):
        return type(node)(*(bare(getattr(node, name)) for name in node.__struct_fields__))
    return node


def body(text: str) -> tuple[ast.Statement, ...]:
    """Statements of a block, bare."""
    script = bare(parse("begin { " + text + "\n}"))
    statements: tuple[ast.Statement, ...] = script.probes[0].body.statements
    return statements


def expr(text: str) -> ast.Expr:
    """An expression, bare."""
    (statement,) = body(f"$_ = {text};")
    assert isinstance(statement, ast.Assign)
    return statement.value
