"""Functions that print and stop."""

from __future__ import annotations

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check import arguments, formats, maps
from bpfseal.dsl.check.arguments import Rule
from bpfseal.dsl.check.conversions import is_unknown
from bpfseal.dsl.check.state import State, nothing
from bpfseal.dsl.types import I64, U32, U64, VOID, Aggregate, Enum, Int, Ptr, Timestamp, Void


def formatted(c: State, node: ast.Call) -> typed.Expr:
    """printf and what takes the same arguments."""
    format = arguments.text(c, node, 0)
    args = arguments.values(c, node, 1)
    if format is None or args is None:
        return nothing(node.span)
    if not formats.check(c, node.name, format, args, node.span):
        return nothing(node.span)
    for arg in args:
        c.note_type(arg.type)
    if node.name == "debugf":
        c.warn(node.span, "debugf() is not meant for production", "its output goes to the kernel's trace_pipe")
        if len(args) > 3:
            return c.error(node.span, f"debugf() can print at most 3 values, {len(args)} given")
    return typed.Call(node.name, tuple(args), VOID, node.span, {"format": format})


def print_(c: State, node: ast.Call) -> typed.Expr:
    first = node.args[0]
    if isinstance(first, ast.Map) and first.key is None:
        return _print_map(c, node, first)
    if len(node.args) > 1:
        return c.error(
            node.span, "print() of a value takes one argument", "top and div are for whole maps: print(@x, 5)"
        )
    if isinstance(first, ast.Map):
        info = c.memory.maps.get(first.name)
        if info is not None and isinstance(info.value, Aggregate) and info.value.kind not in maps.READABLE:
            return _print_element(c, node, first, info.value)
    expr = arguments.value(c, node, 0)
    if expr is None:
        return nothing(node.span)
    if isinstance(expr.type, Void | Aggregate):
        return c.error(expr.span, "there is nothing to print: this has no value")
    if isinstance(expr.type, Ptr) and expr.type.space == "ctx" and isinstance(expr, typed.Builtin):
        return c.error(expr.span, "the context cannot be printed", "print a member of it")
    c.note_type(expr.type)
    return typed.Call("print", (expr,), VOID, node.span)


def _print_map(c: State, node: ast.Call, map: ast.Map) -> typed.Expr:
    info = maps.lookup(c, map.name, map.span)
    limits = {"top": 0, "div": 0}
    for index, name in enumerate(("top", "div")[: len(node.args) - 1], start=1):
        found = arguments.number(c, node, index, name)
        if found is None:
            return nothing(node.span)
        limits[name] = found
    if isinstance(info.value, Aggregate) and info.value.kind == "stats" and len(node.args) > 1:
        c.warn(node.span, "top and div are ignored for maps of stats()")
    if c.loops:
        c.warn(
            node.span,
            f"print(@{map.name}) in a loop prints the map as it is when the event is handled, not as it is now",
            f"print the value instead: print((@{map.name}))",
        )
    return typed.Call("print", (), VOID, node.span, dict(limits), info.definition)


def _print_element(c: State, node: ast.Call, map: ast.Map, value: Aggregate) -> typed.Expr:
    info, key = maps.access(c, map)
    if info is None:
        return nothing(node.span)
    if value.kind != "stats":
        return c.error(
            map.span,
            f"one entry of a {value.kind}() map cannot be printed",
            f"print(@{map.name}) shows the whole map",
        )
    return typed.Call("print", (), VOID, node.span, {"element": True}, info.definition, key)


def whole_map(c: State, node: ast.Call) -> typed.Expr:
    """clear and zero."""
    info = maps.raw(c, node.args[0], node.name)
    if info is None:
        return nothing(node.span)
    return typed.Call(node.name, (), VOID, node.span, {}, info.definition)


def exit_(c: State, node: ast.Call) -> typed.Expr:
    if not node.args:
        return typed.Call("exit", (), VOID, node.span)
    code = arguments.integer(c, node, 0, I64)
    return nothing(node.span) if code is None else typed.Call("exit", (code,), VOID, node.span)


