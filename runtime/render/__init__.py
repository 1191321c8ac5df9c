"""Values, maps and events to text and JSON, as bpftrace writes them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from bpfseal.runtime.options import Options
    from bpfseal.runtime.render.resolve import Resolver
    from bpfseal.runtime.sink import Output


def make_output(options: Options, file: TextIO, resolver: Resolver) -> Output:
    """The Output that `options.format` names, writing to `file`."""
    escape = not options.raw and file.isatty()
    if options.format == "json":
        from bpfseal.runtime.render.json_output import JsonOutput

        return JsonOutput(file, resolver, quiet=options.quiet, escape=escape)
    from bpfseal.runtime.render.text_output import TextOutput

    def resolve(value: Any) -> str:
        return resolver.text(value)

    return TextOutput(
        file,
        resolve,
        quiet=options.quiet,
        warnings=options.warnings,
        escape=escape,
        escape_stderr=not options.raw and sys.stderr is not None and sys.stderr.isatty(),
    )
