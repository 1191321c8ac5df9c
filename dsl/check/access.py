"""Reaching into things: members, elements, dereferencing, addresses."""

from __future__ import annotations

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check import fold, maps, names, operators, scopes
from bpfseal.dsl.check.conversions import as_int, is_unknown, to_int
from bpfseal.dsl.check.state import State, nothing
from bpfseal.dsl.source import Span
from bpfseal.dsl.table import near
from bpfseal.dsl.types import (
    I8,
    U8,
    U64,
    Array,
    Buf,
    Field,
    Int,
    Ptr,
    Record,
    RecordInfo,
    Str,
    Tuple,
    Type,
    Void,
    size_of,
)


def shown(type: Type) -> Type:
    """The type of a member as the language sees it: arrays of char are strings."""
    if isinstance(type, Array) and type.element == I8 and type.count > 0:
        return Str(type.count)
    return type


def through(type: Type, space: str) -> Type:
    """The type of what is found in memory of `space`: pointers of an undecided space lie in the same one."""
    match type:
        case Ptr(to=to, space="none") if space in ("kernel", "btf", "ctx", "user"):
            # The verifier follows pointers to records only.
            return Ptr(to, "kernel" if space == "btf" and not isinstance(to, Record) else space)
        case Int() if type.space == "" and space in ("kernel", "btf", "ctx", "user"):
            return Int(type.bits, type.signed, type.flexible, "kernel" if space in ("btf", "ctx") else space)
        case _:
            return type


def member(c: State, node: ast.Member) -> typed.Expr:
    """`a.b`, `a->b`, `tuple.0`."""
    if isinstance(node.base, ast.Identifier) and node.base.name == "args":
        return names.argument(c, node)
    if isinstance(node.base, ast.Unary) and node.base.op == "*" and node.base.operand == ast.Identifier("args"):
        return names.argument(c, node)
    base = c.expr(node.base)
    return member_of(c, base, node.name, node.span)


def member_of(c: State, base: typed.Expr, name: str, span: Span) -> typed.Expr:
    """Member `name` of a value, through any number of pointers."""
    while isinstance(base.type, Ptr) and isinstance(base.type.to, Ptr):
        base = load(base, base.type.to, span)
    type = base.type
    if is_unknown(type):
        return base
    if isinstance(type, Tuple):
        return _element(c, base, type, name, span)
    target = type.to if isinstance(type, Ptr) else type
    if not isinstance(target, Record):
        hint = None
        if as_int(type) is not None:
            hint = "cast it to a pointer first, as in ((struct task_struct *)arg0)." + name
        return c.error(span, f"cannot access field '{name}' of a value of type {type}", hint)
    info = c.record(target.name)
    if info is None:
        return c.error(
            span,
            f"unknown struct or union '{target.name}'",
            "its members are not known: kernel types need BTF, others a definition in the script",
        )
    found = info.field(name)
    if found is None:
        return no_field(c, info, name, span)
    space = type.space if isinstance(type, Ptr) else place_of(base)
    return typed.FieldOf(base, found, through(shown(found.type), space), span)


def place_of(expr: typed.Expr) -> str:
    """Address space of the memory that a record value lies in."""
    while isinstance(expr, typed.FieldOf | typed.IndexOf):
        if isinstance(expr.base.type, Ptr):
            return expr.base.type.space
        expr = expr.base
    if isinstance(expr, typed.Deref) and isinstance(expr.pointer.type, Ptr):
        return expr.pointer.type.space
    if isinstance(expr, typed.ArgField):
        return "kernel"
    return "bpf"


def no_field(c: State, info: RecordInfo, name: str, span: Span) -> typed.Expr:
    known = [f.name for f in info.fields if f.name]
    close = near(name, known)
    if close:
        hint = "did you mean " + " or ".join(close) + "?"
    else:
        hint = "it has " + ", ".join(known[:12]) + (", …" if len(known) > 12 else "") if known else "it has no members"
    return c.error(span, f"{info.name} has no member named '{name}'", hint)


def _element(c: State, base: typed.Expr, type: Tuple, name: str, span: Span) -> typed.Expr:
    if name.isdigit():
        index = int(name[:9])
        if type.names:
            return c.error(span, f"a record's elements have names: {', '.join(type.names)}")
    elif name in type.names:
        index = type.names.index(name)
    else:
        what = "record" if type.names else "tuple"
        hint = "its names are " + ", ".join(type.names) if type.names else f"use .0 to .{len(type.elements) - 1}"
        return c.error(span, f"this {what} has no element named '{name}'", hint)
    if index >= len(type.elements):
        return c.error(span, f"invalid tuple index {index}: the tuple has {len(type.elements)} elements")
    if isinstance(base, typed.TupleExpr) and all(fold.literal(e) is not None for e in base.elements):
        return base.elements[index]
    return typed.ElementOf(base, index, type.elements[index], span)


