"""`bpfseal --list-source`: the program as text; on a terminal in colours."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from bpfseal.errors import UsageError

if TYPE_CHECKING:
    from bpfseal.runtime.options import Options


def main(options: Options) -> int:
    """Write the program of `options` to stdout; 0. Elsewhere than on a terminal it comes out as it went in. Raises
    BpfsealError for a file that cannot be read."""
    from bpfseal.runtime.build import read_source

    if options.program is not None:
        text = options.program
    elif options.file is not None:
        text, _ = read_source(options.file)
    else:
        raise UsageError("--list-source: which program? Give -e 'PROGRAM' or a FILE")
    if sys.stdout.isatty():
        text = for_terminal(text, colour=_colours(), raw=options.raw)
    sys.stdout.buffer.write(text.encode())
    sys.stdout.flush()
    return 0


def _colours() -> bool:
    """Whether this terminal is to have colours: https://no-color.org, and terminals that have none."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def for_terminal(text: str, *, colour: bool, raw: bool = False) -> str:
    """`text` with a newline at its end, and with `colour` in those of the terminal. What could control the terminal is
    visible instead (a script may be anybody's), unless it is to be `raw`."""
    from bpfseal.runtime.render.text import visible

    if not raw:
        text = visible(text)
    text = text if text.endswith("\n") else text + "\n"
    if not colour:
        return text
    try:
        from pygments import highlight
        from pygments.formatters import TerminalFormatter
    except ImportError:
        return text
    from bpfseal.runtime.notebook.lexer import BpfsealLexer

    return str(highlight(text, BpfsealLexer(stripnl=False, ensurenl=False), TerminalFormatter()))
