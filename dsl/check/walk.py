"""What a piece of syntax mentions, without looking anything up."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from bpfseal.dsl import ast
from bpfseal.dsl.source import Span


def nodes(root: object) -> Iterator[object]:
    """Every node below `root`, itself included; order is unspecified."""
    stack = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, tuple):
            stack.extend(node)
        elif isinstance(node, Struct) and not isinstance(node, Span):
            yield node
            stack.extend(getattr(node, name) for name in node.__struct_fields__ if name != "span")


def words(root: object) -> set[str]:
    """Bare words and names of calls that occur."""
    found = set()
    for node in nodes(root):
        if isinstance(node, ast.Identifier | ast.Call):
            found.add(node.name)
    return found
