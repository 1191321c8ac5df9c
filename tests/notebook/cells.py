"""Cells in a real IPython shell of a process of its own, for tests as other users and on other kernels.

    python -m tests.notebook.cells CELL…

prints a line of JSON for each cell: what it wrote, its error, and of a trace its state, maps, seal and page.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

Seen = dict[str, Any]


def main(cells: list[str]) -> None:
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(config=config)
    shell.run_line_magic("load_ext", "bpfseal")
    for text in cells:
        with capture_output() as captured:
            done = shell.run_cell(text)
        error = done.error_before_exec or done.error_in_exec
        seen: Seen = {"out": captured.stdout, "error": None if error is None else str(error)}
        seen["kind"] = type(error).__name__
        if error is None and hasattr(done.result, "seal"):
            trace = done.result
            seen |= {
                "state": trace.state,
                "maps": {name: list(map(list, items.items())) for name, items in trace.maps.items()},
                "seal": dataclasses.asdict(trace.seal),
                "html": trace._repr_html_(),
            }
        print("\0" + json.dumps(seen), flush=True)
    shell.run_line_magic("unload_ext", "bpfseal")


def seen_in(output: str) -> list[Seen]:
    """What `main` printed, one for each cell."""
    return [json.loads(line[1:]) for line in output.splitlines() if line.startswith("\0")]


if __name__ == "__main__":
    main(sys.argv[1:])
