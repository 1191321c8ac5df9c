"""What each piece of a script's text is, for editors and notebooks that colour it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bpfseal.dsl.parse_lex import ERROR, TERMINALS, tokens

_COMMENT = re.compile(r"//[^\n]*|/\*[\s\S]*?(?:\*/|\Z)|#![^\n]*")
_CLASSES = {
    "CTEXT": "preprocessor",
    "POINT": "probe",
    "PROBENAME": "label",
    "INTEGER": "number",
    "STRING": "string",
    "BOOLEAN": "keyword",
    "VARIABLE": "variable",
    "POSITIONAL": "variable",
    "MAP": "map",
    "TYPENAME": "type",
    "RECORDKIND": "type",
    "STATEMENTIF": "keyword",
}


def pieces(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, class) of the pieces that have one, in order and apart from each other.

    Classes: comment preprocessor probe label keyword function name type variable map number string error. What follows
    a mistake of the lexer has none.
    """
    at = 0
    found = list(tokens(text))
    for i, token in enumerate(found):
        for comment in _COMMENT.finditer(text, at, token.start):
            yield comment.start(), comment.end(), "comment"
        at = token.end
        if token.kind == ERROR:
            yield token.start, token.end, "error"
            return
        shown = TERMINALS[token.kind]
        kind = _CLASSES.get(shown, "")
        if shown == "IDENT":
            following = found[i + 1].text if i + 1 < len(found) else ""
            kind = "function" if following == "(" else "name"
        elif not kind and shown.isalpha() and shown.islower():
            kind = "keyword"
        if kind and token.end > token.start:
            yield token.start, token.end, kind
    for comment in _COMMENT.finditer(text, at):
        yield comment.start(), comment.end(), "comment"
