"""Text to syntax tree.

    parse('interval:s:1 { print(nsecs); }').probes[0].points[0].text == 'interval:s:1'

`parse_lex` gives the terminals, `parse_lr` runs the tables that lark made of grammar.lark, `parse_build` builds the
nodes, `parse_errors` words what went wrong.
"""

from __future__ import annotations

from typing import Any

from bpfseal.dsl import ast
from bpfseal.dsl.parse_build import Builder
from bpfseal.dsl.parse_errors import explain
from bpfseal.dsl.parse_lex import expression_tokens, tokens
from bpfseal.dsl.parse_lr import MAX_HEIGHT, TooDeep, Unexpected, run
from bpfseal.dsl.parse_tables import RULES
from bpfseal.dsl.source import Source, Span

MAX_TEXT = 4 << 20
"""Characters; what is longer is no script."""


def parse(text: str, name: str = "stdin", *, number: int = 0) -> ast.Script:
    """The tree of `text`, whose messages call it `name`. Spans carry the source `number`.

    Raises DslError, which holds the one mistake that stopped the parser.
    """
    builder = Builder(Source(text, name), number)
    if len(text) > MAX_TEXT:
        raise builder.error(f"the script is too long: {len(text)} characters, at most {MAX_TEXT}", 0, 0)
    try:
        script: ast.Script = run(tokens(text), _actions(builder))
    except Unexpected as wrong:
        message, hint = explain(wrong.token, wrong.previous, wrong.expected)
        raise builder.error(message, wrong.token.start, wrong.token.end, hint) from None
    except TooDeep as deep:
        message = f"nested too deeply: more than {MAX_HEIGHT} levels"
        raise builder.error(message, deep.start, deep.end, "split it with variables or macros") from None
    return script


def parse_expression(source: Source, place: Span) -> ast.Expr:
    """The part `place` of `source` as one expression, for instance the text of a C constant. Raises DslError."""
    text = source.text[: place.end]
    builder = Builder(source, place.source)
    try:
        script: ast.Script = run(expression_tokens(text, place.start), _actions(builder))
    except Unexpected as wrong:
        message, hint = explain(wrong.token, wrong.previous, wrong.expected)
        raise builder.error(message, wrong.token.start, wrong.token.end, hint) from None
    except TooDeep as deep:
        raise builder.error("nested too deeply", deep.start, deep.end) from None
    predicate = script.probes[0].predicate
    assert predicate is not None  # expression_tokens made one
    return predicate


_METHODS = sorted({action for _, _, action, _ in RULES} - {"", "*"})


def _actions(builder: Builder) -> dict[str, Any]:
    """Methods by rule; a rule whose name is a word of Python has a method with an underscore behind it."""
    return {name: getattr(builder, name, None) or getattr(builder, name + "_") for name in _METHODS}
