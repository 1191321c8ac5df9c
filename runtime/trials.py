"""Probes of the kinds test and bench: the tracer runs them itself, one after the other (--mode test, --mode bench).

A test passes when its program returns 0, calls exit() with no status but 0, and nothing reports an error. A benchmark
is repeated until the kernel has counted a millisecond of it; what is given is the kernel's own figure (run_time_ns of
bpf_prog_info), which leaves out the system call around each run. A benchmark that returns anything but 0 is passed
over.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import msgspec

from bpfseal.errors import BpfsealError
from bpfseal.runtime.render.resolve import Resolver
from bpfseal.runtime.render.text_output import TextOutput
from bpfseal.runtime.sink import Output, OutputSink

if TYPE_CHECKING:
    from bpfseal.runtime.options import Options
    from bpfseal.runtime.render.trouble import Trouble
    from bpfseal.runtime.session import Session
    from bpfseal.signer.bundle import Attach

_ENOUGH_NS = 1_000_000
_MOST_RUNS = 200_000


class Result(msgspec.Struct, frozen=True):
    """What came of one trial: `failed` says whether, `ns` is the time of one run, `runs` their number, `output` what
    a test wrote."""

    name: str
    failed: bool
    ns: int
    runs: int = 1
    output: str = ""


def run(session: Session, options: Options, output: Output, file: TextIO) -> int:
    """Run begin, the trials of `options.mode` and end; write results to `file`, which `output` writes to as well, what
    end says to `output`. Status 1 when a trial failed. Raises BpfsealError."""
    recorded = _Recorded(session)
    session.begin(OutputSink(recorded, allow_system=options.unsafe))
    trials = [
        (attach, session.program_fd(index))
        for index, program in enumerate(session.bundle.programs)
        for attach in program.attach
        if attach.phase == "attach"
    ]
    attempt = _test if options.mode == "test" else _bench
    results: list[Result] = []
    with _statistics(options.mode == "bench"):
        for number, (attach, fd) in enumerate(trials):
            result = attempt(session, recorded, attach, fd)
            if result is not None:
                results.append(result)
                _write(options, file, results, len(trials), last=number == len(trials) - 1)
    file.flush()
    session.begin(OutputSink(output, allow_system=options.unsafe), again=True)
    session.stop()
    session.finish()
    return int(any(result.failed for result in results))


class _Recorded(TextOutput):
    """Keeps what is said as text, and counts errors."""

    def __init__(self, session: Session) -> None:
        self._text = io.StringIO()
        self.errors = 0
        super().__init__(self._text, Resolver(session).text, quiet=True)

    def take(self) -> tuple[str, int]:
        """What was said since the last call, and the number of errors among it."""
        text, errors = self._text.getvalue(), self.errors
        self._text.seek(0)
        self._text.truncate()
        self.errors = 0
        return text, errors

    def diagnostic(self, kind: str, text: str, where: str, trail: str = "") -> None:
        self.errors += kind == "errorf"
        super().diagnostic(kind, text, where, trail)

    def trouble(self, trouble: Trouble) -> None:
        self.errors += 1
        super().trouble(trouble)

    def native(self) -> None:
        return None

    def _stderr(self, text: str) -> None:
        self._text.write(text)


def _test(session: Session, recorded: _Recorded, attach: Attach, fd: int) -> Result:
    from bpfseal.runtime.attach import run_once

    before = time.monotonic_ns()
    returned = run_once(attach, fd)
    took = time.monotonic_ns() - before
    status = session.settle()
    output, errors = recorded.take()
    return Result(_name(attach), bool(returned or status or errors), took, output=output)


def _bench(session: Session, recorded: _Recorded, attach: Attach, fd: int) -> Result | None:
    from bpfseal.runtime.attach import run_once
    from bpfseal.runtime.bpf_info import prog_info

    for number in range(_MOST_RUNS):
        if run_once(attach, fd) != 0:
            return None
        if number % 64 == 0:
            status = session.settle()
            _, errors = recorded.take()
            info = prog_info(fd)
            if status or errors:
                return Result(_name(attach), True, 0, number + 1)
            if info.run_time_ns >= _ENOUGH_NS:
                break
    session.settle()
    recorded.take()
    info = prog_info(fd)
    return Result(_name(attach), False, info.run_time_ns // max(1, info.run_count), info.run_count)


def _name(attach: Attach) -> str:
    return attach.probe.partition(":")[2]


@contextmanager
def _statistics(wanted: bool) -> Iterator[None]:
    """The kernel counts runs and their time while this is open. Raises BpfsealError."""
    if not wanted:
        yield
        return
    from bpfseal.runtime import bpf

    try:
        fd = bpf.enable_stats()
    except OSError as error:
        raise BpfsealError(f"cannot have the kernel measure programs: {error.strerror}") from None
    try:
        yield
    finally:
        os.close(fd)


def _write(options: Options, file: TextIO, results: list[Result], total: int, *, last: bool) -> None:
    from bpfseal.runtime.render import trials

    if options.format == "json":
        text = trials.json_line(options.mode, results[-1])
    elif options.mode == "test":
        text = trials.test_lines(results, total, last=last, colour=file.isatty())
    else:
        text = trials.bench_lines(results)
    file.write(text)
