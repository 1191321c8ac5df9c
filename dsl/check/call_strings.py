"""Functions on strings and memory."""

from __future__ import annotations

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check import arguments, fold
from bpfseal.dsl.check.access import place_of
from bpfseal.dsl.check.arguments import Rule
from bpfseal.dsl.check.conversions import to_int, truth
from bpfseal.dsl.check.operators import number
from bpfseal.dsl.check.state import State, nothing
from bpfseal.dsl.types import BOOL, I32, I64, U32, U64, Array, Buf, Int, Ptr, Str, size_of

COMM_SIZE = 16

# A string that is appended to itself would grow by a little with every walk.
PATIENCE = 8


def limit(c: State) -> int:
    return int(c.config["max_strlen"])


def str_(c: State, node: ast.Call) -> typed.Expr:
    expr = arguments.value(c, node, 0)
    if expr is None:
        return nothing(node.span)
    size, length = limit(c), None
    if len(node.args) == 2:
        counted = arguments.value(c, node, 1)
        wide = None if counted is None else arguments.as_integer(c, counted, "str", U64)
        if counted is None or wide is None:
            return nothing(node.span)
        known = fold.constant(counted)
        if known is None:
            length = _room(wide)
        elif known < 0:
            return c.error(counted.span, f"str() cannot use a negative length ({known})")
        elif known > size:
            c.warn(counted.span, f"the length {known} is too long and is shortened to {size} bytes", "see max_strlen")
        else:
            size = max(1, known)
    return read(c, expr, size, length, node)


def _room(length: typed.Expr) -> typed.Expr:
    """Characters that fit into `length` bytes beside the NUL."""
    span = length.span
    kept: typed.Expr = length
    body: tuple[typed.Stmt, ...] = ()
    if not isinstance(length, typed.VarRef | typed.Builtin | typed.ArgField):
        # evaluated once
        var = typed.Var("length", U64)
        kept, body = typed.VarRef(var, U64, span), (typed.AssignVar(var, length, span),)
    less = typed.Binary("-", kept, typed.Int(1, U64, span), U64, span)
    room = typed.Ternary(truth(kept), less, typed.Int(0, U64, span), U64, span)
    return typed.BlockExpr(body, room, U64, span) if body else room


def read(c: State, expr: typed.Expr, size: int, length: typed.Expr | None, node: ast.Call) -> typed.Expr:
    """The string at an address, or a string cut to `size`."""
    type = expr.type
    if isinstance(type, Str):
        if length is not None:
            args: tuple[typed.Expr, ...] = (typed.AddressOf(expr, Ptr(type, place_of(expr)), expr.span), length)
            return typed.Call("str", args, Str(min(size, type.size)), node.span, {"size": min(size, type.size)})
        if size >= type.size:
            return expr
        if isinstance(expr, typed.StrLit):
            # of a literal the length counts characters, as in the reference
            return number(expr.value[:size], node.span)
        return typed.Cast(expr, Str(size), node.span)
    if isinstance(type, Array) and size_of(type.element) == 1:
        found: typed.Expr | None = typed.AddressOf(expr, Ptr(type, place_of(expr)), expr.span)
        size = min(size, type.count + 1)
    else:
        found = arguments.pointer(c, expr)
    if found is None:
        return c.error(expr.span, f"str() expects a string, an integer or a pointer, not {type}")
    options: dict[str, object] = {"size": size}
    if size == limit(c):
        options["cut"] = True
    return typed.Call("str", (found,) if length is None else (found, length), Str(size), node.span, options)


def buf(c: State, node: ast.Call) -> typed.Expr:
    expr = arguments.value(c, node, 0)
    if expr is None:
        return nothing(node.span)
    most = max(1, limit(c) - 4)
    length: typed.Expr | None = None
    if len(node.args) == 2:
        counted = arguments.value(c, node, 1)
        wide = None if counted is None else arguments.as_integer(c, counted, "buf", U64)
        if counted is None or wide is None:
            return nothing(node.span)
        known = fold.constant(counted)
        if known is None:
            length = wide
        elif known < 0:
            return c.error(counted.span, f"buf() cannot use a negative length ({known})")
        else:
            most = min(most, known)
    elif isinstance(expr.type, Array) or _shown_array(expr):
        most = min(most, size_of(expr.type))
    else:
        return c.error(node.span, f"buf() expects a length for a value of type {expr.type}", "buf(data, length)")
    if isinstance(expr.type, Array | Str):
        found: typed.Expr | None = expr
        most = min(most, size_of(expr.type)) if length is None else most
    else:
        found = arguments.pointer(c, expr)
    if found is None:
        return c.error(expr.span, f"buf() expects an integer, string, pointer or array, not {expr.type}")
    return typed.Call("buf", (found,) if length is None else (found, length), Buf(most), node.span, {"size": most})


def _shown_array(expr: typed.Expr) -> bool:
    """A member that is an array of characters: a string, but one of known length."""
    return isinstance(expr.type, Str) and isinstance(expr, typed.FieldOf | typed.IndexOf | typed.ArgField)


def string(c: State, node: ast.Call, index: int) -> typed.Expr | None:
    """An argument that is a string, or becomes one from an address; None (and a report) otherwise."""
    expr = arguments.value(c, node, index)
    if expr is None or isinstance(expr.type, Str):
        return expr
    if isinstance(expr.type, Ptr) or (isinstance(expr.type, Array) and size_of(expr.type.element) == 1):
        return read(c, expr, limit(c), None, node)
    c.error(expr.span, f"{node.name}() expects a string here, not {expr.type}", "use str() to read one from an address")
    return None


