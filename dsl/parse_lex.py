"""Text to terminals of grammar.lark.

Three modes, as the language has: the top level (C definitions, declarations, probe headers), attach points (raw text
up to a brace, comma, blank or predicate), and code. In code one regular expression gives the tokens, and a little
look at what stands before and after decides the few that grammar.lark declares without a pattern.

Nothing here raises: a character that starts no token becomes an ERROR terminal that carries its message, so that the
first mistake in the text is the one reported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache

from bpfseal.dsl.parse_tables import PATTERN
from bpfseal.dsl.parse_tables import TERMINALS as TERMINALS

NUMBER = {name: number for number, name in enumerate(TERMINALS)}
END = 0
ERROR = len(TERMINALS)

MAX_NESTING = 200
"""Open brackets at one time."""

MAX_TOKENS = 100_000
"""Keeps the time for any text within two seconds."""

IDENT = NUMBER["IDENT"]
TYPENAME = NUMBER["TYPENAME"]
STATEMENTIF = NUMBER["STATEMENTIF"]
STATEMENTBRACE = NUMBER["STATEMENTBRACE"]
OPEN_BRACE = NUMBER["{"]
CLOSE_BRACE = NUMBER["}"]
OPEN_PAREN = NUMBER["("]
CLOSE_PAREN = NUMBER[")"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Values that are words: never a type, so that `(pid) * 2` is a product.
VALUES = _words(
    "args ctx pid tid uid gid comm cpu ncpus nsecs elapsed rand cgroup curtask probe probetype func retval username"
    " usermode jiffies cpid numaid kstack ustack true false if sizeof offsetof typeinfo comptime"
)
NUMBERED = re.compile(r"s?arg[0-9]+\Z")

# Everywhere a keyword.
RESERVED = {word: NUMBER[word] for word in _words("if else sizeof offsetof typeof typeinfo comptime")} | {
    "true": NUMBER["BOOLEAN"],
    "false": NUMBER["BOOLEAN"],
    "struct": NUMBER["RECORDKIND"],
    "union": NUMBER["RECORDKIND"],
    "enum": NUMBER["RECORDKIND"],
}
# A keyword where a statement starts, an ordinary word elsewhere.
OPENING = {word: NUMBER[word] for word in _words("for while unroll let break continue return import defer")}
TOP = {word: NUMBER[word] for word in ("config", "import", "macro", "fn", "let")}

ENDS_WITH_BRACE = frozenset(("{", "macro", "fn", "config"))

STATEMENT_START = frozenset((OPEN_BRACE, STATEMENTBRACE, CLOSE_BRACE, NUMBER[";"]))
AFTER_DOT = frozenset((NUMBER["."], NUMBER["->"]))
FIELD_START = frozenset((OPEN_PAREN, NUMBER[","]))
OPERAND_KEYWORDS = frozenset(NUMBER[word] for word in ("sizeof", "offsetof", "typeof", "typeinfo"))

# Providers that take no path: a slash behind them opens a predicate even without a blank.
PATHLESS = _words(
    "begin BEGIN end END kprobe k kretprobe kr tracepoint t rawtracepoint rt fentry f fexit fr kfunc kretfunc"
    " interval i profile p software s hardware h watchpoint w asyncwatchpoint aw"
)

_LAYOUT = r"(?>\s+|//[^\n]*|/\*[\s\S]*?\*/)*+"  # atomic, so that no pattern here backtracks through it
_SUFFIXES = rf"(?:{_LAYOUT}(?:\*|\[\s*(?:[0-9]\w*)?\s*\]))*{_LAYOUT}"


def _lazy(pattern: str, flags: int = re.ASCII) -> Callable[[], re.Pattern[str]]:
    """A pattern that is compiled when first used: most scripts need few of them."""
    return cache(lambda: re.compile(pattern, flags))


_token = re.compile(PATTERN, re.ASCII)
_layout = re.compile(_LAYOUT, re.ASCII)
_cast = _lazy(rf'{_SUFFIXES}\){_LAYOUT}(?:[\w$@"(~]|\*(?!=)|-(?![>=])|!(?!=)|&(?![&=]))')
_operand = _lazy(rf"{_SUFFIXES}[),]")
_brace_follows = re.compile(rf"{_LAYOUT}\{{", re.ASCII)
_deferred = _lazy(rf"{_LAYOUT}(?:\({_LAYOUT}\w+{_LAYOUT}\){_LAYOUT})?\{{")
_assigned = _lazy(rf"{_LAYOUT}=(?!=)")
_word = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_named = _lazy(rf"([A-Za-z_]\w*){_LAYOUT}=(?!=)")
_plain = re.compile(r'[^\s{},/:"]+')
_quoted = _lazy(r'"[^"\\\n]*(?:\\.[^"\\\n]*)*"')
_c_head = _lazy(rf"(?:struct|union)\b{_LAYOUT}|enum\b{_LAYOUT}(?:(?:[A-Za-z_]\w*\s*)?(?<!enum):[\w\s]+(?=\{{))?")
_c_word = _lazy(rf"\w+{_LAYOUT}")
_c_piece = _lazy(r'//[^\n]*|/\*[\s\S]*?\*/|"[^"\\\n]*(?:\\.[^"\\\n]*)*"|[{};]')
_attribute = _lazy(rf"{_LAYOUT}__attribute__{_LAYOUT}\(")
_paren = _lazy(r"[()]")
_directive = _lazy(r'#(?>/\*[\s\S]*?\*/|"(?:[^"\\\n]|\\.)*"|[^\n\\]|\\(?:\r?\n|.))*+\\?')


class Token:
    """One terminal: `kind` indexes TERMINALS; `text` is a message when `kind` is ERROR."""

    __slots__ = ("end", "kind", "start", "text")

    def __init__(self, kind: int, text: str, start: int, end: int) -> None:
        self.kind = kind
        self.text = text
        self.start = start
        self.end = end


def tokens(text: str) -> Iterator[Token]:
    """All terminals of a script, then one of kind END; the last one is ERROR instead where the text cannot go on."""
    position = _layout.match(text).end()  # type: ignore[union-attr]
    if text.startswith("#!", position):
        position = text.find("\n", position)
        position = len(text) if position < 0 else position
    count = 0
    while True:
        position = _layout.match(text, position).end()  # type: ignore[union-attr]
        if position >= len(text):
            yield Token(END, "", position, position)
            return
        for token in _item(text, position):
            yield token
            position = token.end
            count += 1
            if token.kind == ERROR:
                return
            if count > MAX_TOKENS:
                yield Token(
                    ERROR, f"the script is too long: more than {MAX_TOKENS} words and signs", position, position
                )
                return


def expression_tokens(text: str, position: int) -> Iterator[Token]:
    """The rest of `text` as the predicate of a probe, the only expression that stands alone in the grammar."""
    yield Token(NUMBER["POINT"], "", position, position)
    yield Token(NUMBER["PREDICATE"], "/", position, position)
    end = len(text)
    for token in _code(text, position, ""):
        if token.kind != END:
            yield token
    for name in ("ENDPREDICATE", "{", "}", "$END"):
        yield Token(NUMBER[name], "", end, end)


def _item(text: str, position: int) -> Iterator[Token]:
    """The tokens of one thing on the top level."""
    if text[position] == "#":
        end = _directive().match(text, position).end()  # type: ignore[union-attr]
        yield Token(NUMBER["CTEXT"], text[position:end].rstrip(), position, end)
        return
    found = _word.match(text, position)
    word = found.group() if found else ""
    if word in ("struct", "union", "enum", "typedef"):
        end = _c_definition(text, position, word)
        if end > position:
            yield Token(NUMBER["CTEXT"], text[position:end], position, end)
            return
    if word in TOP and text[found.end() : found.end() + 1] != ":":  # type: ignore[union-attr]
        yield from _code(text, position, word)
        return
    if text[position] in "})];":
        yield Token(ERROR, f"unexpected '{text[position]}': nothing is open here", position, position + 1)
        return
    yield from _header(text, position)


def _c_definition(text: str, position: int, word: str) -> int:
    """End of the C definition that starts here, `position` when it is none."""
    if word != "typedef":
        at = _c_head().match(text, position).end()  # type: ignore[union-attr]
        while at < len(text) and text[at] not in "{;":
            if found := _c_word().match(text, at):
                at = found.end()
            elif text[at] == "(":
                at = _layout.match(text, _closed(text, at + 1)).end()  # type: ignore[union-attr]
            else:
                return position
        if at >= len(text):
            return position
        if text[at] == ";":
            return at + 1
    depth = 0
    for piece in _c_piece().finditer(text, position):
        sign = piece.group()
        if sign == "{":
            depth += 1
        elif sign == "}":
            depth -= 1
            if depth == 0 and word != "typedef":
                end = piece.end()
                while attribute := _attribute().match(text, end):
                    end = _closed(text, attribute.end())
                after = _layout.match(text, end).end()  # type: ignore[union-attr]
                return after + 1 if text.startswith(";", after) else end
        elif sign == ";" and depth <= 0:
            return piece.end()
    return len(text)


def _closed(text: str, position: int) -> int:
    """Behind the parenthesis that closes the one before `position`."""
    depth = 1
    for paren in _paren().finditer(text, position):
        depth += 1 if paren.group() == "(" else -1
        if depth == 0:
            return paren.end()
    return len(text)


def _header(text: str, position: int) -> Iterator[Token]:
    """Name, attach points, predicate and body of a probe."""
    if named := _named().match(text, position):
        yield Token(NUMBER["PROBENAME"], named.group(1), position, named.end())
        position = named.end()
    while True:
        position = _layout.match(text, position).end()  # type: ignore[union-attr]
        end = _point(text, position)
        if end > position:
            written = text[position:end]
            if not written.isprintable():
                bad = next(c for c in written if not c.isprintable())
                at = text.index(bad, position)
                yield Token(ERROR, f"unexpected character {bad!r} in an attach point", at, at + 1)
                return
            if '"' in written and '"' in _quoted().sub("", written):
                at = text.index('"', position) if written.count('"') == 1 else position
                yield Token(ERROR, "these quotes are never closed with '\"'", at, end)
                return
            yield Token(NUMBER["POINT"], written, position, end)
            position = _layout.match(text, end).end()  # type: ignore[union-attr]
        sign = text[position : position + 1]
        if sign == ",":
            yield Token(NUMBER[","], ",", position, position + 1)
            position += 1
            continue
        if sign == "/":
            yield Token(NUMBER["PREDICATE"], "/", position, position + 1)
            for token in _code(text, position + 1, "/"):
                yield token
                position = token.end
                if token.kind in (ERROR, END):
                    return
            position = _layout.match(text, position).end()  # type: ignore[union-attr]
            sign = text[position : position + 1]
        if sign == "{":
            yield from _code(text, position, "{")
        elif sign:
            # the next word cannot continue a header: the parser says so at this token
            stray = _plain.match(text, position)
            end = stray.end() if stray else position + 1
            yield Token(NUMBER["POINT"], text[position:end], position, end)
        else:
            yield Token(END, "", position, position)
        return


def _point(text: str, position: int) -> int:
    """End of the attach point that starts here.

    It ends before a brace, a comma or a blank; a slash belongs to it where a path may stand. Quoted parts are taken
    whole.
    """
    start = position
    while position < len(text):
        if piece := _plain.match(text, position):
            position = piece.end()
            continue
        sign = text[position]
        if sign == '"':
            quoted = _quoted().match(text, position)
            if quoted is None:
                return text.find("\n", position) if "\n" in text[position:] else len(text)
            position = quoted.end()
        elif sign == "/":
            provider, colon, _ = text[start:position].partition(":")
            if not colon or provider in PATHLESS:
                return position
            position += 1
        elif sign == ":":
            position += 1
        else:
            return position
    return position


def _code(text: str, position: int, mode: str) -> Iterator[Token]:
    """Tokens of code from `position` on.

    `mode` says where it ends: "{", "macro", "fn" and "config" with the brace that closes the first one opened; "/"
    with the slash that ends a predicate; "let" and "import" with the declaration.
    """
    match = _token.match
    previous = before = earlier = -1
    depth = braces = 0
    first = mode in TOP
    while True:
        found = match(text, position)
        assert found is not None  # the pattern matches the empty text
        group = found.lastindex
        if group is None:
            yield _no_token(text, found.end())
            return
        start, position = found.span(group)
        lexeme = found.group(group)
        if group == 1:
            if first:
                kind, first = TOP[lexeme], False
            else:
                kind = _kind_of_word(text, lexeme, position, previous, before, earlier)
        elif group < 7:
            kind = _KINDS[group]
        else:
            kind = NUMBER[lexeme]
            if lexeme in "{([":
                depth += 1
                if depth > MAX_NESTING:
                    yield Token(ERROR, f"nested too deeply: more than {MAX_NESTING} open brackets", start, position)
                    return
                if kind == OPEN_BRACE:
                    braces += 1
                    if previous in STATEMENT_START and mode != "config":
                        kind = STATEMENTBRACE
            elif lexeme in "})]":
                depth -= 1
                if kind == CLOSE_BRACE:
                    braces -= 1
                    if braces == 0 and mode in ENDS_WITH_BRACE:
                        yield Token(kind, lexeme, start, position)
                        return
            elif lexeme == "/":
                if text.startswith("*", position):
                    yield Token(ERROR, "this comment is never closed with '*/'", start, position + 1)
                    return
                if mode == "/" and depth == 0 and _brace_follows.match(text, position):
                    yield Token(NUMBER["ENDPREDICATE"], lexeme, start, position)
                    return
        yield Token(kind, lexeme, start, position)
        if mode in ("let", "import") and _declared(text, mode, kind, position):
            return
        earlier, before, previous = before, previous, kind


_KINDS = (-1, IDENT, *(NUMBER[name] for name in ("INTEGER", "STRING", "VARIABLE", "POSITIONAL", "MAP")))


def _no_token(text: str, position: int) -> Token:
    """END, or the ERROR for what starts no token."""
    if position >= len(text):
        return Token(END, "", position, position)
    sign = text[position]
    if sign == '"':
        end = text.find("\n", position)
        return Token(ERROR, "this string is never closed with '\"'", position, end if end >= 0 else len(text))
    if sign == "'":
        return Token(ERROR, 'unexpected "\'": strings stand in double quotes', position, position + 1)
    if sign == "$":
        return Token(ERROR, "expected a name or a number after '$'", position, position + 1)
    if sign == "#":
        return Token(ERROR, "unexpected '#': C definitions stand at the top of the script", position, position + 1)
    shown = f"'{sign}'" if sign.isprintable() else repr(sign)
    return Token(ERROR, f"unexpected character {shown}", position, position + 1)


def _declared(text: str, mode: str, kind: int, position: int) -> bool:
    """Whether a declaration on the top level is complete after a token of `kind` that ends at `position`."""
    if kind == NUMBER[";"]:
        return True
    end = _layout.match(text, position).end()  # type: ignore[union-attr]
    after = text[end : end + 1]
    if after == ";":
        return False
    if kind == NUMBER["MAP"]:
        return after != "="
    return kind in (CLOSE_PAREN, NUMBER["STRING"], CLOSE_BRACE)


def _kind_of_word(text: str, word: str, end: int, previous: int, before: int, earlier: int) -> int:
    """The terminal of a word; `previous`, `before` and `earlier` are the three tokens in front of it, nearest first."""
    if previous in AFTER_DOT:
        return IDENT
    kind = RESERVED.get(word)
    if kind is not None:
        if previous in FIELD_START and _assigned().match(text, end):
            return IDENT
        if word == "if" and previous in STATEMENT_START:
            return STATEMENTIF
        return kind
    if previous in STATEMENT_START:
        kind = OPENING.get(word)
        if kind is not None and (word != "defer" or _deferred().match(text, end)):
            return kind
        return IDENT
    if previous == OPEN_PAREN and word not in VALUES and not NUMBERED.match(word):
        if before in OPERAND_KEYWORDS:
            return TYPENAME if _operand().match(text, end) else IDENT
        called = before == IDENT or (before == NUMBER["!"] and earlier == IDENT)
        if not called and _cast().match(text, end):
            return TYPENAME
    return IDENT
