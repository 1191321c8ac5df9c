"""`bpfseal -l [PATTERN | FILE]`: probes that exist, or those that a script would attach to."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bpfseal.runtime.options import Options


def main(options: Options) -> int:
    """List to stdout; 0, also when nothing matches, as bpftrace does."""
    if options.debug_info:
        from bpfseal.runtime.elf import search_debug_files

        search_debug_files(options.debug_info)
    if options.traceable_functions:
        from bpfseal.runtime.probes.functions import list_functions_by

        list_functions_by(options.traceable_functions)
    pattern = options.list_pattern
    if options.program is not None:
        return _of_script(options.program, "stdin", options)
    if pattern is not None and os.path.isfile(pattern):
        from bpfseal.runtime.build import read_source

        text, name = read_source(pattern)
        return _of_script(text, name, options)
    return of_pattern(pattern, verbose=options.verbose, pid=options.pid)


def of_pattern(pattern: str | None, *, verbose: bool = False, pid: int = 0) -> int:
    """What matches `pattern`, which is not the name of a file; None: everything."""
    from bpfseal.runtime.listing import list_text

    if pattern is not None and "." in pattern and not set(":*") & set(pattern):
        sys.stderr.write(
            f"WARNING: It appears that '{pattern}' is a filename but the file does not exist. "
            f"Treating '{pattern}' as a search pattern.\n"
        )
        return 0  # no probe's name is a word with a dot
    write = sys.stdout.write
    for one in (pattern or "*").split(","):
        pieces = 0
        for text in list_text(one.strip(), verbose=verbose, pid=pid):
            pieces += 1
            write(text + "\n")
        if not pieces:
            _explain(one.strip())
    sys.stdout.flush()
    return 0


def _of_script(text: str, name: str, options: Options) -> int:
    """The points of a script's probes, wildcards expanded."""
    from bpfseal.dsl.parse import parse
    from bpfseal.runtime.listing import list_probes

    for probe in parse(text, name).probes:
        for point in probe.points:
            for line in list_probes(_listed(point.text), verbose=options.verbose, pid=options.pid):
                sys.stdout.write(line + "\n")
    return 0


def _listed(point: str) -> str:
    """The point as listings have it: without how often, which is not part of a name."""
    from bpfseal.dsl.points import canonical

    kind, *parts = point.split(":")
    if parts and canonical(kind) in ("interval", "profile", "software", "hardware"):
        return f"{canonical(kind)}:{parts[0] if len(parts) > 1 else '*'}:"
    return point


def _explain(pattern: str) -> None:
    """An empty list of kernel functions may be the kernel's doing."""
    from bpfseal.runtime.probes.kprobe import PMU

    if pattern.partition(":")[0] in ("kprobe", "kretprobe", "k", "kr") and not os.path.isdir(PMU):
        sys.stderr.write("WARNING: this kernel has no kprobes (it was built without CONFIG_KPROBE_EVENTS)\n")
