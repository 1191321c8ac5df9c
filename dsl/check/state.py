"""What the passes of the checker share: the environment, the types found so far, the findings.

The checker walks the script several times. A walk translates everything with the types known so far and lets
variables and maps grow as it meets assignments; when a walk has changed no type, its output and its findings are the
result. Types only grow, so this ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct, field

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check.conversions import UNKNOWN, Unknown, promote
from bpfseal.dsl.env import Args, CFunction, Environment, Point
from bpfseal.dsl.source import Diagnostic, Span
from bpfseal.dsl.types import Aggregate, Array, Enum, Record, RecordInfo, Tuple, Type


class MapInfo(Struct, eq=False):
    """A map as far as it is known. `keyed` None: only named so far, without being read or written."""

    name: str
    span: Span
    definition: typed.MapDef
    key: Type | None = None
    value: Type | None = None
    keyed: bool | None = None
    keyed_at: Span | None = None
    declared: ast.MapDecl | None = None
    used: bool = False
    written: bool = False
    aggregate_at: Span | None = None
    # what the measured values of sum() and its family have been so far
    measured: Type | None = None


class Memory(Struct):
    """What is carried from one walk to the next."""

    variables: dict[tuple[object, ...], Type] = field(default_factory=dict)
    maps: dict[str, MapInfo] = field(default_factory=dict)
    changed: bool = False
    walks: int = 0


class Variable(Struct, eq=False):
    """A scratch variable in scope. `fixed`: declared with a full type, which assignments must fit."""

    var: typed.Var
    key: tuple[object, ...]
    span: Span
    fixed: bool = False
    assigned: bool = False
    what: str = "assigned"
    read: bool = False
    warned: bool = False


class Place(Struct, eq=False):
    """Where statements run: a probe's points, or a function. `space` is how plain numbers are read as addresses."""

    id: object
    kind: str = ""
    points: tuple[Point, ...] = ()
    args: Args = field(default_factory=lambda: Args(None))
    space: str = "none"
    function: typed.Function | None = None
    uses_probe_name: bool = False


Handler = Callable[["State", Any], typed.Expr]
StatementHandler = Callable[["State", Any], Sequence[typed.Stmt]]


