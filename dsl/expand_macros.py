"""Macros: which definition a call means, and what its body becomes.

A macro is replaced as syntax, hygienically: its own variables get names that no script can write (`x#3`), maps and
outer variables come in through parameters only. Parameters: `$v` stands for the caller's variable, `@m` for the
caller's map, a plain word for the expression (or `typeof(…)`) that was passed, evaluated wherever it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bpfseal.dsl import ast
from bpfseal.dsl.expand_params import Fault
from bpfseal.dsl.source import Span


class Frame:
    """What names mean inside one expansion."""

    def __init__(self, macro: ast.Macro, via: Span, number: int, outer: Frame | None) -> None:
        self.macro = macro
        self.via = via
        self.number = number
        self.outer = outer
        self.variables: dict[str, str] = {}
        self.maps: dict[str, str] = {}
        self.values: dict[str, Any] = {}

    def span(self, span: Span) -> Span:
        """A span of the macro's text, as it belongs to this expansion."""
        return Span(span.start, span.end, span.source, self.via)

    def variable(self, name: str) -> str:
        """The name of a variable of the body outside of it."""
        return self.variables.get(name) or f"{name}#{self.number}"

    def map(self, name: str, span: Span) -> str:
        if name not in self.maps:
            raise Fault(
                f"macro '{self.macro.name}' uses the map @{name}, which was not passed to it",
                self.span(span),
                f"make it a parameter: macro {self.macro.name}(@{name})",
            )
        return self.maps[name]


class ConstantFrame(Frame):
    """The text of a C constant: it means what it would mean at the place of its use."""

    def __init__(self, name: str, via: Span) -> None:
        super().__init__(ast.Macro(name, (), ast.Block(())), via, 0, None)

    def variable(self, name: str) -> str:
        return name

    def map(self, name: str, span: Span) -> str:
        return name


class Macros:
    """All macros by name, in the order of their definition."""

    def __init__(self) -> None:
        self.by_name: dict[str, list[ast.Macro]] = {}

    def add(self, macro: ast.Macro) -> None:
        """Raises Fault when an earlier macro takes every call that this one could."""
        known = self.by_name.setdefault(macro.name, [])
        for other in known:
            if other.stdlib == macro.stdlib and covers(other.params, macro.params):
                raise Fault(
                    f"macro '{macro.name}' is defined already",
                    macro.span,
                    trail=(("this is the first definition", other.span),),
                )
        known.append(macro)

    def find(self, name: str, args: Sequence[Any], stdlib_only: bool) -> ast.Macro | None:
        """The definition that fits `args`; the script's own before the standard library's."""
        known = self.by_name.get(name)
        if not known:
            return None
        fitting = [m for m in known if (m.stdlib or not stdlib_only) and fits(m.params, args)]
        return min(fitting, key=lambda m: m.stdlib) if fitting else None

    def mismatch(self, name: str, args: Sequence[Any], span: Span) -> Fault:
        """Why no definition of `name` fits."""
        known = self.by_name[name]
        closest = min(known, key=lambda m: abs(len(m.params) - len(args)))
        trail = (("this is the closest definition", closest.span),)
        if len(closest.params) != len(args):
            count = len(closest.params)
            message = f"macro '{name}' takes {count} argument{'' if count == 1 else 's'}, not {len(args)}"
            return Fault(message, span, trail=trail)
        for param, arg in zip(closest.params, args, strict=True):
            if not fits_one(param, arg):
                wanted = "a map" if param[0] == "@" else "a variable"
                got = (
                    "a variable"
                    if isinstance(arg, ast.Variable)
                    else "a map"
                    if isinstance(arg, ast.Map)
                    else "an expression"
                )
                if isinstance(arg, ast.Map) and arg.key is not None:
                    got = "an element of a map"
                return Fault(f"macro '{name}' expects {wanted} for {param}, not {got}", span, trail=trail)
        return Fault(f"no definition of macro '{name}' fits this call", span, trail=trail)


def covers(earlier: Sequence[str], later: Sequence[str]) -> bool:
    """Whether every call that fits the parameters `later` fits `earlier` too."""
    return len(earlier) == len(later) and all(
        e[0] not in "$@" or e[0] == n[0] for e, n in zip(earlier, later, strict=True)
    )


def fits_one(param: str, arg: Any) -> bool:
    if param[0] == "$":
        return isinstance(arg, ast.Variable)
    if param[0] == "@":
        return isinstance(arg, ast.Map) and arg.key is None
    return True


def fits(params: Sequence[str], args: Sequence[Any]) -> bool:
    return len(params) == len(args) and all(map(fits_one, params, args))


def bind(frame: Frame, args: Sequence[Any]) -> None:
    """Gives the parameters of `frame.macro` their arguments, which belong to the caller."""
    for param, arg in zip(frame.macro.params, args, strict=True):
        if param[0] == "$":
            frame.variables[param[1:]] = arg.name
        elif param[0] == "@":
            frame.maps[param[1:]] = arg.name
        elif isinstance(arg, ast.Variable | ast.Map):
            # only its value is passed: a block keeps the body from changing it
            frame.values[param] = ast.Block((), arg, arg.span)
        else:
            frame.values[param] = arg


def replaced_type(frame: Frame, node: ast.TypeName, visit_span: Callable[[Span], Span]) -> Any:
    """A type of the body with a parameter in it: TypeName, TypeOf, or (without suffixes) the expression passed."""
    kind, _, tag = node.base.rpartition(" ")
    passed = frame.values.get(tag)
    span = visit_span(node.span)
    if passed is None:
        return ast.TypeName(node.base, node.suffixes, span)
    if kind:
        name = plain_name(passed)
        if name is not None:
            return ast.TypeName(f"{kind} {name}", node.suffixes, span)
    elif isinstance(passed, ast.Identifier):
        return ast.TypeName(passed.name, node.suffixes, span)
    elif isinstance(passed, ast.TypeName):
        return ast.TypeName(passed.base, passed.suffixes + node.suffixes, span)
    elif isinstance(passed, ast.TypeOf):
        inner = passed.operand
        if isinstance(inner, ast.TypeName):
            return ast.TypeName(inner.base, inner.suffixes + passed.suffixes + node.suffixes, span)
        return ast.TypeOf(inner, span, passed.suffixes + node.suffixes)
    elif not node.suffixes:
        return passed
    raise Fault(
        f"what is passed for '{tag}' cannot stand in the type '{node.base}'",
        span,
        f"pass a type: {frame.macro.name}(typeof(TYPE))",
    )


def plain_name(node: Any) -> str | None:
    """The word that was passed, bare or as typeof(word)."""
    match node:
        case ast.Identifier(name=name):
            return name
        case ast.TypeOf(operand=ast.TypeName(base=base, suffixes=()), suffixes=()) if " " not in base:
            return base
        case ast.TypeOf(operand=ast.Identifier(name=name), suffixes=()):
            return name
        case ast.TypeName(base=base, suffixes=()) if " " not in base:
            return base
        case _:
            return None


def member_path(node: Any) -> tuple[str, ...] | None:
    """`a.b.c` made of plain words, as passed for the second argument of offsetof."""
    names: list[str] = []
    while isinstance(node, ast.Member) and not node.arrow:
        names.append(node.name)
        node = node.base
    if not isinstance(node, ast.Identifier):
        return None
    return (node.name, *reversed(names))
