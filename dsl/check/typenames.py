"""Types as written: `uint8`, `struct file *`, `string[64]`, `typeof(…)`."""

from __future__ import annotations

from bpfseal.dsl import ast
from bpfseal.dsl.check import maps
from bpfseal.dsl.check.conversions import UNKNOWN
from bpfseal.dsl.check.state import State
from bpfseal.dsl.source import Span
from bpfseal.dsl.table import near
from bpfseal.dsl.types import (
    BOOL,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    VOID,
    Aggregate,
    Array,
    Buf,
    CgroupPath,
    Enum,
    Inet,
    Mac,
    Ptr,
    Stack,
    Str,
    Sym,
    Timestamp,
    Type,
    Username,
)

NAMED: dict[str, Type] = {
    "bool": BOOL,
    "int8": I8,
    "int16": I16,
    "int32": I32,
    "int64": I64,
    "uint8": U8,
    "uint16": U16,
    "uint32": U32,
    "uint64": U64,
    "void": VOID,
    "string": Str(0),
    "buffer": Buf(0),
    "inet": Inet(),
    "timestamp": Timestamp(),
    "macaddr_t": Mac(),
    "mac_address": Mac(),
    "cgroup_path_t": CgroupPath(),
    "username_t": Username(),
    "ksym_t": Sym("kernel"),
    "usym_t": Sym("user"),
    "kstack_t": Stack("kernel"),
    "ustack_t": Stack("user"),
    "count_t": Aggregate("count", False),
    "hist_t": Aggregate("hist"),
    "lhist_t": Aggregate("lhist"),
    "tseries_t": Aggregate("tseries"),
    **{
        f"{prefix}{kind}_t": Aggregate(kind, not prefix)
        for prefix in ("", "u")
        for kind in ("sum", "min", "max", "avg", "stats")
    },
}

# C's own names, for when the environment has no kernel types.
_C_NAMES: dict[str, Type] = {
    "char": I8,
    "signed char": I8,
    "unsigned char": U8,
    "short": I16,
    "unsigned short": U16,
    "int": I32,
    "unsigned int": U32,
    "unsigned": U32,
    "long": I64,
    "unsigned long": U64,
    "long long": I64,
    "unsigned long long": U64,
    "int8_t": I8,
    "int16_t": I16,
    "int32_t": I32,
    "int64_t": I64,
    "uint8_t": U8,
    "uint16_t": U16,
    "uint32_t": U32,
    "uint64_t": U64,
    "size_t": U64,
    "ssize_t": I64,
    "uintptr_t": U64,
    "_Bool": BOOL,
}


def look_up(c: State, base: str) -> Type | None:
    """The type of one name, without suffixes."""
    base = " ".join(base.split())
    named = NAMED.get(base)
    if named is not None:
        return named
    from_kernel = c.env.type_named(base)
    return from_kernel if from_kernel is not None else _C_NAMES.get(base)


def with_suffixes(c: State, type: Type, suffixes: tuple[str | int | None, ...], span: Span) -> Type:
    """Apply `*`, `[N]` and `[]` from left to right. Of string, buffer and inet a first [N] is the size."""
    for suffix in suffixes:
        match type, suffix:
            case _, "*":
                type = Ptr(None if type is VOID else type)
            case Str(size=0), int():
                type = Str(suffix)
            case Buf(capacity=0), int():
                type = Buf(suffix)
            case Inet(), int():
                pass
            case _, None:
                type = Array(type, 0)
            case _, int():
                if suffix > 1 << 20:
                    c.error(span, f"an array of {suffix} elements is too large")
                    return UNKNOWN
                type = Array(type, suffix)
            case _:
                c.error(span, f"'{suffix}' is not a type suffix")
    return type


def resolve(c: State, node: ast.TypeName) -> Type:
    """The type that `node` names; UNKNOWN (and a report) when there is none."""
    type = look_up(c, node.base)
    if type is None and not node.suffixes and (constant := c.env.constant(node.base)) is not None:
        # sizeof(CONSTANT): a word in a type's place
        return Enum(constant[1].name, 64, constant[1].signed) if isinstance(constant[1], Enum) else constant[1]
    if type is None:
        names = [*NAMED, *c.env.suggest("type", node.base)]
        close = near(node.base, names) or c.env.suggest("type", node.base)[:3]
        hint = "did you mean " + " or ".join(close) + "?" if close else None
        if hint is None and node.base.startswith(("struct ", "union ", "enum ")):
            hint = "define it at the top of the script; kernel types need BTF (/sys/kernel/btf/vmlinux)"
        c.error(node.span, f'cannot resolve unknown type "{node.base}"', hint)
        return UNKNOWN
    return with_suffixes(c, type, node.suffixes, node.span)


def of(c: State, node: ast.Expr | ast.TypeName | ast.TypeOf) -> Type:
    """The type that an operand of sizeof, typeof, a cast… stands for; expressions are not evaluated."""
    match node:
        case ast.TypeName():
            return resolve(c, node)
        case ast.TypeOf():
            return with_suffixes(c, of(c, node.operand), node.suffixes, node.span)
        case ast.Identifier() if look_up(c, node.name) is not None and not _is_value(c, node.name):
            return resolve(c, ast.TypeName(node.name, (), node.span))
        case ast.Map(key=None):
            info = c.memory.maps.get(node.name)
            if info is not None and info.keyed:
                return info.key if info.key is not None else UNKNOWN
            if (info is None or info.keyed is None) and not c.last:
                maps.lookup(c, node.name, node.span).used = c.waiting = True
                return UNKNOWN
            return _silently(c, node)
        case _:
            return _silently(c, node)


def _silently(c: State, node: ast.Expr) -> Type:
    c.silent += 1
    try:
        return c.expr(node).type
    finally:
        c.silent -= 1


def _is_value(c: State, name: str) -> bool:
    from bpfseal.dsl.table import BUILTINS, FUNCTIONS

    return name in BUILTINS or name in FUNCTIONS or c.env.constant(name) is not None
