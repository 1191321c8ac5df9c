"""What a session talks to: the sink of its events, and consumers that take a busy ring from Python (protocols)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from bpfseal.runtime.deferred import Account
    from bpfseal.runtime.ring import RingReader
    from bpfseal.runtime.session import Session


class Sink(Protocol):
    """Where events go. `handlers` are built once, one per event number; the session calls them with the record.

    A handler may call `session.stop(status)`; maps may be read from it through `session.maps`.
    """

    def bind(self, session: Session) -> list[Callable[[memoryview], None]]:
        """One handler for each of `session.reader.events`."""

    def lost(self, events: int, total: int, *, last: bool) -> None:
        """`events` more were lost, `total` in all; called when there are more, and once at the end (`last`)."""

    def full(self, name: str, failed: int, entries: int) -> None:
        """`failed` more updates of the map `name`, which has room for `entries` keys, have failed."""

    def skipped(self, probe: str, times: int) -> None:
        """At the end: the kernel skipped the program of `probe`, which would have interrupted itself."""

    def deferred(self, account: Account, dropped: int, *, last: bool) -> None:
        """Deferred blocks: `dropped` more were; called when there are more, and at the end (`last`), when all of the
        account is final. Not for scripts without."""

    def attached(self, probes: int) -> None:
        """Everything is attached: `probes` points; what begin probes had to say comes after it."""

    def native(self) -> int | Callable[[RingReader, Any], Consumer] | None:
        """The descriptor that lines of printf may be written to past the sink (see `runtime.sink.Output.native`), or
        what makes a consumer of the sink's own for the ring and `Reader.events`."""

    def idle(self) -> None:
        """Called when the rings are empty: time to flush."""


class Consumer(Protocol):
    """Takes a busy ring from Python; see `runtime.native`."""

    def run(self) -> tuple[int, int]: ...

    def close(self) -> None: ...
