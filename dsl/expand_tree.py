"""Walking and measuring syntax trees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bpfseal.dsl.node import Node
from bpfseal.dsl.source import Span

MAX_HEIGHT = 250
MAX_SIZE = 300_000
"""Nodes of a script with every macro and unrolled loop written out; far beyond what the kernel's verifier takes."""


def rebuild(node: Any, visit: Callable[[Any], Any], span: Span | None = None) -> Any:
    """`node` with each child node replaced by `visit(child)`, itself when nothing changed.

    Its own span becomes `span` where one is given.
    """
    changed = span is not None
    values = []
    for name in node.__struct_fields__:
        value = getattr(node, name)
        kind = type(value)
        if kind is Span:
            new = span if span is not None and name == "span" else value
        elif kind is tuple:
            new = value
            for i, item in enumerate(value):
                if isinstance(item, Node):
                    replaced = visit(item)
                    if replaced is not item:
                        if new is value:
                            new = list(value)
                        new[i] = replaced
            if new is not value:
                new = tuple(new)
        elif isinstance(value, Node):
            new = visit(value)
        else:
            new = value
        changed = changed or new is not value
        values.append(new)
    return type(node)(*values) if changed else node


def measure(node: Any, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """(height, number of nodes) of a tree, nodes that stand in several places counted at each.

    `known` keeps what was measured, by id, so that shared trees are walked once; its nodes must stay alive.
    """
    found = known.get(id(node))
    if found is not None:
        return found
    height, size = 0, 1
    for name in node.__struct_fields__:
        value = getattr(node, name)
        for item in value if type(value) is tuple else (value,):
            if isinstance(item, Node) and type(item) is not Span:
                below, count = measure(item, known)
                height = max(height, below)
                size += count
    known[id(node)] = height + 1, size
    return height + 1, size