def index(c: State, node: ast.Index) -> typed.Expr:
    """`a[i]` of arrays, strings, buffers, pointers and tuples."""
    base, position = c.expr(node.base), c.expr(node.index)
    if is_unknown(base.type) or is_unknown(position.type):
        return nothing(node.span)
    value = fold.constant(position)
    type = base.type
    if isinstance(type, Tuple):
        if value is None or value < 0:
            return c.error(node.index.span, "a tuple's index must be a literal number")
        return _element(c, base, Tuple(type.elements), str(value), node.span)
    integer = as_int(position.type)
    if (
        integer is None
        or (value is not None and value < 0)
        or (integer.signed and not integer.flexible and value is None)
    ):
        return c.error(
            node.index.span,
            f"an index must be a non-negative integer, not {position.type}",
            "cast it to an unsigned type: (uint64)" if integer is not None else None,
        )
    match type:
        case Array(element=element, count=count):
            limit = count
            found = through(shown(element), place_of(base))
        case Str(size=count):
            limit, found = count, I8
        case Buf(capacity=count):
            limit, found = count, U8
        case Ptr(to=to, space=space):
            if to is None or isinstance(to, Void) or size_of(to) == 0:
                return c.error(node.span, f"[] cannot be used on {type}, whose target has no size", "cast it first")
            limit, found = 0, through(shown(to), space)
        case _:
            return c.error(node.span, f"[] can only be used on arrays, strings, pointers and tuples, not on {type}")
    if value is not None and limit and value >= limit:
        return c.error(node.span, f"the index {value} is out of bounds for array of size {limit}")
    if isinstance(base, typed.StrLit) and value is not None:
        byte = (base.value + b"\0")[value] if value <= len(base.value) else 0
        return typed.Int(byte - 256 if byte > 127 else byte, I8, node.span)
    return typed.IndexOf(base, to_int(position, U64), found, node.span)


def load(pointer: typed.Expr, to: Type, span: Span) -> typed.Expr:
    """What a pointer points to."""
    space = pointer.type.space if isinstance(pointer.type, Ptr) else ""
    return typed.Deref(pointer, through(shown(to), space), span)


def dereference(c: State, node: ast.Unary) -> typed.Expr:
    """`*pointer`; of an integer, the 8 bytes there."""
    if node.operand == ast.Identifier("args") or (
        isinstance(node.operand, ast.Identifier) and node.operand.name == "args"
    ):
        return c.expr(node.operand)
    operand = c.expr(node.operand)
    type = operand.type
    if is_unknown(type):
        return operand
    integer = as_int(type)
    if integer is not None:
        space = integer.space or c.place.space
        pointer = typed.Cast(to_int(operand, U64), Ptr(U64, space), operand.span)
        return load(pointer, U64, node.span)
    if isinstance(type, Ptr):
        if type.to is None or isinstance(type.to, Void):
            return c.error(node.span, f"cannot dereference {type}", "cast it to a pointer to something first")
        return load(operand, type.to, node.span)
    return c.error(node.span, f"cannot dereference a value of type {type}, it is not a pointer")


def address_of(c: State, node: ast.Unary) -> typed.Expr:
    """`&$x`, `&@m[k]`, `&p->f`."""
    operand = node.operand
    if isinstance(operand, ast.Variable):
        variable = scopes.find(c, operand.name)
        if variable is not None:
            variable.assigned = True
    if isinstance(operand, ast.Map):
        info, key = maps.access(c, operand, write=True)
        if info is None or info.value is None:
            if info is not None:
                maps.self_started(c, info)
            return nothing(node.span)
        target: typed.Expr = typed.MapRead(info.definition, key, maps.value_type(info), operand.span)
        return typed.AddressOf(target, Ptr(target.type, "bpf"), node.span)
    target = c.expr(operand)
    if is_unknown(target.type):
        return target
    match target:
        case typed.VarRef():
            return typed.AddressOf(target, Ptr(target.type, "bpf"), node.span)
        case typed.FieldOf(field=field) if field.bits:
            return c.error(node.span, f"a bit field has no address: '{field.name}'")
        case typed.FieldOf() | typed.IndexOf():
            space = place_of(target)
            return typed.AddressOf(target, Ptr(target.type, "kernel" if space == "btf" else space), node.span)
        case typed.Deref(pointer=pointer):
            return pointer
        case _:
            return c.error(node.span, "only variables, map elements and members have an address")


def unary(c: State, node: ast.Unary) -> typed.Expr:
    match node.op:
        case "*":
            return dereference(c, node)
        case "&":
            return address_of(c, node)
        case _:
            return operators.unary(c, node)


def field_path(c: State, type: Type, path: tuple[str, ...], span: Span) -> tuple[int, Field] | None:
    """(offset in bytes, last member) of `a.b.c` in a record type; None (and a report) when it is not there."""
    offset = 0
    found: Field | None = None
    for name in path:
        if not isinstance(type, Record):
            c.error(span, f"{type} is not a struct or union, it has no member '{name}'")
            return None
        info = c.record(type.name)
        if info is None:
            c.error(span, f"unknown struct or union '{type.name}'")
            return None
        found = info.field(name)
        if found is None:
            no_field(c, info, name, span)
            return None
        offset += found.offset
        type = found.type
    assert found is not None
    return offset, found
