"""The `-c` child: forked at once, held before its exec until every probe is attached.

It is held on a pipe, not stopped by a signal: a probe that fires in the child then is the program's own doing, and a
tracer that dies lets go of the pipe, upon which the child exits without running anything.
"""

from __future__ import annotations

import ctypes
import os
import signal

from bpfseal.errors import BpfsealError
from bpfseal.signer.syscall import syscall

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h


class Child:
    """A held process. `pidfd` becomes readable when it ends."""

    def __init__(self, command: str) -> None:
        """Fork. Raises BpfsealError when `command` is empty, unbalanced or names no executable."""
        import shlex

        try:
            self.argv = shlex.split(command)
        except ValueError as error:
            raise BpfsealError(f"cannot split the command {command!r}: {error}") from None
        if not self.argv:
            raise BpfsealError("empty command")
        self.path = _find(self.argv[0])
        self.status: int | None = None
        gate, self._gate = os.pipe2(os.O_CLOEXEC)
        self._failure, failure = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            _child(self.path, self.argv, gate, self._gate, failure)
        os.close(gate)
        os.close(failure)
        self.pidfd = syscall("pidfd_open", self.pid, 0)

    def release(self) -> None:
        """Let it exec. Raises BpfsealError when the exec failed."""
        if self._gate < 0:
            return
        os.write(self._gate, b"\1")
        os.close(self._gate)
        self._gate = -1
        code = os.read(self._failure, 16)
        os.close(self._failure)
        if code:
            self.wait()
            raise BpfsealError(f"cannot run {self.argv[0]!r}: {os.strerror(int(code))}")

    def wait(self) -> int:
        """Its exit status, 128 + signal where one ended it."""
        if self.status is None:
            _, raw = os.waitpid(self.pid, 0)
            self.status = 128 + os.WTERMSIG(raw) if os.WIFSIGNALED(raw) else os.WEXITSTATUS(raw)
        return self.status

    def poll(self) -> int | None:
        """Its exit status if it has ended."""
        if self.status is None:
            pid, raw = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = 128 + os.WTERMSIG(raw) if os.WIFSIGNALED(raw) else os.WEXITSTATUS(raw)
        return self.status

    def close(self) -> None:
        """End it if it still runs: a trace that is over takes its child along."""
        if self._gate >= 0:
            os.close(self._gate)
            os.close(self._failure)
            self._gate = -1
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)
            self.wait()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def end_with_parent() -> None:
    """In a child: it does not outlive the tracer, however that ends; as in bpftrace."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _find(name: str) -> str:
    import shutil

    found = shutil.which(name)
    if found is None:
        raise BpfsealError(f"cannot find the command {name!r}", hint="give a path or check PATH")
    return found


def _child(path: str, argv: list[str], gate: int, other_end: int, failure: int) -> None:
    """In the child: wait, exec; never returns. Signals are as the parent found them."""
    code = 0
    try:
        os.close(other_end)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        end_with_parent()
        if os.read(gate, 1) != b"\1":
            os._exit(0)
        os.execv(path, argv)
    except OSError as error:
        code = error.errno or 1
        os.write(failure, str(code).encode())
    finally:
        os._exit(127)
