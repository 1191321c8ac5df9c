"""What a trace of the command line shows beside its output: --live, --heatmap, --flamegraph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bpfseal.errors import UsageError

if TYPE_CHECKING:
    from bpfseal.runtime.api import Trace
    from bpfseal.runtime.live import LiveOutput, View
    from bpfseal.runtime.options import Options
    from bpfseal.runtime.render.heatmap import HeatMap


class Extras:
    """`output`: where the trace's events go while it runs, None for the usual one. Nothing is imported for what was not
    asked for."""

    def __init__(self, options: Options, trace: Trace) -> None:
        """`trace` is loaded."""
        self._options = options
        self._trace = trace
        self._view: View | None = None
        self._heat: HeatMap | None = None
        self.output: LiveOutput | None = None
        if options.live:
            from bpfseal.runtime.live import View

            if options.format == "json":
                raise UsageError("--live shows maps to people, -f json is for programs: choose one")
            self._view = View(trace, trace.build().bundle.source)
            self.output = self._view.output
        if options.heatmap:
            from bpfseal.runtime.render.heatmap import HeatMap

            self._heat = HeatMap(trace.build().reader, trace.contents)

    def run(self) -> None:
        """The trace, to its end."""
        watchers = [watcher for watcher in (self._view, self._heat) if watcher is not None]
        if not watchers:
            self._trace.run()
            return
        from contextlib import nullcontext

        with self._view or nullcontext():
            self._trace.run(watchers=watchers)

    def leave(self) -> None:
        """At once, from a handler of signals: give the terminal back, if it was taken."""
        if self._view is not None:
            self._view.leave()

    def draw(self) -> None:
        """The pictures. Raises BpfsealError."""
        if self._options.flamegraph:
            from bpfseal.runtime.pictures import flamegraph

            flamegraph(self._trace.contents(), self._trace.resolver.frames, self._options.flamegraph)
        if self._heat is not None and self._options.heatmap:
            from bpfseal.runtime.pictures import heatmap

            heatmap(self._heat, self._options.heatmap)
