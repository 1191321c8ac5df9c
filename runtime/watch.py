"""A trace with somebody who looks at its maps now and then while it runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from bpfseal.runtime.api import Trace

# Looking may take this share of the time: a map of a million keys is looked at less often.
_SHARE = 0.1


class Watcher(Protocol):
    """`seconds` between two looks, at least."""

    @property
    def seconds(self) -> float: ...

    def look(self, now: float) -> None:
        """`now` on the monotonic clock."""


def run(trace: Trace, watchers: Sequence[Watcher]) -> None:
    """`Trace.run`, with `watchers` looking in between, and once more at the end."""
    due = [time.monotonic() + watcher.seconds for watcher in watchers]
    while not trace.stopping:
        trace.poll(max(0.0, min(due) - time.monotonic()))
        for number, watcher in enumerate(watchers):
            now = time.monotonic()
            if now >= due[number] and not trace.stopping:
                watcher.look(now)
                done = time.monotonic()
                due[number] = done + max(watcher.seconds, (done - now) / _SHARE)
    trace.finish()
    for watcher in watchers:
        watcher.look(time.monotonic())
