"""The typed script: the checker's result and all that the compiler reads.

Small on purpose: compound assignment, macros, unroll, wildcards, positional parameters, `args.x`, automatic
dereference, implicit conversions and constants are gone. Operands of a Binary have one common type (shifts and
pointer arithmetic excepted, see there). Every string literal has a size. What is left translates node by node.
"""

from __future__ import annotations

from typing import Union

from msgspec import Struct, field

from bpfseal.dsl.env import Args, Point
from bpfseal.dsl.source import NOWHERE, Diagnostic, Source, Span
from bpfseal.dsl.types import Field, RecordInfo, Tuple, Type

# --- things that are declared -----------------------------------------------------------------------------------


class Var(Struct, eq=False):
    """A scratch variable; identity is the object.

    Every way to a VarRef passes an AssignVar (`let $x;` has become one of zero, for memory types of the Call
    "zeroed"), except that IncDec and `find` write too and that a first assignment may stand in an `If`. So reserve the
    place, zero it at the program's entry where that is not provably needless, and reset nothing at a Scope's."""

    name: str
    type: Type


class MapDef(Struct, eq=False):
    """A map of the script.

    key       None for a scalar map (one element); several keys are a Tuple
    value     an Aggregate, or the type of the values
    kind      "auto", or as declared: hash lruhash percpuhash percpulruhash (auto: aggregations per CPU, else hash;
              a scalar map may become an array)
    entries   max_entries
    """

    name: str
    key: Type | None
    value: Type
    entries: int
    kind: str = "auto"
    # key types as the program wrote them, for printing: a Tuple from @[a, b] prints bare, one from @[(a, b)] too
    span: Span = NOWHERE


# --- expressions ------------------------------------------------------------------------------------------------


class Int(Struct, frozen=True):
    """A constant of type Int, Bool, Enum or Ptr."""

    value: int
    type: Type
    span: Span = NOWHERE


class StrLit(Struct, frozen=True):
    """A literal; `type` is Str(len + 1) at least."""

    value: bytes
    type: Type
    span: Span = NOWHERE


class Builtin(Struct, frozen=True):
    """A value the table gives by name, see `table.BUILTINS`: cgroup comm cpid cpu curtask elapsed gid jiffies ncpus
    numaid pid pid_init tid tid_init rand uid usermode func retval args ctx arg0…arg11.

    Not here: nsecs, kstack, ustack (always a Call with options), probe and probetype (a StrLit)."""

    name: str
    type: Type
    span: Span = NOWHERE


class ArgField(Struct, frozen=True):
    """`args.NAME`; how it is reached is in `Probe.args.context`. Type: the field's (memory ones by address)."""

    field: Field
    type: Type
    span: Span = NOWHERE


class VarRef(Struct, frozen=True):
    var: Var
    type: Type
    span: Span = NOWHERE


class MapRead(Struct, frozen=True):
    """Value of an element, zero when absent. Reading an Aggregate gives its integer (type Int) summed over CPUs."""

    map: MapDef
    key: Expr | None
    type: Type
    span: Span = NOWHERE


class FieldOf(Struct, frozen=True):
    """Member of a record. `base` has type Record (memory of ours or a place in foreign memory) or Ptr to one;
    through a Ptr the compiler reads by the pointer's space. Chains are left nested, so that the compiler can add
    offsets up and read once."""

    base: Expr
    field: Field
    type: Type
    span: Span = NOWHERE


class ElementOf(Struct, frozen=True):
    """Element `index` (constant) of a tuple."""

    base: Expr
    index: int
    type: Type
    span: Span = NOWHERE


class IndexOf(Struct, frozen=True):
    """`base[index]`: base an Array (bounds checked: out of range gives zero), a Str/Buf, or a Ptr (read by space)."""

    base: Expr
    index: Expr
    type: Type
    span: Span = NOWHERE


class Deref(Struct, frozen=True):
    """`*pointer`."""

    pointer: Expr
    type: Type
    span: Span = NOWHERE