def time(c: State, node: ast.Call) -> typed.Expr:
    format = arguments.text(c, node, 0) if node.args else b"%H:%M:%S\n"
    if format is None:
        return nothing(node.span)
    return typed.Call("time", (), VOID, node.span, {"format": format})


def strftime(c: State, node: ast.Call) -> typed.Expr:
    format = arguments.text(c, node, 0)
    stamp = arguments.value(c, node, 1)
    if format is None or stamp is None:
        return nothing(node.span)
    if isinstance(stamp, typed.Int) and stamp.value < 0:
        return c.error(stamp.span, "strftime() does not accept negative timestamps")
    clock = "boot"
    if isinstance(stamp, typed.Call) and stamp.name == "nsecs":
        clock = str(stamp.options["clock"])
        if clock == "monotonic":
            return c.error(stamp.span, "strftime() cannot take a monotonic timestamp", "use nsecs or nsecs(tai)")
    converted = arguments.as_integer(c, stamp, "strftime", U64)
    if converted is None:
        return nothing(node.span)
    return typed.Call("strftime", (converted,), Timestamp(clock), node.span, {"format": format})


def join(c: State, node: ast.Call) -> typed.Expr:
    words = arguments.value(c, node, 0)
    separator = arguments.text(c, node, 1) if len(node.args) > 1 else b" "
    if words is None or separator is None:
        return nothing(node.span)
    found = arguments.pointer(c, words)
    if found is None:
        return c.error(words.span, f"join() only supports pointers to strings, not {words.type}")
    return typed.Call("join", (found,), VOID, node.span, {"separator": separator})


def unwatch(c: State, node: ast.Call) -> typed.Expr:
    expr = arguments.value(c, node, 0)
    if expr is None:
        return nothing(node.span)
    if not isinstance(expr.type, Int | Enum | Ptr):
        return c.error(expr.span, f"unwatch() expects an address, not {expr.type}")
    from bpfseal.dsl.check.conversions import to_int

    return typed.Call("unwatch", (to_int(expr, U64),), VOID, node.span)


def skboutput(c: State, node: ast.Call) -> typed.Expr:
    path = arguments.text(c, node, 0)
    skb = arguments.value(c, node, 1)
    length, offset = arguments.integer(c, node, 2, U64), arguments.integer(c, node, 3, U64)
    if path is None or skb is None or length is None or offset is None or is_unknown(skb.type):
        return nothing(node.span)
    if not isinstance(skb.type, Ptr):
        return c.error(skb.span, f"skboutput() expects a struct sk_buff pointer, not {skb.type}")
    return typed.Call("skboutput", (skb, length, offset), U32, node.span, {"path": path})


# Whole packets up to what the length field of an IP packet can say, behind an Ethernet header with two VLAN tags.
_SNAPLEN, _LEAST, _MOST = 65_557, 64, 262_144


def capture(c: State, node: ast.Call) -> typed.Expr:
    length = arguments.number(c, node, 0, "the length", _LEAST) if node.args else _SNAPLEN
    if length is None:
        return nothing(node.span)
    if length > _MOST:
        return c.error(node.args[0].span, f"capture(): the length must not exceed {_MOST}, it is {length}")
    if c.callbacks:
        return c.error(node.span, "capture() is not allowed in a for-loop")
    return typed.Call("capture", (), VOID, node.span, {"snaplen": length})


RULES: dict[str, Rule] = {
    "capture": capture,
    "printf": formatted,
    "errorf": formatted,
    "warnf": formatted,
    "debugf": formatted,
    "cat": formatted,
    "system": formatted,
    "print": print_,
    "clear": whole_map,
    "zero": whole_map,
    "exit": exit_,
    "time": time,
    "strftime": strftime,
    "join": join,
    "unwatch": unwatch,
    "skboutput": skboutput,
}
