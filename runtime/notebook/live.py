"""A trace that is drawn again and again in the same place while it runs."""

from __future__ import annotations

from bpfseal.runtime.notebook.run import Run


def show(run: Run, every: float) -> None:
    """Display `run`, refresh it every so many seconds until it ends or is interrupted, and leave the final picture."""
    from IPython import get_ipython
    from IPython.display import display

    # A terminal cannot draw in place: every refresh would be printed below the last.
    if hasattr(get_ipython(), "simple_prompt"):
        run.wait()
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
