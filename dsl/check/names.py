"""Bare words: builtins, constants, functions without arguments, and `args`."""

from __future__ import annotations

from collections.abc import Callable

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check.conversions import truth
from bpfseal.dsl.check.state import State, nothing
from bpfseal.dsl.source import Span
from bpfseal.dsl.table import AGGREGATES, BUILTINS, CONFIG, FUNCTIONS, near
from bpfseal.dsl.types import BOOL, U8, U64, Array, Enum, Int, Ptr, Record, Str, Sym, Tuple, Type, Username

REGISTER_KINDS = frozenset({"kprobe", "kretprobe", "uprobe", "uretprobe", "usdt"})
PERF_KINDS = frozenset({"profile", "interval", "software", "hardware", "watchpoint"})
USER_KINDS = frozenset({"uprobe", "uretprobe", "usdt"})

# Kinds that `probetype` and messages call by another name.
SPECIAL = frozenset({"begin", "end", "self"})

# Most registers that carry arguments on x86-64 (System V ABI).
MAX_REGISTER_ARGUMENTS = 6


def identifier(c: State, node: ast.Identifier) -> typed.Expr:
    """A bare word."""
    name = node.name
    if name in BUILTINS:
        return builtin(c, name, node.span)
    spec = FUNCTIONS.get(name)
    if spec is not None and spec.arguments[0] == 0:
        return c.expr(ast.Call(name, (), node.span, node.span))
    constant = c.env.constant(name)
    if constant is not None:
        value, type = constant
        if isinstance(type, Enum):
            # constants are of 64 bits, whatever the enum takes in a record
            type = Enum(type.name, 64, type.signed)
            c.note_type(type)
        return typed.Int(value, type, node.span)
    if spec is not None or name in AGGREGATES:
        signature = (spec or AGGREGATES[name]).signatures[0]
        return c.error(node.span, f"{name} is a function and needs arguments", signature)
    close = near(name, [*BUILTINS, *FUNCTIONS]) or c.env.suggest("constant", name)[:3]
    hint = "did you mean " + " or ".join(close) + "?" if close else "variables start with $, maps with @"
    return c.error(node.span, f"unknown identifier: '{name}'", hint)


def kind_name(kind: str) -> str:
    return "special" if kind in SPECIAL else kind


def builtin(c: State, name: str, span: Span) -> typed.Expr:
    """A value of the table."""
    spec = BUILTINS[name]
    if spec.rule in _IN_PROBES and not c.place.kind:
        return c.error(span, f"{name} can only be used inside of a probe", "pass it to the function as an argument")
    if spec.probes and c.place.kind and c.place.kind not in spec.probes:
        return _misplaced(c, name, span)
    if c.deferred >= 0 and spec.rule in ("arg", "retval", "args", "ctx", "func"):
        return not_later(c, name, span)
    if c.callbacks and spec.rule in ("arg", "retval", "args", "ctx"):
        return c.error(span, f"'{name}' is not allowed in a for-loop", "keep it in a variable before the loop")
    rule = _RULES.get(spec.rule)
    if rule is not None:
        return rule(c, name, span)
    assert spec.type is not None
    return typed.Builtin(name, spec.type, span)


def not_later(c: State, what: str, span: Span) -> typed.Expr:
    """Report the use of what is gone when a deferred block runs."""
    message = f"{what} belongs to the probe, which is over when a deferred block runs"
    return c.error(span, message, "keep it in a variable before the block")


def _misplaced(c: State, name: str, span: Span) -> typed.Expr:
    spec = BUILTINS[name]
    kinds = ", ".join(sorted(spec.probes))
    hint = f"it is available in {kinds} probes"
    if name == "retval" and c.place.kind == "tracepoint":
        hint = "use args.ret in syscalls:sys_exit_… tracepoints"
    elif spec.rule == "arg" and c.place.kind in ("fentry", "fexit", "tracepoint"):
        hint = "use args.NAME; -lv shows the names"
    return c.error(span, f"{name} cannot be used with {kind_name(c.place.kind)} probes", hint)


def _curtask(c: State, name: str, span: Span) -> typed.Expr:
    task = c.env.type_named("struct task_struct")
    type = Ptr(task, "btf") if isinstance(task, Record) else Ptr(None, "kernel")
    return typed.Builtin(name, type, span)


def _has_cpid(c: State, name: str, span: Span) -> typed.Expr:
    cpid = typed.Builtin("cpid", U64, span)
    return typed.Binary("!=", cpid, typed.Int(0, U64, span), BOOL, span)


def _username(c: State, name: str, span: Span) -> typed.Expr:
    return typed.Cast(typed.Builtin("uid", U64, span), Username(), span)


def _text(value: str, span: Span) -> typed.Expr:
    data = value.encode()
    return typed.StrLit(data, Str(len(data) + 1), span)


def _probe(c: State, name: str, span: Span) -> typed.Expr:
    c.place.uses_probe_name = True
    return _text(c.place.points[0].name if c.place.points else "none", span)


def _probetype(c: State, name: str, span: Span) -> typed.Expr:
    return _text(kind_name(c.place.kind), span)


def _func(c: State, name: str, span: Span) -> typed.Expr:
    return typed.Builtin(name, Sym("user" if c.place.kind in USER_KINDS else "kernel"), span)


def _retval(c: State, name: str, span: Span) -> typed.Expr:
    type: Type = c.place.args.returns or Int(64, False, space=c.place.space)
    if isinstance(type, Ptr) and type.space == "none":
        type = Ptr(type.to, c.place.space)
    return typed.Builtin(name, type, span)


