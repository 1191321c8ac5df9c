"""Functions on addresses: symbols, registers, address spaces, stacks, network addresses."""

from __future__ import annotations

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check import arguments, fold, names
from bpfseal.dsl.check.arguments import Rule
from bpfseal.dsl.check.conversions import as_int, to_int
from bpfseal.dsl.check.state import State, nothing
from bpfseal.dsl.registers import X86_64
from bpfseal.dsl.source import NOWHERE, Span
from bpfseal.dsl.table import near
from bpfseal.dsl.table_config import STACK_MODES
from bpfseal.dsl.types import (
    I64,
    U8,
    U32,
    U64,
    Array,
    Enum,
    Inet,
    Int,
    Mac,
    Ptr,
    Record,
    Stack,
    Str,
    Sym,
    Type,
    size_of,
)

MAX_STACK_DEPTH = 1024
DEFAULT_STACK_DEPTH = 127  # PERF_MAX_STACK_DEPTH, include/uapi/linux/perf_event.h

AF_INET, AF_INET6 = 2, 10


def symbol(c: State, node: ast.Call) -> typed.Expr:
    """ksym and usym."""
    expr = arguments.value(c, node, 0)
    if expr is None:
        return nothing(node.span)
    if not isinstance(expr.type, Int | Enum | Ptr):
        return c.error(expr.span, f"{node.name}() expects an integer or pointer argument, not {expr.type}")
    space = "kernel" if node.name == "ksym" else "user"
    return typed.Call(node.name, (to_int(expr, U64),), Sym(space), node.span)


def kaddr(c: State, node: ast.Call) -> typed.Expr:
    name = arguments.name(c, node, 0)
    if name is None:
        return nothing(node.span)
    address = c.env.kernel_symbol(name)
    if address is None:
        message = f"Failed to resolve kernel symbol: {name}"
        hint = "/proc/kallsyms lists the symbols; addresses are hidden without CAP_SYSLOG"
        if not c.env.target.checking:
            return c.error(node.span, message, hint)
        c.warn(node.span, message, hint)
        address = 0
    options = {"symbol": name, "address": address}
    return typed.Call("kaddr", (), Int(64, False, space="kernel"), node.span, options)


# Of symbols like these some are known wherever addresses are shown at all.
_ALWAYS_THERE = ("_stext", "_text", "jiffies")


def percpu_kaddr(c: State, node: ast.Call) -> typed.Expr:
    name = arguments.name(c, node, 0)
    if name is None:
        return nothing(node.span)
    args: tuple[typed.Expr, ...] = ()
    if len(node.args) > 1:
        cpu = arguments.integer(c, node, 1, U32)
        if cpu is None:
            return nothing(node.span)
        args = (cpu,)
    if c.env.kernel_symbol(name) is None and any(c.env.kernel_symbol(s) is not None for s in _ALWAYS_THERE):
        # The verifier looks the name up itself, in the same table.
        c.warn(
            node.span,
            f"the kernel's symbol table has no variable '{name}': the program will be refused",
            "variables are in it with CONFIG_KALLSYMS_ALL",
        )
    return typed.Call("percpu_kaddr", args, Int(64, False, space="kernel"), node.span, {"symbol": name})


def uaddr(c: State, node: ast.Call) -> typed.Expr:
    name = arguments.name(c, node, 0)
    if name is None:
        return nothing(node.span)
    path = c.place.points[0].module if c.place.points else ""
    found = c.env.user_symbol(path, name)
    if found is None:
        return c.error(node.args[0].span, f"could not resolve the symbol '{name}' of {path}", f"nm {path} lists them")
    address, size = found
    bits = size * 8 if size in (1, 2, 4) else 64
    options = {"symbol": name, "module": path, "address": address}
    return typed.Call("uaddr", (), Ptr(Int(bits, False), "user"), node.span, options)


def reg(c: State, node: ast.Call) -> typed.Expr:
    name = arguments.name(c, node, 0)
    if name is None:
        return nothing(node.span)
    name = {"pc": "ip"}.get(name, name)
    if name not in X86_64:
        close = near(name.removeprefix("r").removeprefix("e"), X86_64, 2)
        hint = "did you mean " + " or ".join(close) + "?" if close else "registers are " + " ".join(sorted(X86_64))
        return c.error(node.args[0].span, f"'{name}' is not a register of x86_64", hint)
    if c.deferred >= 0:
        return names.not_later(c, "reg()", node.span)
    return typed.Call("reg", (), Int(64, False, space=c.place.space), node.span, {"register": name})


