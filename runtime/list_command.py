"""`bpfseal -l [PATTERN | FILE]`: probes that exist, or those that a script would attach to."""

from __future__ import annotations

import os
import sys

from bpfseal.runtime.options import Options


def main(options: Options) -> int:
    """List to stdout; 0, also when nothing matches, as bpftrace does."""
    from bpfseal.runtime.listing import list_probes

    pattern = options.list_pattern
    if options.program is not None:
        return _of_script(options.program, "stdin", options)
    if pattern is not None and os.path.isfile(pattern):
        from bpfseal.runtime.build import read_source

        text, name = read_source(pattern)
        return _of_script(text, name, options)
    write = sys.stdout.write
    for one in (pattern or "*").split(","):
        for line in list_probes(one.strip(), verbose=options.verbose, pid=options.pid):
            write(line + "\n")
    sys.stdout.flush()
    return 0


def _of_script(text: str, name: str, options: Options) -> int:
    """The points of a script's probes, wildcards expanded."""
    from bpfseal.dsl.parse import parse
    from bpfseal.runtime.listing import list_probes

    for probe in parse(text, name).probes:
        for point in probe.points:
            for line in list_probes(point.text, verbose=options.verbose, pid=options.pid):
                sys.stdout.write(line + "\n")
    return 0
