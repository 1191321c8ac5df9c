"""Probes on kernel functions, hooks and packets: exact counts. Most development machines have no kprobes or are locked
down; `test_in_vms` runs this file in the test kernels."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfseal.compiler.kernel import KernelTypes
from bpfseal.dsl.env import Point, Target
from bpfseal.dsl.points import specs
from bpfseal.errors import BpfsealError
from bpfseal.runtime import bpf_link
from bpfseal.runtime.attach import AttachContext, AttachError, attach
from bpfseal.runtime.environment import RealEnvironment
from bpfseal.runtime.listing import list_probes
from bpfseal.signer.bundle import Attach
from tests.probes import kit

HAS_KPROBES = Path("/sys/bus/event_source/devices/kprobe").exists()
IN_GUEST = os.environ.get("BPFSEAL_GUEST", "") == "1"

pytestmark = [
    pytest.mark.host,
    kit.needs_bpf,
    pytest.mark.skipif(not HAS_KPROBES, reason="this kernel has no kprobes"),
]

LSM = 29
HERE = AttachContext(pid=os.getpid())
X86 = os.uname().machine == "x86_64"
GETPPID, GETUID = (110, 102) if X86 else (173, 174)
PREFIX = "__x64_sys_" if X86 else "__arm64_sys_"
ROUNDS = 137


def call(number: int, count: int = ROUNDS) -> None:
    libc = ctypes.CDLL(None)
    for _ in range(count):
        libc.syscall(number)


def spec(kind: str, target: str = "", **more: object) -> Attach:
    return Attach(kind=kind, probe=f"{kind}:{target}", target=target, **more)  # type: ignore[arg-type]


def points(text: str) -> list[Point]:
    environment = RealEnvironment(Target(unsafe=True))
    return [point for s in specs(text, unsafe=True) for point in environment.expand(s)]


@pytest.fixture(scope="module")
def types() -> KernelTypes:
    return KernelTypes()


class TestKprobes:
    @pytest.mark.parametrize("retprobe", [0, 1])
    def test_counts_calls(self, retprobe: int) -> None:
        with kit.counter(kit.KPROBE, pid=os.getpid(), cookie=True) as program:
            params = {"retprobe": retprobe}
            link = attach(spec("kprobe", f"{PREFIX}getppid", params=params, cookies=(5,)), program.prog, HERE)
            call(GETPPID)
            link.close()
            call(GETPPID)
            assert (program.count, program.cookies) == (ROUNDS, 5 * ROUNDS)

    def test_by_address(self) -> None:
        address = RealEnvironment().kernel_symbol(f"{PREFIX}getppid")
        assert address is not None
        (point,) = points(f"kprobe:{address}")
        with kit.counter(kit.KPROBE, pid=os.getpid()) as program:
            link = attach(spec("kprobe", params={"address": point.number}), program.prog, HERE)
            call(GETPPID)
            link.close()
            assert program.count == ROUNDS

    @pytest.mark.skipif(not X86, reason="x86-64 code")
    def test_offset(self) -> None:
        """Somewhere in the function instructions start, and elsewhere the kernel refuses with EILSEQ."""
        worked, refused = 0, 0
        with kit.counter(kit.KPROBE, pid=os.getpid()) as program:
            for offset in range(1, 24):
                try:
                    link = attach(spec("kprobe", f"{PREFIX}getppid", params={"offset": offset}), program.prog, HERE)
                except AttachError as error:
                    refused += "middle of an instruction" in str(error)
                    continue
                before = program.count
                call(GETPPID)
                link.close()
                worked += program.count - before == ROUNDS
        assert worked
        assert refused

    def test_unknown_function(self) -> None:
        assert points("kprobe:no_such_function*") == []
        with (
            kit.counter(kit.KPROBE) as program,
            pytest.raises(AttachError, match="no such kernel function"),
        ):
            attach(spec("kprobe", "no_such_function"), program.prog, HERE)

    def test_function_that_may_not_be_probed(self) -> None:
        with kit.counter(kit.KPROBE) as program, pytest.raises(AttachError):
            attach(spec("kprobe", "nmi_handle" if X86 else "el1_error"), program.prog, HERE)

    def test_several_functions_in_one_link(self) -> None:
        symbols = (f"{PREFIX}getppid", f"{PREFIX}getuid")
        with kit.counter(kit.KPROBE, attach_type=bpf_link.TRACE_KPROBE_MULTI, pid=os.getpid(), cookie=True) as program:
            link = attach(spec("kprobe_multi", symbols=symbols, cookies=(1, 1000)), program.prog, HERE)
            call(GETPPID)
            call(GETUID, 3)
            link.close()
            call(GETUID)
            assert (program.count, program.cookies) == (ROUNDS + 3, ROUNDS + 3000)

    def test_returns_in_one_link(self) -> None:
        with kit.counter(kit.KPROBE, attach_type=bpf_link.TRACE_KPROBE_MULTI, pid=os.getpid()) as program:
            params = {"retprobe": 1}
            link = attach(spec("kprobe_multi", symbols=(f"{PREFIX}getppid",), params=params), program.prog, HERE)
            call(GETPPID)
            link.close()
            assert program.count == ROUNDS

    def test_session_runs_at_entry_and_return(self) -> None:
        with kit.counter(kit.KPROBE, attach_type=bpf_link.TRACE_KPROBE_SESSION, pid=os.getpid()) as program:
            params = {"session": 1}
            link = attach(spec("kprobe_multi", symbols=(f"{PREFIX}getppid",), params=params), program.prog, HERE)
            call(GETPPID)
            link.close()
            assert program.count == 2 * ROUNDS

    def test_what_expands_attaches(self) -> None:
        """A wildcard over hundreds of functions: one link, as written in the bundle."""
        found = points(["kprobe:vfs_*", "kprobe:tcp_*"][0]) + points("kprobe:tcp_*")
        symbols = tuple(point.function for point in found if dict(point.params).get("multi"))
        assert len(symbols) > 100
        with kit.counter(kit.KPROBE, attach_type=bpf_link.TRACE_KPROBE_MULTI, pid=os.getpid()) as program:
            link = attach(spec("kprobe_multi", symbols=symbols), program.prog, HERE)
            Path("/proc/self/comm").read_bytes()
            link.close()
            assert program.count

    def test_thousands_attach(self) -> None:
        symbols = tuple(point.function for point in points("kprobe:_*"))
        assert len(symbols) > 3000
        with kit.counter(kit.KPROBE, attach_type=bpf_link.TRACE_KPROBE_MULTI, pid=os.getpid()) as program:
            attach(spec("kprobe_multi", symbols=symbols), program.prog, HERE).close()

    def test_listing_is_what_ftrace_lists(self) -> None:
        listed = [line.removeprefix("kprobe:") for line in list_probes("kprobe:*")]
        assert len(listed) > 20_000
        assert listed == sorted(set(listed))
        with open("/sys/kernel/tracing/available_filter_functions") as file:
            names = {line.split()[0] for line in file}
        assert set(listed) <= names
        assert "vfs_read" in listed
        assert "kprobe:vmlinux:vfs_read" in list(list_probes("kprobe:vmlinux:vfs_r*"))
        lines = list(list_probes("kprobe:vfs_read", verbose=True))
        assert lines == [
            "kprobe:vfs_read",
            "    struct file * file",
            "    char * buf",
            "    size_t count",
            "    loff_t * pos",
        ]


class TestTyped:
    @pytest.mark.parametrize(
        ("kind", "attach_type"), [("fentry", bpf_link.TRACE_FENTRY), ("fexit", bpf_link.TRACE_FEXIT)]
    )
    def test_counts_calls(self, types: KernelTypes, kind: str, attach_type: int) -> None:
        (point,) = points(f"{kind}:vfs_read")
        id = types.find("f", point.function)
        with kit.counter(kit.TRACING, attach_type=attach_type, btf_id=id, pid=os.getpid()) as program:
            link = attach(spec("trace", point.function), program.prog, HERE)
            self.read()
            count = program.count
            link.close()
            self.read()
            assert program.count == count == ROUNDS

    def read(self) -> None:
        with open("/dev/null", "rb", buffering=0) as file:
            for _ in range(ROUNDS):
                os.read(file.fileno(), 1)

    def test_cookie(self, types: KernelTypes) -> None:
        id = types.find("f", "vfs_read")
        with kit.counter(
            kit.TRACING, attach_type=bpf_link.TRACE_FENTRY, btf_id=id, pid=os.getpid(), cookie=True
        ) as program:
            link = attach(spec("trace", cookies=(9,), params={"type": bpf_link.TRACE_FENTRY}), program.prog, HERE)
            self.read()
            link.close()
            assert (program.count, program.cookies) == (ROUNDS, 9 * ROUNDS)

    def test_listing(self) -> None:
        listed = list(list_probes("fentry:*"))
        assert len(listed) > 20_000
        assert listed == sorted(listed)
        assert "fentry:vmlinux:vfs_read" in listed
        lines = list(list_probes("fexit:vfs_read", verbose=True))
        assert lines[0] == "fexit:vmlinux:vfs_read"
        assert lines[1] == "    struct file * file"
        assert lines[-1] == "    ssize_t retval"

    def test_raw_tracepoints_of_the_list_attach(self, types: KernelTypes) -> None:
        names = [line.split(":")[-1] for line in list_probes("rt:vmlinux:sched_*")]
        assert "sched_switch" in names
        for name in names[:6]:
            proto = types.tracepoint(name)
            assert proto is not None
            with kit.counter(kit.TRACING, attach_type=bpf_link.TRACE_RAW_TP, btf_id=proto.id) as program:
                attach(spec("trace", name), program.prog, HERE).close()


class TestHooks:
    def test_counts_opens(self, types: KernelTypes) -> None:
        (point,) = points("lsm:file_open")
        id = types.find("f", f"bpf_lsm_{point.function}")
        with kit.counter(LSM, attach_type=bpf_link.LSM_MAC, btf_id=id, pid=os.getpid()) as program:
            link = attach(spec("trace", "file_open"), program.prog, HERE)
            for _ in range(20):
                os.close(os.open("/dev/null", os.O_RDONLY))
            count = program.count
            link.close()
            os.close(os.open("/dev/null", os.O_RDONLY))
            assert program.count == count == 20


@pytest.mark.skipif(not IN_GUEST, reason="only in a test kernel: touches its loopback interface and modules")
class TestMachine:
    def send(self, count: int = 20) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.bind(("127.0.0.1", 0))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for _ in range(count):
                    sender.sendto(b"x" * 100, receiver.getsockname())

    @pytest.fixture(autouse=True)
    def _loopback(self) -> None:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

    def test_xdp(self) -> None:
        with kit.counter(kit.XDP, attach_type=bpf_link.XDP, result=2) as program:
            link = attach(spec("xdp", "lo"), program.prog, HERE)
            self.send()
            with (
                kit.counter(kit.XDP, attach_type=bpf_link.XDP, result=2) as second,
                pytest.raises(AttachError, match="another XDP program"),
            ):
                attach(spec("xdp", "lo"), second.prog, HERE)
            link.close()
            self.send()
            assert program.count == 20

    @pytest.mark.parametrize("egress", [0, 1])
    def test_tc(self, egress: int) -> None:
        attach_type = bpf_link.TCX_EGRESS if egress else bpf_link.TCX_INGRESS
        (point,) = points(f"tc:lo:{'egress' if egress else 'ingress'}")
        with kit.counter(kit.SCHED_CLS, attach_type=attach_type, result=-1) as program:
            link = attach(spec("tc", point.function, params={"egress": egress}), program.prog, HERE)
            self.send()
            link.close()
            self.send()
            assert program.count == 20

    @pytest.fixture
    def dummy(self) -> Iterator[str]:
        if not shutil.which("modprobe"):
            pytest.skip("no modprobe")
        if subprocess.run(["modprobe", "dummy"], check=False).returncode:
            pytest.skip("no module to load")
        yield "dummy"
        subprocess.run(["modprobe", "-r", "dummy"], check=True)

    def test_module_functions(self, dummy: str) -> None:
        found = points(f"kprobe:{dummy}:*")
        names = [point.function for point in found]
        assert "dummy_xmit" in names
        assert all(point.module == dummy for point in found)
        assert f"kprobe:{dummy}:dummy_xmit" in list(list_probes(f"kprobe:{dummy}:*"))
        assert [p.name for p in points(f"kprobe:{dummy}:dummy_xmit")] == [f"kprobe:{dummy}:dummy_xmit"]
        assert [p.name for p in points("kprobe:dummy_xmit")] == ["kprobe:dummy_xmit"]
        with kit.counter(kit.KPROBE) as program:
            link = attach(spec("kprobe", f"{dummy}:dummy_xmit"), program.prog, HERE)
            subprocess.run(
                "ip link add d0 type dummy && ip addr add 10.9.9.1/24 dev d0 && ip link set d0 up",
                shell=True,
                check=True,
            )
            before = program.count
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                for _ in range(7):
                    sender.sendto(b"x", ("10.9.9.255", 9))
            assert program.count - before >= 7
            link.close()
            subprocess.run(["ip", "link", "del", "d0"], check=True)

    def test_module_types(self, dummy: str) -> None:
        (point,) = points(f"fentry:{dummy}:dummy_xmit")
        assert point.name == f"fentry:{dummy}:dummy_xmit"
        assert [p.name for p in points("fentry:dummy_xmit")] == [point.name]
        args = RealEnvironment().args(point)
        assert args.fields is not None
        assert [field.name for field in args.fields.fields] == ["skb", "dev"]
        types = KernelTypes()
        assert dummy in types.modules()
        assert types.prototype("dummy_xmit", dummy) is not None
        assert types.prototype("dummy_xmit") is None

    def test_module_that_is_not_loaded(self) -> None:
        with pytest.raises(BpfsealError, match="not loaded"):
            points("kprobe:no_such_module:f")