def space(c: State, node: ast.Call) -> typed.Expr:
    """kptr and uptr."""
    expr = arguments.value(c, node, 0)
    if expr is None:
        return nothing(node.span)
    where = "kernel" if node.name == "kptr" else "user"
    match expr.type:
        case Ptr(to=to, space=have):
            return expr if have == where else typed.Cast(expr, Ptr(to, where), expr.span)
        case Int(bits=bits, signed=signed):
            if bits == 64 and isinstance(expr, typed.Builtin | typed.Call | typed.ArgField | typed.MapRead):
                return typed.Cast(expr, Int(64, signed, False, where), expr.span)
            return typed.Cast(to_int(expr, U64), Int(64, False, False, where), expr.span)
        case Array() | Str():
            found = arguments.address(c, expr)
            if found is not None and isinstance(found.type, Ptr):
                return typed.Cast(found, Ptr(found.type.to, where), expr.span)
        case _:
            pass
    return c.error(expr.span, f"{node.name}() only supports integer or pointer arguments, not {expr.type}")


def stack(c: State, node: ast.Call) -> typed.Expr:
    """kstack and ustack, with a mode, a depth, both or neither."""
    where = "kernel" if node.name == "kstack" else "user"
    mode, depth, at = str(c.config["stack_mode"]), DEFAULT_STACK_DEPTH, 0
    if node.args:
        word = arguments.word(node, 0)
        if word is not None and c.env.constant(word) is None:
            if word not in STACK_MODES:
                return c.error(
                    node.args[0].span,
                    f"{node.name}(): invalid stack mode '{word}'",
                    "modes are " + ", ".join(STACK_MODES),
                )
            mode, at = word, 1
        elif len(node.args) == 2:
            return c.error(node.args[0].span, f"{node.name}() expects the stack mode first", f"{node.name}(perf, 3)")
    elif where == "kernel" and mode == "build_id":
        c.warn(node.span, "'build_id' is for user stacks only, the kernel's is shown raw")
        mode = "raw"
    if at < len(node.args):
        found = arguments.number(c, node, at, "the limit")
        if found is None:
            return nothing(node.span)
        if found > MAX_STACK_DEPTH:
            return c.error(
                node.args[at].span, f"{node.name}(): the limit must not exceed {MAX_STACK_DEPTH}, it is {found}"
            )
        # a parameter that was not given is 0
        depth = found or depth
    if where == "kernel" and mode == "build_id":
        return c.error(node.span, "'build_id' is for user stacks only")
    if node.name == "dw_ustack" and not _unwinding(c, node, mode):
        return nothing(node.span)
    if c.deferred >= 0 and (where == "kernel" or mode == "build_id"):
        return names.not_later(c, "kstack" if where == "kernel" else "ustack with build ids", node.span)
    return typed.Call(node.name, (), Stack(where, mode, depth), node.span, {"mode": mode, "depth": depth})


def _unwinding(c: State, node: ast.Call, mode: str) -> bool:
    """Whether dw_ustack() may be used here; reports why not."""
    import platform

    setting = c.config["unstable_dw_ustack"]
    if setting == "error":
        hint = "config = { unstable_dw_ustack = enable }"
        c.error(node.span, "dw_ustack() is not stable yet and is disabled", hint)
    elif platform.machine() != "x86_64":
        c.error(node.span, "dw_ustack() is available on x86-64 only", "ustack() follows frame pointers")
    elif mode == "build_id":
        c.error(node.span, "dw_ustack() has no mode build_id", "ustack(build_id) follows frame pointers")
    elif c.deferred >= 0:
        names.not_later(c, "dw_ustack()", node.span)
    else:
        if setting == "warn":
            hint = "config = { unstable_dw_ustack = enable } silences this"
            c.warn(NOWHERE, "dw_ustack() is not stable yet", hint)
        return True
    return False


# --- network --------------------------------------------------------------------------------------------------------


