"""bpfseal's command line in a fork of this process, where everything is imported already and the code generator is
warm: in an emulated kernel that is the difference between seconds and a minute."""

from __future__ import annotations

import os
import select
import signal
import sys
import tempfile
import time
from functools import cache

SIGNING = os.environ.get("BPFSEAL_TEST_SIGNING", "auto")
IN_GUEST = os.environ.get("BPFSEAL_GUEST", "") == "1"
ATTACHED = "__BPFTRACE_NOTIFY_PROBES_ATTACHED"


@cache
def warm() -> None:
    """Import what a trace needs, and compile one."""
    from bpfseal.runtime import api, attach, cli, listing, load, session, trace_command  # noqa: F401
    from bpfseal.runtime.build import Request, build
    from bpfseal.signer import client  # noqa: F401

    build(Request(text='begin { printf("%d", pid); @ = count(); }', cache=False))


class Trace:
    """A running `bpfseal ARGUMENTS`; its standard output and, at the end, what it wrote to standard error."""

    def __init__(self, *arguments: str, quiet: bool = True) -> None:
        warm()
        self.arguments = ("-q", *arguments) if quiet else arguments
        self.status: int | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self._out, into = os.pipe()
        self._buffer = b""
        self.pid = os.fork()
        if self.pid == 0:
            self._be(into)
        os.close(into)

    def _be(self, into: int) -> None:
        status = 99
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler)
            os.dup2(into, 1)
            os.dup2(self._errors.fileno(), 2)
            sys.stdin = open(os.devnull)  # noqa: SIM115
            sys.stdout = os.fdopen(1, "w", buffering=1)
            sys.stderr = os.fdopen(2, "w", buffering=1)
            os.environ["__BPFTRACE_NOTIFY_PROBES_ATTACHED"] = "1"
            from bpfseal.runtime.cli import main

            status = main(["--signing", SIGNING, "--no-cache", *self.arguments])
            sys.stdout.flush()
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def line(self, timeout: float = 120) -> str:
        """The next line of output, "" at its end."""
        end = time.monotonic() + timeout
        while b"\n" not in self._buffer and self._more(end):
            pass
        text, _, self._buffer = self._buffer.partition(b"\n")
        return text.decode(errors="replace")

    def _more(self, end: float) -> bool:
        ready, _, _ = select.select([self._out], [], [], max(0.0, end - time.monotonic()))
        data = os.read(self._out, 65536) if ready else b""
        self._buffer += data
        return bool(data)

    def wait_until_attached(self) -> None:
        """Raises AssertionError with what it said instead."""
        first = self.line()
        if first != ATTACHED:
            out, err = self.end()
            raise AssertionError("\n".join((first, out, err)))

    def signal(self, number: int) -> None:
        if self.status is None:
            os.kill(self.pid, number)

    def end(self, number: int = 0, timeout: float = 120) -> tuple[str, str]:
        """The rest of its output and its errors, after signal `number`; waits until it has ended."""
        if number:
            self.signal(number)
        if self.status is None:
            end = time.monotonic() + timeout
            while self._more(end):
                pass
            os.close(self._out)
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._errors.seek(0)
        return self._buffer.decode(errors="replace"), self._errors.read().decode(errors="replace")


def run(*arguments: str) -> tuple[int, str, str]:
    """Status, output and errors of a whole run."""
    trace = Trace(*arguments)
    out, err = trace.end()
    assert trace.status is not None
    return trace.status, out.removeprefix(ATTACHED), err
