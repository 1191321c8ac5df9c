"""C as far as scripts write it: tokens, the preprocessor's directives and conditions, constant expressions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from bpfseal.dsl.node import Node
from bpfseal.dsl.parse_literals import LiteralError, decode_integer
from bpfseal.dsl.source import Span

_TOKEN = re.compile(
    r"""(?P<layout>(?:\s|\\\r?\n|//(?:[^\n\\]|\\\r?\n|\\.)*|/\*[\s\S]*?\*/)+)
    |(?P<word>[A-Za-z_]\w*)|(?P<number>[0-9][\w.]*)|(?P<text>"(?:[^"\\\n]|\\.)*")|(?P<char>'(?:[^'\\\n]|\\.)+')
    |(?P<sign>\.\.\.|<<|>>|<=|>=|==|!=|&&|\|\||\#\#|->|[-+*/%~!<>=&|^?:,;.(){}\[\]\#@])""",
    re.VERBOSE | re.ASCII,
)
_DIRECTIVE = re.compile(
    r"#[ \t]*(?P<word>[a-z_]*)[ \t]*"
    r'(?P<rest>(?>/\*[\s\S]*?\*/|"(?:[^"\\\n]|\\.)*"|[^\n\\]|\\\r?\n|\\.)*+)\\?'  # a comment may span lines
)
_IGNORED = ("pragma", "error", "warning", "include_next", "line")
_MAX_NESTING = 100
_MAX_LINE = 5_000  # tokens of a macro or a condition
MAX_TOKENS = 100_000
"""Of a preamble, after macros were replaced; keeps the time for any text within two seconds."""
MAX_HEADER_TOKENS = 1_000_000


class CError(Exception):
    """What is wrong with the C at `span`."""

    def __init__(self, message: str, span: Span, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.span = span
        self.hint = hint


class CToken(Node, frozen=True):
    """`kind`: word, number, text, char, sign, end."""

    kind: str
    text: str
    span: Span


class Define(Node, frozen=True):
    """`#define`: `params` None for an object-like macro. `span` is where `text` stands."""

    name: str
    params: tuple[str, ...] | None
    text: str
    span: Span


class Include(Node, frozen=True):
    """`#include <name>` (`system`) or `#include "name"`."""

    name: str
    system: bool
    span: Span


def lex(text: str, base: int, source: int) -> list[CToken]:
    """Tokens of C `text`, which starts at offset `base` of the source. Raises CError."""
    found: list[CToken] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise CError(f"unexpected character {text[at]!r} in a C definition", Span(base + at, base + at + 1, source))
        if match.lastgroup != "layout":
            span = Span(base + at, base + match.end(), source)
            if len(found) >= _MAX_LINE:
                raise CError(f"more than {_MAX_LINE} words and signs in one directive", span)
            found.append(CToken(match.lastgroup or "", match.group(), span))
        at = match.end()
    return found


class Preprocessor:
    """Reads pieces of C in order: keeps what is active, notes constants and includes."""

    def __init__(self, predefined: Mapping[str, str], tolerant: bool = False) -> None:
        self.defines: dict[str, Define] = {
            name: Define(name, None, text, Span(0, 0, -1)) for name, text in predefined.items()
        }
        self.code: list[CToken] = []
        self.tolerant = tolerant
        self.depth = 0
        # (this branch is active, some branch was, where it opened)
        self.conditions: list[tuple[bool, bool, Span]] = []

    def feed(self, text: str, base: int, source: int, on_include: Callable[[Include], None] | None = None) -> None:
        """`text` starts at offset `base` of the source. Raises CError."""
        at = 0
        fresh = True  # only blanks since the line started
        while at < len(text):
            if fresh and text[at] == "#":
                match = _DIRECTIVE.match(text, at)
                assert match is not None  # the pattern fits every '#'
                self._directive(match["word"], match["rest"], base + match.start("rest"), source, on_include)
                at = match.end()
                continue
            token = _TOKEN.match(text, at)
            if token is None:
                if self.active() and not self.tolerant:
                    where = Span(base + at, base + at + 1, source)
                    raise CError(f"unexpected character {text[at]!r} in a C definition", where)
                at += 1
                continue
            if token.lastgroup == "layout":
                fresh = fresh or "\n" in token.group().replace("\\\n", "")
            else:
                fresh = False
                if self.active():
                    kind = token.lastgroup or ""
                    if len(self.code) >= (MAX_HEADER_TOKENS if self.tolerant else MAX_TOKENS):
                        where = Span(base + at, base + token.end(), source)
                        raise CError(f"the C definitions have more than {MAX_TOKENS} words and signs", where)
                    self.code.append(CToken(kind, token.group(), Span(base + at, base + token.end(), source)))
            at = token.end()

    def finish(self) -> None:
        """Raises CError for a condition that is still open."""
        if self.conditions and not self.tolerant:
            raise CError("this condition has no #endif", self.conditions[-1][2])

    def active(self) -> bool:
        return all(active for active, _, _ in self.conditions)

    def _directive(
        self, word: str, rest: str, base: int, source: int, on_include: Callable[[Include], None] | None
    ) -> None:
        span = Span(base, base + max(1, len(rest.rstrip())), source)
        if word in ("if", "ifdef", "ifndef"):
            value = self.active() and self._holds(word, rest, base, source)
            self.conditions.append((value, value, span))
            if len(self.conditions) > _MAX_NESTING:
                raise CError(f"more than {_MAX_NESTING} conditions within each other", span)
        elif word in ("elif", "else", "endif"):
            if not self.conditions:
                if self.tolerant:
                    return
                raise CError(f"#{word} without #if", span)
            _, done, opened = self.conditions.pop()
            if word != "endif":
                value = not done and self.active() and (word == "else" or self._holds("if", rest, base, source))
                self.conditions.append((value, done or value, opened))
        elif not self.active():
            return
        elif word == "define":
            self._define(rest, base, source, span)
        elif word == "undef":
            self.defines.pop(rest.strip(), None)
        elif word == "include":
            match = re.match(r'<([^>\n]+)>|"([^"\n]+)"', rest)
            if match is not None:
                include = Include(match[1] or match[2], match[1] is not None, span)
                if on_include is not None:
                    self.depth += 1
                    if self.depth > _MAX_NESTING:
                        raise CError("headers include each other too deeply", span)
                    on_include(include)
                    self.depth -= 1
            elif not self.tolerant:
                raise CError('#include needs <header.h> or "header.h"', span)
        elif word == "error" and not self.tolerant:
            raise CError(f"#error {rest.strip()}", span)
        elif (
            not self.tolerant and (word or rest) and word not in ("pragma", "error", "warning", "include_next", "line")
        ):
            raise CError(f"unknown directive #{word}", span)

    def _define(self, rest: str, base: int, source: int, span: Span) -> None:
        match = re.match(r"([A-Za-z_]\w*)(\([^)]*\))?", rest)
        if match is None:
            if self.tolerant:
                return
            raise CError("#define needs a name", span)
        params = tuple(p.strip() for p in match[2][1:-1].split(",")) if match[2] else None
        start, end = _without_comments(rest, match.end())
        body = rest[start:end]
        self.defines[match[1]] = Define(match[1], params, body, Span(base + start, base + end, source))

    def _holds(self, word: str, rest: str, base: int, source: int) -> bool:
        if word != "if":
            name = rest.split(None, 1)[0] if rest.strip() else ""
            return (name in self.defines) == (word == "ifdef")
        try:
            tokens = lex(rest, base, source)
            resolved: list[CToken] = []
            i = 0
            while i < len(tokens):
                if tokens[i].text == "defined":
                    opened = i + 1 < len(tokens) and tokens[i + 1].text == "("
                    name = tokens[i + 1 + opened].text if i + 1 + opened < len(tokens) else ""
                    resolved.append(CToken("number", str(int(name in self.defines)), tokens[i].span))
                    i += 2 + 2 * opened
                else:
                    resolved.append(tokens[i])
                    i += 1
            stream = Stream(substitute(resolved, self.defines), Span(base, base + 1, source))
            return constant(stream, lambda name, span: 0) != 0
        except CError:
            if self.tolerant:
                return False
            raise


def _without_comments(text: str, at: int) -> tuple[int, int]:
    """Where the first token of `text` behind `at` starts and the last one ends."""
    first = last = -1
    while at < len(text):
        token = _TOKEN.match(text, at)
        end = token.end() if token is not None else at + 1
        if token is None or token.lastgroup != "layout":
            first = at if first < 0 else first
            last = end
        at = end
    return (first, last) if first >= 0 else (at, at)


def substitute(tokens: Iterable[CToken], defines: Mapping[str, Define]) -> list[CToken]:
    """`tokens` with object-like macros replaced, their own macros too; each keeps the place of its use."""
    out: list[CToken] = []
    replaced = 0

    def emit(token: CToken, within: tuple[str, ...]) -> None:
        define = defines.get(token.text) if token.kind == "word" else None
        if define is None or define.params is not None or token.text in within or len(within) > _MAX_NESTING:
            out.append(token)
            return
        try:
            inner = lex(define.text, define.span.start, define.span.source)
        except CError:
            out.append(token)
            return
        nonlocal replaced
        replaced += 1 + len(inner)
        if replaced > MAX_TOKENS:
            raise CError(f"#define {token.text} expands to more than {MAX_TOKENS} words and signs", token.span)
        for part in inner:
            emit(CToken(part.kind, part.text, token.span), (*within, token.text))

    for token in tokens:
        emit(token, ())
    return out


class Stream:
    """Tokens with a position; past the end there is one of kind "end"."""

    def __init__(self, tokens: list[CToken], whole: Span) -> None:
        self.tokens = tokens
        self.at = 0
        last = tokens[-1].span if tokens else whole
        self.end = CToken("end", "", Span(last.end, last.end, last.source))

    def peek(self, ahead: int = 0) -> CToken:
        i = self.at + ahead
        return self.tokens[i] if i < len(self.tokens) else self.end

    def next(self) -> CToken:
        token = self.peek()
        self.at += 1
        return token

    def accept(self, text: str) -> bool:
        if self.peek().text == text and self.peek().kind != "text":
            self.at += 1
            return True
        return False

    def expect(self, text: str, what: str) -> CToken:
        token = self.next()
        if token.text != text:
            shown = f"'{token.text}'" if token.kind != "end" else "end of the definition"
            raise CError(f"unexpected {shown} in {what}, expected '{text}'", token.span)
        return token


_LEVELS = (
    ("||",),
    ("&&",),
    ("|",),
    ("^",),
    ("&",),
    ("==", "!="),
    ("<", ">", "<=", ">="),
    ("<<", ">>"),
    ("+", "-"),
    ("*", "/", "%"),
)


def constant(stream: Stream, value_of: Callable[[str, Span], int | None], depth: int = 0) -> int:
    """Value of the integer constant expression at `stream`. `value_of` knows names, None for unknown ones."""
    condition = _binary(stream, value_of, 0, depth)
    if stream.accept("?"):
        then = constant(stream, value_of, depth + 1)
        stream.expect(":", "a constant expression")
        otherwise = constant(stream, value_of, depth + 1)
        return then if condition else otherwise
    return condition


def _binary(stream: Stream, value_of: Callable[[str, Span], int | None], level: int, depth: int) -> int:
    if depth > _MAX_NESTING:
        raise CError("a constant expression is nested too deeply", stream.peek().span)
    if level == len(_LEVELS):
        return _unary(stream, value_of, depth + 1)
    left = _binary(stream, value_of, level + 1, depth)
    while stream.peek().kind == "sign" and stream.peek().text in _LEVELS[level]:
        op = stream.next()
        left = _apply(op, left, _binary(stream, value_of, level + 1, depth))
    return left


def _apply(op: CToken, left: int, right: int) -> int:
    if op.text in ("/", "%"):
        if right == 0:
            raise CError("division by zero in a constant expression", op.span)
        quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
        return quotient if op.text == "/" else left - quotient * right
    if op.text in ("<<", ">>"):
        if not 0 <= right < 64:
            raise CError("a constant is shifted by more than 63 bits", op.span)
        return (left << right) & 0xFFFFFFFFFFFFFFFF if op.text == "<<" else left >> right
    operations: dict[str, Callable[[], int]] = {
        "||": lambda: int(bool(left or right)),
        "&&": lambda: int(bool(left and right)),
        "|": lambda: left | right,
        "^": lambda: left ^ right,
        "&": lambda: left & right,
        "==": lambda: int(left == right),
        "!=": lambda: int(left != right),
        "<": lambda: int(left < right),
        ">": lambda: int(left > right),
        "<=": lambda: int(left <= right),
        ">=": lambda: int(left >= right),
        "+": lambda: left + right,
        "-": lambda: left - right,
        "*": lambda: left * right,
    }
    result = operations[op.text]()
    if abs(result) >= 1 << 64:
        raise CError("a constant expression does not fit 64 bits", op.span)
    return result


_CHARS = {"n": 10, "t": 9, "r": 13, "0": 0, "\\": 92, "'": 39, '"': 34, "a": 7, "b": 8, "f": 12, "v": 11}


def _unary(stream: Stream, value_of: Callable[[str, Span], int | None], depth: int) -> int:
    if depth > _MAX_NESTING:
        raise CError("a constant expression is nested too deeply", stream.peek().span)
    token = stream.next()
    if token.kind == "number":
        try:
            return decode_integer(token.text)
        except LiteralError:
            raise CError(f"'{token.text}' is no integer", token.span) from None
    if token.kind == "char":
        inner = token.text[1:-1]
        if len(inner) == 1:
            return ord(inner)
        if inner[0] == "\\" and inner[1:] in _CHARS:
            return _CHARS[inner[1:]]
        raise CError(f"unknown character {token.text}", token.span)
    if token.kind == "word":
        value = value_of(token.text, token.span)
        if value is None:
            raise CError(f"'{token.text}' is no constant", token.span)
        return value
    match token.text:
        case "(":
            value = constant(stream, value_of, depth + 1)
            stream.expect(")", "a constant expression")
            return value
        case "-":
            return -_unary(stream, value_of, depth + 1)
        case "+":
            return _unary(stream, value_of, depth + 1)
        case "!":
            return int(not _unary(stream, value_of, depth + 1))
        case "~":
            return ~_unary(stream, value_of, depth + 1)
    raise CError(f"unexpected '{token.text}' in a constant expression", token.span)
