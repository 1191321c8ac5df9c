"""What is seen of a trace while its cell waits for it: the data, drawn again and again in the same place, or a bar."""

from __future__ import annotations

import sys
from typing import Any

from bpfseal.runtime.notebook.run import Run

_SHORT = 1.0  # seconds of a trace that is not worth a bar
_EVERY = 0.25
_NOTHING = {"text/plain": "", "text/html": ""}


def show(run: Run, every: float) -> None:
    """Display `run`, refresh it every so many seconds until it ends or is interrupted, and leave the final picture."""
    from IPython.display import display

    if _in_terminal():
        follow(run)
        display(run.snapshot())
        return
    handle = display(run.snapshot(), display_id=True)

    def draw() -> None:
        if handle is not None and run.running:
            handle.update(run.snapshot())

    try:
        run.wait(tick=draw, every=every)
    finally:
        if handle is not None:
            handle.update(run.snapshot())


def follow(run: Run) -> Run:
    """Wait for `run`; if that will take a known and noticeable time, under a bar that is gone afterwards."""
    if run.seconds < _SHORT:
        return run.wait()
    return _in_a_terminal(run) if _in_terminal() else _in_a_page(run)


def _in_terminal() -> bool:
    """A terminal cannot draw in place: every refresh would be printed below the last."""
    from IPython import get_ipython

    return hasattr(get_ipython(), "simple_prompt")


def _in_a_page(run: Run) -> Run:
    from IPython.display import display

    from bpfseal.runtime.notebook.html import bar

    def drawn() -> dict[str, str]:
        return {
            "text/plain": f"{run.traced:.1f} of {run.seconds:g} s",
            "text/html": bar(run.name, run.traced, run.seconds, run.arrived),
        }

    handle: Any = display(drawn(), raw=True, display_id=True)

    def draw() -> None:
        if run.running:
            handle.update(drawn(), raw=True)

    try:
        return run.wait(tick=draw, every=_EVERY)
    finally:
        handle.update(_NOTHING, raw=True)


def _in_a_terminal(run: Run) -> Run:
    """A line that is written over and over, on terminals that can."""
    if not sys.stderr.isatty():
        return run.wait()

    def draw() -> None:
        full = int(30 * min(run.traced / run.seconds, 1.0))
        sys.stderr.write(f"\r[{'#' * full}{'.' * (30 - full)}] {run.traced:.1f} of {run.seconds:g} s")
        sys.stderr.flush()

    try:
        return run.wait(tick=draw, every=_EVERY)
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
