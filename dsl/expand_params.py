"""Command line parameters of a script: `$1`, `$#`, `str($1)` and `getopt()` become literals.

A parameter that reads as an integer is one, any other is a string; within `str()` it is a string anyhow. One that was
not given is 0, and "" within `str()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bpfseal.dsl import ast
from bpfseal.dsl.parse_literals import LiteralError, decode_integer
from bpfseal.dsl.source import Diagnostic, Span
from bpfseal.errors import UsageError

TRUE = ("true", "1")
FALSE = ("false", "0")


class Fault(Exception):
    """Something is wrong at `span` of the script."""

    def __init__(
        self, message: str, span: Span, hint: str | None = None, trail: tuple[tuple[str, Span], ...] = ()
    ) -> None:
        super().__init__(message)
        self.diagnostic = Diagnostic("error", message, span, hint, trail)


def split_arguments(before: Sequence[str], after: Sequence[str]) -> tuple[list[str], dict[str, str | None]]:
    """(positional, named) parameters of the words before and after `--` on the command line.

    Behind it `--name=value` and `--name` (None) are named ones, all else is positional.
    """
    positional = list(before)
    named: dict[str, str | None] = {}
    for word in after:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            named[name] = value if equals else None
        else:
            positional.append(word)
    return positional, named


class Parameters:
    """The parameters given, and what the script asked for."""

    def __init__(self, positional: Sequence[str], named: Mapping[str, str | None]) -> None:
        self.positional = positional
        self.named = named
        self.options: dict[str, ast.Option] = {}
        self.warnings: list[Diagnostic] = []

    def text(self, number: int) -> str:
        return self.positional[number - 1] if number <= len(self.positional) else ""

    def value(self, node: ast.Positional, span: Span) -> ast.Expr:
        """`$N` or `$#` as a literal."""
        if node.number == 0:
            return ast.Integer(len(self.positional), span)
        text = self.text(node.number)
        if not text:
            message = f"positional parameter ${node.number} is empty or not provided"
            self.warnings.append(Diagnostic("warning", message, span))
            return ast.Integer(0, span)
        number = integer(text)
        return string(text, span) if number is None else literal(number, span)

    def in_str(self, node: ast.Call) -> ast.Call:
        """`str($1)` and `str($1 + 1)` with the parameter as a string."""
        if not node.args:
            return node
        first = node.args[0]
        if isinstance(first, ast.Positional) and first.number:
            return ast.Call(
                node.name,
                (string(self.text(first.number), first.span), *node.args[1:]),
                node.span,
                node.name_span,
                node.bang,
            )
        if isinstance(first, ast.Binary) and first.op == "+" and isinstance(first.left, ast.Positional):
            text = self.text(first.left.number) if first.left.number else str(len(self.positional))
            shifted: ast.Expr = ast.Binary("+", string(text, first.left.span), first.right, first.span)
            if isinstance(first.right, ast.Integer):
                shifted = ast.String(encoded(text)[first.right.value :], first.span)
            return ast.Call(node.name, (shifted, *node.args[1:]), node.span, node.name_span, node.bang)
        return node

    def getopt(self, node: ast.Call, span: Span) -> ast.Expr:
        """The value of a named parameter. Raises Fault for a wrong call, UsageError for a wrong value."""
        usage = 'write getopt("name"), getopt("name", default) or getopt("name", default, "description")'
        if not 1 <= len(node.args) <= 3:
            raise Fault("getopt takes one to three arguments", span, usage)
        name, *rest = node.args
        if not isinstance(name, ast.String):
            raise Fault("the first argument of getopt must be a string literal", span, usage)
        default: int | str | bool = False
        if rest:
            found = constant(rest[0])
            if found is None:
                raise Fault("the default of getopt must be an integer, string or boolean literal", span, usage)
            default = found
        description = ""
        if len(rest) > 1:
            if not isinstance(rest[1], ast.String):
                raise Fault("the description of getopt must be a string literal", span, usage)
            description = decoded(rest[1].value)
        option = ast.Option(decoded(name.value), default, description, span)
        self._remember(option)
        return literal(self._given(option), span)

    def _remember(self, option: ast.Option) -> None:
        known = self.options.get(option.name)
        if known is None:
            self.options[option.name] = option
            return
        first = (("this is the other one", known.span),)
        if (known.default, type(known.default)) != (option.default, type(option.default)):
            message = f"the default of parameter '{option.name}' must be the same everywhere"
            raise Fault(message, option.span, trail=first)
        if option.description and known.description and option.description != known.description:
            message = f"the description of parameter '{option.name}' must be the same everywhere"
            raise Fault(message, option.span, trail=first)
        if option.description:
            self.options[option.name] = option

    def _given(self, option: ast.Option) -> int | str | bool:
        """The value on the command line, by the type of the default."""
        if option.name not in self.named:
            return option.default
        text = self.named[option.name]

        def wrong(why: str) -> UsageError:
            shown = "true" if text is None else text
            return UsageError(f"program command line option --{option.name} {why} (value: {shown})")

        if isinstance(option.default, bool):
            if text is None or text.lower() in TRUE:
                return True
            if text.lower() in FALSE:
                return False
            raise wrong("expects true or false")
        if isinstance(option.default, int):
            if text is None:
                raise wrong("expects an integer")
            number = integer(text)
            if number is None or (number < 0 <= option.default):
                raise wrong("invalid integer")
            return number
        if text is None:
            raise wrong("expects a string")
        return text

    def check_named(self) -> None:
        """Raises UsageError for named parameters that the script never asks for, `--help` among them."""
        unknown = [name for name in self.named if name not in self.options]
        if not unknown:
            return
        wanted_help = "help" in unknown
        if not self.options:
            hint = "no custom program options defined."
        elif wanted_help:
            lines = [f"--{o.name}: {o.description}" if o.description else f"--{o.name}" for o in self.options.values()]
            hint = "\n".join(["expected program options:", *lines])
        else:
            hint = "expected program options: " + ", ".join(f"--{name}" for name in self.options)
        if unknown == ["help"]:
            raise UsageError("the options of this script were asked for", hint=hint)
        names = ", ".join(f"--{name}" for name in unknown if name != "help")
        raise UsageError(f"unexpected program command line options: {names}", hint=hint)


def integer(text: str) -> int | None:
    """Value of an optionally negative integer literal of 64 bits, None for any other text."""
    negative = text.startswith("-")
    try:
        value = decode_integer(text[1:] if negative else text)
    except LiteralError:
        return None
    if negative:
        return -value if value <= 1 << 63 else None
    return value


def constant(node: object) -> int | str | bool | None:
    match node:
        case ast.Integer(value=value):
            return value
        case ast.Boolean(value=flag):
            return flag
        case ast.String(value=raw):
            return decoded(raw)
        case ast.Unary(op="-", operand=ast.Integer(value=value)):
            return -value
        case ast.Block(statements=(), result=ast.Node() as result):
            return constant(result)
        case _:
            return None


def literal(value: int | str | bool, span: Span) -> ast.Expr:
    if isinstance(value, bool):
        return ast.Boolean(value, span)
    if isinstance(value, str):
        return string(value, span)
    if value < 0:
        return ast.Unary("-", ast.Integer(-value, span, -value >= 1 << 63), span)
    return ast.Integer(value, span, value >= 1 << 63)


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def decoded(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def string(text: str, span: Span) -> ast.String:
    return ast.String(encoded(text), span)
