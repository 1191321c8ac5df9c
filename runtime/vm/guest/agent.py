"""The guest agent: process 1 of the test kernel. Mounts, reports, runs one command after the other.

Being process 1 it must never return and must reap every orphan. Any failure before the port is open goes
to the kernel's console; afterwards it is a FAILED frame.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from . import mounts
from .frames import Frame, Parser, pack, pack_json

__all__ = ["main"]

_PORT_WAIT = 20.0  # seconds; the port appears a moment after the device, and emulation is slow
_CHUNK = 1 << 16


def _open_port() -> int:
    """The first virtio-serial port that is not a console: the host made exactly one."""
    deadline = time.monotonic() + _PORT_WAIT
    while True:
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir("/sys/class/virtio-ports")):
                with open(f"/sys/class/virtio-ports/{name}/name") as file:
                    if file.read().strip() == "bpfseal.agent":
                        return os.open(f"/dev/{name}", os.O_RDWR | os.O_CLOEXEC)
        if time.monotonic() > deadline:
            raise OSError(errno.ENODEV, "no virtio-serial port named bpfseal.agent")
        time.sleep(0.01)


def _read_text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def _write_text(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


class _Port:
    """The byte stream to the host."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._parser = Parser()
        self._pending: list[tuple[Frame, bytes]] = []

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]

    def receive(self) -> tuple[Frame, bytes]:
        while not self._pending:
            data = os.read(self.fd, _CHUNK)
            if not data:  # the host closed its end: nobody is left to serve
                _power_off()
            self._pending.extend(self._parser.feed(data))
        return self._pending.pop(0)

    @property
    def buffered(self) -> bool:
        return bool(self._pending)


def _power_off() -> NoReturn:
    mounts.leave()
    os._exit(0)


def _spawn(request: dict[str, Any]) -> tuple[int, int, int, int]:
    """Start the command in a session of its own. Returns pid and our ends of stdin, stdout, stderr."""
    command: list[str] = request["command"]
    env: dict[str, str] = request["env"]
    pairs = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
    (in_read, in_write), (out_read, out_write), (err_read, err_write) = pairs
    pid = os.fork()
    if pid == 0:
        try:
            for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            for source, target in ((in_read, 0), (out_write, 1), (err_write, 2)):
                os.dup2(source, target)
            os.chdir(request["cwd"])
            os.execvpe(command[0], command, env)
        except FileNotFoundError as error:
            name = error.filename if isinstance(error.filename, str) else command[0]
            os.write(2, f"bpfseal vm: {name}: {error.strerror}\n".encode())
            os._exit(127)
        except BaseException as error:
            os.write(2, f"bpfseal vm: {command[0]}: {error}\n".encode())
            os._exit(126)
    for fd in (in_read, out_write, err_write):
        os.close(fd)
    os.set_blocking(in_write, False)
    return pid, in_write, out_read, err_read


def _status(wait_status: int) -> int:
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


