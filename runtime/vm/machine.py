"""A booted machine: start it, run commands in it, be rid of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from . import qemu
from .guest.frames import Frame, FrameError, Parser, pack, pack_json
from .kernels import Kernel, obtain
from .result import VmError, VmResult, VmTimeout, VmUnavailable

__all__ = ["Machine", "boot", "enforce", "parse_size", "run"]

BOOT_TIMEOUT = 120.0  # seconds; 4 to 10 are usual under emulation, but the host may be busy
_KILL_GRACE = 5.0  # seconds a command has after SIGKILL before the machine is given up
_CHUNK = 1 << 16

Sink = Callable[[bytes], object]


class _DeadlineError(Exception):
    """Internal: nothing came until the deadline."""


def parse_size(text: str) -> int:
    """`2G`, `512M` or a number of MiB → MiB. Raises ValueError."""
    match = re.fullmatch(r"(\d+)([MmGg]?)", text)
    if match is None:
        raise ValueError(f"not a size: {text!r} (try 2G or 1536M)")
    number = int(match[1]) * (1024 if match[2] in "Gg" and match[2] else 1)
    if not 256 <= number <= 1 << 20:
        raise ValueError(f"memory of {text}: 256M is the least that boots")
    return number


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """Everything that is decided before the first process is started."""

    kernel: Kernel
    memory_mib: int
    cpus: int
    writable: bool
    shares: tuple[str, ...]
    keep_tmp: bool
    parameters: str
    limit: float | None


def _guest_config(plan: _Plan) -> dict[str, Any]:
    """The agent's instructions; read by guest/mounts.py."""
    return {
        "overlay": not plan.writable,
        "volatile_size": "60%",
        "modules": str(plan.kernel.modules),
        "release": plan.kernel.release,
        "keep_tmp": plan.keep_tmp or plan.writable,
        "shares": list(plan.shares),
        "hostname": "bpfseal-vm",
    }


def default_environment() -> dict[str, str]:
    """A short, predictable environment: the interpreter's own directory first, so that `bpfseal` is found."""
    return {
        "PATH": f"{os.path.dirname(sys.executable)}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": os.path.expanduser("~"),
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/sh",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "TMPDIR": "/tmp",
    }


class _Streams:
    """Standard output and error of one command: collected, and handed on as they come."""

    def __init__(self, on_stdout: Sink | None, on_stderr: Sink | None) -> None:
        self._data = {Frame.OUT: bytearray(), Frame.ERR: bytearray()}
        self._sinks = {Frame.OUT: on_stdout, Frame.ERR: on_stderr}

    def take(self, kind: Frame, payload: bytes) -> None:
        if kind in self._data:
            self._data[kind] += payload
            if sink := self._sinks[kind]:
                sink(payload)

    @property
    def collected(self) -> tuple[bytes, bytes]:
        return bytes(self._data[Frame.OUT]), bytes(self._data[Frame.ERR])


class _Feeder:
    """Sends a command's standard input from a thread of its own.

    Input longer than the pipes on the way would otherwise block us while the guest waits for us to read.
    """

    def __init__(self, source: bytes | int, send: Callable[[bytes], None]) -> None:
        self._source = source
        self._send = send
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _chunks(self) -> Iterator[bytes]:
        if isinstance(self._source, bytes):
            yield from (self._source[i : i + _CHUNK] for i in range(0, len(self._source), _CHUNK))
            return
        while True:
            readable, _, _ = select.select([self._source, self._stop_read], [], [])
            if self._stop_read in readable:
                return
            data = os.read(self._source, _CHUNK)
            if not data:
                return
            yield data

    def _run(self) -> None:
        with contextlib.suppress(VmError, OSError):
            for chunk in self._chunks():
                self._send(pack(Frame.STDIN, chunk))
            self._send(pack(Frame.STDIN))

    def stop(self) -> None:
        os.close(self._stop_write)
        self._thread.join()
        os.close(self._stop_read)


