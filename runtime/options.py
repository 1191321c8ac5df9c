"""The command line of a trace: options as plain data, parsed with getopt because it costs a millisecond.

bpftrace's flags mean what they mean there; flags of its developers that change nothing for a user are accepted and
ignored, so that scripts and its test runner work unchanged.
"""

from __future__ import annotations

import getopt
import os
import re

import msgspec

from bpfseal.errors import UsageError

SIGNING_MODES = ("require", "auto", "off")


class Options(msgspec.Struct):
    """What a trace was asked to do. `program` is the script's text source: exactly one of program/file/pattern."""

    program: str | None = None
    file: str | None = None
    params: list[str] = msgspec.field(default_factory=list)
    script_params: list[str] = msgspec.field(default_factory=list)
    list_pattern: str | None = None
    listing: bool = False
    list_source: bool = False
    pid: int = 0
    dwarf_pids: tuple[int, ...] = ()
    command: str | None = None
    output: str | None = None
    format: str = "text"
    buffering: str = "auto"
    quiet: bool = False
    verbose: bool = False
    warnings: bool = True
    helper_warnings: bool = False
    unsafe: bool = False
    signing: str = "auto"
    policy: str | None = None
    lifetime: int = 0
    dry_run: bool = False
    debug: list[str] = msgspec.field(default_factory=list)
    include_dirs: list[str] = msgspec.field(default_factory=list)
    includes: list[str] = msgspec.field(default_factory=list)
    usdt_file_activation: bool = False
    debug_info: list[str] = msgspec.field(default_factory=list)
    traceable_functions: str = ""
    probe_filter: str | None = None
    mode: str = ""
    emit_llvm: str | None = None
    raw: bool = False
    flamegraph: str | None = None
    heatmap: str | None = None
    live: bool = False
    pcap: str | None = None
    info: bool = False
    help: bool = False
    version: bool = False
    no_cache: bool = False


_SHORT = "be:lvhVp:c:o:f:B:qkI:d:"
_LONG = [
    "btf",
    "list",
    "list-source",
    "verbose",
    "help",
    "version",
    "info",
    "pid=",
    "cmd=",
    "dwarf-pid=",
    "usdt-file-activation",
    "output=",
    "quiet",
    "warnings",
    "no-warnings",
    "include=",
    "debuginfo=",
    "traceable-functions=",
    "unsafe",
    "no-feature=",
    "mode=",
    "test",
    "bench",
    "probe-filter=",
    "fmt",
    "dry-run",
    "verify-llvm-ir",
    "debug=",
    "emit-elf=",
    "emit-llvm=",
    "signing=",
    "policy=",
    "lifetime=",
    "raw",
    "flamegraph=",
    "heatmap=",
    "live",
    "pcap=",
    "no-cache",
    "format=",
]
# Accepted for compatibility: nothing that a user sees depends on them here.
_IGNORED = {"-b", "--btf", "--verify-llvm-ir", "--no-feature", "--emit-elf"}


def parse(argv: list[str]) -> Options:
    """Options of `argv` (without the program's name). Raises UsageError."""
    options = Options()
    # Everything behind "--" belongs to the script, dashes or not.
    own, script_params = argv, []
    if "--" in argv:
        at = argv.index("--")
        own, script_params = argv[:at], argv[at + 1 :]
    try:
        pairs, rest = getopt.gnu_getopt(own, _SHORT, _LONG)
    except getopt.GetoptError as error:
        from bpfseal.runtime.help import usage

        raise UsageError(f"{error}\n\n{usage()}", hint="bpfseal --help lists the options") from None
    for name, value in pairs:
        _apply(options, name, value)
    _positional(options, rest, script_params)
    return options


