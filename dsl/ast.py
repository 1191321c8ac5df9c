"""The syntax tree: what was written, with spans, before any name is looked up.

Produced by `dsl.parse`, rewritten by `dsl.expand` (macros, imports, positional parameters), read by `dsl.check`.
"""

from __future__ import annotations

from typing import Union

from bpfseal.dsl.node import Node as Node
from bpfseal.dsl.source import NOWHERE, Diagnostic, Source
from bpfseal.dsl.source import Span as Span

# --- types as written -------------------------------------------------------------------------------------------


class TypeName(Node, frozen=True):
    """`base` is "uint64", "struct task_struct", "string", "buffer", "inet", "pid_t"…; `suffixes` are applied from
    left to right: "*" for a pointer, a number for [N], None for []."""

    base: str
    suffixes: tuple[str | int | None, ...] = ()
    span: Span = NOWHERE


# --- expressions ------------------------------------------------------------------------------------------------


class Integer(Node, frozen=True):
    value: int
    span: Span = NOWHERE
    unsigned: bool = False
    text: str = ""


class String(Node, frozen=True):
    value: bytes
    span: Span = NOWHERE


class Boolean(Node, frozen=True):
    value: bool
    span: Span = NOWHERE


class Identifier(Node, frozen=True):
    """A bare word: builtin, enum constant, macro without arguments, or macro parameter."""

    name: str
    span: Span = NOWHERE


class Positional(Node, frozen=True):
    """`$1`; number 0 stands for `$#`."""

    number: int
    span: Span = NOWHERE


class Variable(Node, frozen=True):
    """`$x`, name without the dollar."""

    name: str
    span: Span = NOWHERE


class Map(Node, frozen=True):
    """`@x` or `@x[k, …]`; name without the @ ("" for the anonymous map); `key` None for a scalar map. Several keys
    are one TupleExpr."""

    name: str
    key: Expr | None = None
    span: Span = NOWHERE


class Unary(Node, frozen=True):
    """op: - ! ~ * & +"""

    op: str
    operand: Expr
    span: Span = NOWHERE


class IncDec(Node, frozen=True):
    """++ and --, before (`prefix`) or after a variable, a map element."""

    op: str
    target: Expr
    prefix: bool
    span: Span = NOWHERE


class Binary(Node, frozen=True):
    """op: + - * / % << >> & | ^ == != < > <= >= && ||"""

    op: str
    left: Expr
    right: Expr
    span: Span = NOWHERE


class Ternary(Node, frozen=True):
    condition: Expr
    then: Expr
    otherwise: Expr
    span: Span = NOWHERE


class Member(Node, frozen=True):
    """`base.name`, `base->name`, `tuple.0` (name "0")."""

    base: Expr
    name: str
    span: Span = NOWHERE
    arrow: bool = False


class Index(Node, frozen=True):
    base: Expr
    index: Expr
    span: Span = NOWHERE


class Cast(Node, frozen=True):
    """`(type)expr`; the type may be `typeof(…)`."""

    type: TypeName | TypeOf
    operand: Expr
    span: Span = NOWHERE


class TypeOf(Node, frozen=True):
    """typeof(expr or type) where a type is expected, or as an argument of a macro."""

    operand: Expr | TypeName
    span: Span = NOWHERE
    suffixes: tuple[str | int | None, ...] = ()


class SizeOf(Node, frozen=True):
    operand: Expr | TypeName | TypeOf
    span: Span = NOWHERE


class OffsetOf(Node, frozen=True):
    operand: Expr | TypeName | TypeOf
    path: tuple[str, ...]
    span: Span = NOWHERE


class TypeInfo(Node, frozen=True):
    """typeinfo(expr or type), usable at compile time only."""

    operand: Expr | TypeName | TypeOf
    span: Span = NOWHERE


class TupleExpr(Node, frozen=True):
    """`(a, b)`; with `names` the language's record `(x=a, y=b)`."""

    elements: tuple[Expr, ...]
    names: tuple[str, ...] = ()
    span: Span = NOWHERE


class Call(Node, frozen=True):
    """`name(args)` or `name!(args)`; a macro or a function, told apart by `expand`."""

    name: str
    args: tuple[Expr | TypeName | TypeOf, ...]
    span: Span = NOWHERE
    name_span: Span = NOWHERE
    bang: bool = False


class Block(Node, frozen=True):
    """`{ statements; result }`. As a statement or action body `result` is None."""

    statements: tuple[Statement, ...]
    result: Expr | None = None
    span: Span = NOWHERE


