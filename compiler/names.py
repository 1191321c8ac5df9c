"""Builtins: values the language gives by name."""

from __future__ import annotations

from collections.abc import Callable

from bpfseal.compiler import args
from bpfseal.compiler.arch import registers
from bpfseal.compiler.gen import ADDRESSES, MEMORIES, SCALARS, Gen, impossible, register_type
from bpfseal.compiler.ir import I32, I64, PTR, Value, const
from bpfseal.compiler.layout import SESSION_CPID, SESSION_START_NS
from bpfseal.dsl import typed
from bpfseal.dsl.types import size_of

TASK_COMM_LEN = 16  # include/linux/sched.h
_USER_MODE_CS = 3  # x86: the privilege level in the low bits of the code segment


def session_word(g: Gen, offset: int) -> Value:
    """A u64 that the client wrote before anything ran."""
    index = g.unit.session_index()
    g.declared.use(index, "read")
    return g.fn.load(I64, g.fn.add(g.unit.value(index), offset), 8)


def _pid_initial(g: Gen) -> Value:
    both = g.helper("get_current_pid_tgid")
    return g.fn.integer(g.fn.binary("lshr", both, const(32)), I32)


def _tid_initial(g: Gen) -> Value:
    return g.fn.integer(g.helper("get_current_pid_tgid"), I32)


def _in_namespace(g: Gen, offset: int) -> Value:
    """struct bpf_pidns_info: u32 pid (of the thread), u32 tgid."""
    namespace = g.unit.options.namespace
    assert namespace is not None
    target = g.buffer(8)
    device, inode = namespace
    g.fn.store(const(0), target, 8)
    g.helper("get_ns_current_pid_tgid", const(device), const(inode), target, const(8))
    return g.fn.load(I32, g.fn.add(target, offset), 4)


def pid(g: Gen) -> Value:
    return _pid_initial(g) if g.unit.options.namespace is None else _in_namespace(g, 4)


def _tid(g: Gen) -> Value:
    return _tid_initial(g) if g.unit.options.namespace is None else _in_namespace(g, 0)


def _uid(g: Gen) -> Value:
    return g.fn.binary("and", g.helper("get_current_uid_gid"), const(0xFFFFFFFF))


def _gid(g: Gen) -> Value:
    return g.fn.binary("lshr", g.helper("get_current_uid_gid"), const(32))


def _elapsed(g: Gen) -> Value:
    return g.fn.binary("sub", g.helper("ktime_get_boot_ns"), session_word(g, SESSION_START_NS))


def _usermode(g: Gen) -> Value:
    regs = registers()
    if "cs" in regs.names:
        level = g.fn.binary("and", args.register(g, regs.names["cs"]), const(_USER_MODE_CS))
        return g.fn.integer(g.truth(level), "i8")
    mode = g.fn.binary("and", args.register(g, regs.names["pstate"]), const(0xF))
    return g.fn.integer(g.fn.compare("eq", mode, const(0)), "i8")


def _func(g: Gen) -> Value:
    """Address of the traced function; resolved when printed."""
    assert g.program is not None
    if g.program.kind in ("uprobe", "usdt", "kretprobe", "uretprobe", "kprobe", "fentry", "fexit"):
        if g.program.kind == "uprobe":
            return args.register(g, registers().ip)
        return g.helper("get_func_ip", g.ctx)
    return args.register(g, registers().ip)


def _numa(g: Gen) -> Value:
    return g.fn.binary("and", g.helper("get_numa_node_id"), const(0xFFFFFFFF))


_BUILTINS: dict[str, Callable[[Gen], Value]] = {
    "pid": pid,
    "tid": _tid,
    "pid_init": _pid_initial,
    "tid_init": _tid_initial,
    "uid": _uid,
    "gid": _gid,
    "cpu": lambda g: g.helper("get_smp_processor_id"),
    "ncpus": lambda g: const(g.unit.options.cpu_count),
    "numaid": _numa,
    "cgroup": lambda g: g.helper("get_current_cgroup_id"),
    "rand": lambda g: g.helper("get_prandom_u32"),
    "jiffies": lambda g: g.helper("jiffies64"),
    "elapsed": _elapsed,
    "cpid": lambda g: session_word(g, SESSION_CPID),
    "curtask": lambda g: g.helper("get_current_task_btf"),
    "usermode": _usermode,
    "func": _func,
    "ctx": lambda g: g.ctx,
}


def _scalar(g: Gen, node: typed.Builtin) -> Value:
    name = node.name
    if name.startswith("arg") and name[3:].isdigit():
        value = args.arg_builtin(g, int(name[3:]))
    elif name == "retval":
        value = args.retval(g, node.type)
    else:
        make = _BUILTINS.get(name)
        if make is None:
            raise impossible(f"the builtin {name}")
        value = make(g)
    wanted = register_type(node.type)
    if value.type == wanted:
        return value
    return g.fn.pointer(value) if wanted == PTR else g.fn.integer(value, wanted)


def _memory(g: Gen, node: typed.Builtin, target: Value, clean: bool) -> None:
    match node.name:
        case "comm":
            _comm(g, target, size_of(node.type))
        case "args":
            args.whole(g, node, target)
        case "probe":
            size = size_of(node.type)
            g.copy(target, _probe_name(g, size), size)
        case "func":
            from bpfseal.compiler.calls import user_symbol

            user_symbol(g, _func(g), target)
        case name:
            raise impossible(f"the builtin {name}")


def _comm(g: Gen, target: Value, size: int) -> None:
    name = own_name(g)
    if name is None or size != TASK_COMM_LEN:
        g.helper("get_current_comm", target, const(size))
    else:
        g.copy(target, name, size)


def own_name(g: Gen) -> Value | None:
    """Where the kernel has the current thread's name, TASK_COMM_LEN bytes, the last of them and all behind a NUL zero
    (__set_task_comm in fs/exec.c). Only in programs that ask for their task anyhow: reading it there is cheaper than
    having it copied, but takes the right to read the kernel's memory, which a policy may not give for a name."""
    from bpfseal.compiler.compat import compat_flag

    if g.deferred or g.program is None or g.program.kind != "syscall" or compat_flag(g.unit) is None:
        return None
    task = g.unit.kernel.record("struct task_struct")
    field = task.field("comm") if task is not None else None
    if field is None or field.offset % 8 or size_of(field.type) != TASK_COMM_LEN:
        return None
    return g.fn.add(g.helper("get_current_task_btf"), field.offset)


def _probe_name(g: Gen, size: int) -> Value:
    """Of the point that fired, from a table of the program's points, as long as a power of two: a mask is a bound that
    no optimiser moves behind its use."""
    assert g.program is not None
    assert g.point_index is not None
    width = (size + 7) & -8
    points = g.program.points
    count = 1 << (len(points) - 1).bit_length()
    names = b"".join(p.name.encode()[: size - 1].ljust(width, b"\0") for p in points)
    index = g.unit.constants_index()
    g.declared.use(index, "read")
    table = g.fn.add(g.unit.value(index), g.unit.constant(names.ljust(width * count, b"\0")))
    mine = g.fn.binary("and", g.point_index, const(count - 1))
    return g.fn.index(table, g.fn.binary("mul", mine, const(width)))


def _address(g: Gen, node: typed.Builtin) -> Value | None:
    return _probe_name(g, size_of(node.type)) if node.name == "probe" else None


SCALARS[typed.Builtin] = _scalar
MEMORIES[typed.Builtin] = _memory
ADDRESSES[typed.Builtin] = _address
