"""Rows of the table: values named by a bare word."""

from __future__ import annotations

from bpfseal.dsl.table_types import BuiltinSpec
from bpfseal.dsl.types import U8, U32, U64, Ptr, Record, Str, Type, Username

COMM_SIZE = 16  # TASK_COMM_LEN, include/linux/sched.h

_FUNCTIONS_ENTERED = frozenset({"kprobe", "uprobe", "usdt", "rawtracepoint"})
_FUNCTIONS_LEFT = frozenset({"kretprobe", "uretprobe", "fexit", "fentry"})
_TYPED_ARGS = frozenset({"tracepoint", "rawtracepoint", "fentry", "fexit", "uprobe", "lsm", "xdp", "tc"})

_TASK: Type = Ptr(Record("struct task_struct", 0), "btf")

_ROWS = (
    BuiltinSpec("cgroup", U64, "Id of the current task's cgroup (version 2)."),
    BuiltinSpec("comm", Str(COMM_SIZE), "Name of the current thread."),
    BuiltinSpec("cpid", U64, "Process id of the command started with -c, 0 without one."),
    BuiltinSpec("cpu", U64, "Number of the processor that runs the probe."),
    BuiltinSpec(
        "curtask",
        _TASK,
        "The current task, `struct task_struct *`.",
        rule="curtask",
        typed='Builtin "curtask" of type Ptr(Record("struct task_struct", size), "btf"); Ptr(None, "kernel") when the '
        "kernel has no BTF",
    ),
    BuiltinSpec("elapsed", U64, "Nanoseconds since tracing started."),
    BuiltinSpec("gid", U64, "Group id of the current thread, in the initial namespace."),
    BuiltinSpec("has_cpid", None, "Whether there is a command started with -c.", rule="has_cpid", typed="cpid != 0"),
    BuiltinSpec("jiffies", U64, "The kernel's jiffies counter, 64 bits."),
    BuiltinSpec("ncpus", U64, "Number of possible processors of the machine."),
    BuiltinSpec("numaid", U64, "Number of the NUMA node that runs the probe."),
    BuiltinSpec(
        "pid",
        U32,
        "Process id of the current thread.",
        typed='Builtin "pid" as seen from the tracer\'s pid namespace; pid(init) is Builtin "pid_init"',
    ),
    BuiltinSpec(
        "tid",
        U32,
        "Thread id of the current thread.",
        typed='Builtin "tid" as seen from the tracer\'s pid namespace; tid(init) is Builtin "tid_init"',
    ),
    BuiltinSpec("rand", U64, "A pseudo-random number of 32 bits."),
    BuiltinSpec("uid", U64, "User id of the current thread, in the initial namespace."),
    BuiltinSpec(
        "username",
        Username(),
        "Name of the current user.",
        rule="username",
        typed='Cast of Builtin "uid" to Username',
    ),
    BuiltinSpec(
        "usermode",
        U8,
        "1 when the probe interrupted user code, 0 in the kernel.",
        rule="usermode",
        typed='Builtin "usermode" in profile, interval, software, hardware and watchpoint probes, else a constant',
    ),
    BuiltinSpec(
        "probe",
        None,
        "Canonical name of the probe point that fired.",
        rule="probe",
        typed="StrLit: a block that uses it becomes one typed.Probe per point",
    ),
    BuiltinSpec(
        "probetype",
        None,
        'Kind of the probe, such as "kprobe"; "special" for begin and end.',
        rule="probetype",
        typed="StrLit",
    ),
    BuiltinSpec(
        "func",
        None,
        "The traced function.",
        rule="func",
        typed='Builtin "func" of type Sym("kernel") or Sym("user")',
        probes=frozenset({"kprobe", "kretprobe", "uprobe", "uretprobe", "fentry", "fexit"}),
    ),
    BuiltinSpec(
        "retval",
        None,
        "Value returned by the traced function.",
        rule="retval",
        typed='Builtin "retval" of Probe.args.returns where the kernel says it (fentry, fexit), else U64',
        probes=_FUNCTIONS_LEFT,
    ),
    BuiltinSpec(
        "args",
        None,
        "The traced function's or tracepoint's arguments, or a packet's fields, by name: args.filename.",
        rule="args",
        typed='ArgField for one of them; Builtin "args" of type Record(Probe.args.fields.name, size) when the whole '
        "is printed",
        probes=_TYPED_ARGS,
    ),
    BuiltinSpec(
        "ctx",
        None,
        "The program's context as a pointer.",
        rule="ctx",
        typed='Builtin "ctx" of type Ptr(Record or None, "ctx"): struct pt_regs, struct bpf_perf_event_data, struct '
        "bpf_iter__NAME",
    ),
    BuiltinSpec(
        "config",
        None,
        "All config variables with their effective values, as a record.",
        rule="config",
        typed="TupleExpr with names, of Int and StrLit; config.NAME is the constant alone",
    ),
    *(
        BuiltinSpec(
            f"arg{n}",
            U64,
            f"Argument {n} of the traced function, as it was passed in a register.",
            rule="arg",
            typed=f'Builtin "arg{n}"',
            probes=_FUNCTIONS_ENTERED,
        )
        for n in range(12)
    ),
)

BUILTINS: dict[str, BuiltinSpec] = {row.name: row for row in _ROWS}

# Names that only the code generator meets.
DERIVED: dict[str, Type] = {"pid_init": U32, "tid_init": U32}
