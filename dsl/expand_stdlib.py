"""The standard library's macros: files of `dsl/stdlib`, parsed when a name of theirs is used."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from bpfseal.dsl import ast
from bpfseal.dsl.parse import parse

FOLDER = Path(__file__).parent / "stdlib"

INDEX = {"__always_true": "test", "assert": "base", "delta": "time"}
"""File by the name of a macro."""


def load(name: str, number: int) -> ast.Script:
    """The file `name` with its macros marked; its spans carry the source `number`."""
    script = parse(_text(name), f"stdlib/{name}.bt", number=number)
    macros = tuple(ast.Macro(m.name, m.params, m.body, m.span, True) for m in script.macros)
    return ast.Script(sources=script.sources, macros=macros)


@cache
def _text(name: str) -> str:
    return (FOLDER / f"{name}.bt").read_text()
