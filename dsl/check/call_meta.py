"""Functions that are answered or carried out at compile time, and those that become other syntax."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check import access, arguments, fold, formats, maps, typenames
from bpfseal.dsl.check.arguments import Rule
from bpfseal.dsl.check.conversions import is_unknown, to_int
from bpfseal.dsl.check.introspection import base_name
from bpfseal.dsl.check.operators import number
from bpfseal.dsl.check.state import State, nothing
from bpfseal.dsl.types import BOOL, I8, I64, U64, Array, Int, Ptr, Str, Type

MAX_ERRNO = 4095  # include/linux/err.h


def is_literal(c: State, node: ast.Call) -> typed.Expr:
    arg = node.args[0]
    if isinstance(arg, ast.TypeName | ast.TypeOf):
        return number(False, node.span)
    c.silent += 1
    expr = c.expr(arg)
    c.silent -= 1
    return number(fold.is_literal(expr), node.span)


def _asks(test: Callable[[Type], bool]) -> Rule:
    def rule(c: State, node: ast.Call) -> typed.Expr:
        type = typenames.of(c, node.args[0])
        return nothing(node.span) if is_unknown(type) else number(test(type), node.span)

    return rule


def is_scalar(c: State, node: ast.Call) -> typed.Expr:
    info = maps.raw(c, node.args[0], node.name)
    if info is None or info.keyed is None:
        if info is not None:
            c.undecided(info, node.span)
        return nothing(node.span)
    return number(not info.keyed, node.span)


def _kfunc(c: State, node: ast.Call) -> typed.Expr:
    name = arguments.name(c, node, 0)
    return nothing(node.span) if name is None else number(c.env.kfunc(name), node.span)


def default_str_length(c: State, node: ast.Call) -> typed.Expr:
    return number(int(c.config["max_strlen"]), node.span)


def is_err(c: State, node: ast.Call) -> typed.Expr:
    expr = arguments.value(c, node, 0)
    if expr is None:
        return nothing(node.span)
    if not isinstance(expr.type, Ptr | Int):
        return c.error(expr.span, f"is_err() expects a pointer, not {expr.type}")
    least = typed.Int((1 << 64) - MAX_ERRNO, U64, node.span)
    return typed.Binary(">=", to_int(expr, U64), least, BOOL, node.span)


def container_of(c: State, node: ast.Call) -> typed.Expr:
    pointer = arguments.value(c, node, 0)
    type = typenames.of(c, node.args[1])
    member = node.args[2]
    if pointer is None or is_unknown(type):
        return nothing(node.span)
    names = _path(member)
    if not names:
        return c.error(member.span, "container_of() expects the name of a member")
    if not isinstance(pointer.type, Ptr | Int):
        return c.error(pointer.span, f"container_of() expects a pointer, not {pointer.type}")
    found = access.field_path(c, type, names, member.span)
    if found is None:
        return nothing(node.span)
    space = arguments.space(c, pointer)
    space = "kernel" if space == "btf" else space
    base = typed.Cast(pointer, Ptr(type, space), node.span)
    if found[0] == 0:
        return base
    return typed.Binary("-", base, typed.Int(found[0], I64, node.span), Ptr(type, space), node.span)


def _path(node: ast.Expr | ast.TypeName | ast.TypeOf) -> tuple[str, ...]:
    match node:
        case ast.Identifier(name=name):
            return (name,)
        case ast.TypeName(base=base, suffixes=()):
            return (base,)
        case ast.Member(base=base, name=name):
            inner = _path(base)
            return (*inner, name) if inner else ()
        case _:
            return ()


# --- statements -----------------------------------------------------------------------------------------------------


def fail(c: State, node: ast.Call) -> Sequence[typed.Stmt]:
    """Reached by the compiler: an error with the script's own words."""
    format = arguments.text(c, node, 0)
    args = arguments.values(c, node, 1)
    if format is None or args is None:
        return ()
    found = [fold.literal(a) for a in args]
    for value, arg in zip(found, args, strict=True):
        if value is None:
            c.error(arg.span, "the arguments of fail() must be literals")
    if None not in found and formats.check(c, "fail", format, args, node.span):
        c.error(node.span, _render(format, [v for v in found if v is not None]))
    return ()


def _render(format: bytes, values: Sequence[int | bool | bytes]) -> str:
    """The message of fail(), formatted here and now."""
    remaining = iter(values)

    def one(match: object) -> bytes:
        text = getattr(match, "group")(0)  # noqa: B009 - re.Match
        if text.endswith(b"%"):
            return b"%"
        value = next(remaining)
        if isinstance(value, bytes):
            return value
        if text.endswith(b"s"):
            return (str(value).lower() if isinstance(value, bool) else str(value)).encode()
        kind = text[-1:].decode()
        return f"{int(value) & ((1 << 64) - 1):{kind}}".encode() if kind in "xXo" else str(int(value)).encode()

    return formats.PATTERN.sub(one, format).decode("utf-8", "replace")


def static_assert(c: State, node: ast.Call) -> Sequence[typed.Stmt]:
    value = arguments.value(c, node, 0)
    message = arguments.name(c, node, 1)
    if value is None or message is None:
        return ()
    known = fold.literal(value)
    if known is None:
        c.error(value.span, "static_assert() needs a condition that is known when the script is compiled")
    elif not known:
        c.error(node.span, message)
    return ()


def assert_str(c: State, node: ast.Call) -> Sequence[typed.Stmt]:
    type = typenames.of(c, node.args[0])
    if is_unknown(type) or isinstance(type, Str):
        return ()
    inner = type.element if isinstance(type, Array) else type.to if isinstance(type, Ptr) else None
    if inner is None:
        c.error(node.span, "string-like values must be either strings, arrays or pointers")
    elif inner != I8:
        what = "arrays must contain" if isinstance(type, Array) else "pointers must point to"
        c.error(node.span, f"string-like {what} a char-like type")
    return ()


def _only_statement(c: State, node: ast.Call) -> typed.Expr:
    return c.error(node.span, f"{node.name}() returns nothing and can only be a statement")


STATEMENTS: dict[str, Callable[[State, ast.Call], Sequence[typed.Stmt]]] = {
    "fail": fail,
    "static_assert": static_assert,
    "assert_str": assert_str,
}


def _fail_value(c: State, node: ast.Call) -> typed.Expr:
    fail(c, node)
    return nothing(node.span)


RULES: dict[str, Rule] = {
    "fail": _fail_value,
    "static_assert": _only_statement,
    "assert": _only_statement,
    "assert_str": _only_statement,
    "is_literal": is_literal,
    "is_integer": _asks(lambda t: base_name(t) == "int"),
    "is_unsigned_integer": _asks(lambda t: isinstance(t, Int) and not t.signed),
    "is_str": _asks(lambda t: isinstance(t, Str)),
    "is_ptr": _asks(lambda t: isinstance(t, Ptr)),
    "is_array": _asks(lambda t: isinstance(t, Array)),
    "is_scalar": is_scalar,
    "kfunc_exist": _kfunc,
    "kfunc_allowed": _kfunc,
    "default_str_length": default_str_length,
    "is_err": is_err,
    "container_of": container_of,
}
