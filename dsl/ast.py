"""The syntax tree: what was written, with spans, before any name is looked up.

Produced by `dsl.parse`, rewritten by `dsl.expand` (macros, imports, positional parameters), read by `dsl.check`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Union

from bpfseal.dsl.source import NOWHERE, Source, Span

# --- types as written -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TypeName:
    """`base` is "uint64", "struct task_struct", "string", "buffer", "inet", "pid_t"…; `suffixes` are applied from
    left to right: "*" for a pointer, a number for [N], None for []."""

    base: str
    suffixes: tuple[str | int | None, ...] = ()
    span: Span = NOWHERE


# --- expressions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Integer:
    value: int
    span: Span = NOWHERE
    unsigned: bool = False
    text: str = ""


@dataclass(frozen=True, slots=True)
class String:
    value: bytes
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Boolean:
    value: bool
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Identifier:
    """A bare word: builtin, enum constant, macro without arguments, or macro parameter."""

    name: str
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Positional:
    """`$1`; number 0 stands for `$#`."""

    number: int
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Variable:
    """`$x`, name without the dollar."""

    name: str
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Map:
    """`@x` or `@x[k, …]`; name without the @ ("" for the anonymous map); `key` None for a scalar map. Several keys
    are one TupleExpr."""

    name: str
    key: Expr | None = None
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Unary:
    """op: - ! ~ * & +"""

    op: str
    operand: Expr
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class IncDec:
    """++ and --, before (`prefix`) or after a variable, a map element."""

    op: str
    target: Expr
    prefix: bool
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Binary:
    """op: + - * / % << >> & | ^ == != < > <= >= && ||"""

    op: str
    left: Expr
    right: Expr
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Ternary:
    condition: Expr
    then: Expr
    otherwise: Expr
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Member:
    """`base.name`, `base->name`, `tuple.0` (name "0")."""

    base: Expr
    name: str
    span: Span = NOWHERE
    arrow: bool = False


@dataclass(frozen=True, slots=True)
class Index:
    base: Expr
    index: Expr
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Cast:
    """`(type)expr`; the type may be `typeof(…)`."""

    type: TypeName | TypeOf
    operand: Expr
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class TypeOf:
    """typeof(expr or type) where a type is expected, or as an argument of a macro."""

    operand: Expr | TypeName
    span: Span = NOWHERE
    suffixes: tuple[str | int | None, ...] = ()


@dataclass(frozen=True, slots=True)
class SizeOf:
    operand: Expr | TypeName | TypeOf
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class OffsetOf:
    operand: Expr | TypeName | TypeOf
    path: tuple[str, ...]
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class TypeInfo:
    """typeinfo(expr or type), usable at compile time only."""

    operand: Expr | TypeName | TypeOf
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class TupleExpr:
    """`(a, b)`; with `names` the language's record `(x=a, y=b)`."""

    elements: tuple[Expr, ...]
    names: tuple[str, ...] = ()
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Call:
    """`name(args)` or `name!(args)`; a macro or a function, told apart by `expand`."""

    name: str
    args: tuple[Expr | TypeName | TypeOf, ...]
    span: Span = NOWHERE
    name_span: Span = NOWHERE
    bang: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """`{ statements; result }`. As a statement or action body `result` is None."""

    statements: tuple[Statement, ...]
    result: Expr | None = None
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Comptime:
    """`comptime expr`: must fold to a constant."""

    operand: Expr
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class IfExpr:
    """`if (c) { …; a } else { …; b }` used as a value."""

    condition: Expr
    then: Block
    otherwise: Block
    span: Span = NOWHERE


Expr = Union[  # noqa: UP007 - forward references
    Integer,
    String,
    Boolean,
    Identifier,
    Positional,
    Variable,
    Map,
    Unary,
    IncDec,
    Binary,
    Ternary,
    Member,
    Index,
    Cast,
    TypeOf,
    SizeOf,
    OffsetOf,
    TypeInfo,
    TupleExpr,
    Call,
    Block,
    Comptime,
    IfExpr,
]

# --- statements -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExprStatement:
    expr: Expr
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Assign:
    """`target op value`; op "=" or a compound one ("+=" …). Target: Variable, Map, or (only with "=") Identifier("_"),
    which discards the value."""

    target: Expr
    op: str
    value: Expr
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Let:
    """`let $x`, `let $x : type`, `let $x : type = value`."""

    name: str
    type: TypeName | TypeOf | None
    value: Expr | None
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class If:
    condition: Expr
    then: Block
    otherwise: Block | None
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class While:
    condition: Expr
    body: Block
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class ForMap:
    """`for ($kv : @map)`."""

    variable: Variable
    map: Map
    body: Block
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class ForRange:
    """`for ($i : low..high)`, high excluded."""

    variable: Variable
    low: Expr
    high: Expr
    body: Block
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Unroll:
    """`unroll (count) { … }`."""

    count: Expr
    body: Block
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Jump:
    """break, continue, return."""

    kind: str
    value: Expr | None = None
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Defer:
    """`defer { … }` / `defer(signal) { … }`: runs later in the task's own context."""

    mode: str
    body: Block
    span: Span = NOWHERE


Statement = Union[  # noqa: UP007 - forward references
    ExprStatement,
    Assign,
    Let,
    If,
    While,
    ForMap,
    ForRange,
    Unroll,
    Jump,
    Defer,
    Block,
]

# --- top level --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AttachPoint:
    """One attach point as written, quotes included: `kprobe:vfs_read+4`, `uprobe:"/opt/my app":main`. Split and
    canonicalised by `dsl.points`."""

    text: str
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Probe:
    """`[name =] point, point /predicate/ { body }`."""

    points: tuple[AttachPoint, ...]
    predicate: Expr | None
    body: Block
    span: Span = NOWHERE
    name: str = ""


@dataclass(frozen=True, slots=True)
class Macro:
    """`macro name($var, expr, @map) { … }`; a parameter's kind is told by its sigil, kept in the name."""

    name: str
    params: tuple[str, ...]
    body: Block
    span: Span = NOWHERE
    # names of defaulted parameters are not in the language; overloads are by count of parameters
    stdlib: bool = False


@dataclass(frozen=True, slots=True)
class Function:
    """`fn name($a : type, …) : type { … }`; names of parameters without the dollar."""

    name: str
    params: tuple[tuple[str, TypeName | TypeOf], ...]
    returns: TypeName | TypeOf
    body: Block
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class MapDecl:
    """`let @a = lruhash(100)`; kind "" for a plain `let @a`."""

    name: str
    kind: str
    max_entries: int | None
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class ConfigEntry:
    name: str
    value: str | int | bool
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class Import:
    path: str
    span: Span = NOWHERE


@dataclass(frozen=True, slots=True)
class CText:
    """A preamble line kept as C: a definition of struct/union/enum/typedef, `#include` or `#define`."""

    text: str
    span: Span = NOWHERE


@dataclass(frozen=True)
class Script:
    """A parsed text. `sources[0]` is the script itself, the others are imports and the standard library."""

    sources: tuple[Source, ...]
    preamble: tuple[CText, ...] = ()
    config: tuple[ConfigEntry, ...] = ()
    imports: tuple[Import, ...] = ()
    maps: tuple[MapDecl, ...] = ()
    macros: tuple[Macro, ...] = ()
    functions: tuple[Function, ...] = ()
    probes: tuple[Probe, ...] = ()
    extra: dict[str, str] = field(default_factory=dict, compare=False)
