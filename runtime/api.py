"""The Python API: a trace as a context manager. docs/api.md shows it at work.

import bpfseal
with bpfseal.trace('tracepoint:syscalls:sys_enter_openat { printf("%s %s\\n", comm, str(args.filename)); }') as t:
    for event in t.events(timeout=5):
        print(event.values.comm, event.text)
t.maps["@"]          # a dict, also after the end
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bpfseal.runtime.api_life import Life
from bpfseal.runtime.build import Request, build
from bpfseal.runtime.event import Event
from bpfseal.runtime.sealing import Signing
from bpfseal.runtime.session import Session

if TYPE_CHECKING:
    from bpfseal.runtime.maps import MapContents
    from bpfseal.runtime.table import Batch, Table
    from bpfseal.runtime.watch import Watcher

# How long a waiting trace sleeps at most before it looks at its counters of lost events.
_LOOK_SECONDS = 0.5


class Trace(Life):
    """One trace; use it as a context manager, or as an asynchronous one. `stop()`, `close()`, `maps`, `table()` and
    `lost` may be used from any thread, all else from the one that entered it.

    The command line takes the same steps one by one: `build`, `load`, `start` with a sink of its own, `run`,
    `contents`, `abandon`."""

    def __enter__(self) -> Trace:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Trace:
        """Compiles beside the event loop."""
        import asyncio

        self.built = await asyncio.to_thread(build, self._request)
        return self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- data ----------------------------------------------------------------------------------------------------

    def _step(self, left: float | None) -> bool:
        """Handle what there is, having waited for it at most `left` seconds; False once the trace is over."""
        with self._handling:
            session = self._session
            if session is None:
                return False
            if session.stopping:
                session.finish()
                return False
            session.poll(left)
            return True

    def _steps(self, timeout: float | None) -> Iterator[None]:
        """Once before waiting and once after each wait, until the end or for `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        yield
        while True:
            left = _LOOK_SECONDS if deadline is None else min(deadline - time.monotonic(), _LOOK_SECONDS)
            if left < 0:
                return
            going = self._step(left)
            yield
            if not going:
                return

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """Events one by one until the trace ends, at most for `timeout` seconds."""
        for _ in self._steps(timeout):
            if self._collector is not None:
                yield from self._collector.take()

    def __iter__(self) -> Iterator[Event]:
        return self.events()

    def batches(self, timeout: float | None = None, *, seconds: float = 0.1) -> Iterator[Batch]:
        """Events as they arrived in about `seconds`, until the trace ends or for `timeout` seconds. For busy streams:
        a batch is decoded by columns."""
        from bpfseal.runtime.table import Batch

        since = time.monotonic()
        for _ in self._steps(timeout):
            collector = self._collector
            if collector is not None and collector.entries:
                session = self._session
                if time.monotonic() - since < seconds and session is not None and not session.stopping:
                    continue
                since = time.monotonic()
                entries = list(collector.entries)
                collector.entries.clear()
                yield Batch(collector, entries)
        collector = self._collector
        if collector is not None and collector.entries:
            entries = list(collector.entries)
            collector.entries.clear()
            yield Batch(collector, entries)

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Events one by one; the event loop is free while there are none."""
        import asyncio

        loop = asyncio.get_running_loop()
        while True:
            if self._collector is not None:
                for event in self._collector.take():
                    yield event
            session = self._session
            if session is None:
                return
            ready = asyncio.Event()
            if not session.stopping:
                loop.add_reader(session.fileno(), ready.set)
                try:
                    await asyncio.wait_for(ready.wait(), _LOOK_SECONDS)
                except TimeoutError:
                    pass  # a look at the counters
                finally:
                    loop.remove_reader(session.fileno())
            if not self._step(0):
                if self._collector is not None:
                    for event in self._collector.take():
                        yield event
                return

    def run(
        self,
        timeout: float | None = None,
        callback: Callable[[Event], object] | None = None,
        *,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        """Handle events until the trace ends or for `timeout` seconds: each is given to `callback`; without one they
        stay queued for `events()`. `watchers` look at the maps meanwhile, until the end (see `runtime.watch`)."""
        if watchers:
            from bpfseal.runtime.watch import run

            run(self, watchers)
            return
        if callback is not None:
            for event in self.events(timeout):
                callback(event)
            return
        if self._collector is None:
            # Nobody but the sink has a part in this, and who closes from another thread waits for the end.
            with self._handling:
                if self._session is not None:
                    self._session.run(timeout)
            return
        for _ in self._steps(timeout):
            pass

    @property
    def maps(self) -> Mapping[str, dict[Any, Any]]:
        """The script's maps as dicts, read now while the trace runs, as of its end afterwards. A scalar map has the
        one key None."""
        return {
            name: {_hashable(key): value for key, value in contents.items}
            for name, contents in self._contents().items()
        }

    def table(self, name: str) -> Table:
        """A map by columns; "@" in front may be left out. Raises KeyError when the program has none of that name."""
        from bpfseal.runtime.table import Table

        name = name if name.startswith("@") else f"@{name}"
        with self._lock:
            contents = self._last.get(name) if self._session is None else None
            if self._session is not None and name in self._session.maps:
                contents = self._session.maps[name].contents()
        if contents is None or self._collector is None:
            raise KeyError(f"the program has no map {name}")
        return Table(self._collector, contents)

    def _contents(self) -> dict[str, MapContents]:
        with self._lock:
            session = self._session
            if session is None:
                return self._last
            return {name: session.maps[name].contents() for name in session.maps}


def _hashable(key: Any) -> Any:
    if isinstance(key, tuple | list):
        return tuple(_hashable(part) for part in key)
    return tuple(key.items()) if isinstance(key, dict) else key


def trace(
    text: str,
    *params: str,
    pid: int = 0,
    cmd: str | None = None,
    signing: str = "auto",
    policy: str | None = None,
    unsafe: bool = False,
    config: Mapping[str, str | int | bool] | None = None,
    pcap: str | None = None,
) -> Trace:
    """A trace of the program `text`, not yet started: enter it. `params` are $1, $2 …; `pid`, `cmd` as -p and -c;
    `signing` require, auto or off; `config` wins over the script's config block; `pcap` is the file of capture()."""
    request = Request(text=text, params=params, pid=pid, command=cmd, unsafe=unsafe, config=dict(config or {}))
    return Trace(request, Signing(signing, policy, 0, unsafe), pcap=pcap)


__all__ = ["Event", "Session", "Trace", "trace"]