class AddressOf(Struct, frozen=True):
    """`&$x`, `&@m[k]` (null when absent), `&p->field` (an address computation)."""

    target: Expr
    type: Type
    span: Span = NOWHERE


class Unary(Struct, frozen=True):
    """op: - ~ (result of the operand's type), ! (Bool)."""

    op: str
    operand: Expr
    type: Type
    span: Span = NOWHERE


class Binary(Struct, frozen=True):
    """+ - * & | ^ << >> / % on two values of `type`, which is I64, U64 or (& | ^) Bool; >> is logical whatever the
    sign; / and % are unsigned whatever the sign, a zero divisor gives 1 and is worth a runtime error.
    == != < > <= >= on two values of one type with result Bool: integers by that type's sign, Bool and Sym by value,
    Str and Buf as memory up to the shorter (strings: or to the first NUL), Mac, Array, Tuple (== and != only) as a
    whole. Pointers are compared as U64.
    Pointer arithmetic: `type` is Ptr, left the Ptr and right an I64 with the scaling already multiplied in (for the
    `+` of an integer and a pointer the operands have been swapped)."""

    op: str
    left: Expr
    right: Expr
    type: Type
    span: Span = NOWHERE


class Logical(Struct, frozen=True):
    """&& || with short circuit; operands are Bool, result Bool."""

    op: str
    left: Expr
    right: Expr
    type: Type
    span: Span = NOWHERE


class Ternary(Struct, frozen=True):
    """`condition` is Bool; both arms have `type` (strings: the larger size)."""

    condition: Expr
    then: Expr
    otherwise: Expr
    type: Type
    span: Span = NOWHERE


class Cast(Struct, frozen=True):
    """Conversion to `type`:

    Int Bool Enum Ptr among each other   the source's sign extends; to Bool: non-zero
    Str → Str, Buf → Buf                 larger: zero-filled; smaller: cut, NUL kept
    Str ↔ Array of 8-bit integers        the bytes
    Array → Int, Int → Array             memory order, same size; from pton() already folded
    Tuple → Tuple                        element by element, with `names` by name (the order may differ)
    Int → Username
    Stack, Record, … are never cast."""

    operand: Expr
    type: Type
    span: Span = NOWHERE


class TupleExpr(Struct, frozen=True):
    elements: tuple[Expr, ...]
    type: Tuple
    span: Span = NOWHERE


class IncDec(Struct, frozen=True):
    """++/-- of a Var or a map element; `delta` +1/-1 (pointers: scaled); value before (postfix) or after."""

    target: VarRef | MapRead
    delta: int
    prefix: bool
    type: Type
    span: Span = NOWHERE


class Call(Struct, frozen=True):
    """A function of `table.FUNCTIONS` by its name; each row's `typed` says exactly what arrives. `options` are
    compile-time values taken out of the arguments (a format string's bytes, clock names, modes, depths), by the names
    the table gives them. `map` is the map operand of print, clear, zero, delete, len, has_key, find, and `key` its
    key."""

    name: str
    args: tuple[Expr, ...]
    type: Type
    span: Span = NOWHERE
    options: dict[str, object] = field(default_factory=dict)
    map: MapDef | None = None
    key: Expr | None = None


class CallUser(Struct, frozen=True):
    """Call of a user-defined function: a BPF subprogram."""

    function: Function
    args: tuple[Expr, ...]
    type: Type
    span: Span = NOWHERE


class BlockExpr(Struct, frozen=True):
    body: tuple[Stmt, ...]
    result: Expr
    type: Type
    span: Span = NOWHERE


Expr = Union[  # noqa: UP007 - forward references
    Int,
    StrLit,
    Builtin,
    ArgField,
    VarRef,
    MapRead,
    FieldOf,
    ElementOf,
    IndexOf,
    Deref,
    AddressOf,
    Unary,
    Binary,
    Logical,
    Ternary,
    Cast,
    TupleExpr,
    IncDec,
    Call,
    CallUser,
    BlockExpr,
]

# --- statements -------------------------------------------------------------------------------------------------


class AssignVar(Struct, frozen=True):
    var: Var
    value: Expr
    span: Span = NOWHERE


