"""A machine: start it, run commands in it, be rid of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from bpfseal.runtime.vm import qemu
from bpfseal.runtime.vm.guest.frames import Frame, FrameError, Parser, pack, pack_json
from bpfseal.runtime.vm.keeper import EXPORT, STATUS_LIMIT
from bpfseal.runtime.vm.kernels import Kernel, cache_directory
from bpfseal.runtime.vm.result import VmError, VmResult, VmTimeout, VmUnavailable
from bpfseal.runtime.vm.streams import Feeder, Output, Sink

__all__ = ["Machine", "Plan", "default_environment", "privileged"]

_KILL_GRACE = 5.0  # seconds a command has after SIGKILL before the machine is given up
_CHUNK = 1 << 16


class _DeadlineError(Exception):
    """Internal: nothing came until the deadline."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What machine it is to be: all that `boot` decides before the first process is started."""

    kernel: Kernel
    memory_mib: int
    cpus: int
    writable: bool
    shares: tuple[str, ...]
    keep_tmp: bool
    parameters: str
    accel: str
    limit: float | None


def _guest_config(plan: Plan) -> dict[str, Any]:
    """The agent's instructions; read by guest/mounts.py."""
    return {
        "overlay": not plan.writable,
        "owner": privileged(),  # may virtiofsd act as the owner of any file?
        "volatile_size": "60%",
        "modules": str(plan.kernel.modules),
        "release": plan.kernel.release,
        "keep_tmp": plan.keep_tmp or plan.writable,
        "shares": list(plan.shares),
        "hostname": "bpfseal-vm",
    }


def privileged() -> bool:
    """May this process make a mount namespace? Otherwise it takes a user namespace as well."""
    with open("/proc/self/status") as file:
        effective = next(line.split()[1] for line in file if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> 21 & 1)  # CAP_SYS_ADMIN


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


def _console(path: Path | None) -> IO[bytes]:
    if path is None:
        return tempfile.TemporaryFile()
    try:
        return open(path, "w+b")
    except OSError as error:
        raise VmError(f"cannot write the console log {path}: {error.strerror}", status=2) from None


class Machine:
    """A running guest. Made by `boot`; one command at a time; use as a context manager.

    `release` is the guest's uname -r, `lsm` its active security modules, `boot_seconds` the wall time from
    the start of QEMU until commands could be run, `warnings` what the guest could not set up.
    """

    def __init__(self, plan: Plan, *, boot_timeout: float, console_file: Path | None = None) -> None:
        self.release = ""
        self.lsm: tuple[str, ...] = ()
        self.warnings: tuple[str, ...] = ()
        self.boot_seconds = 0.0
        self._plan = plan
        self._parser = Parser()
        self._running = threading.Lock()
        self._sending = threading.Lock()
        self._closed = False
        self._lifeline = -1
        self._console_file = console_file
        self._keeper: subprocess.Popen[bytes] | None = None
        self._console = _console(console_file)
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
        keeper_plan = {
            "qemu": qemu.qemu_arguments(
                qemu=qemu.find_qemu(),
                accel=plan.accel,
                kernel=plan.kernel.image,
                memory_mib=plan.memory_mib,
                cpus=plan.cpus,
                console_fd=console,
                agent_fd=guest_end.fileno(),
                append=qemu.kernel_command_line(plan.parameters),
            ),
            "qemu_fds": [console, guest_end.fileno()],
            "virtiofsd": qemu.virtiofsd_arguments(qemu.find_virtiofsd(), EXPORT, privileged=privileged()),
            "writable": plan.writable,
            "shares": list(plan.shares),
            "user_namespace": not privileged(),
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
                with contextlib.suppress(OSError):  # the guest died: the next frame will tell
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
        """Raises OSError. A frame must not be split by one from another thread."""
        with self._sending:
            self._socket.sendall(data)

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
        """A VmError with the likely cause: what QEMU said, or the last lines of the console, which is kept."""
        if self._keeper is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._keeper.wait(2.0)
            if self._keeper.returncode == STATUS_LIMIT:
                return VmTimeout(f"the machine's {self._plan.limit:g} s are over", hint=self._console_hint())
        self._messages.seek(0)
        said = [line for line in self._messages.read().decode(errors="replace").splitlines() if line.strip()]
        said = [line for line in said if not line.startswith("virtio_loop:")]  # virtiofsd, when QEMU is gone
        if not self.console and said:
            hint = None
            if "unshare" in said[-1]:
                hint = "the root file system can be exported with CAP_SYS_ADMIN, or where user namespaces are allowed"
            return VmUnavailable(f"{message}: {said[-1].strip()}", hint=hint)
        detail = f" ({said[-1].strip()})" if said else ""
        return VmError(message + detail, hint=self._console_hint())

    def _console_hint(self) -> str:
        """Keep the console; say where it is and what matters in it."""
        text = self.console
        lines = [line for line in text.splitlines() if line.strip()]
        panic = [line for line in lines if "Kernel panic" in line]
        last = f"its last words: {(panic or lines)[-1].strip()}" if lines else "its console is empty"
        path = self._console_file
        if path is None:
            path = cache_directory() / f"console-{self._plan.kernel.version}.log"
            try:
                path.write_text(text)
            except OSError:
                return last
        return f"{last} (console log: {path})"

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
            with contextlib.suppress(OSError):  # the guest died: the next frame will tell
                self._send(request)
            feeder = Feeder(input, self._send)
            try:
                return self._collect(command[0], timeout, Output(on_stdout, on_stderr))
            except VmTimeout:
                raise
            except BaseException:
                # The command is still running, and the conversation is in the middle of something.
                self.kill()
                raise
            finally:
                feeder.stop()

    def _collect(self, name: str, timeout: float | None, output: Output) -> VmResult:
        started = time.monotonic()
        try:
            status = self._follow(None if timeout is None else started + timeout, output)
        except _DeadlineError:
            self.signal(signal.SIGKILL)
            try:
                self._follow(time.monotonic() + _KILL_GRACE, output)
            except _DeadlineError:
                self.kill()
                raise VmTimeout("the guest does not answer", *output.collected) from None
            raise VmTimeout(f"{name} did not end within {timeout:g} s", *output.collected) from None
        return VmResult(status, *output.collected, self.console, time.monotonic() - started)

    def _follow(self, deadline: float | None, output: Output) -> int:
        """Take in frames until the command has ended; returns its status."""
        for kind, payload in self._frames(deadline):
            if kind is Frame.EXIT:
                return int(json.loads(payload)["status"])
            output.take(kind, payload)
        raise AssertionError("frames end with an exception only")

    def signal(self, number: int) -> None:
        """Send a signal to the process group of the running command (from another thread or a handler)."""
        with contextlib.suppress(OSError):  # `run` finds out by itself that the guest is gone
            self._send(pack_json(Frame.SIGNAL, number=int(number)))

    # -------------------------------------------------------------------- end

    @property
    def alive(self) -> bool:
        """Can commands be run? False once it has been closed or killed, or has died."""
        return not self._closed and self._keeper is not None and self._keeper.poll() is None

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
        if self._lifeline >= 0:
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
