"""An Environment from tables, for tests of the checker: a small made-up kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase

from bpfseal.dsl.env import Args, AttachSpec, Point, Target
from bpfseal.dsl.types import (
    BOOL,
    I8,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    Array,
    Enum,
    Field,
    Ptr,
    Record,
    RecordInfo,
    Type,
)

TASK = Record("struct task_struct", 4096)
FILE = Record("struct file", 232)
INNER = Record("struct inner", 16)
SHAPES = Record("struct shapes", 112)
SOCK = Record("struct sock", 64)
SKB = Record("struct sk_buff", 224)
PATH = Record("struct path", 16)
PT_REGS = Record("struct pt_regs", 168)
PERF = Record("struct bpf_perf_event_data", 184)
ITER_TASK = Record("struct bpf_iter__task", 16)
CHOICE = Record("union choice", 8)
DROP = Enum("skb_drop_reason", 32, False)
COLOR = Enum("color", 32, False)

RECORDS = {
    info.name: info
    for info in (
        RecordInfo(
            "struct task_struct",
            4096,
            (
                Field("pid", I32, 16),
                Field("tgid", I32, 20),
                Field("comm", Array(I8, 16), 24),
                Field("real_parent", Ptr(TASK), 40),
                Field("group_leader", Ptr(TASK), 48),
                Field("flags", U32, 56),
                Field("in_execve", U32, 60, bits=1, bit_offset=3),
                Field("start_time", U64, 64),
                Field("prio", I32, 72),
                Field("files", Ptr(FILE), 80),
            ),
        ),
        RecordInfo("struct file", 232, (Field("f_path", PATH, 16), Field("f_flags", U32, 40), Field("f_pos", I64, 48))),
        RecordInfo("struct path", 16, (Field("mnt", Ptr(None), 0), Field("dentry", Ptr(None), 8))),
        RecordInfo("struct inner", 16, (Field("x", I32, 0), Field("y", U64, 8))),
        RecordInfo(
            "struct shapes",
            112,
            (
                Field("a", I32, 0),
                Field("b", U8, 4),
                Field("name", Array(I8, 16), 8),
                Field("numbers", Array(I32, 4), 24),
                Field("inner", INNER, 40),
                Field("next", Ptr(SHAPES), 56),
                Field("text", Ptr(I8), 64),
                Field("addr4", Array(U8, 4), 72),
                Field("mac", Array(U8, 6), 76),
                Field("choice", CHOICE, 82),
                Field("color", COLOR, 88),
                Field("files", Array(Ptr(FILE), 2), 96),
            ),
        ),
        RecordInfo("union choice", 8, (Field("small", U16, 0), Field("large", U64, 0)), union=True),
        RecordInfo("struct sock", 64, (Field("sk_protocol", U16, 8), Field("daddr6", Array(U8, 16), 16))),
        RecordInfo("struct sk_buff", 224, (Field("len", U32, 112), Field("sk", Ptr(SOCK), 24))),
        RecordInfo("struct pt_regs", 168, (Field("di", U64, 112), Field("ip", U64, 128))),
        RecordInfo("struct bpf_perf_event_data", 184, (Field("regs", PT_REGS, 0), Field("sample_period", U64, 168))),
        RecordInfo("struct bpf_iter__task", 16, (Field("meta", Ptr(None), 0), Field("task", Ptr(TASK, "btf"), 8))),
    )
}

NAMED: dict[str, Type] = {
    **{name: Record(name, info.size) for name, info in RECORDS.items()},
    "enum skb_drop_reason": DROP,
    "enum color": COLOR,
    "int": I32,
    "char": I8,
    "long": I64,
    "unsigned long": U64,
    "pid_t": I32,
    "u32": U32,
    "u64": U64,
    "uint64_t": U64,
    "uint32_t": U32,
    "size_t": U64,
    "_Bool": BOOL,
}

ENUMS = {
    "skb_drop_reason": {2: "SKB_DROP_REASON_NOT_SPECIFIED", 6: "SKB_DROP_REASON_SOCKET_FILTER"},
    "color": {0: "RED", 1: "GREEN", 7: "BLUE"},
}

CONSTANTS: dict[str, tuple[int, Type]] = {
    "AF_INET": (2, I32),
    "AF_INET6": (10, I32),
    **{name: (value, Enum(enum, 32, False)) for enum, names in ENUMS.items() for value, name in names.items()},
}

TRACEPOINTS: dict[tuple[str, str], tuple[Field, ...]] = {
    ("syscalls", "sys_enter_openat"): (
        Field("common_type", U16, 0),
        Field("common_pid", I32, 4),
        Field("__syscall_nr", I32, 8),
        Field("dfd", I64, 16),
        Field("filename", Ptr(I8), 24),
        Field("flags", I64, 32),
        Field("mode", U64, 40),
    ),
    ("syscalls", "sys_enter_execve"): (
        Field("filename", Ptr(I8), 16),
        Field("argv", Ptr(Ptr(I8)), 24),
        Field("envp", Ptr(Ptr(I8)), 32),
    ),
    ("syscalls", "sys_exit_openat"): (Field("ret", I64, 16),),
    ("syscalls", "sys_exit_read"): (Field("ret", I64, 16),),
    ("sched", "sched_switch"): (
        Field("prev_comm", Array(I8, 16), 8),
        Field("prev_pid", I32, 24),
        Field("prev_state", I64, 32),
        Field("next_comm", Array(I8, 16), 40),
        Field("next_pid", I32, 56),
    ),
    ("sched", "sched_process_exec"): (
        Field("filename", Array(I8, 0), 8, data_loc=True),
        Field("pid", I32, 12),
    ),
    ("skb", "kfree_skb"): (Field("skbaddr", Ptr(None), 8), Field("reason", DROP, 28)),
}

FUNCTIONS: dict[str, tuple[tuple[Field, ...], Type | None]] = {
    "vfs_read": (
        (
            Field("file", Ptr(FILE, "btf"), argument=0),
            Field("buf", Ptr(I8, "user"), argument=1),
            Field("count", U64, argument=2),
        ),
        I64,
    ),
    "vfs_write": ((Field("file", Ptr(FILE, "btf"), argument=0),), I64),
    "tcp_connect": ((Field("sk", Ptr(SOCK, "btf"), argument=0),), I32),
    "napi_gro_receive": ((Field("skb", Ptr(SKB, "btf"), argument=0),), U32),
    "fget": ((Field("fd", U32, argument=0),), Ptr(FILE, "btf")),
    "do_exit": ((Field("code", I64, argument=0),), None),
}

USER_FUNCTIONS = {"/bin/bash": ("readline", "main"), "/lib/libc.so.6": ("malloc", "free", "malloc_usable_size")}


@dataclass
class TableEnvironment:
    """See the module docstring."""

    target: Target = field(default_factory=Target)
    symbols: dict[str, int] = field(
        default_factory=lambda: {"jiffies": 0xFFFFFFFF81000000, "avenrun": 0xFFFFFFFF82000000}
    )
    kfuncs: tuple[str, ...] = ("bpf_task_from_pid",)
    asked: int = 0

    def expand(self, spec: AttachSpec) -> Sequence[Point]:
        self.asked += 1
        kind, parts = spec.kind, spec.parts
        match kind:
            case "tracepoint":
                return [
                    Point(kind, f"tracepoint:{c}:{e}", "vmlinux", e, c)
                    for c, e in TRACEPOINTS
                    if fnmatchcase(c, parts[0]) and fnmatchcase(e, parts[1])
                ]
            case "rawtracepoint":
                name = parts[-1]
                return [Point(kind, f"rawtracepoint:{e}", "vmlinux", e) for _, e in TRACEPOINTS if fnmatchcase(e, name)]
            case "kprobe" | "kretprobe" | "fentry" | "fexit":
                name, _, offset = parts[-1].partition("+")
                return [
                    Point(kind, f"{kind}:{f}" + (f"+{offset}" if offset else ""), "vmlinux", f, number=int(offset or 0))
                    for f in FUNCTIONS
                    if fnmatchcase(f, name)
                ]
            case "uprobe" | "uretprobe":
                return [
                    Point(kind, f"{kind}:{path}:{f}", path, f)
                    for path, names in USER_FUNCTIONS.items()
                    for f in names
                    if fnmatchcase(path, parts[0]) and fnmatchcase(f, parts[-1])
                ]
            case "usdt":
                return [Point(kind, f"usdt:{parts[0]}:{parts[-1]}", parts[0], parts[-1])]
            case "iter":
                return [Point(kind, f"iter:{parts[0]}", "vmlinux", parts[0])] if parts[0] == "task" else []
            case _:
                return [Point(kind, ":".join((kind, *parts)), "", parts[0] if parts else "")]

    def args(self, point: Point) -> Args:
        match point.kind:
            case "tracepoint":
                fields = TRACEPOINTS[point.category, point.function]
                return Args(RecordInfo(f"args {point.function}", 64, fields), "ctx")
            case "fentry" | "fexit":
                fields, returns = FUNCTIONS[point.function]
                return Args(
                    RecordInfo(f"args {point.function}", 8 * len(fields), fields),
                    "argument",
                    returns if point.kind == "fexit" else None,
                )
            case "rawtracepoint":
                info = RecordInfo(f"args {point.function}", 8, (Field("skb", Ptr(SKB, "btf"), argument=0),))
                return Args(info, "argument")
            case "uprobe":
                if point.function == "readline":
                    info = RecordInfo("args readline", 8, (Field("prompt", Ptr(I8), argument=0),))
                    return Args(info, "registers")
                return Args(None, "registers")
            case "kprobe" | "kretprobe" | "uretprobe" | "usdt":
                return Args(None, "registers")
            case _:
                return Args(None)

    def record(self, name: str) -> RecordInfo | None:
        return RECORDS.get(name)

    def type_named(self, name: str) -> Type | None:
        return NAMED.get(name)

    def enum(self, type: Enum) -> dict[int, str] | None:
        return ENUMS.get(type.name)

    def constant(self, name: str) -> tuple[int, Type] | None:
        return CONSTANTS.get(name)

    def kernel_symbol(self, name: str) -> int | None:
        return self.symbols.get(name)

    def user_symbol(self, path: str, name: str) -> tuple[int, int] | None:
        return (0x1000, 4) if name == "counter" else None

    def cgroup_id(self, path: str) -> int | None:
        return 42 if path.startswith("/sys/fs/cgroup") else None

    def kfunc(self, name: str) -> bool:
        return name in self.kfuncs

    def suggest(self, what: str, name: str) -> list[str]:
        among = {
            "tracepoint": [f"tracepoint:{c}:{e}" for c, e in TRACEPOINTS],
            "kprobe": [f"kprobe:{f}" for f in FUNCTIONS],
            "fentry": [f"fentry:{f}" for f in FUNCTIONS],
            "type": list(NAMED),
            "constant": list(CONSTANTS),
        }.get(what, [])
        return get_close_matches(name, among, 3)