class Machine:
    """A running guest. Made by `boot`; one command at a time; use as a context manager.

    `release` is the guest's uname -r, `lsm` its active security modules, `boot_seconds` the wall time from
    the start of QEMU until commands could be run, `warnings` what the guest could not set up.
    """

    def __init__(self, plan: _Plan, *, boot_timeout: float, console_file: Path | None = None) -> None:
        self.release = ""
        self.lsm: tuple[str, ...] = ()
        self.warnings: tuple[str, ...] = ()
        self.boot_seconds = 0.0
        self._plan = plan
        self._parser = Parser()
        self._running = threading.Lock()
        self._sending = threading.Lock()
        self._closed = False
        self._keeper: subprocess.Popen[bytes] | None = None
        self._console: IO[bytes] = (
            open(console_file, "w+b") if console_file else tempfile.TemporaryFile()  # noqa: SIM115
        )
        self._messages: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  what QEMU and virtiofsd say
        self._socket, guest_end = socket.socketpair()
        started = time.monotonic()
        try:
            with guest_end:
                self._start(guest_end)
            self._handshake(started + boot_timeout)
        except BaseException:
            self.kill()
            raise
        self.boot_seconds = time.monotonic() - started

    # ------------------------------------------------------------------ start

    def _start(self, guest_end: socket.socket) -> None:
        plan = self._plan
        console = os.open(f"/proc/self/fd/{self._console.fileno()}", os.O_WRONLY | os.O_APPEND)
        lifeline, self._lifeline = os.pipe()
        plan_read, plan_write = os.pipe()
        fds = (console, guest_end.fileno(), lifeline, plan_read)
        root = os.geteuid() == 0
        keeper_plan = {
            "qemu": qemu.qemu_arguments(
                qemu=qemu.find_qemu(),
                accel=qemu.accelerator(),
                kernel=plan.kernel.image,
                memory_mib=plan.memory_mib,
                cpus=plan.cpus,
                console_fd=console,
                agent_fd=guest_end.fileno(),
                append=qemu.kernel_command_line(plan.parameters),
            ),
            "qemu_fds": [console, guest_end.fileno()],
            "virtiofsd": [
                qemu.find_virtiofsd(),
                "-o",
                f"log_level=err,cache=auto,sandbox={'namespace' if root else 'chroot'}",
            ],
            "writable": plan.writable,
            "shares": list(plan.shares),
            "user_namespace": not root,
            "directory": tempfile.gettempdir(),
            "lifeline": lifeline,
            "limit": plan.limit,
        }
        try:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(__file__).with_name("keeper.py")), str(plan_read)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=self._messages,
                stderr=self._messages,
                cwd="/",
                start_new_session=True,  # the terminal's Ctrl-C is for the command, not for QEMU
            )
            os.write(plan_write, json.dumps(keeper_plan).encode())
        finally:
            for fd in (console, lifeline, plan_read, plan_write):
                os.close(fd)

    def _handshake(self, deadline: float) -> None:
        try:
            self._meet(deadline)
        except _DeadlineError:
            raise VmTimeout("the guest did not come up in time", hint=self._console_hint()) from None

    def _meet(self, deadline: float) -> None:
        for kind, payload in self._frames(deadline):
            if kind is Frame.HELLO:
                self._send(pack_json(Frame.CONFIG, **_guest_config(self._plan)))
            elif kind is Frame.FAILED:
                raise self._failure(f"the guest could not be set up: {json.loads(payload)['message']}")
            elif kind is Frame.READY:
                ready = json.loads(payload)
                self.release = ready["release"]
                self.lsm = tuple(ready["lsm"])
                self.warnings = tuple(ready["warnings"])
                return

    # -------------------------------------------------------------- transport

    def _send(self, data: bytes) -> None:
        try:
            with self._sending:  # a frame must not be split by one from another thread
                self._socket.sendall(data)
        except OSError as error:
            raise self._failure("the guest is gone") from error

    def _frames(self, deadline: float | None) -> Iterator[tuple[Frame, bytes]]:
        """Frames as they come. Raises _DeadlineError at `deadline`, VmError when the guest dies."""
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise _DeadlineError
            readable, _, _ = select.select([self._socket], [], [], left)
            if not readable:
                continue
            try:
                data = self._socket.recv(_CHUNK)
            except ConnectionResetError:
                data = b""
            if not data:
                raise self._failure("the guest died")
            try:
                yield from self._parser.feed(data)
            except FrameError as error:
                raise self._failure(f"the guest agent talks nonsense ({error})") from error

    def _failure(self, message: str) -> VmError:
        """A VmError that carries the likely cause: what QEMU said, or the last lines of the console."""
        if self._keeper is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._keeper.wait(1.0)
        self._messages.seek(0)
        said = [line for line in self._messages.read().decode(errors="replace").splitlines() if _telling(line)]
        if said:
            return VmUnavailable(f"{message}: {said[-1].strip()}")
        return VmError(message, hint=self._console_hint())

    def _console_hint(self) -> str | None:
        lines = [line for line in self.console.splitlines() if line.strip()]
        panic = [line for line in lines if "Kernel panic" in line]
        return f"last line of its console: {(panic or lines)[-1].strip()}" if lines else None

    @property
    def console(self) -> str:
        """Everything the guest's kernel has printed so far."""
        with os.fdopen(os.open(f"/proc/self/fd/{self._console.fileno()}", os.O_RDONLY), "rb") as file:
            return file.read().decode(errors="replace").replace("\r\n", "\n")

    # --------------------------------------------------------------- commands

    def run(
        self,
        command: Sequence[str],
        *,
        timeout: float | None = 60.0,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        input: bytes | int = b"",
        on_stdout: Sink | None = None,
        on_stderr: Sink | None = None,
    ) -> VmResult:
        """Run `command` in the guest and wait for it.

        `env` is added to a small default environment; `cwd` defaults to the caller's; `input` becomes the
        command's standard input: bytes, or a descriptor that is read as long as the command runs. With
        `on_stdout`/`on_stderr`, output is handed over as it arrives (and is in the result too). A command
        that cannot be started has status 127 or 126, like in a shell.

        Raises VmTimeout after `timeout` seconds: the command's process group has been killed then and the
        machine can be used further. Raises VmError when the machine itself fails.
        """
        if not command:
            raise VmError("no command to run in the guest", status=2)
        request = pack_json(
            Frame.RUN,
            command=[os.fspath(word) for word in command],
            env={**default_environment(), **(env or {})},
            cwd=os.fspath(cwd) if cwd is not None else os.getcwd(),
        )
        with self._running:
            if self._closed:
                raise VmError("the machine has been shut down")
            self._send(request)
            feeder = _Feeder(input, self._send)
            try:
                return self._collect(command[0], timeout, _Streams(on_stdout, on_stderr))
            finally:
                feeder.stop()

    def _collect(self, name: str, timeout: float | None, streams: _Streams) -> VmResult:
        started = time.monotonic()
        try:
            status = self._follow(None if timeout is None else started + timeout, streams)
        except _DeadlineError:
            self.signal(signal.SIGKILL)
            try:
                self._follow(time.monotonic() + _KILL_GRACE, streams)
            except _DeadlineError:
                self.kill()
                raise VmTimeout("the guest does not answer", *streams.collected) from None
            raise VmTimeout(f"{name} did not end within {timeout:g} s", *streams.collected) from None
        return VmResult(status, *streams.collected, self.console, time.monotonic() - started)

    def _follow(self, deadline: float | None, streams: _Streams) -> int:
        """Take in frames until the command has ended; returns its status."""
        for kind, payload in self._frames(deadline):
            if kind is Frame.EXIT:
                return int(json.loads(payload)["status"])
            streams.take(kind, payload)
        raise AssertionError("frames end with an exception only")

    def signal(self, number: int) -> None:
        """Send a signal to the process group of the running command (from another thread or a handler)."""
        self._send(pack_json(Frame.SIGNAL, number=int(number)))

    # -------------------------------------------------------------------- end

    def close(self) -> None:
        """Shut the guest down; a guest that does not go within two seconds is killed. Idempotent."""
        if not self._closed and self._keeper is not None and self._plan.writable:
            # only a writable root has anything worth a sync
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._socket.sendall(pack(Frame.OFF))
                self._keeper.wait(2.0)
        self.kill()

    def kill(self) -> None:
        """End QEMU and virtiofsd now. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._socket.close()
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._lifeline)
        if self._keeper is not None:
            try:
                self._keeper.wait(10.0)
            except subprocess.TimeoutExpired:
                self._keeper.kill()
                self._keeper.wait()
        self._messages.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _telling(line: str) -> bool:
    """Is this line of QEMU's or virtiofsd's about a failure? Both also report their everyday doings."""
    lower = line.lower()
    return bool(lower.strip()) and "waiting for vhost-user" not in lower and "received vhost-user" not in lower


def _under_tmp(paths: Iterable[str | os.PathLike[str]]) -> bool:
    return any(os.path.realpath(path).startswith("/tmp/") for path in paths)


def boot(
    kernel: str = "6.18",
    *,
    memory: str | int = "1G",
    cpus: int = 2,
    writable: bool = False,
    shares: Sequence[str | os.PathLike[str]] = (),
    keep_tmp: bool = False,
    parameters: str = "",
    boot_timeout: float = BOOT_TIMEOUT,
    limit: float | None = None,
    console_file: Path | None = None,
    say: Callable[[str], object] | None = None,
) -> Machine:
    """Boot a test kernel with this machine's root file system; returns when commands can be run.

    kernel: a series (`7.3`) or an exact version (`7.3.4`). It is downloaded when it is not in the cache.
    memory: like `2G`, or a number of MiB.
    writable: guest writes reach the host (`--rw`). Otherwise they go to a tmpfs, and the host refuses them.
    shares: host directories that the guest may write to, at the same path.
    keep_tmp: show the host's /tmp (below the overlay) instead of an empty one. Done by itself when the
        working directory, the interpreter or this package live there.
    parameters: more kernel parameters.
    limit: seconds after which the machine is killed whatever it does.

    Raises VmUnavailable when there can be no machine here, VmTimeout, VmError.
    """
    qemu.find_qemu(), qemu.find_virtiofsd()
    try:
        memory_mib = memory if isinstance(memory, int) else parse_size(memory)
    except ValueError as error:
        raise VmError(str(error), status=2) from None
    resolved = []
    for share in shares:
        path = os.path.realpath(share)
        if not os.path.isdir(path):
            raise VmError(f"cannot share {os.fspath(share)}: not a directory", status=2)
        resolved.append(path)
    needed = [sys.executable, sys.prefix, sys.base_prefix, __file__, os.getcwd()]
    plan = _Plan(
        kernel=obtain(kernel, say=say),
        memory_mib=memory_mib,
        cpus=cpus,
        writable=writable,
        shares=tuple(resolved),
        keep_tmp=keep_tmp or _under_tmp(needed),
        parameters=parameters,
        limit=limit,
    )
    return Machine(plan, boot_timeout=boot_timeout, console_file=console_file)


def enforce(machine: Machine) -> None:
    """Turn on enforcement in the guest. Raises VmError with the reason when that fails."""
    result = machine.run([sys.executable, "-m", "bpfseal", "enforce", "on"], timeout=60)
    if result.status:
        lines = (result.stderr or result.stdout).decode(errors="replace").split("\n")
        reason = next((line for line in reversed(lines) if line.strip()), f"status {result.status}")
        raise VmError(f"enforcement could not be turned on in the guest: {reason.strip()}")


def run(
    kernel: str = "6.18",
    *,
    command: Sequence[str],
    timeout: float = 120.0,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    memory: str | int = "1G",
    input: bytes = b"",
    **options: Any,
) -> VmResult:
    """Boot, run one command, be gone. `timeout` covers both; `options` are those of `boot`."""
    started = time.monotonic()
    with boot(kernel, memory=memory, boot_timeout=timeout, limit=timeout + 10, **options) as machine:
        left = max(1.0, timeout - (time.monotonic() - started))
        return machine.run(command, timeout=left, env=env, cwd=cwd, input=input)