def _apply(options: Options, name: str, value: str) -> None:
    match name:
        case "-e":
            # Of several the last counts, as in bpftrace.
            options.program = _utf8(value, "the program")
        case "-l" | "--list":
            options.listing = True
        case "--list-source":
            options.list_source = True
        case "-v" | "--verbose":
            options.verbose = True
        case "-h" | "--help":
            options.help = True
        case "-V" | "--version":
            options.version = True
        case "--info":
            options.info = True
        case "-p" | "--pid":
            options.pid = _pid(value)
        case "--dwarf-pid":
            options.dwarf_pids += (_pid(value),)
        case "-c" | "--cmd":
            options.command = value
        case "-o" | "--output":
            options.output = value
        case "-f" | "--format":
            if value not in ("text", "json"):
                raise UsageError(f'Invalid output format "{value}"', hint="text or json")
            options.format = value
        case "-B":
            options.buffering = _choice(name, value, ("line", "full", "none"))
        case "-q" | "--quiet":
            options.quiet = True
        case "-k" | "--warnings":
            options.helper_warnings = True
        case "--no-warnings":
            options.warnings = False
        case "-I":
            options.include_dirs.append(value)
        case "--include":
            options.includes.append(value)
        case "--debuginfo":
            options.debug_info += [folder for folder in value.split(":") if folder]
        case "--traceable-functions":
            options.traceable_functions = value
        case "--unsafe":
            options.unsafe = True
        case "--usdt-file-activation":
            options.usdt_file_activation = True
        case "-d" | "--debug":
            options.debug.append(value)
        case "--dry-run":
            options.dry_run = True
        case "--mode":
            options.mode = _choice(name, value, ("codegen", "compiler-bench", "bench", "test", "format"))
        case "--test":
            options.mode = "test"
        case "--bench":
            options.mode = "bench"
        case "--fmt":
            options.mode = "format"
        case "--probe-filter":
            options.probe_filter = value
        case "--emit-llvm":
            options.emit_llvm = value
        case "--signing":
            options.signing = _choice(name, value, SIGNING_MODES)
        case "--policy":
            options.policy = value
        case "--lifetime":
            options.lifetime = _number(name, value)
        case "--raw":
            options.raw = True
        case "--flamegraph":
            options.flamegraph = value
        case "--pcap":
            options.pcap = value
        case "--heatmap":
            options.heatmap = value
        case "--live":
            options.live = True
        case "--no-cache":
            options.no_cache = True
        case _ if name in _IGNORED:
            pass


def _positional(options: Options, rest: list[str], script_params: list[str]) -> None:
    if options.listing:
        if rest:
            options.list_pattern = rest.pop(0)
            if rest:
                raise UsageError(f"-l takes one pattern; what about {rest[0]!r}?", hint="quote patterns with spaces")
        return
    if options.program is None and rest:
        options.file = rest.pop(0)
    options.params = [_utf8(value, "a parameter") for value in rest]
    options.script_params = [_utf8(value, "a parameter") for value in script_params]


def _utf8(value: str, what: str) -> str:
    """An argument as the text that its bytes are, whatever the locale took them for. Raises UsageError."""
    try:
        return os.fsencode(value).decode()
    except UnicodeDecodeError:
        raise UsageError(f"{what} is not UTF-8 text", hint="write bytes as \\xNN") from None


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
    return value


def _number(name: str, value: str) -> int:
    try:
        number = int(value, 0)
    except ValueError:
        number = -1
    if number < 0:
        raise UsageError(f"{name} takes a number, not {value!r}")
    return number


def _pid(value: str) -> int:
    """A running process's id. bpftrace refuses what is no pid before it looks at the program, and so do we."""
    digits = re.match(r"\d*", value)
    assert digits is not None
    if not digits[0]:
        raise UsageError(f"Failed to parse pid: invalid integer: {value}", status=1)
    if digits[0] != value:
        raise UsageError(f"Failed to parse pid: invalid trailing bytes: {value}", status=1)
    pid = int(value)
    if not 0 < pid <= 0x400000:
        raise UsageError(f"Pid out of range: {value}", status=1)
    if not os.path.isdir(f"/proc/{pid}"):
        raise UsageError(f"there is no process {pid}", status=1)
    return pid