class State(Struct, eq=False):
    """One walk. `expressions` and `statements` are the dispatch tables, by class of node."""

    env: Environment
    config: dict[str, str | int | bool]
    memory: Memory
    expressions: dict[type, Handler]
    handlers: dict[type, StatementHandler]
    diagnostics: list[Diagnostic] = field(default_factory=list)
    records: dict[str, RecordInfo] = field(default_factory=dict)
    enums: dict[str, dict[int, str]] = field(default_factory=dict)
    printed: set[str] = field(default_factory=set)
    functions: dict[str, typed.Function] = field(default_factory=dict)
    externals: dict[str, CFunction] = field(default_factory=dict)
    place: Place = field(default_factory=lambda: Place("nowhere"))
    scopes: list[dict[str, Variable]] = field(default_factory=list)
    loops: int = 0
    callbacks: int = 0
    # inside sizeof, typeof and the like: nothing is evaluated
    silent: int = 0
    # no further walk will know more
    last: bool = False
    # something could not be said before the next walk
    waiting: bool = False
    # variables that are read but whose type nothing says
    unresolved: list[Variable] = field(default_factory=list)
    # inside `_ = …`
    warnings_off: int = 0
    # how often unroll bodies and shared nodes have been copied, to tell their variables apart
    copy: tuple[int, ...] = ()
    seen: set[tuple[str, str, Span]] = field(default_factory=set)
    captures: list[dict[str, Variable]] = field(default_factory=list)
    # in a deferred block: how many scopes are the probe's; what they declare is there as a copy. Else -1
    deferred: int = -1

    # --- findings -------------------------------------------------------------------------------------------

    def report(
        self, severity: str, span: Span, message: str, hint: str | None = None, *trail: tuple[str, Span]
    ) -> None:
        mark = (severity, message, span)
        if mark not in self.seen:
            self.seen.add(mark)
            self.diagnostics.append(Diagnostic(severity, message, span, hint, trail))

    def error(self, span: Span, message: str, hint: str | None = None, *trail: tuple[str, Span]) -> typed.Expr:
        """Report, and stand in for the value that could not be had."""
        self.report("error", span, message, hint, *trail)
        return nothing(span)

    def warn(self, span: Span, message: str, hint: str | None = None) -> None:
        self.report("warning", span, message, hint)

    def narrowing(self, expr: typed.Expr, have: Type, want: Type) -> None:
        """The warning of `conversions.coerce`."""
        if not self.silent:
            self.warn(
                expr.span,
                f"{have} is converted to {want}, which cannot hold every value of it",
                f"write ({want}) before it if that is what you want",
            )

    def undecided(self, info: MapInfo, span: Span) -> None:
        """Something depends on whether a map has keys, before anything says so: wait for the next walk."""
        info.used = self.waiting = True
        if self.last:
            self.error(span, f"nothing says whether @{info.name} has keys", "read or write it somewhere")

    # --- walking --------------------------------------------------------------------------------------------

    def expr(self, node: ast.Expr) -> typed.Expr:
        """Translate an expression; its type is `Unknown` when it is wrong (and has been reported)."""
        handler = self.expressions.get(type(node))
        if handler is None:
            return self.error(node.span, "this cannot stand here")
        return handler(self, node)

    def statement(self, node: ast.Statement) -> Sequence[typed.Stmt]:
        return self.handlers[type(node)](self, node)

    # --- types of things that grow --------------------------------------------------------------------------

    def grow_variable(self, variable: Variable, type: Type) -> bool:
        """Let a variable hold `type` too. False when it cannot."""
        if isinstance(type, Unknown):
            return True
        known = self.memory.variables.get(variable.key)
        both = promote(known, type)
        if both is None:
            return False
        if known is None or both != known or remarks(both) != remarks(known):
            self.memory.variables[variable.key] = both
            if known is not None or variable.read:
                self.memory.changed = True
        variable.var.type = both
        return True

    def grow_map(self, info: MapInfo, part: str, type: Type) -> bool:
        """Let a map's "key" or "value" hold `type` too. False when it cannot."""
        if isinstance(type, Unknown):
            return True
        known: Type | None = getattr(info, part)
        both = promote(known, type)
        if both is None:
            return False
        if known is None or both != known or remarks(both) != remarks(known):
            setattr(info, part, both)
            if part == "value":
                info.definition.value = both
            elif info.keyed:
                info.definition.key = both
            if known is not None or info.used:
                self.memory.changed = True
        return True

    def record(self, name: str) -> RecordInfo | None:
        """Members of a record, remembered for the reader."""
        info = self.records.get(name)
        if info is None:
            info = self.env.record(name)
            if info is not None:
                self.records[name] = info
        return info

    def note_type(self, type: Type) -> None:
        """Remember what printing a value of `type` needs: names of enums, members of records."""
        stack = [type]
        while stack:
            match stack.pop():
                case Enum() as enum:
                    if enum.name not in self.enums:
                        self.enums[enum.name] = self.env.enum(enum) or {}
                case Record(name=name):
                    if name not in self.printed:
                        self.printed.add(name)
                        info = self.record(name)
                        if info is not None:
                            stack.extend(f.type for f in info.fields)
                case Tuple(elements=elements):
                    stack.extend(elements)
                case Array(element=element):
                    stack.append(element)
                case _:
                    pass


def remarks(type: Type) -> tuple[object, ...]:
    """What `==` does not compare but later inference needs."""
    return (getattr(type, "flexible", None), getattr(type, "space", None))


def nothing(span: Span) -> typed.Expr:
    return typed.Int(0, UNKNOWN, span)


def is_aggregate_read(expr: typed.Expr) -> bool:
    """Whether an expression is the element of a map that an aggregation writes."""
    return isinstance(expr, typed.MapRead) and isinstance(expr.map.value, Aggregate)
