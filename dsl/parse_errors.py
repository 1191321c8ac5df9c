"""What the parser says about a token that does not fit: one line that names what was expected in words."""

from __future__ import annotations

from bpfseal.dsl.parse_lex import END, ERROR, NUMBER, TERMINALS, Token

WORDS = {
    "$END": "the end of the script",
    "POINT": "a probe",
    "IDENT": "a name",
    "INTEGER": "a number",
    "STRING": "a string",
    "VARIABLE": "a variable ($name)",
    "MAP": "a map (@name)",
    "RECORDKIND": "a type",
    "TYPENAME": "a type",
    "BOOLEAN": "true or false",
    "PREDICATE": "a predicate",
    "ENDPREDICATE": "'/' to close the predicate",
    "STATEMENTBRACE": "'{'",
    "STATEMENTIF": "'if'",
}

_OPERAND = frozenset(NUMBER[n] for n in ("INTEGER", "STRING", "POSITIONAL"))
_OPERATOR = frozenset(NUMBER[n] for n in ("==", "||", "%"))
_SEMICOLON = NUMBER[";"]
_OPEN_BRACE = NUMBER["{"]


def explain(token: Token, previous: Token | None, expected: frozenset[int]) -> tuple[str, str | None]:
    """(message, hint) for `token` where only `expected` could stand, after `previous`."""
    if token.kind == ERROR:
        return token.text, None
    found = shown(token)
    wanted = _wanted(expected)
    if not wanted:
        return f"unexpected {found}", None
    return f"unexpected {found}, expected {wanted}", _hint(token, previous, expected)


def shown(token: Token) -> str:
    if token.kind == END:
        return "end of the script"
    if token.kind == NUMBER["STRING"]:
        return "a string"
    text = token.text if len(token.text) <= 40 else token.text[:37] + "…"
    return f"'{text}'"


def _wanted(expected: frozenset[int]) -> str:
    """`expected` in words, at most five of them; operators only where nothing else is possible."""
    if expected >= _OPERAND:
        # an operand is missing; whatever else could stand here is rarer
        words = ["an expression"]
        closers = [t for t in (")", "]", "}") if NUMBER[t] in expected]
        words += [f"'{c}'" for c in closers]
        if NUMBER["}"] in expected and NUMBER["let"] in expected:
            words = ["a statement", "'}'"]
        return _join(words)
    rest = expected
    if expected >= _OPERATOR:
        # an operand is complete: closing it comes first, operators go without saying
        rest = frozenset(t for t in expected if TERMINALS[t] in (")", "]", "}", ";", ",", ":", "..", "ENDPREDICATE"))
        if _OPEN_BRACE in expected:
            rest |= {_OPEN_BRACE}
        if not rest:
            return "an operator"
        if rest >= {_SEMICOLON, NUMBER["}"]}:
            rest = frozenset({_SEMICOLON, NUMBER["}"]})
    elif NUMBER["POINT"] in expected and NUMBER["fn"] in expected:
        return "a probe, a macro, a function or a map declaration"
    words = sorted({WORDS.get(TERMINALS[t], f"'{TERMINALS[t]}'") for t in rest})
    if len(words) > 5:
        words = [*words[:5], "…"]
    return _join(words)


def _join(words: list[str]) -> str:
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + (f" or {words[-1]}" if words[-1] != "…" else ", …")


def _hint(token: Token, previous: Token | None, expected: frozenset[int]) -> str | None:
    text = token.text
    after = previous.text if previous is not None else ""
    if text == "else" and after == ";":
        return "no ';' between '}' and 'else'"
    if text == "=" and _OPEN_BRACE in expected:
        return "to compare, use '=='"
    if _SEMICOLON in expected and not expected >= _OPERAND and token.kind != END:
        if text.endswith("="):
            return "an assignment is a statement of its own, it has no value"
        return "statements are separated by ';'"
    if NUMBER["ENDPREDICATE"] in expected or (after == "/" and token.kind == END):
        return "a predicate stands between slashes: probe /condition/ { … }"
    if token.kind == END and NUMBER["}"] in expected:
        return "a '{' is not closed"
    if _OPEN_BRACE in expected and NUMBER["PREDICATE"] in expected:
        return "probe[, probe …] [/predicate/] { statements }"
    if after == "let" and text.startswith("$"):
        return "outside of probes only maps are declared: let @name = lruhash(100)"
    return None