def ntop(c: State, node: ast.Call) -> typed.Expr:
    family: typed.Expr | None = None
    if len(node.args) == 2:
        family = arguments.integer(c, node, 0, I64)
        if family is None:
            return nothing(node.span)
    expr = arguments.value(c, node, len(node.args) - 1)
    if expr is None:
        return nothing(node.span)
    match expr.type:
        case Int() | Enum():
            size, expr = 4, to_int(expr, U32)
        case Array() | Str():
            size = size_of(expr.type)
        case _:
            return c.error(expr.span, f"ntop() expects an integer or array argument, not {expr.type}")
    if size not in (4, 16):
        return c.error(expr.span, f"ntop() expects 4 or 16 bytes, {expr.type} has {size}")
    if family is None:
        family = typed.Int(AF_INET if size == 4 else AF_INET6, I64, node.span)
    return typed.Call("ntop", (family, expr), Inet(), node.span)


def pton(c: State, node: ast.Call) -> typed.Expr:
    name = arguments.name(c, node, 0)
    if name is None:
        return nothing(node.span)
    import ipaddress  # takes longer to import than most scripts to check

    try:
        packed = ipaddress.ip_address(name).packed
    except ValueError:
        return c.error(node.args[0].span, f"pton() expects a valid IPv4 or IPv6 address, not '{name}'")
    return typed.Call("pton", (), Array(U8, len(packed)), node.span, {"bytes": packed})


def literal(c: State, text: str, type: Type, span: Span) -> typed.Expr:
    """An address of type inet or mac_address from its usual form."""
    if isinstance(type, Mac):
        parts = text.split(":")
        if len(parts) != 6 or not all(len(p) == 2 and set(p.lower()) <= set("0123456789abcdef") for p in parts):
            return c.error(span, f"'{text}' is no hardware address", 'write "00:11:22:33:44:55"')
        packed = bytes.fromhex("".join(parts))
        return typed.Call("macaddr", (typed.Call("pton", (), Array(U8, 6), span, {"bytes": packed}),), Mac(), span)
    import ipaddress

    try:
        packed = ipaddress.ip_address(text).packed
    except ValueError:
        return c.error(span, f"'{text}' is no IPv4 or IPv6 address")
    family = typed.Int(AF_INET if len(packed) == 4 else AF_INET6, I64, span)
    address = typed.Call("pton", (), Array(U8, len(packed)), span, {"bytes": packed})
    return typed.Call("ntop", (family, address), Inet(), span)


def macaddr(c: State, node: ast.Call) -> typed.Expr:
    expr = arguments.value(c, node, 0)
    if expr is None:
        return nothing(node.span)
    if isinstance(expr, typed.StrLit):
        return c.error(expr.span, "macaddr() does not take string literals")
    if isinstance(expr.type, Array | Str):
        if size_of(expr.type) < 6:
            return c.error(expr.span, f"macaddr() needs at least 6 bytes, {expr.type} has {size_of(expr.type)}")
        return typed.Call("macaddr", (expr,), Mac(), node.span)
    found = arguments.pointer(c, expr)
    if found is None:
        return c.error(expr.span, f"macaddr() only supports array or pointer arguments, not {expr.type}")
    return typed.Call("macaddr", (found,), Mac(), node.span)


def bswap(c: State, node: ast.Call) -> typed.Expr:
    expr = arguments.value(c, node, 0)
    if expr is None:
        return nothing(node.span)
    integer = as_int(expr.type)
    if integer is None:
        return c.error(expr.span, f"bswap() only supports integer arguments, not {expr.type}")
    type: Type = Int(integer.bits, False)
    known = fold.constant(expr)
    if known is not None:
        size = integer.bits // 8
        swapped = int.from_bytes((known & ((1 << integer.bits) - 1)).to_bytes(size, "little"), "big")
        return typed.Int(swapped, type, node.span)
    return typed.Call("bswap", (to_int(expr, type),), type, node.span)


def socket_cookie(c: State, node: ast.Call) -> typed.Expr:
    expr = arguments.value(c, node, 0)
    if expr is None:
        return nothing(node.span)
    match expr.type:
        case Ptr(to=Record(name="struct sock")):
            return typed.Call("socket_cookie", (expr,), U64, node.span)
        case _:
            return c.error(expr.span, f"socket_cookie() expects a 'struct sock *', not {expr.type}")


RULES: dict[str, Rule] = {
    "ksym": symbol,
    "usym": symbol,
    "kaddr": kaddr,
    "percpu_kaddr": percpu_kaddr,
    "uaddr": uaddr,
    "reg": reg,
    "kptr": space,
    "uptr": space,
    "kstack": stack,
    "ustack": stack,
    "dw_ustack": stack,
    "ntop": ntop,
    "pton": pton,
    "macaddr": macaddr,
    "bswap": bswap,
    "socket_cookie": socket_cookie,
}
