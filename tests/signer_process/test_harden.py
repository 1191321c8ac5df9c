"""What is left to a helper after it confined itself: attacked from inside, from outside, and read from /proc."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bpfseal.signer import client as client_module
from bpfseal.signer import harden, seccomp
from bpfseal.signer.client import SignerClient
from bpfseal.signer.syscall import syscall

from . import inside
from .conftest import as_user, needs_root, running, small_bundle

ROOT = Path(__file__).resolve().parents[2]
_libc = ctypes.CDLL(None, use_errno=True)


def fields(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def assert_confined(pid: int) -> None:
    state = fields(pid)
    if os.geteuid() == 0:
        assert "0" not in state["Uid"].split() + state["Gid"].split()
        assert state["Groups"] == ""
        only_ipc_lock = f"{1 << 14:016x}"
        for name in ("CapPrm", "CapEff", "CapBnd"):
            assert state[name] in (f"{0:016x}", only_ipc_lock)
    for name in ("CapInh", "CapAmb"):
        assert int(state[name], 16) == 0
    assert state["NoNewPrivs"] == "1"
    assert state["Seccomp"] == "2"
    assert state["Threads"] == "1"


def test_private_helper(private: SignerClient) -> None:
    state = private.status()
    assert_confined(state.pid)
    for word in ("not dumpable", "no core dumps", "no new privileges", "seccomp filter"):
        assert word in state.hardening
    limits = Path(f"/proc/{state.pid}/limits").read_text()
    core = next(line for line in limits.splitlines() if line.startswith("Max core"))
    assert core.split()[4:6] == ["0", "0"]


def test_system_helper() -> None:
    with running() as helper, helper.client() as client:
        client.seal(small_bundle())
        assert_confined(helper.pid)


@needs_root
def test_memory_is_locked(private: SignerClient) -> None:
    state = private.status()
    if "memory locked" not in state.hardening:
        pytest.skip(f"not here: {state.hardening}")
    assert state.locked_kib >= state.rss_kib


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the attacks use x86-64 call numbers")
def test_attacks_from_inside(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    code = f"import sys; sys.path += sys.argv[1].split(chr(10)) + [{str(ROOT)!r}]; "
    code += "from tests.signer_process.inside import main; main()"
    command = [sys.executable, "-I", "-S", "-c", code, "\n".join(client_module.import_folders())]
    settings = {
        "parent": os.getpid(),
        "policy": "",
        "unsafe": 0,
        "audit": tmp_path / "a" / "a.jsonl",
        "death_signal": 1,
    }
    command += [f"{name}={value}" for name, value in settings.items()]
    os.dup2(theirs.fileno(), 3, inheritable=True) if theirs.fileno() != 3 else os.set_inheritable(3, True)
    process = subprocess.run(command, pass_fds=(3,), stderr=subprocess.PIPE, timeout=60, check=False)
    ours.close()
    answers = dict(line.split("\t") for line in process.stderr.decode().splitlines() if "\t" in line)
    assert set(answers) == {*inside.ACTIONS, *inside.ALLOWED}, process.stderr.decode()
    for name in inside.ALLOWED:
        assert answers[name] == "ok", name
    refused = {str(errno.EPERM), str(errno.EACCES), "RuntimeError"}
    assert {name: answers[name] for name in inside.ACTIONS if answers[name] not in refused} == {}
    assert not Path("/tmp/bpfseal-escaped").exists()


# From outside, as the same uid ------------------------------------------------------------


def ptrace_attach(pid: int) -> None:
    if _libc.ptrace(ctypes.c_long(16), ctypes.c_long(pid), None, None) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def take_descriptor(pid: int) -> None:
    os.close(syscall("pidfd_getfd", os.pidfd_open(pid), 0, 0))


def read_memory(pid: int) -> None:
    buffer = ctypes.create_string_buffer(8)
    local = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(buffer), 8))
    remote = ctypes.create_string_buffer(struct.pack("QQ", id(None), 8))
    syscall("process_vm_readv", pid, local, 1, remote, 1, 0)


OUTSIDE: dict[str, Callable[[int], object]] = {
    "ptrace": ptrace_attach,
    "pidfd_getfd": take_descriptor,
    "process_vm_readv": read_memory,
    "/proc/PID/mem": lambda pid: open(f"/proc/{pid}/mem", "rb").close(),
    "/proc/PID/maps": lambda pid: Path(f"/proc/{pid}/maps").read_text(),
    "/proc/PID/environ": lambda pid: Path(f"/proc/{pid}/environ").read_text(),
    "/proc/PID/exe": lambda pid: os.readlink(f"/proc/{pid}/exe"),
    "/proc/PID/fd": lambda pid: os.listdir(f"/proc/{pid}/fd"),
}


def attempt(action: Callable[[int], object], pid: int) -> str:
    try:
        action(pid)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


@needs_root
@pytest.mark.parametrize("name", sorted(OUTSIDE))
def test_attacks_by_the_same_uid(private: SignerClient, name: str) -> None:
    """Positive control first: an ordinary process of that uid can be attacked in the same way."""
    pid = private.status().pid
    uid = int(fields(pid)["Uid"].split()[0])

    def attack() -> str:
        # An exec makes a process dumpable again that a change of uid made not.
        victim = os.posix_spawn("/bin/sleep", ["sleep", "20"], {})
        time.sleep(0.1)
        control = attempt(OUTSIDE[name], victim)
        os.kill(victim, 9)
        return f"{control} {attempt(OUTSIDE[name], pid)}"

    control, outcome = as_user(uid, uid, attack).split()
    if control not in ("ok", "EFAULT"):  # EFAULT: permitted, at an address that is not there
        pytest.skip(f"not even an ordinary process can be attacked this way here ({control})")
    assert outcome in ("EPERM", "EACCES")


# Parts ------------------------------------------------------------


def test_filter_refuses_other_architectures_first() -> None:
    program = seccomp.build(listening=True, token=False)
    code, jt, jf, k = struct.unpack_from("HBBI", program, 8)
    assert (code, jt, jf) == (0x15, 1, 0)
    assert k in (0xC000003E, 0xC00000B7)
    assert struct.unpack_from("HBBI", program, 16) == (0x06, 0, 0, 0x80000000)
    assert struct.unpack_from("HBBI", program, len(program) - 8) == (0x06, 0, 0, 0x00050001)


def test_filter_jumps_stay_inside() -> None:
    for listening in (False, True):
        for token in (False, True):
            program = seccomp.build(listening=listening, token=token)
            count = len(program) // 8
            for index in range(count):
                code, jt, jf, _ = struct.unpack_from("HBBI", program, 8 * index)
                if code & 7 == 5:
                    assert index + 1 + max(jt, jf) < count


def test_scratch_uids_are_nobody_elses() -> None:
    assert harden.SCRATCH_BASE > 0x6FFFFFFF  # systemd-nspawn's last
    assert harden.scratch_uid() < 1 << 31


def test_not_accepting_connections_means_not_being_able_to() -> None:
    private, system = (seccomp.build(listening=value, token=False) for value in (False, True))
    number = {"x86_64": 288, "aarch64": 242}[platform.machine()]

    def mentions(program: bytes) -> bool:
        return any(struct.unpack_from("HBBI", program, at)[::3] == (0x15, number) for at in range(0, len(program), 8))

    assert (mentions(private), mentions(system)) == (False, True)
