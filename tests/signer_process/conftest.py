"""Real helpers for tests: a private one, and a system one on a socket of its own, both as processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bpfseal.signer import bundle as wire
from bpfseal.signer import protocol
from bpfseal.signer.bundle import Attach, Attributes, Bundle, ProgramSpec
from bpfseal.signer.client import SignerClient, connect, start_private

POLICY = """
version = 1

[[rule]]
name = "root"
uid = 0
probes = "*"
classes = ["basic", "time", "identity", "map", "output"]
map_types = "*"
per_minute = 0
"""

EXIT = bytes.fromhex("b7000000000000009500000000000000")
TRACEPOINT = 5


def small_bundle(target: str = "syscalls:sys_enter_openat", source: str = "x", insns: bytes = EXIT) -> bytes:
    """A one-program bundle that does nothing on a tracepoint."""
    attach = Attach(kind="perf_tracepoint", probe=f"tracepoint:{target}", target=target)
    program = ProgramSpec(
        name="nothing", type=TRACEPOINT, insns=insns, declared=Attributes(insns=len(insns) // 8), attach=(attach,)
    )
    return wire.encode(Bundle(version=wire.BUNDLE_VERSION, programs=(program,), maps=(), source=source))


def exchange(sock: socket.socket, data: bytes, seconds: float = 5) -> protocol.Reply | None:
    """Send raw bytes; the reply, None when the connection was closed without one."""
    sock.settimeout(seconds)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(data)
    return reply_of(sock)


def reply_of(sock: socket.socket) -> protocol.Reply | None:
    def read(size: int) -> bytes:
        out = b""
        while len(out) < size:
            piece = sock.recv(size - len(out))
            if not piece:
                return b""
            out += piece
        return out

    try:
        header = read(protocol.HEADER.size)
        if not header:
            return None
        return protocol.decode_reply(read(protocol.HEADER.unpack(header)[0]))
    except ConnectionResetError:
        return None


@dataclass
class Helper:
    """A system helper as a child process."""

    process: subprocess.Popen[bytes]
    socket: str
    audit: Path
    policy: Path
    folder: Path
    options: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)

    def client(self) -> SignerClient:
        return connect(path=self.socket)

    def raw(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(self.socket)
        return sock

    @property
    def pid(self) -> int:
        return self.process.pid

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def stop(self) -> str:
        """SIGTERM; what it had written to stderr."""
        self.process.terminate()
        _, err = self.process.communicate(timeout=20)
        return err.decode()

    def start(self) -> Helper:
        self.process = spawn(self.folder, *self.options, env=self.env)
        return self


def spawn(folder: Path, *options: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bpfseal.signer", "run", "--socket", str(folder / "run" / "signer.sock")]
    command += ["--policy", str(folder / "policy.toml"), "--audit", str(folder / "log"), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=dict(os.environ) | (env or {}))
    deadline = time.monotonic() + 120  # emulated kernels are slow
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(str(folder / "run" / "signer.sock"))
            if isinstance(exchange(probe, protocol.frame(protocol.Hello()), 60), protocol.Welcome):
                return process
        time.sleep(0.01)
    return process


@contextlib.contextmanager
def running(policy: str = POLICY, *options: str, env: dict[str, str] | None = None) -> Iterator[Helper]:
    """A helper in a folder that other users can reach."""
    folder = Path(tempfile.mkdtemp(prefix="bpfseal-test-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "run").mkdir(mode=0o755)
    (folder / "policy.toml").write_text(policy)
    helper = Helper(
        spawn(folder, *options, env=env),
        str(folder / "run" / "signer.sock"),
        folder / "log" / "audit.jsonl",
        folder / "policy.toml",
        folder,
        options,
        env or {},
    )
    try:
        assert helper.process.poll() is None, helper.process.stderr and helper.process.stderr.read()
        yield helper
    finally:
        if helper.process.poll() is None:
            helper.process.kill()
        helper.process.communicate()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def helper() -> Iterator[Helper]:
    """A system helper shared by the tests of a module."""
    with running() as one:
        yield one


@pytest.fixture
def private(tmp_path: Path) -> Iterator[SignerClient]:
    with start_private(audit=str(tmp_path / "audit" / "audit.jsonl")) as client:
        yield client


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become other users")


def as_user(uid: int, gid: int, action: Callable[[], str]) -> str:
    """What `action` returns in a child process of that user, without capabilities or groups."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            answer = action()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(write, answer.encode()[:60000])
        os._exit(0)
    os.close(write)
    data = b""
    while piece := os.read(read, 65536):
        data += piece
    os.close(read)
    os.waitpid(child, 0)
    return data.decode()