class _Command:
    """One running command: streams out, standard input in, ends when the process has and its pipes are dry."""

    # A background process may keep the pipes of a finished command open. After the exit we read what is
    # there, and wait this long for more, then let go; a chatty one is cut off after LINGER_MOST seconds.
    LINGER, LINGER_MOST = 0.1, 1.0

    def __init__(self, port: _Port, request: dict[str, Any]) -> None:
        self.port = port
        self.pid, self.stdin, out, err = _spawn(request)
        self.streams = {out: Frame.OUT, err: Frame.ERR}
        self.input = bytearray()
        self.input_closed = False
        self.status: int | None = None
        self.ended = 0.0

    def run(self, wake: int) -> int:
        while self.status is None or self.streams:
            reading = [wake, *self.streams] + ([] if self.port.buffered else [self.port.fd])
            writing = [self.stdin] if self.stdin >= 0 and self.input else []
            timeout = 0 if self.port.buffered else (self.LINGER if self.status is not None else None)
            readable, writable, _ = select.select(reading, writing, [], timeout)
            if self.status is not None and (
                not any(fd in self.streams for fd in readable) or time.monotonic() > self.ended + self.LINGER_MOST
            ):
                break
            for fd in readable:
                if fd in self.streams:
                    self._pump(fd)
            if wake in readable:
                os.read(wake, _CHUNK)
            if self.port.fd in readable or self.port.buffered:
                self._request(*self.port.receive())
            if writable:
                self._feed()
            self._reap()
        for fd in (*self.streams, *([self.stdin] if self.stdin >= 0 else [])):
            os.close(fd)
        assert self.status is not None
        return self.status

    def _pump(self, fd: int) -> None:
        data = os.read(fd, _CHUNK)
        if data:
            self.port.send(pack(self.streams[fd], data))
        else:
            os.close(fd)
            del self.streams[fd]

    def _request(self, kind: Frame, payload: bytes) -> None:
        if kind is Frame.STDIN:
            if payload:
                self.input += payload
            else:
                self.input_closed = True
            self._feed()
        elif kind is Frame.SIGNAL:
            if self.status is None:
                number = json.loads(payload)["number"]
                try:
                    os.killpg(self.pid, number)
                except ProcessLookupError:  # so young that it has no session of its own yet
                    os.kill(self.pid, number)
        elif kind is Frame.OFF:
            _power_off()

    def _feed(self) -> None:
        if self.stdin < 0:
            return
        try:
            while self.input:
                del self.input[: os.write(self.stdin, self.input)]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.input_closed = True
            self.input.clear()
        if self.input_closed:
            os.close(self.stdin)
            self.stdin = -1

    def _reap(self) -> None:
        _reap_orphans(self._exited)

    def _exited(self, pid: int, status: int) -> None:
        if pid == self.pid:
            self.status = _status(status)
            self.ended = time.monotonic()


def _reap_orphans(exited: Callable[[int, int], None] = lambda _pid, _status: None) -> None:
    """Collect every child that has ended; process 1 inherits those of others too."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        exited(pid, status)


def _setup(config: dict[str, Any]) -> list[str]:
    warnings = mounts.prepare(config)
    os.umask(0o022)
    mounts.loopback_up()
    _write_text("/proc/sys/kernel/hostname", config["hostname"])
    # Guests of one boot are small: a core file would only fill the tmpfs.
    _write_text("/proc/sys/kernel/core_pattern", "|/bin/false")
    return warnings


def _serve(port: _Port, wake: int) -> NoReturn:
    port.send(pack_json(Frame.HELLO, uptime=time.clock_gettime(time.CLOCK_BOOTTIME)))
    kind, payload = port.receive()
    if kind is not Frame.CONFIG:
        raise ValueError(f"expected CONFIG, got {kind.name}")
    warnings = _setup(json.loads(payload))
    port.send(
        pack_json(
            Frame.READY,
            release=os.uname().release,
            lsm=_read_text("/sys/kernel/security/lsm").split(","),
            uptime=time.clock_gettime(time.CLOCK_BOOTTIME),
            warnings=warnings,
        )
    )
    while True:
        if not port.buffered:
            readable, _, _ = select.select([port.fd, wake], [], [])
            if wake in readable:
                os.read(wake, _CHUNK)
                _reap_orphans()
            if port.fd not in readable:
                continue
        kind, payload = port.receive()
        if kind is Frame.OFF:
            _power_off()
        if kind is Frame.RUN:
            status = _Command(port, json.loads(payload)).run(wake)
            port.send(pack_json(Frame.EXIT, status=status))
        # STDIN and SIGNAL for a command that has just ended are late, not wrong.


def main() -> NoReturn:
    """Entry of process 1; never returns. Leaving process 1 is a kernel panic, which ends QEMU."""
    port: _Port | None = None
    try:
        mounts.early()
        port = _Port(_open_port())
        # SIGCHLD must interrupt select(): the wake-up pipe makes that free of races.
        wake, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        _serve(port, wake)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        with contextlib.suppress(BaseException):
            if port is not None:
                port.send(pack_json(Frame.FAILED, message=f"{error}"))
                time.sleep(1)  # let the bytes reach the host before the panic
    os._exit(1)
