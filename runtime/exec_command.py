"""`bpfseal exec`: run a command whose BPF programs are sealed for it.

    bpfseal exec [--signing MODE] [--policy FILE] [--unsafe] [-v] -- COMMAND ARGUMENTS…

For tools that know nothing of signatures, on kernels that require them. docs/exec.md says what can be carried over.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from bpfseal.errors import BpfsealError, UsageError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(message, hint=f"{self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bpfseal exec",
        usage="%(prog)s [OPTIONS] -- COMMAND [ARGUMENT …]",
        description="Run a command whose BPF programs are analysed, put to policy, sealed and loaded for it.",
    )
    parser.add_argument("--signing", choices=("auto", "require", "off"), default="auto", help="default: auto")
    parser.add_argument("--policy", metavar="FILE", help="policy of a private helper, instead of the system's")
    parser.add_argument("--unsafe", action="store_true", help="let a private helper sign what changes other programs")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for every program, loaded or not")
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str]) -> int:
    """`argv` without `bpfseal exec`; the command's exit status, 128 and the number for one that a signal ended. Raises
    BpfsealError."""
    options = _parser().parse_args(argv)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise UsageError("no command to run", hint="bpfseal exec -- bpftrace -e 'BEGIN { exit(); }'")
    _look_into_processes()
    from bpfseal.runtime.bridge.supervisor import Supervisor

    supervisor = Supervisor(options.signing, options.policy, unsafe=options.unsafe, verbose=options.verbose)
    return supervisor.run(command)


def _look_into_processes() -> None:
    """Programs are read from the command's memory, which Yama can forbid to everybody."""
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope") as file:
            scope = int(file.read())
    except (OSError, ValueError):
        return
    if scope >= 3 or (scope == 2 and os.geteuid() != 0):
        raise BpfsealError(
            f"kernel.yama.ptrace_scope={scope} forbids to look into the command's memory",
            hint="bpfseal's own traces work under it; other tools' programs cannot be read",
        )
