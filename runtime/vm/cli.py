"""`bpfseal vm`: run one command in a test kernel."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bpfseal.errors import UsageError
from bpfseal.runtime.vm.boot import boot, enforce
from bpfseal.runtime.vm.machine import Machine

__all__ = ["main"]

_DESCRIPTION = """\
Boot a stock Debian kernel under QEMU, with this machine's own files as its root file system, and run one
command in it as root. Its output and exit status are passed on. Whatever the command writes is gone
afterwards: the host's files are read-only, and changes go to the guest's memory.
"""

_EPILOG = """\
examples:
  bpfseal vm --kernel 7.3 -- uname -r
  bpfseal vm --kernel 7.3 --enforce -- bpfseal -e 'BEGIN { printf("signed\\n"); exit(); }'
  bpfseal vm --kernel 6.18 --share results -- sh -c 'dmesg > results/dmesg.txt'

kernels:
  A series (6.18, 7.2, 7.3) or an exact version (7.3.4). 6.18 and 7.2 verify signatures of BPF programs by
  the first ABI, 7.3 by the second. A kernel is downloaded from Debian once, to ~/.cache/bpfseal/kernels.

in the guest:
  The working directory is yours, PATH starts with the directory of this Python interpreter. /tmp and /run
  are empty. There is no network but the loopback. Standard input is passed on unless it is a terminal.

exit status:
  that of the command; 1 when the machine failed or time ran out, 2 for wrong usage.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"vm: {message}", hint="bpfseal vm --help shows how it is used")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bpfseal vm",
        usage="bpfseal vm [--kernel VERSION] [--enforce] [OPTION…] -- COMMAND [ARGUMENT…]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--kernel", default="6.18", metavar="VERSION", help="series or version of the kernel (default: 6.18)")
    add("--enforce", action="store_true", help="first turn on enforcement: only signed BPF programs load")
    add("--mem", default="1G", metavar="SIZE", help="memory of the guest, as 2G or 1536M (default: 1G)")
    add("--cpus", type=int, default=2, metavar="N", help="processors of the guest (default: 2)")
    add("--timeout", type=float, default=300.0, metavar="S", help="hard limit in seconds (default: 300)")
    add("--share", action="append", default=[], metavar="DIR", help="let the guest write to this directory")
    add("--rw", action="store_true", help="let the guest write to all of the host's files")
    add("--keep-tmp", action="store_true", help="show the host's /tmp instead of an empty one")
    add("--append", default="", metavar="TEXT", help="more parameters for the kernel")
    add("--keep-log", type=Path, metavar="FILE", help="write the kernel's console there")
    add("--quiet", action="store_true", help="nothing on stderr but the command's own and errors")
    add("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str]) -> int:
    """`argv` without `bpfseal vm`. Returns the exit status; raises BpfsealError."""
    parser = _parser()
    options = parser.parse_args(argv)
    command: list[str] = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("no command given: put it after --")
    if not 0 < options.timeout <= 1e6:  # neither nan nor inf
        parser.error("--timeout must be positive, and at most a million seconds")
    if not 1 <= options.cpus <= 64:
        parser.error("--cpus must be from 1 to 64")
    try:
        return _run(options, command)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # nobody reads our output any more
        return 128 + signal.SIGPIPE


def _run(options: argparse.Namespace, command: list[str]) -> int:
    def say(text: str) -> None:
        if not options.quiet:
            print(f"bpfseal vm: {text}", file=sys.stderr, flush=True)

    deadline = time.monotonic() + options.timeout
    with boot(
        options.kernel,
        memory=options.mem,
        cpus=options.cpus,
        writable=options.rw,
        shares=options.share,
        keep_tmp=options.keep_tmp,
        parameters=options.append,
        boot_timeout=options.timeout,
        limit=options.timeout + 30,
        console_file=options.keep_log,
        say=say,
    ) as machine:
        for warning in machine.warnings:
            say(warning)
        if options.enforce:
            enforce(machine, timeout=max(0.1, deadline - time.monotonic()))
        with _interrupts(machine):
            return machine.run(
                command,
                timeout=max(0.1, deadline - time.monotonic()),
                input=_standard_input(),
                on_stdout=lambda data: _pass_on(1, data),
                on_stderr=lambda data: _pass_on(2, data),
            ).status


@contextlib.contextmanager
def _interrupts(machine: Machine) -> Iterator[None]:
    """Ctrl-C and SIGTERM go to the command, which may have something to print; a second one ends the machine."""
    seen: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        # not from here: the main thread may be holding the lock that sending needs
        threading.Thread(target=machine.signal, args=(number,), daemon=True).start()

    old = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _standard_input() -> int | bytes:
    """Descriptor 0, unless it is a terminal (nobody can type to the guest) or closed."""
    try:
        os.fstat(0)
        return b"" if os.isatty(0) else 0
    except OSError:
        return b""


def _pass_on(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
