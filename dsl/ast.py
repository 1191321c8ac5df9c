"""The syntax tree: what was written, with spans, before any name is looked up.

Produced by `dsl.parse`, rewritten by `dsl.expand` (macros, imports, positional parameters), read by `dsl.check`.
"""

from __future__ import annotations

from typing import Union

from bpfseal.dsl.node import Node as Node
from bpfseal.dsl.node import node
from bpfseal.dsl.source import NOWHERE, Diagnostic, Source
from bpfseal.dsl.source import Span as Span

# --- types as written -------------------------------------------------------------------------------------------


@node
class TypeName(Node):
    """`base` is "uint64", "struct task_struct", "string", "buffer", "inet", "pid_t"…; `suffixes` are applied from
    left to right: "*" for a pointer, a number for [N], None for []."""

    base: str
    suffixes: tuple[str | int | None, ...] = ()
    span: Span = NOWHERE


# --- expressions ------------------------------------------------------------------------------------------------


@node
class Integer(Node):
    value: int
    span: Span = NOWHERE
    unsigned: bool = False
    text: str = ""


@node
class String(Node):
    value: bytes
    span: Span = NOWHERE


@node
class Boolean(Node):
    value: bool
    span: Span = NOWHERE


@node
class Identifier(Node):
    """A bare word: builtin, enum constant, macro without arguments, or macro parameter."""

    name: str
    span: Span = NOWHERE


@node
class Positional(Node):
    """`$1`; number 0 stands for `$#`."""

    number: int
    span: Span = NOWHERE


@node
class Variable(Node):
    """`$x`, name without the dollar."""

    name: str
    span: Span = NOWHERE


@node
class Map(Node):
    """`@x` or `@x[k, …]`; name without the @ ("" for the anonymous map); `key` None for a scalar map. Several keys
    are one TupleExpr."""

    name: str
    key: Expr | None = None
    span: Span = NOWHERE


@node
class Unary(Node):
    """op: - ! ~ * & +"""

    op: str
    operand: Expr
    span: Span = NOWHERE


@node
class IncDec(Node):
    """++ and --, before (`prefix`) or after a variable, a map element."""

    op: str
    target: Expr
    prefix: bool
    span: Span = NOWHERE


@node
class Binary(Node):
    """op: + - * / % << >> & | ^ == != < > <= >= && ||"""

    op: str
    left: Expr
    right: Expr
    span: Span = NOWHERE


@node
class Ternary(Node):
    condition: Expr
    then: Expr
    otherwise: Expr
    span: Span = NOWHERE


@node
class Member(Node):
    """`base.name`, `base->name`, `tuple.0` (name "0")."""

    base: Expr
    name: str
    span: Span = NOWHERE
    arrow: bool = False


@node
class Index(Node):
    base: Expr
    index: Expr
    span: Span = NOWHERE


@node
class Cast(Node):
    """`(type)expr`; the type may be `typeof(…)`."""

    type: TypeName | TypeOf
    operand: Expr
    span: Span = NOWHERE


@node
class TypeOf(Node):
    """typeof(expr or type) where a type is expected, or as an argument of a macro."""

    operand: Expr | TypeName
    span: Span = NOWHERE
    suffixes: tuple[str | int | None, ...] = ()


@node
class SizeOf(Node):
    operand: Expr | TypeName | TypeOf
    span: Span = NOWHERE


@node
class OffsetOf(Node):
    operand: Expr | TypeName | TypeOf
    path: tuple[str, ...]
    span: Span = NOWHERE


@node
class TypeInfo(Node):
    """typeinfo(expr or type), usable at compile time only."""

    operand: Expr | TypeName | TypeOf
    span: Span = NOWHERE


@node
class TupleExpr(Node):
    """`(a, b)`; with `names` the language's record `(x=a, y=b)`."""

    elements: tuple[Expr, ...]
    names: tuple[str, ...] = ()
    span: Span = NOWHERE


