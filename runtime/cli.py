"""`bpfseal`: the command line. Dispatches to a subcommand or runs a trace; turns errors into one line.

Imports of a subcommand happen when it is chosen: start-up is a feature.
"""

from __future__ import annotations

import gc
import os
import sys

from bpfseal.errors import BpfsealError, UsageError

TYPE_CHECKING = False  # `typing` takes longer to import than most commands to run
if TYPE_CHECKING:
    from typing import Any, NoReturn

# The bpftrace whose language ours is; what asks for a version finds it in a line of its own.
LANGUAGE = "0.27"

# name → (module with main(argv) -> int, one line for --help)
COMMANDS = {
    "build": ("bpfseal.runtime.ahead.build", "a script or an object of clang's to a file that can be sealed"),
    "seal": ("bpfseal.runtime.ahead.seal", "sign a file ahead of time, with a key of yours"),
    "run": ("bpfseal.runtime.ahead.run", "trace with a file that `build` made"),
    "inspect": ("bpfseal.runtime.ahead.inspect", "what is in such a file"),
    "verify": ("bpfseal.runtime.ahead.verify", "whether its seals are those of a certificate"),
    "check": ("bpfseal.runtime.check", "parse, check and compile without privileges and without attaching"),
    "doctor": ("bpfseal.runtime.doctor", "what this kernel can do, and why not"),
    "exec": ("bpfseal.runtime.exec_command", "run a command whose BPF programs are sealed for it"),
    "enforce": ("bpfseal.runtime.enforce", "on | off | status | log: require signatures on this kernel"),
    "signer": ("bpfseal.runtime.signer_command", "run, ask and audit the signing helper"),
    "vm": ("bpfseal.runtime.vm.cli", "run a command inside a test kernel"),
}


def main(argv: list[str] | None = None) -> int:
    """Exit status of the command line `argv` (default: this process's)."""
    arguments = sys.argv[1:] if argv is None else argv
    # msgspec looks for typing_extensions, which it does not need, and which brings inspect along: 12 ms.
    sys.modules.setdefault("typing_extensions", None)  # type: ignore[arg-type]
    if sys.stdin is None or sys.stdout is None or sys.stderr is None:
        _fill_standard_descriptors()
    try:
        return _dispatch(arguments)
    except BpfsealError as error:
        report(error)
        return error.status
    except BrokenPipeError:
        return _broken_pipe()
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        return _not_written(error)
    except RecursionError:
        sys.stderr.write("ERROR: the program is nested too deeply\n")
        return 1
    except MemoryError:
        sys.stderr.write("ERROR: out of memory\n")
        return 1


def console() -> NoReturn:
    """`main` as a process of its own. Never returns.

    Two costs of Python that a command does not need are left out, 20 ms of a cached one-liner's 100: walks of the
    collector over what the imports made, and taking the interpreter down piece by piece before the kernel does it.
    """
    gc.set_threshold(50_000, 20, 100)
    status = main()
    try:
        sys.stdout.flush()
    except OSError as error:
        status = _broken_pipe() if isinstance(error, BrokenPipeError) else _not_written(error)
    threads = sys.modules.get("threading")
    if "atexit" not in sys.modules and (threads is None or threads.active_count() == 1):
        os._exit(status)
    sys.exit(status)


def report(error: BpfsealError) -> None:
    """Write `error` to stderr: with carets where it has source, else as one line and its hint. The words in front are
    bpftrace's, for the people and programs that look for them."""
    render = getattr(error, "render", None)
    if render is not None:
        sys.stderr.write(render() + "\n")
        return
    sys.stderr.write(f"ERROR: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"HINT: {error.hint}\n")


def _dispatch(arguments: list[str]) -> int:
    if arguments and arguments[0] in COMMANDS:
        if arguments[0] != "exec":  # which does without most of it
            import_lightly()
        module = COMMANDS[arguments[0]][0]
        __import__(module)  # what is in `importlib` takes a millisecond to get at
        status: int = sys.modules[module].main(arguments[1:])
        return status
    if len(arguments) == 2 and arguments[0] == "-l" and not arguments[1].startswith("-"):
        # A listing is over before the options of a trace are imported.
        from os.path import isfile

        if not isfile(arguments[1]):
            from bpfseal.runtime.list_command import of_pattern

            return of_pattern(arguments[1])
    import_lightly()
    from bpfseal.runtime import options as option_parser

    options = option_parser.parse(arguments)
    if options.help:
        from bpfseal.runtime.help import text

        sys.stdout.write(text(COMMANDS))
        return 0
    if options.version:
        from bpfseal import __version__

        sys.stdout.write(f"bpfseal v{__version__}\nbpftrace v{LANGUAGE} (its language)\n")
        return 0
    if options.info:
        from bpfseal.runtime.info import main as info

        return info()
    if options.listing:
        from bpfseal.runtime.list_command import main as list_probes

        return list_probes(options)
    if options.list_source:
        from bpfseal.runtime.source_command import main as list_source

        return list_source(options)
    if options.program is None and options.file is None:
        raise UsageError("nothing to trace: give -e 'PROGRAM' or a FILE", hint="bpfseal --help shows examples")
    from bpfseal.runtime.trace_command import main as trace

    return trace(options)


def import_lightly() -> None:
    """Modules that a trace needs, without what they bring along and do not need: uuid, which msgspec imports, asks
    platform for the name of the system, which is a dozen regular expressions and 8 ms; getopt takes its words from
    gettext if it is there."""
    system = type(sys)("platform")
    vars(system)["system"] = lambda: os.uname().sysname
    spared: dict[str, Any] = {"platform": system, "gettext": None}
    mine = {name: module for name, module in spared.items() if name not in sys.modules}
    sys.modules.update(mine)
    try:
        import getopt  # noqa: F401
        import uuid  # noqa: F401
    finally:
        for name in mine:
            del sys.modules[name]


def _fill_standard_descriptors() -> None:
    """Somebody closed 0, 1 or 2: what is opened next would get the number, and be written to as if it were stdout."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _broken_pipe() -> int:
    """Nobody reads any more: end as programs do that do not look, by SIGPIPE; shells say nothing about that one."""
    import signal

    _drop_output()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
    return 128 + signal.SIGPIPE


def _not_written(error: OSError) -> int:
    """What a trace writes it watches itself; here it is the text of a listing, a table, a help page."""
    _drop_output()
    where = f"{error.filename}: " if error.filename else ""
    sys.stderr.write(f"ERROR: {where}{error.strerror or error}\n")
    return 1


def _drop_output() -> None:
    """What is still buffered for stdout goes nowhere: the interpreter would try it once more at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
