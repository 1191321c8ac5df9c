"""What is known at compile time: sizeof, offsetof, typeinfo, comptime conditions."""

from __future__ import annotations

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check import access, fold, operators, typenames
from bpfseal.dsl.check.conversions import is_unknown
from bpfseal.dsl.check.state import State, nothing
from bpfseal.dsl.types import (
    U64,
    Aggregate,
    Array,
    Bool,
    Buf,
    CgroupPath,
    Enum,
    Inet,
    Int,
    Mac,
    Ptr,
    Record,
    Stack,
    Str,
    Sym,
    Timestamp,
    Tuple,
    Type,
    Username,
    Void,
    size_of,
)

# What typeinfo() calls the kinds of types.
BASE: dict[type, str] = {
    Int: "int",
    Enum: "int",
    Bool: "bool",
    Str: "string",
    Buf: "buffer",
    Ptr: "pointer",
    Array: "array",
    Record: "c_struct",
    Timestamp: "timestamp",
    Inet: "inet",
    Mac: "mac_address",
    CgroupPath: "cgroup_path_t",
    Username: "username_t",
    Void: "void",
}


def base_name(type: Type) -> str:
    match type:
        case Tuple(names=names):
            return "record" if names else "tuple"
        case Stack(space=space) | Sym(space=space):
            return f"{space[0]}{'stack' if isinstance(type, Stack) else 'sym'}_t"
        case Aggregate(kind=kind):
            return f"{kind}_t"
        case _:
            return next((name for known, name in BASE.items() if isinstance(type, known)), "none")


def size_of_node(c: State, node: ast.SizeOf) -> typed.Expr:
    type = typenames.of(c, node.operand)
    if is_unknown(type):
        return nothing(node.span)
    if isinstance(type, Str) and type.size == 0:
        return c.error(node.span, "string without a size has no size of its own", "write string[64]")
    return operators.number(size_of(type), node.span)


def offset_of(c: State, node: ast.OffsetOf) -> typed.Expr:
    type = typenames.of(c, node.operand)
    if is_unknown(type):
        return nothing(node.span)
    if isinstance(type, Ptr) and isinstance(type.to, Record):
        type = type.to
    found = access.field_path(c, type, node.path, node.span)
    return nothing(node.span) if found is None else operators.number(found[0], node.span)


def type_info(c: State, node: ast.TypeInfo) -> typed.Expr:
    """The record (btf_id, base_type, full_type)."""
    if c.config["unstable_typeinfo"] == "error":
        return c.error(
            node.span,
            "typeinfo() is not stable yet and has to be enabled",
            "config = { unstable_typeinfo = enable }",
        )
    type = typenames.of(c, node.operand)
    if is_unknown(type):
        return nothing(node.span)
    return describe(type, node)


def describe(type: Type, node: ast.TypeInfo) -> typed.Expr:
    elements = (
        typed.Int(0, U64, node.span),
        operators.number(base_name(type).encode(), node.span),
        operators.number(str(type).encode(), node.span),
    )
    shape = Tuple(tuple(e.type for e in elements), ("btf_id", "base_type", "full_type"))
    return typed.TupleExpr(elements, shape, node.span)


def decide(c: State, node: ast.Comptime) -> bool | None:
    """The value of a `comptime` condition; None when it is not known (yet), which has been reported."""
    c.silent += 1
    try:
        value = c.expr(node.operand)
    finally:
        c.silent -= 1
    if is_unknown(value.type):
        return None
    known = fold.literal(value)
    if known is None:
        c.error(node.span, "this condition is not known when the script is compiled", "comptime needs a constant")
        return None
    return bool(known)