@node
class Call(Node):
    """`name(args)` or `name!(args)`; a macro or a function, told apart by `expand`."""

    name: str
    args: tuple[Expr | TypeName | TypeOf, ...]
    span: Span = NOWHERE
    name_span: Span = NOWHERE
    bang: bool = False


@node
class Block(Node):
    """`{ statements; result }`. As a statement or action body `result` is None."""

    statements: tuple[Statement, ...]
    result: Expr | None = None
    span: Span = NOWHERE


@node
class Comptime(Node):
    """`comptime expr`: must fold to a constant."""

    operand: Expr
    span: Span = NOWHERE


@node
class IfExpr(Node):
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


@node
class ExprStatement(Node):
    expr: Expr
    span: Span = NOWHERE


@node
class Assign(Node):
    """`target op value`; op "=" or a compound one ("+=" …). Target: Variable, Map, or (only with "=") Identifier("_"),
    which discards the value."""

    target: Expr
    op: str
    value: Expr
    span: Span = NOWHERE


@node
class Let(Node):
    """`let $x`, `let $x : type`, `let $x : type = value`."""

    name: str
    type: TypeName | TypeOf | None
    value: Expr | None
    span: Span = NOWHERE


@node
class If(Node):
    condition: Expr
    then: Block
    otherwise: Block | None
    span: Span = NOWHERE


@node
class While(Node):
    condition: Expr
    body: Block
    span: Span = NOWHERE


@node
class ForMap(Node):
    """`for ($kv : @map)`."""

    variable: Variable
    map: Map
    body: Block
    span: Span = NOWHERE


@node
class ForRange(Node):
    """`for ($i : low..high)`, high excluded."""

    variable: Variable
    low: Expr
    high: Expr
    body: Block
    span: Span = NOWHERE


@node
class Unroll(Node):
    """`unroll (count) { … }`."""

    count: Expr
    body: Block
    span: Span = NOWHERE


@node
class Jump(Node):
    """break, continue, return."""

    kind: str
    value: Expr | None = None
    span: Span = NOWHERE


@node
class Defer(Node):
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


@node
class AttachPoint(Node):
    """One attach point as written, quotes included: `kprobe:vfs_read+4`, `uprobe:"/opt/my app":main`. Split and
    canonicalised by `dsl.points`."""

    text: str
    span: Span = NOWHERE


@node
class Probe(Node):
    """`[name =] point, point /predicate/ { body }`."""

    points: tuple[AttachPoint, ...]
    predicate: Expr | None
    body: Block
    span: Span = NOWHERE
    name: str = ""


@node
class Macro(Node):
    """`macro name($var, expr, @map) { … }`; a parameter's kind is told by its sigil, kept in the name."""

    name: str
    params: tuple[str, ...]
    body: Block
    span: Span = NOWHERE
    # names of defaulted parameters are not in the language; overloads are by count of parameters
    stdlib: bool = False


@node
class Function(Node):
    """`fn name($a : type, …) : type { … }`; names of parameters without the dollar."""

    name: str
    params: tuple[tuple[str, TypeName | TypeOf], ...]
    returns: TypeName | TypeOf
    body: Block
    span: Span = NOWHERE


@node
class MapDecl(Node):
    """`let @a = lruhash(100)`; kind "" for a plain `let @a`."""

    name: str
    kind: str
    max_entries: int | None
    span: Span = NOWHERE


@node
class ConfigEntry(Node):
    name: str
    value: str | int | bool
    span: Span = NOWHERE


@node
class Import(Node):
    path: str
    span: Span = NOWHERE


@node
class CText(Node):
    """A preamble line kept as C: a definition of struct/union/enum/typedef, `#include` or `#define`."""

    text: str
    span: Span = NOWHERE


@node
class Option(Node):
    """A named parameter that the script reads with getopt(): `default` tells its type."""

    name: str
    default: int | str | bool
    description: str
    span: Span = NOWHERE


@node
class Script(Node):
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