def _arg(c: State, name: str, span: Span) -> typed.Expr:
    number = int(name[3:])
    if c.place.kind in ("kprobe", "uprobe") and number >= MAX_REGISTER_ARGUMENTS:
        return c.error(
            span,
            f"x86_64 passes only {MAX_REGISTER_ARGUMENTS} arguments in registers, there is no {name}",
            'read further ones from the stack: *(uint64 *)(reg("sp") + 8)',
        )
    return typed.Builtin(name, Int(64, False, space=c.place.space), span)


def _usermode(c: State, name: str, span: Span) -> typed.Expr:
    """Probes of one side are known to be on it; begin, end and their like run for the tracer's own process."""
    if c.place.kind in PERF_KINDS:
        return typed.Builtin(name, U8, span) if c.deferred < 0 else not_later(c, name, span)
    user = c.place.kind in USER_KINDS or c.place.kind in ("begin", "end", "self", "test", "bench")
    return typed.Int(int(user), U8, span)


def _ctx(c: State, name: str, span: Span) -> typed.Expr:
    kind = c.place.kind
    if kind in REGISTER_KINDS:
        wanted = "struct pt_regs"
    elif kind in PERF_KINDS:
        wanted = "struct bpf_perf_event_data"
    elif kind == "iter":
        wanted = "struct bpf_iter__" + (c.place.points[0].function if c.place.points else "")
    elif kind == "tracepoint":
        return c.error(span, "ctx cannot be used with tracepoint probes", "use args")
    elif kind in ("rawtracepoint", "fentry", "fexit"):
        return c.error(span, f"ctx cannot be used with {kind} probes", "use args or argN")
    else:
        return typed.Builtin(name, Ptr(None, "ctx"), span)
    record = c.env.type_named(wanted)
    return typed.Builtin(name, Ptr(record if isinstance(record, Record) else None, "ctx"), span)


def _config(c: State, name: str, span: Span) -> typed.Expr:
    from bpfseal.dsl.check.operators import number

    elements: list[typed.Expr] = []
    for key in sorted(CONFIG):
        value = c.config[key]
        elements.append(_text(value, span) if isinstance(value, str) else number(value, span))
    type = Tuple(tuple(e.type for e in elements), tuple(sorted(CONFIG)))
    return typed.TupleExpr(tuple(elements), type, span)


def arguments_space(c: State) -> str:
    """Memory that pointers among the arguments point to."""
    point = c.place.points[0] if c.place.points else None
    if c.place.kind in USER_KINDS or (
        point is not None and point.kind == "tracepoint" and point.category == "syscalls"
    ):
        return "user"
    return "kernel"


def _args(c: State, name: str, span: Span) -> typed.Expr:
    fields = c.place.args.fields
    if fields is None:
        return no_arguments(c, span)
    c.records.setdefault(fields.name, fields)
    return typed.Builtin(name, Record(fields.name, fields.size), span)


def no_arguments(c: State, span: Span) -> typed.Expr:
    hint = "use arg0, arg1, …" if c.place.kind in ("uprobe", "rawtracepoint", "kprobe") else None
    point = c.place.points[0].name if c.place.points else c.place.kind
    return c.error(span, f"the arguments of {point} are not known", hint)


def argument(c: State, node: ast.Member) -> typed.Expr:
    """`args.NAME`."""
    from bpfseal.dsl.check import access

    spec = BUILTINS["args"]
    if not c.place.kind:
        return c.error(node.span, "args can only be used inside of a probe")
    if c.place.kind not in spec.probes:
        return _misplaced(c, "args", node.base.span)
    if c.deferred >= 0:
        return not_later(c, f"args.{node.name}", node.span)
    if c.callbacks:
        return c.error(node.span, "'args' is not allowed in a for-loop", "keep it in a variable before the loop")
    fields = c.place.args.fields
    if fields is None:
        return no_arguments(c, node.span)
    field = fields.field(node.name)
    if field is None:
        return _no_argument(c, node)
    if c.place.args.context == "ctx" and field.offset < 8 and not field.data_loc and node.name.startswith("common_"):
        return c.error(
            node.span,
            f"the kernel does not let programs read the common tracepoint field '{node.name}'",
            "pid, comm and cpu have what is in them",
        )
    type = field.type
    if field.data_loc and isinstance(type, Array):
        # a dynamic array: its address is the value, str() and buf() read it
        type = Ptr(type.element, "ctx" if c.place.args.context == "ctx" else "kernel")
        return typed.ArgField(field, type, node.span)
    return typed.ArgField(field, access.through(access.shown(type), arguments_space(c)), node.span)


def _no_argument(c: State, node: ast.Member) -> typed.Expr:
    fields = c.place.args.fields
    assert fields is not None
    known = [f.name for f in fields.fields if not f.name.startswith("common_")]
    close = near(node.name, known)
    point = c.place.points[0].name if c.place.points else c.place.kind
    hint = "did you mean " + " or ".join(close) + "?" if close else "it has " + ", ".join(known[:16])
    return c.error(node.span, f"{point} has no argument named '{node.name}'", hint)


_IN_PROBES = frozenset({"probe", "probetype", "func", "retval", "arg", "args", "ctx", "usermode"})

_RULES: dict[str, Callable[[State, str, Span], typed.Expr]] = {
    "curtask": _curtask,
    "has_cpid": _has_cpid,
    "username": _username,
    "probe": _probe,
    "probetype": _probetype,
    "func": _func,
    "retval": _retval,
    "arg": _arg,
    "ctx": _ctx,
    "usermode": _usermode,
    "config": _config,
    "args": _args,
}

__all__ = ["argument", "arguments_space", "builtin", "identifier", "kind_name", "nothing", "truth"]
