"""The environment on this machine: points that exist, their names, their arguments; and listings."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from pathlib import Path

import pytest

from bpfseal.dsl.env import Args, Point, Target
from bpfseal.dsl.points import PointError, specs
from bpfseal.dsl.types import Enum, Int, Ptr, Record, Str
from bpfseal.errors import BpfsealError
from bpfseal.runtime import tracefs as tracefs_module
from bpfseal.runtime.environment import RealEnvironment
from bpfseal.runtime.listing import list_probes
from bpfseal.runtime.probes import lsm, matcher, select
from bpfseal.runtime.suggest import closest
from bpfseal.runtime.tracefs import Tracefs, TracefsError, tracefs
from bpfseal.signer.syscall_names import numbers


def has_tracefs() -> bool:
    try:
        tracefs()
    except TracefsError:
        return False
    return True


has_btf = os.path.exists("/sys/kernel/btf/vmlinux")
needs_tracefs = pytest.mark.skipif(not has_tracefs(), reason="tracefs cannot be read")
needs_btf = pytest.mark.skipif(not has_btf, reason="the running kernel has no BTF")
x86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86-64")


@pytest.fixture(scope="module")
def environment() -> RealEnvironment:
    return RealEnvironment()


def points(environment: RealEnvironment, text: str) -> list[Point]:
    return [point for spec in specs(text) for point in environment.expand(spec)]


class TestSimplePoints:
    @pytest.mark.parametrize(
        ("text", "name", "params"),
        [
            ("begin", "begin", {}),
            ("END", "end", {}),
            ("interval:s:5", "interval:s:5", {"unit": "s", "period": 5_000_000_000}),
            ("i:1s", "interval:us:1000000", {"unit": "us", "period": 1_000_000_000}),
            ("profile:hz:99", "profile:hz:99", {"unit": "hz", "frequency": 99}),
            ("software:cs:10", "software:cs:10", {"type": 1, "config": 3}),
            ("s:page-faults:", "software:page-faults", {"type": 1, "config": 2}),
            ("hardware:cycles:1e6", "hardware:cycles:1000000", {"type": 0, "config": 0}),
            ("w:0x1000:8:rw", "watchpoint:4096:8:rw", {"length": 8, "mode": 3}),
            ("self:signal:SIGUSR1", "self:signal:SIGUSR1", {}),
            ("test:mine", "test:mine", {}),
        ],
    )
    def test_names(self, environment: RealEnvironment, text: str, name: str, params: dict[str, object]) -> None:
        (point,) = points(environment, text)
        assert point.name == name
        assert dict(point.params) == params

    def test_counts_in_force(self, environment: RealEnvironment) -> None:
        assert points(environment, "s:faults")[0].number == 100
        assert points(environment, "s:faults:7")[0].number == 7
        assert points(environment, "h:cache-misses")[0].number == 1_000_000
        assert points(environment, "self:signal:SIGUSR1")[0].number == signal.SIGUSR1

    def test_unknown(self, environment: RealEnvironment) -> None:
        assert points(environment, "software:nothing") == []
        assert points(environment, "hardware:nothing:5") == []
        assert points(environment, "xdp:nonexistent0") == []

    @x86
    def test_watchpoints_that_cannot_be(self, environment: RealEnvironment) -> None:
        with pytest.raises(BpfsealError, match="no watchpoints of mode 'r'"):
            points(environment, "w:0x1000:8:r")
        with pytest.raises(BpfsealError, match="multiple of 8"):
            points(environment, "w:0x1004:8:w")

    def test_periods_that_cannot_be(self, environment: RealEnvironment) -> None:
        with pytest.raises(BpfsealError, match="longer than"):
            points(environment, "interval:s:99999999999999")
        with pytest.raises(BpfsealError, match="ticks that often"):
            points(environment, "profile:hz:99999999999")

    def test_interfaces(self, environment: RealEnvironment) -> None:
        assert "xdp:lo" in [point.name for point in points(environment, "xdp:*")]
        (point,) = points(environment, "tc:lo:egress")
        assert (point.name, dict(point.params)) == ("tc:lo:egress", {"egress": 1})


@needs_tracefs
class TestTracepoints:
    def test_exact_and_wild_agree(self, environment: RealEnvironment) -> None:
        for text in ("t:sched:sched_switch", "t:sched:sched_swit*", "t:sch*:sched_switch", "t:*sched_switch"):
            assert "tracepoint:sched:sched_switch" in [point.name for point in points(environment, text)]
        assert points(environment, "t:sched:nothing") == []
        assert points(environment, "t:../sched:x") == []

    def test_every_system_call_has_a_number(self, environment: RealEnvironment) -> None:
        found = points(environment, "t:syscalls:sys_*")
        assert len(found) > 500
        assert [point.name for point in found if "nr" not in dict(point.params)] == []

    @x86
    def test_system_call_arguments(self, environment: RealEnvironment) -> None:
        (point,) = points(environment, "t:syscalls:sys_enter_openat")
        args = environment.args(point)
        assert args.context == "syscall"
        assert args.fields is not None
        assert [(f.name, f.argument) for f in args.fields.fields] == [
            ("__syscall_nr", 6),
            ("dfd", 0),
            ("filename", 1),
            ("flags", 2),
            ("mode", 3),
        ]
        name = args.fields.field("filename")
        assert name is not None
        assert isinstance(name.type, Ptr)
        assert name.type.space == "user"
        assert dict(point.params) == {"nr": 257}

    def test_system_call_results(self, environment: RealEnvironment) -> None:
        (point,) = points(environment, "t:syscalls:sys_exit_read")
        args = environment.args(point)
        assert args.context == "syscall_exit"
        assert args.fields is not None
        assert [(f.name, f.type, f.argument) for f in args.fields.fields] == [
            ("__syscall_nr", Int(32), 6),
            ("ret", Int(64), 0),
        ]

    def test_other_arguments(self, environment: RealEnvironment) -> None:
        (point,) = points(environment, "t:sched:sched_switch")
        args = environment.args(point)
        assert args.context == "ctx"
        assert args.fields is not None
        fields = {field.name: field for field in args.fields.fields}
        assert fields["prev_comm"].type == Str(16)
        assert fields["prev_pid"].type == Int(32)
        assert fields["next_comm"].offset > fields["prev_comm"].offset

    def test_dynamic_arrays(self, environment: RealEnvironment) -> None:
        (point,) = points(environment, "t:sched:sched_process_exec")
        args = environment.args(point)
        assert args.fields is not None
        field = args.fields.field("filename")
        assert field is not None
        assert field.data_loc
        assert isinstance(field.type, Int)
        assert field.type.space == "kernel"

    def test_all_arguments_convert(self, environment: RealEnvironment) -> None:
        for point in points(environment, "t:*:*"):
            args = environment.args(point)
            assert args.fields is not None, point

    def test_detached_mount_shows_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where nobody has mounted tracefs we mount it for ourselves, and nobody else sees that."""
        monkeypatch.setattr(tracefs_module, "_PLACES", ("/nonexistent",))
        before = Path("/proc/self/mountinfo").read_text()
        try:
            own = Tracefs()
        except TracefsError as error:
            pytest.skip(str(error))
        assert own.path == ""
        assert Path("/proc/self/mountinfo").read_text() == before
        assert own.events() == tracefs().events()
        assert own.event_id("sched", "sched_switch") == tracefs().event_id("sched", "sched_switch")
        own.close()

    def test_no_permission(self) -> None:
        if os.geteuid():
            pytest.skip("needs root to give root up")
        receive, send = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                Tracefs().events()
            except TracefsError as error:
                os.write(send, str(error).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(send)
        assert b"tracefs" in os.read(receive, 200)
        os.close(receive)


# Calls that would end, stop, or confuse the caller, or act on the machine whatever their arguments are.
_NOT_CALLED = {
    "exit", "exit_group", "fork", "vfork", "clone", "clone3", "pause", "rt_sigreturn", "rt_sigsuspend", "reboot",
    "sync", "vhangup", "restart_syscall", "setsid", "munlockall", "sched_yield", "io_destroy", "iopl", "uretprobe",
    "uprobe", "select", "pselect6", "poll", "ppoll", "nanosleep", "wait4", "waitid", "rseq", "alarm", "umask",
    "personality", "brk", "close_range", "unshare", "setpgid", "prctl", "arch_prctl", "munmap", "mremap", "shutdown",
    "execve", "execveat", "membarrier", "landlock_restrict_self", "setfsuid", "setfsgid", "set_tid_address",
    "set_robust_list", "kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_sigtimedwait", "setreuid", "setregid",
    "setresuid", "setresgid", "setuid", "setgid", "seccomp", "modify_ldt", "mlockall", "swapoff", "swapon",
}  # fmt: skip


@needs_tracefs
@pytest.mark.host
@pytest.mark.slow
def test_numbers_are_those_of_the_kernel() -> None:
    """Every harmless call, made by number with arguments that are all wrong, is counted by the tracepoint of its name.

    A perf event counts without any program. One process makes the calls, so that its events are told from others'.
    """
    from bpfseal.runtime.attach.perf import TYPE_TRACEPOINT, open_event
    from bpfseal.runtime.attach.release import later

    libc = ctypes.CDLL(None, use_errno=True)
    names = [
        event.removeprefix("sys_enter_")
        for category, event in tracefs().events()
        if category == "syscalls" and event.startswith("sys_enter_")
    ]
    wanted = [name for name in names if name not in _NOT_CALLED]
    assert len(wanted) > 250
    known = numbers()
    ask, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.read(go[0], 1)
            bad = ctypes.c_long(-1)
            for name in wanted:
                libc.syscall(ctypes.c_long(known[name]), bad, bad, bad, bad, bad, bad)
            os.write(ask[1], b"x")
            os.read(go[0], 1)
        finally:
            os._exit(0)
    events = {}
    try:
        for name in wanted:
            number = tracefs().event_id("syscalls", f"sys_enter_{name}")
            assert number is not None
            events[name] = open_event(TYPE_TRACEPOINT, number, pid=child)
        os.write(go[1], b"x")
        assert os.read(ask[0], 1) == b"x"
        counts = {name: struct.unpack("<Q", os.read(fd, 8))[0] for name, fd in events.items()}
        assert [name for name, count in counts.items() if not count] == []
        # All but what the interpreter calls itself was called exactly once.
        assert sum(count == 1 for count in counts.values()) > len(counts) - 15
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        later(list(events.values()))
        for fd in (*ask, *go):
            os.close(fd)


@needs_btf
class TestTypedPoints:
    def test_raw_tracepoints(self, environment: RealEnvironment) -> None:
        (point,) = points(environment, "rt:sched_switch")
        assert point.name == "rawtracepoint:vmlinux:sched_switch"
        args = environment.args(point)
        assert args.fields is not None
        assert [(f.name, f.argument) for f in args.fields.fields][1:3] == [("prev", 1), ("next", 2)]
        pointer = args.fields.fields[1].type
        assert isinstance(pointer, Ptr)
        assert pointer.space == "btf"
        assert points(environment, "rt:nothing") == []
        assert points(environment, "rt:vmlinux:sched_switch") == [point]
        assert points(environment, "rt:sched_swi*") == [point]
        assert points(environment, "rt:nomodule:sched_switch") == []

    def test_kernel_functions(self, environment: RealEnvironment) -> None:
        (point,) = points(environment, "kprobe:vfs_read")
        assert (point.name, dict(point.params)) == ("kprobe:vfs_read", {"multi": 1})
        (point,) = points(environment, "kprobe:vfs_read+8")
        assert (point.name, point.number, point.params) == ("kprobe:vfs_read+8", 8, ())
        (point,) = points(environment, "kretprobe:vmlinux:vfs_read")
        assert (point.name, point.module, point.params) == ("kretprobe:vmlinux:vfs_read", "", ())
        assert points(environment, "kprobe:no_such_function") == []
        with pytest.raises(BpfsealError, match="not loaded"):
            points(environment, "kprobe:nomodule:f")
        with pytest.raises(PointError):
            points(environment, "kprobe:0x1234")

    def test_dangerous_functions_are_left_out(self, environment: RealEnvironment) -> None:
        assert points(environment, "kprobe:arch_cpu_idle") == []
        assert not any(point.function.startswith("rcu_") for point in points(environment, "fentry:rcu_*"))

    def test_addresses_need_unsafe(self) -> None:
        environment = RealEnvironment(Target(unsafe=True))
        (spec,) = specs("kprobe:0x1234", unsafe=True)
        (point,) = environment.expand(spec)
        assert (point.name, point.number, point.function) == ("kprobe:4660", 4660, "")

    def test_typed_functions(self, environment: RealEnvironment) -> None:
        (point,) = points(environment, "fexit:vfs_read")
        assert point.name == "fexit:vmlinux:vfs_read"
        args = environment.args(point)
        assert args.returns == Int(64)
        assert args.extra == {"arguments": 4}
        assert args.fields is not None
        assert [f.name for f in args.fields.fields] == ["file", "buf", "count", "pos"]
        (entry,) = points(environment, "f:vmlinux:vfs_read")
        assert environment.args(entry).returns is None
        assert points(environment, "fentry:no_such_function") == []
        names = [p.function for p in points(environment, "fentry:vfs_re*")]
        assert names == sorted(names)
        assert "vfs_read" in names

    def test_iterators(self, environment: RealEnvironment) -> None:
        (point,) = points(environment, "iter:task")
        assert point.name == "iter:task"
        assert environment.args(point).context == "ctx"
        assert points(environment, "iter:nothing") == []
        assert dict(points(environment, "it:task:list")[0].params) == {"pin": "list"}

    def test_hooks(self, environment: RealEnvironment) -> None:
        if not lsm.active():
            with pytest.raises(BpfsealError, match="without the BPF security module"):
                points(environment, "lsm:file_open")
            return
        (point,) = points(environment, "lsm:file_open")
        args = environment.args(point)
        assert args.returns == Int(32)
        assert args.fields is not None
        assert [f.name for f in args.fields.fields] == ["file"]
        assert points(environment, "lsm:nothing") == []

    def test_questions_of_the_checker(self, environment: RealEnvironment) -> None:
        assert environment.record("struct task_struct") is not None
        assert environment.type_named("struct task_struct") == Record(
            "struct task_struct",
            environment.record("struct task_struct").size,  # type: ignore[union-attr]
        )
        assert (environment.enum(Enum("pid_type")) or {})[0] == "PIDTYPE_PID"
        assert environment.constant("AF_INET") == (2, Int(32))
        assert environment.constant("PIDTYPE_TGID") == (1, Enum("pid_type"))
        assert environment.constant("NO_SUCH_CONSTANT") is None
        assert environment.kfunc("bpf_task_acquire")
        assert environment.user_symbol("/proc/self/exe", "no_such_symbol") is None
        assert environment.user_symbol("/nonexistent", "x") is None
        assert environment.cgroup_id("/nonexistent") is None
        assert environment.cgroup_id("/") == os.stat("/").st_ino

    def test_kernel_symbols(self, environment: RealEnvironment) -> None:
        with open("/proc/kallsyms") as file:
            expected = next((int(line.split()[0], 16) for line in file if line.split()[2] == "vfs_read"), 0)
        assert environment.kernel_symbol("vfs_read") == (expected or None)
        assert environment.kernel_symbol("no_such_symbol") is None
        assert environment.kernel_symbol("vfs.read") is None

    def test_suggestions(self, environment: RealEnvironment) -> None:
        assert "struct task_struct" in environment.suggest("type", "struct task_strut")
        assert "TCP_ESTABLISHED" in environment.suggest("constant", "TCP_ESTABLISH")
        assert "fentry:vmlinux:vfs_read" in environment.suggest("fentry", "fentry:vmlinux:vfs_reed")
        if has_tracefs():
            assert environment.suggest("tracepoint", "t:syscalls:sys_enter_opnat")[0] == (
                "tracepoint:syscalls:sys_enter_openat"
            )
        assert environment.suggest("nonsense", "x") == []


def test_closest() -> None:
    assert closest("vfs_reed", ["vfs_read", "vfs_write", "tcp_send"])[0] == "vfs_read"
    assert closest("", ["a"]) == []
    assert closest("zzz", ["vfs_read"]) == []


def test_patterns() -> None:
    names = ["abc", "abcabc", "a.c", "a[b]c", ""]
    assert list(select("abc", names)) == ["abc"]
    assert list(select("a*c", names)) == ["abc", "abcabc", "a.c", "a[b]c"]
    assert list(select("*", names)) == names
    assert list(select("a.c", names)) == ["a.c"]
    assert list(select("a[b]c", names)) == ["a[b]c"]
    assert list(select("*b*b*", names)) == ["abcabc"]
    assert not matcher("a*")("b\na")
    assert matcher("a*b")("a\nb")


class TestListing:
    def test_fixed_kinds(self) -> None:
        assert list(list_probes("interval:*")) == ["interval:hz:", "interval:ms:", "interval:s:", "interval:us:"]
        assert list(list_probes("self:*")) == ["self:signal:SIGUSR1"]
        software = list(list_probes("software:*"))
        assert len(software) == 14
        assert software == sorted(software)
        assert "software:faults:" in software
        assert list(list_probes("hardware:cpu*")) == ["hardware:cpu-cycles:"]
        assert list(list_probes("s:page-faults")) == ["software:page-faults:"]

    @needs_tracefs
    def test_tracepoints(self) -> None:
        every = list(list_probes("tracepoint:*"))
        assert every == [f"tracepoint:{line}" for line in sorted(tracefs().read("available_events").decode().split())]
        assert list(list_probes("t:sched:sched_switch")) == ["tracepoint:sched:sched_switch"]
        assert set(list_probes("tracepoint:*sched*")) <= set(every)
        assert "tracepoint:sched:sched_switch" in list(list_probes("*sched_switch"))
        assert list(list_probes("tracepoint")) == every

    @needs_tracefs
    def test_arguments_of_tracepoints(self) -> None:
        lines = list(list_probes("tracepoint:sched:sched_process_exit", verbose=True))
        assert lines[0] == "tracepoint:sched:sched_process_exit"
        assert "    char comm[16]" in lines
        assert not any("common_" in line for line in lines)

    @needs_btf
    def test_arguments_by_btf(self) -> None:
        assert list(list_probes("rt:vmlinux:sched_switch", verbose=True)) == [
            "rawtracepoint:vmlinux:sched_switch",
            "    bool preempt",
            "    struct task_struct * prev",
            "    struct task_struct * next",
            "    unsigned int prev_state",
        ]
        assert list(list_probes("iter:task", verbose=True)) == ["iter:task", "    struct task_struct * task"]

    @needs_btf
    def test_definitions(self) -> None:
        assert list(list_probes("struct list_head")) == ["struct list_head"]
        assert list(list_probes("struct list_head", verbose=True)) == [
            "vmlinux: struct list_head {",
            "\tstruct list_head *next;",
            "\tstruct list_head *prev;",
            "};",
            "",
        ]
        assert list(list_probes("struct no_such_struct")) == []
        assert list(list_probes("enum pid_typ*")) == ["enum pid_type"]

    def test_files(self) -> None:
        lines = list(list_probes(f"uprobe:{os.path.realpath('/bin/sh')}:mai*"))
        assert all(line.startswith("uprobe:/") for line in lines)
        with pytest.raises(BpfsealError):
            list(list_probes("nothing:*"))

    @needs_tracefs
    def test_lists_of_patterns(self) -> None:
        assert list(list_probes("t:sched:sched_switch,software:cs")) == [
            "tracepoint:sched:sched_switch",
            "software:cs:",
        ]
        assert list(list_probes("t:sched:sched_switch,")) == ["tracepoint:sched:sched_switch"]

    def test_stops_early(self) -> None:
        """A pipe to head does not read everything first."""
        lines = list_probes("*")
        assert next(lines)
        lines.close()


def test_exact_arguments_type() -> None:
    """Args of kinds without arguments."""
    environment = RealEnvironment()
    for text, context in (("begin", "none"), ("interval:s:1", "registers"), ("self:signal:SIGUSR1", "none")):
        for point in points(environment, text):
            assert environment.args(point) == Args(None, context)


class TestFunctionLists:
    FTRACE = (
        "vfs_read\nrcu_x\ndefault_idle\ndefault_idle_call\nfoo.part.0\nbar.isra.0 [veth]\nbaz\t[m]\n"
        "__ftrace_invalid_address___12\nx_rcu_y\nwith.part.1.two\n"
    )
    KALLSYMS = (
        "ffffffff81000000 T _stext\nffffffff81000010 t quiet.cold\nffffffff81000020 D data\n"
        "ffffffff81000030 t rcu_core\nffffffffc0000000 t veth_xmit\t[veth]\nffffffffc0000010 W weak\n"
    )

    def functions(
        self, monkeypatch: pytest.MonkeyPatch, listed: str | None, symbols: str, forbidden: str = ""
    ) -> dict[str, set[str]]:
        from bpfseal.runtime.probes import functions
        from bpfseal.runtime.probes.world import World

        found = functions.KernelFunctions(World())
        monkeypatch.setitem(found.__dict__, "_listed", listed)
        monkeypatch.setitem(found.__dict__, "_kallsyms", symbols.encode())
        monkeypatch.setitem(found.__dict__, "_forbidden", functions._FORBIDDEN_LINE.findall(forbidden))
        return found.traceable

    def test_by_ftrace(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.functions(monkeypatch, self.FTRACE, "") == {
            "": {"vfs_read", "default_idle_call", "x_rcu_y"},
            "veth": {"bar.isra.0"},
            "m": {"baz"},
        }

    def test_by_symbols(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.functions(monkeypatch, None, self.KALLSYMS) == {"": {"_stext", "weak"}, "veth": {"veth_xmit"}}

    def test_forbidden_ones(self, monkeypatch: pytest.MonkeyPatch) -> None:
        forbidden = "0xffffffff81000000-0xffffffff81000020\tvfs_read\n0xffffffffc0000000-0xffffffffc0000001\tbaz [m]\n"
        found = self.functions(monkeypatch, self.FTRACE, "", forbidden)
        assert found == {"": {"default_idle_call", "x_rcu_y"}, "veth": {"bar.isra.0"}, "m": set()}

    def test_nothing_to_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.functions(monkeypatch, None, "") == {"": set()}
        assert self.functions(monkeypatch, "", "") == {"": set()}

    def test_other_names_of_what_is_listed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """ftrace has one name for each place, the symbol table all."""
        from bpfseal.runtime.probes import functions
        from bpfseal.runtime.probes.world import World

        symbols = (
            "ffffffff81000050 T __x64_sys_getpid\nffffffff81000050 t __do_sys_getpid\nffffffff81000060 t quiet\n"
            "ffffffff81000070 t rcu_one\nffffffff81000070 t other_one\n"
        )
        found = functions.KernelFunctions(World())
        monkeypatch.setitem(found.__dict__, "_listed", "__do_sys_getpid\nvfs_read\nrcu_one\n")
        monkeypatch.setitem(found.__dict__, "_kallsyms", symbols.encode())
        monkeypatch.setitem(found.__dict__, "_forbidden", [])
        assert found.has("__x64_sys_getpid", None)
        assert found.has("__do_sys_getpid", None)
        assert not found.has("quiet", None)
        assert not found.has("other_one", None)  # its other name must not be traced
        assert not found.has("missing", None)
        hidden = symbols.replace("ffffffff810000", "0000000000").replace("50 T", "00 T").replace("50 t", "00 t")
        monkeypatch.setitem(found.__dict__, "_kallsyms", hidden.encode())
        assert not found.has("__x64_sys_getpid", None)
