"""Functions on files, processes, clocks, and those that change what is traced."""

from __future__ import annotations

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check import access, arguments, fold
from bpfseal.dsl.check.arguments import Rule
from bpfseal.dsl.check.conversions import as_int, to_int
from bpfseal.dsl.check.operators import number
from bpfseal.dsl.check.state import State, nothing
from bpfseal.dsl.types import (
    BOOL,
    U32,
    U64,
    VOID,
    CgroupPath,
    Enum,
    Int,
    Ptr,
    Record,
    Str,
    Type,
)

CLOCKS = ("boot", "monotonic", "tai", "sw_tai")
SIGNAL_KINDS = frozenset(
    ["kprobe", "kretprobe", "uprobe", "uretprobe", "usdt", "tracepoint", "profile", "fentry", "fexit", "rawtracepoint"]
)


def nsecs(c: State, node: ast.Call) -> typed.Expr:
    clock = "boot"
    if node.args:
        word = arguments.word(node, 0)
        if word not in CLOCKS:
            return c.error(node.args[0].span, f"invalid clock '{word or '…'}'", "clocks are " + ", ".join(CLOCKS))
        clock = word
    return typed.Call("nsecs", (), U64, node.span, {"clock": clock})


def process(c: State, node: ast.Call) -> typed.Expr:
    """pid and tid."""
    mode = "curr_ns"
    if node.args:
        word = arguments.word(node, 0)
        if word not in ("curr_ns", "init"):
            return c.error(node.args[0].span, f"{node.name}() does not know '{word or '…'}'", "use curr_ns or init")
        mode = word
    return typed.Builtin(node.name if mode == "curr_ns" else f"{node.name}_init", U32, node.span)


def _of_task(*path: str) -> Rule:
    """A member of the given or current task."""

    def rule(c: State, node: ast.Call) -> typed.Expr:
        if node.args:
            task = arguments.value(c, node, 0)
            if task is None:
                return nothing(node.span)
            to = task.type.to if isinstance(task.type, Ptr) else task.type
            if not isinstance(to, Record) or to.name != "struct task_struct":
                return c.error(task.span, f"{node.name}() expects a 'struct task_struct *', not {task.type}")
        else:
            task = c.expr(ast.Identifier("curtask", node.span))
        for name in path:
            task = access.member_of(c, task, name, node.span)
        return task

    return rule


# btf_allowlist_d_path in kernel/trace/bpf_trace.c: d_path() would take locks that others' callers may hold.
_KNOW_PATHS = frozenset(
    {
        "security_file_permission",
        "security_inode_getattr",
        "security_file_open",
        "security_path_truncate",
        "vfs_truncate",
        "vfs_fallocate",
        "dentry_open",
        "vfs_getattr",
        "filp_close",
    }
)


def path(c: State, node: ast.Call) -> typed.Expr:
    expr = arguments.value(c, node, 0)
    size = arguments.number(c, node, 1, "the size", 1) if len(node.args) > 1 else int(c.config["max_strlen"])
    if expr is None or size is None:
        return nothing(node.span)
    match expr.type:
        case Ptr():
            found: typed.Expr = expr
        case Record():
            found = typed.AddressOf(expr, Ptr(expr.type, access.place_of(expr)), expr.span)
        case _:
            return c.error(expr.span, f"path() expects a 'struct path' or a pointer to one, not {expr.type}")
    if c.deferred < 0 and c.place.kind in ("fentry", "fexit"):
        for point in c.place.points:
            if point.function not in _KNOW_PATHS:
                hint = f"not in {point.function}: in " + ", ".join(sorted(_KNOW_PATHS)) + ", or in a deferred block"
                return c.error(node.span, "helper bpf_d_path not allowed in probe", hint)
    return typed.Call("path", (found,), Str(size), node.span, {"size": size})


def cgroupid(c: State, node: ast.Call) -> typed.Expr:
    name = arguments.name(c, node, 0)
    if name is None:
        return nothing(node.span)
    found = c.env.cgroup_id(name)
    if found is None:
        message, hint = f"there is no cgroup at '{name}'", "a directory below /sys/fs/cgroup is needed"
        if not c.env.target.checking:
            return c.error(node.args[0].span, message, hint)
        c.warn(node.args[0].span, message, hint)
        found = 0
    return typed.Int(found, U64, node.span)


def cgroup_path(c: State, node: ast.Call) -> typed.Expr:
    id = arguments.integer(c, node, 0, U64)
    filter = arguments.text(c, node, 1) if len(node.args) > 1 else b""
    if id is None or filter is None:
        return nothing(node.span)
    return typed.Call("cgroup_path", (id,), CgroupPath(), node.span, {"filter": filter})


def signal(c: State, node: ast.Call) -> typed.Expr:
    """signal and signal_thread."""
    if c.place.kind and c.place.kind not in SIGNAL_KINDS:
        return c.error(
            node.span,
            f"{node.name}() cannot be used with {c.place.kind} probes",
            "it is available in " + ", ".join(sorted(SIGNAL_KINDS)) + " probes",
        )
    expr = arguments.value(c, node, 0)
    if expr is None:
        return nothing(node.span)
    text = fold.literal(expr)
    if isinstance(text, bytes):
        from bpfseal.dsl.words import signal_number

        found = signal_number(text.decode("utf-8", "replace"))
        if found is None:
            return c.error(expr.span, f"there is no signal '{text.decode('utf-8', 'replace')}'", "kill -l lists them")
        expr = number(found, expr.span)
    if as_int(expr.type) is None:
        return c.error(expr.span, f"{node.name}() expects a signal's name or number, not {expr.type}")
    value = fold.constant(expr)
    if value is not None and not 1 <= value <= 64:
        return c.error(expr.span, f"signals have numbers between 1 and 64, not {value}")
    return typed.Call(node.name, (to_int(expr, U32),), VOID, node.span)


def override(c: State, node: ast.Call) -> typed.Expr:
    value = arguments.integer(c, node, 0, U64)
    return nothing(node.span) if value is None else typed.Call("override", (value,), VOID, node.span)


def write_user(c: State, node: ast.Call) -> typed.Expr:
    target, source = arguments.value(c, node, 0), arguments.value(c, node, 1)
    length = arguments.integer(c, node, 2, U32)
    if target is None or source is None or length is None:
        return nothing(node.span)
    if not isinstance(target.type, Ptr | Int | Enum):
        return c.error(target.span, f"write_user() expects an address to write to, not {target.type}")
    to: Type | None = target.type.to if isinstance(target.type, Ptr) else None
    where = typed.Cast(target, Ptr(to, "user"), target.span)
    if isinstance(source.type, Ptr):
        if source.type.space != "bpf":
            return c.error(source.span, "write_user() writes memory of the program only", "read it with buf() first")
    elif not arguments.in_memory(source.type):
        return c.error(
            source.span, f"write_user() expects a value in memory, not {source.type}", "put & before a variable"
        )
    return typed.Call("write_user", (where, source, length), BOOL, node.span)


RULES: dict[str, Rule] = {
    "nsecs": nsecs,
    "pid": process,
    "tid": process,
    "ppid": _of_task("real_parent", "pid"),
    "pcomm": _of_task("real_parent", "comm"),
    "leader_tid": _of_task("group_leader", "pid"),
    "leader_comm": _of_task("group_leader", "comm"),
    "path": path,
    "cgroupid": cgroupid,
    "cgroup_path": cgroup_path,
    "signal": signal,
    "signal_thread": signal,
    "override": override,
    "write_user": write_user,
}