class AssignMap(Struct, frozen=True):
    map: MapDef
    key: Expr | None
    value: Expr
    span: Span = NOWHERE


class Aggregate(Struct, frozen=True):
    """`@m[k] = sum(x)` and its family: kind and parameters in `map.value`; `value` None for count()."""

    map: MapDef
    key: Expr | None
    value: Expr | None
    span: Span = NOWHERE


class Do(Struct, frozen=True):
    """An expression for its effect; its value, if it has one, is dropped."""

    expr: Expr
    span: Span = NOWHERE


class If(Struct, frozen=True):
    """`condition` is Bool."""

    condition: Expr
    then: tuple[Stmt, ...]
    otherwise: tuple[Stmt, ...]
    span: Span = NOWHERE


class While(Struct, frozen=True):
    """`condition` is Bool."""

    condition: Expr
    body: tuple[Stmt, ...]
    span: Span = NOWHERE


class ForMap(Struct, frozen=True):
    """`variable` is a Var of type Tuple (key, value), an aggregate's value as its integer; the map may be changed
    inside. No ctx, args, argN and retval occur in `body`; Jump("return") may."""

    variable: Var
    map: MapDef
    body: tuple[Stmt, ...]
    span: Span = NOWHERE


class ForRange(Struct, frozen=True):
    """From `low` to below `high`, both of the variable's integer type and evaluated once. As ForMap otherwise."""

    variable: Var
    low: Expr
    high: Expr
    body: tuple[Stmt, ...]
    span: Span = NOWHERE


class Scope(Struct, frozen=True):
    """A block with variables of its own."""

    body: tuple[Stmt, ...]
    span: Span = NOWHERE


class Jump(Struct, frozen=True):
    """break, continue, return (`value` for return in functions and lsm/fmod probes)."""

    kind: str
    value: Expr | None = None
    span: Span = NOWHERE


class Defer(Struct, frozen=True):
    """`captures` are the enclosing block's variables that the body reads: copied into the map value when
    scheduled. mode "resume" or "signal"."""

    mode: str
    captures: tuple[Var, ...]
    body: tuple[Stmt, ...]
    span: Span = NOWHERE


Stmt = Union[  # noqa: UP007 - forward references
    AssignVar,
    AssignMap,
    Aggregate,
    Do,
    If,
    While,
    ForMap,
    ForRange,
    Scope,
    Jump,
    Defer,
]

# --- top level --------------------------------------------------------------------------------------------------


class Function(Struct, frozen=True, eq=False):
    name: str
    params: tuple[Var, ...]
    returns: Type
    body: tuple[Stmt, ...]
    span: Span = NOWHERE


class Probe(Struct, frozen=True):
    """One action block for one or more points that share the same argument types; the predicate is folded in as a
    leading `If … return`. One written block with points of different `args` becomes several of these. Blocks that
    name neither args nor argN, retval or ctx have `args.fields` None and serve all points of a kind; blocks that name
    `probe` have one point each. Points of system calls ("syscall" and "syscall_exit") may share a block: it runs for
    the numbers `nr` in the params of all of its points."""

    points: tuple[Point, ...]
    args: Args
    body: tuple[Stmt, ...]
    span: Span = NOWHERE
    uses_probe_name: bool = False


class TypedScript(Struct, frozen=True):
    """What the compiler turns into a Bundle.

    records    every struct, union and enum that a printed or read type names, by `Record.name`
    enums      names by value, by enum name
    config     every config variable with its effective value (table.CONFIG has names and defaults)
    warnings   for the user, in source order
    c_files    (path, text) of the C sources whose functions Calls of "external" name
    """

    probes: tuple[Probe, ...]
    maps: tuple[MapDef, ...]
    functions: tuple[Function, ...]
    config: dict[str, str | int | bool]
    sources: tuple[Source, ...]
    records: dict[str, RecordInfo] = field(default_factory=dict)
    enums: dict[str, dict[int, str]] = field(default_factory=dict)
    warnings: tuple[Diagnostic, ...] = ()
    c_files: tuple[tuple[str, str], ...] = ()