def strncmp(c: State, node: ast.Call) -> typed.Expr:
    a, b, count = string(c, node, 0), string(c, node, 1), arguments.number(c, node, 2, "the length")
    if a is None or b is None or count is None:
        return nothing(node.span)
    left, right = fold.literal(a), fold.literal(b)
    if isinstance(left, bytes) and isinstance(right, bytes):
        return typed.Int(int(left[:count] != right[:count]), U64, node.span)
    return typed.Call("strncmp", (a, b), U64, node.span, {"n": count})


def strlen(c: State, node: ast.Call) -> typed.Expr:
    expr = arguments.value(c, node, 0)
    if expr is None:
        return nothing(node.span)
    known = fold.literal(expr)
    if isinstance(known, bytes):
        return typed.Int(len(known.split(b"\0")[0]), U64, node.span)
    if isinstance(expr.type, Array) and size_of(expr.type.element) == 1:
        return typed.Call("strlen", (expr,), U64, node.span)
    found = string(c, node, 0)
    return nothing(node.span) if found is None else typed.Call("strlen", (found,), U64, node.span)


def strcap(c: State, node: ast.Call) -> typed.Expr:
    expr = arguments.value(c, node, 0)
    if expr is None:
        return nothing(node.span)
    match expr.type:
        case Str(size=size):
            return number(size, node.span)
        case Array(count=count):
            return number(count, node.span)
        case _:
            return strlen(c, node)


def search(c: State, node: ast.Call) -> typed.Expr:
    """strcontains and strstr."""
    a, b = string(c, node, 0), string(c, node, 1)
    if a is None or b is None:
        return nothing(node.span)
    text, part = fold.literal(a), fold.literal(b)
    yes = node.name == "strcontains"
    if isinstance(text, bytes) and isinstance(part, bytes):
        return number(part in text if yes else text.find(part), node.span)
    return typed.Call(node.name, (a, b), BOOL if yes else I64, node.span)


def concat(c: State, node: ast.Call) -> typed.Expr:
    a, b = string(c, node, 0), string(c, node, 1)
    if a is None or b is None:
        return nothing(node.span)
    left, right = fold.literal(a), fold.literal(b)
    if isinstance(left, bytes) and isinstance(right, bytes):
        return number(left + right, node.span)
    size = min(size_of(a.type) + size_of(b.type) - 1, limit(c))
    if c.memory.walks > PATIENCE:
        size = limit(c)
    return typed.Call("str_concat", (a, b), Str(size), node.span, {"size": size})


def memcmp(c: State, node: ast.Call) -> typed.Expr:
    a, b = arguments.value(c, node, 0), arguments.value(c, node, 1)
    count = arguments.number(c, node, 2, "the count")
    if a is None or b is None or count is None:
        return nothing(node.span)
    for expr in (a, b):
        if isinstance(expr.type, Ptr):
            if expr.type.space != "bpf":
                return c.error(expr.span, "memcmp() cannot compare foreign memory", "read it with buf() or str() first")
            continue
        if not arguments.in_memory(expr.type) and not isinstance(expr.type, Int):
            return c.error(expr.span, f"memcmp() cannot compare values of type {expr.type}")
        if count > size_of(expr.type):
            return c.error(expr.span, f"memcmp(): {count} bytes are more than a {expr.type} has")
    return typed.Call("memcmp", (a, b), I32, node.span, {"count": count})


def _named(names: str) -> Rule:
    """`names` of `dsl.words`, which is imported only where it is needed."""

    def rule(c: State, node: ast.Call) -> typed.Expr:
        from bpfseal.dsl import words

        table: dict[int, bytes] = {key: name.encode() for key, name in getattr(words, names).items()}
        expr = arguments.integer(c, node, 0, I32)
        if expr is None:
            return nothing(node.span)
        unknown = words.UNKNOWN[names].encode()
        known = fold.constant(expr)
        if known is not None:
            return number(table.get(abs(known) if names == "ERRORS" else known, unknown), node.span)
        return typed.Call(node.name, (expr,), Str(64), node.span, {"names": table, "unknown": unknown})

    return rule


def comm(c: State, node: ast.Call) -> typed.Expr:
    if not node.args:
        return typed.Builtin("comm", Str(COMM_SIZE), node.span)
    pid = arguments.integer(c, node, 0, U32)
    if pid is None:
        return nothing(node.span)
    if not c.env.kfunc("bpf_task_from_pid"):
        return c.error(node.span, "comm(pid) needs the kfunc bpf_task_from_pid, which this kernel does not have")
    return typed.Call("comm", (to_int(pid, U32),), Str(COMM_SIZE), node.span)


RULES: dict[str, Rule] = {
    "str": str_,
    "buf": buf,
    "strncmp": strncmp,
    "strlen": strlen,
    "strcap": strcap,
    "strcontains": search,
    "strstr": search,
    "str_concat": concat,
    "memcmp": memcmp,
    "strerror": _named("ERRORS"),
    "signal_name": _named("SIGNALS"),
    "syscall_name": _named("SYSCALLS"),
    "comm": comm,
}