class Comptime(Node, frozen=True):
    """`comptime expr`: must fold to a constant."""

    operand: Expr
    span: Span = NOWHERE


class IfExpr(Node, frozen=True):
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


class ExprStatement(Node, frozen=True):
    expr: Expr
    span: Span = NOWHERE


class Assign(Node, frozen=True):
    """`target op value`; op "=" or a compound one ("+=" …). Target: Variable, Map, or (only with "=") Identifier("_"),
    which discards the value."""

    target: Expr
    op: str
    value: Expr
    span: Span = NOWHERE


class Let(Node, frozen=True):
    """`let $x`, `let $x : type`, `let $x : type = value`."""

    name: str
    type: TypeName | TypeOf | None
    value: Expr | None
    span: Span = NOWHERE


class If(Node, frozen=True):
    condition: Expr
    then: Block
    otherwise: Block | None
    span: Span = NOWHERE


class While(Node, frozen=True):
    condition: Expr
    body: Block
    span: Span = NOWHERE


class ForMap(Node, frozen=True):
    """`for ($kv : @map)`."""

    variable: Variable
    map: Map
    body: Block
    span: Span = NOWHERE


class ForRange(Node, frozen=True):
    """`for ($i : low..high)`, high excluded."""

    variable: Variable
    low: Expr
    high: Expr
    body: Block
    span: Span = NOWHERE


class Unroll(Node, frozen=True):
    """`unroll (count) { … }`."""

    count: Expr
    body: Block
    span: Span = NOWHERE


class Jump(Node, frozen=True):
    """break, continue, return."""

    kind: str
    value: Expr | None = None
    span: Span = NOWHERE


class Defer(Node, frozen=True):
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


class AttachPoint(Node, frozen=True):
    """One attach point as written, quotes included: `kprobe:vfs_read+4`, `uprobe:"/opt/my app":main`. Split and
    canonicalised by `dsl.points`."""

    text: str
    span: Span = NOWHERE


class Probe(Node, frozen=True):
    """`[name =] point, point /predicate/ { body }`."""

    points: tuple[AttachPoint, ...]
    predicate: Expr | None
    body: Block
    span: Span = NOWHERE
    name: str = ""


class Macro(Node, frozen=True):
    """`macro name($var, expr, @map) { … }`; a parameter's kind is told by its sigil, kept in the name."""

    name: str
    params: tuple[str, ...]
    body: Block
    span: Span = NOWHERE
    # names of defaulted parameters are not in the language; overloads are by count of parameters
    stdlib: bool = False


class Function(Node, frozen=True):
    """`fn name($a : type, …) : type { … }`; names of parameters without the dollar."""

    name: str
    params: tuple[tuple[str, TypeName | TypeOf], ...]
    returns: TypeName | TypeOf
    body: Block
    span: Span = NOWHERE


class MapDecl(Node, frozen=True):
    """`let @a = lruhash(100)`; kind "" for a plain `let @a`."""

    name: str
    kind: str
    max_entries: int | None
    span: Span = NOWHERE


class ConfigEntry(Node, frozen=True):
    name: str
    value: str | int | bool
    span: Span = NOWHERE


class Import(Node, frozen=True):
    path: str
    span: Span = NOWHERE


class CText(Node, frozen=True):
    """A preamble line kept as C: a definition of struct/union/enum/typedef, `#include` or `#define`."""

    text: str
    span: Span = NOWHERE


class CFile(Node, frozen=True):
    """An imported C source, compiled to functions that the script can call. `path` is where it stands."""

    path: str
    text: str
    span: Span = NOWHERE


class Option(Node, frozen=True):
    """A named parameter that the script reads with getopt(): `default` tells its type."""

    name: str
    default: int | str | bool
    description: str
    span: Span = NOWHERE


class Script(Node, frozen=True):
    """A parsed text. `sources[0]` is the script itself, the others are imports and the standard library.

    After `dsl.expand` there are no imports and macros, and `options` are known.
    """

    sources: tuple[Source, ...]
    preamble: tuple[CText, ...] = ()
    config: tuple[ConfigEntry, ...] = ()
    imports: tuple[Import, ...] = ()
    maps: tuple[MapDecl, ...] = ()
    macros: tuple[Macro, ...] = ()
    functions: tuple[Function, ...] = ()
    probes: tuple[Probe, ...] = ()
    warnings: tuple[Diagnostic, ...] = ()
    options: tuple[Option, ...] = ()
    c_files: tuple[CFile, ...] = ()
