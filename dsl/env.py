"""What the checker asks about the world: probe points, kernel types, constants.

The checker works on any `Environment`; the real one is composed by the runtime from kernel BTF, tracefs and ELF
files, tests use tables. No method raises for "not there": it returns None or an empty list, and the checker
words the message with `suggest`ed near names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct, field

from bpfseal.dsl.types import Enum, RecordInfo, Type


class Point(Struct, frozen=True):
    """One attach point that exists, after wildcards.

    kind      provider: begin end test bench self interval profile software hardware tracepoint rawtracepoint
              kprobe kretprobe fentry fexit uprobe uretprobe usdt watchpoint iter lsm xdp tc
    name      the canonical name, what `probe` yields: "tracepoint:syscalls:sys_enter_openat"
    module    kernel module or "vmlinux", or the path of the traced binary
    function  function, tracepoint, hook or event name
    category  tracepoint category, usdt provider
    number    offset, period, address or length as the kind has it
    params    more by name (unit "s"/"ms"/"us"/"hz", mode "rw", session …)
    """

    kind: str
    name: str
    module: str = ""
    function: str = ""
    category: str = ""
    number: int = 0
    params: tuple[tuple[str, str | int], ...] = ()


class AttachSpec(Struct, frozen=True):
    """One attach point as written: `kind` canonical, `parts` the colon-separated rest, wildcards included.

    "tracepoint:syscalls:sys_enter_*" has kind "tracepoint", parts ("syscalls", "sys_enter_*"), text as written.
    """

    kind: str
    parts: tuple[str, ...]
    text: str
    alias: str = ""


class Target(Struct, frozen=True):
    """The process that is traced, as given on the command line. `checking`: nothing will run, so that what only this
    machine, or this user, lacks is a warning."""

    pid: int = 0
    command: str = ""
    unsafe: bool = False
    checking: bool = False


class Args(Struct, frozen=True):
    """What `args`, `argN` and `retval` mean at a point.

    fields    the record behind `args`: offsets into the context, or arguments by number
    context   how the fields are reached: "ctx" (offset into the program context: tracepoint), "argument" (BTF
              arguments of fentry/tp_btf/…: ctx is u64[]), "registers" (kprobe/uprobe), "syscall" (raw sys_enter: field
              `argument` N is system call argument N in pt_regs), "none"
    returns   type of `retval`, None where there is none
    """

    fields: RecordInfo | None
    context: str = "none"
    returns: Type | None = None
    extra: dict[str, str | int] = field(default_factory=dict)


class CFunction(Struct, frozen=True):
    """A function of an imported C file. Pointers among its parameters take addresses and values in memory alike."""

    name: str
    params: tuple[tuple[str, Type], ...]
    returns: Type


class Environment(Protocol):
    """See the module docstring. All look-ups are cheap to repeat (implementations cache)."""

    target: Target

    def expand(self, spec: AttachSpec) -> Sequence[Point]:
        """The points that `spec` names, wildcards expanded, in the kernel's order; empty when there is none.

        Raises BpfsealError when the spec itself is malformed or the source of names cannot be read; with an attribute
        `absent` that is true when what it names could be there on another machine.
        """

    def args(self, point: Point) -> Args:
        """Arguments at `point`."""

    def record(self, name: str) -> RecordInfo | None:
        """Members of "struct NAME", "union NAME" or a typedef of one, anonymous members flattened."""

    def type_named(self, name: str) -> Type | None:
        """The type called `name` in C: "int", "u32", "struct task_struct", "pid_t", "enum pid_type"."""

    def enum(self, type: Enum) -> dict[int, str] | None:
        """Names by value."""

    def constant(self, name: str) -> tuple[int, Type] | None:
        """An enum constant or well-known macro constant (AF_INET, TCP_ESTABLISHED): (value, type)."""

    def kernel_symbol(self, name: str) -> int | None:
        """Address of a kernel symbol."""

    def user_symbol(self, path: str, name: str) -> tuple[int, int] | None:
        """(address in the file, size in bytes) of a symbol of an ELF file."""

    def cgroup_id(self, path: str) -> int | None:
        """Id of the cgroup (version 2) at a path."""

    def kfunc(self, name: str) -> bool:
        """Whether the kernel has the kfunc."""

    def c_functions(self, path: str, text: str) -> Sequence[CFunction]:
        """The functions of a C file for BPF that others may call. Raises BpfsealError when it cannot be compiled."""

    def suggest(self, what: str, name: str) -> list[str]:
        """Near names for a message. `what`: "tracepoint", "kprobe", "type", "constant"… or a probe kind."""
