"""The generated tables belong to the grammar, and mean what lark makes of it."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from bpfseal.dsl.parse import parse
from bpfseal.dsl.parse_generate import GRAMMAR, TABLES, module
from bpfseal.dsl.parse_lex import ERROR, TERMINALS, tokens
from bpfseal.dsl.source import DslError
from tests.fuzz.fuzz_grammar import mutated
from tests.fuzz.seeds import SEEDS


def test_the_tables_are_those_of_the_grammar() -> None:
    assert TABLES.read_text() == module(GRAMMAR.read_text()), "run python -m bpfseal.dsl.parse_generate"


def larks_verdict(text: str) -> bool:
    """Whether lark's own parser takes the tokens of `text`."""
    lark = pytest.importorskip("lark")

    class Ours(lark.lexer.Lexer):  # type: ignore[misc, name-defined]
        def __init__(self, conf: object) -> None:
            pass

        def lex(self, text: str) -> Iterator[Any]:
            for token in tokens(text):
                if token.kind == ERROR:
                    raise lark.exceptions.UnexpectedInput("lexer")
                if token.kind:
                    yield lark.Token(NAMES[TERMINALS[token.kind]], token.text)

    if "parser" not in CACHE:
        CACHE["parser"] = lark.Lark(GRAMMAR.read_text(), parser="lalr", lexer=Ours, maybe_placeholders=False)
        for terminal in CACHE["parser"].terminals:
            shown = terminal.pattern.value if terminal.pattern.type == "str" else terminal.name
            NAMES[shown] = terminal.name
        for name in TERMINALS:
            NAMES.setdefault(name, name)
    try:
        CACHE["parser"].parse(text)
    except lark.exceptions.LarkError:
        return False
    return True


CACHE: dict[str, Any] = {}
NAMES: dict[str, str] = {}


def test_lark_and_the_tables_agree() -> None:
    source = random.Random(3)
    agreed = {True: 0, False: 0}
    texts = [*SEEDS, *(mutated(source, list(SEEDS)) for _ in range(300))]
    for text in texts:
        try:
            parse(text)
            ours = True
        except DslError as error:
            message = error.diagnostics[0].message
            if not message.startswith("unexpected") or "too deeply" in message:
                continue  # a mistake that is no matter of the grammar
            ours = False
        assert larks_verdict(text) == ours, text
        agreed[ours] += 1
    assert agreed[True] > len(SEEDS)
    assert agreed[False] > 50


def test_parsing_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.modules['typing_extensions'] = None;"  # as the command line does
        "from bpfseal.dsl.parse import parse; parse('i:s:1 { print(1) }');"
        "print(sorted({'lark', 'dataclasses', 'inspect', 'logging', 'ast', 'pathlib', 'difflib'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert found.stdout.strip() == "[]"
