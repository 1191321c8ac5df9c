"""The trace behind `bpfseal -e …` and `bpfseal FILE`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import TextIO

from bpfseal.errors import BpfsealError
from bpfseal.runtime.api import Trace
from bpfseal.runtime.build import Built, Request, read_source
from bpfseal.runtime.extras import Extras
from bpfseal.runtime.options import Options
from bpfseal.runtime.render import make_output
from bpfseal.runtime.sealing import Signing
from bpfseal.runtime.sink import OutputSink
from bpfseal.runtime.title import show_own_name
from bpfseal.signer.syscall import NUMBERS


def main(options: Options) -> int:
    """Run the trace; its exit status. Raises BpfsealError."""
    signing = Signing(options.signing, options.policy, options.lifetime, options.unsafe)
    trace = Trace(_request(options), signing, pcap=options.pcap)
    try:
        built = trace.build(helper=not options.debug)
        for warning in built.warnings if options.warnings else ():
            sys.stderr.write(warning + "\n")
        if options.debug and options.mode != "codegen":
            return 0
        trace.load(quiet=options.quiet, log_level=1 if options.verbose else 0)
        return run(options, built, trace)
    finally:
        trace.abandon()


def _request(options: Options) -> Request:
    text, name, path = options.program or "", "stdin", None
    if options.program is None:
        assert options.file is not None
        text, name = read_source(options.file)
        path = None if options.file == "-" else os.path.abspath(options.file)
    return Request(
        text=text,
        name=name,
        path=path,
        params=tuple(options.params),
        script_params=tuple(options.script_params),
        pid=options.pid,
        dwarf_pids=options.dwarf_pids,
        command=options.command,
        unsafe=options.unsafe,
        include_dirs=tuple(options.include_dirs),
        includes=tuple(options.includes),
        debug_info=tuple(options.debug_info),
        traceable_functions=options.traceable_functions,
        probe_filter=options.probe_filter or "",
        mode=options.mode,
        helper_warnings=options.helper_warnings,
        cache=not options.no_cache,
        debug=tuple(options.debug),
        emit_llvm=options.emit_llvm,
    )


def run(options: Options, built: Built, trace: Trace) -> int:
    """A loaded trace to its end; its exit status. Raises BpfsealError."""
    file = _open_output(options)
    try:
        return _trace(options, built, trace, file)
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename in NUMBERS:
            raise BpfsealError(f"the kernel refused {error.filename}() while the trace ran: {error.strerror}") from None
        # Of all else that a trace does only writing lets an OSError through.
        raise BpfsealError(f"cannot write to {options.output or 'stdout'}: {error.strerror}") from None
    finally:
        _abandon(file)


def _trace(options: Options, built: Built, trace: Trace, file: TextIO) -> int:
    output = make_output(options, file, trace.resolver)
    extras = Extras(options, trace)
    sink = OutputSink(
        extras.output or output,
        allow_system=options.unsafe,
        when_attached=_notify_attached,
        packets=trace.packets,
    )
    _stop_on_signals(trace, extras)
    show_own_name()
    status = None
    if options.mode in ("test", "bench"):
        from bpfseal.runtime import trials

        status = trials.run(trace.session, options, output, file)
    elif options.dry_run:
        trace.rehearse(sink)
        return 0
    else:
        trace.start(sink)
        extras.run()
    output.end()
    if status is None and built.reader.config.get("print_maps_on_exit", True):
        for contents in trace.contents():
            output.map(contents)
    output.flush()
    if trace.packets is not None:
        trace.packets.close()
        if not options.quiet:
            sys.stderr.write(f"{trace.captured} packets captured in {trace.packets.path}\n")
    extras.draw()
    # As in bpftrace: what exit() said; the status of the -c child is the child's own business.
    status = trace.status if status is None else status
    trace.abandon()
    # Everything is said: a signal from here on would only replace the status.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return status


def _abandon(file: TextIO) -> None:
    """Close the output without trying once more to write what could not be written."""
    try:
        file.close()
    except OSError:
        pass


def _open_output(options: Options) -> TextIO:
    """The output file: text, undecodable bytes passed through, newlines as they are."""
    try:
        if options.output is None:
            descriptor = os.dup(1)
        else:
            descriptor = os.open(options.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise BpfsealError(f"cannot open the output {options.output or 'stdout'}: {error.strerror}") from None
    line = options.buffering == "line" or (options.buffering == "auto" and os.isatty(descriptor))
    buffering = {"none": 1, "line": 1}.get("line" if line else options.buffering, 1 << 16)
    return os.fdopen(descriptor, "w", buffering=buffering, encoding="utf-8", errors="surrogateescape", newline="\n")


def _stop_on_signals(trace: Trace, extras: Extras) -> None:
    """First Ctrl-C or SIGTERM: end the trace and print the maps. The second: quit at once."""

    signals = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            extras.leave()
            os._exit(128 + number)
        trace.interrupt()

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)


def _notify_attached() -> None:
    """bpftrace's test runner waits for this line before it starts the traced program."""
    if os.environ.get("__BPFTRACE_NOTIFY_PROBES_ATTACHED"):
        sys.stdout.write("__BPFTRACE_NOTIFY_PROBES_ATTACHED\n")
        sys.stdout.flush()
