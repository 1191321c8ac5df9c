"""`bpfseal exec`: run a command whose BPF programs are sealed for it.

    bpfseal exec [--signing MODE] [--policy FILE] [--unsafe] [-v] -- COMMAND ARGUMENTS…

For tools that know nothing of signatures, on kernels that require them. docs/exec.md says what can be carried over.
"""

from __future__ import annotations

import os
import sys

from bpfseal.errors import BpfsealError, UsageError

HELP = """\
usage: bpfseal exec [OPTIONS] -- COMMAND [ARGUMENT …]

Run a command whose BPF programs are analysed, put to policy, sealed and loaded for it.

  --signing MODE   auto (default), require or off
  --policy FILE    policy of a private helper, instead of the system's
  --unsafe         let a private helper sign what changes other programs
  -v, --verbose    a line for every program, loaded or not
  -h, --help       this text
"""


def main(argv: list[str]) -> int:
    """`argv` without `bpfseal exec`; the command's exit status, 128 and the number for one that a signal ended. Raises
    BpfsealError."""
    options, command = _parse(argv)
    if "help" in options:
        sys.stdout.write(HELP)
        return 0
    if not command:
        raise UsageError("no command to run", hint="bpfseal exec -- bpftrace -e 'BEGIN { exit(); }'")
    _look_into_processes()
    from bpfseal.runtime.bridge.supervisor import Supervisor

    supervisor = Supervisor(
        options.get("signing", "auto"), options.get("policy"), unsafe="unsafe" in options, verbose="verbose" in options
    )
    return supervisor.run(command)


_SHORT = {"-v": "--verbose", "-h": "--help"}


def _parse(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """Options by name and the command: what follows `--` or the last option. By hand, since every command under the
    bridge starts only after this."""
    options: dict[str, str] = {}
    rest = list(argv)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        if word == "--":
            break
        name, equals, value = _SHORT.get(word, word).partition("=")
        if name in ("--signing", "--policy"):
            if not equals and not rest:
                raise UsageError(f"{name} needs a value", hint="bpfseal exec --help")
            options[name[2:]] = value if equals else rest.pop(0)
        elif name in ("--unsafe", "--verbose", "--help") and not equals:
            options[name[2:]] = ""
        else:
            raise UsageError(f"unknown option {word}", hint="bpfseal exec --help")
    if options.get("signing", "auto") not in ("auto", "require", "off"):
        raise UsageError(f"--signing is auto, require or off, not {options['signing']}")
    return options, rest


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
