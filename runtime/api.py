"""The Python API: a trace as a context manager.

    import bpfseal
    with bpfseal.trace('tracepoint:syscalls:sys_enter_openat { printf("%s %s\\n", comm, str(args.filename)); }') as t:
        for event in t.events(timeout=5):
            print(event.action, event.values)
    t.maps["@"]          # a dict, also after the end

The command line and the notebook are built on the same session.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bpfseal.compiler.layout import Shape
from bpfseal.errors import BpfsealError
from bpfseal.runtime.build import Built, Request, build
from bpfseal.runtime.maps import MapContents
from bpfseal.runtime.render.trouble import Trouble
from bpfseal.runtime.sealing import Sealer, Signing
from bpfseal.runtime.session import Session
from bpfseal.runtime.sink import Handler, OutputSink
from bpfseal.runtime.values import decoder

if TYPE_CHECKING:
    from bpfseal.runtime.deferred import Account


@dataclass(frozen=True, slots=True)
class Event:
    """Something a program said. `action`: printf, print, time, join, cat, system, errorf, warnf, map; runtime_error
    (helper, code), lost (events), map_full (map, failed updates, room), skipped (probe, times),
    deferred (the account of deferred blocks, at the end).

    `values`: the arguments of printf as Python values, the one value of print, the (key, value) pairs of a printed
    map, else what stands in brackets above. `text` is what the command line would write, without a newline for print.
    """

    action: str
    values: tuple[Any, ...]
    text: str
    probe: str = ""


class Trace:
    """One trace; use it as a context manager. `stop()` may be called from any thread, everything else from the one
    that entered it."""

    def __init__(self, request: Request, signing: Signing) -> None:
        self._request = request
        self._signing = signing
        self._queue: deque[Event] = deque()
        self._session: Session | None = None
        self._sealer: Sealer | None = None
        self._lock = threading.Lock()
        self._last_maps: dict[str, dict[Any, Any]] = {}
        self._lost = 0
        self._deferred: Account | None = None
        self.built: Built | None = None

    # --- life ----------------------------------------------------------------------------------------------------

    def start(self) -> Trace:
        """Compile, seal, load, run BEGIN and attach. Raises BpfsealError (DslError for a wrong script)."""
        if self._session is not None:
            raise BpfsealError("this trace is running already")
        self._sealer = Sealer(self._signing)
        try:
            self._sealer.start()
            self.built = build(self._request)
            sealed = self._sealer.seal(self.built.data, quiet=True)
            session = Session(self.built.bundle, sealed, pid=self._request.pid, command=self._request.command)
        except BaseException:
            self._sealer.close()
            raise
        with self._lock:
            self._session = session
        try:
            session.start(_Collector(self._queue, session))
        except BaseException:
            self.close()
            raise
        return self

    def stop(self) -> None:
        """End the trace soon."""
        with self._lock:
            if self._session is not None:
                self._session.stop()

    def close(self) -> None:
        """End the trace and give everything back to the kernel; maps stay readable as they were. Idempotent."""
        session = self._session
        if session is not None:
            try:
                session.finish()
                self._lost = session.lost
                self._deferred = session.deferred
                self._last_maps = {name: self._read(session, name) for name in session.maps}
            finally:
                with self._lock:
                    self._session = None
                session.close()
        if self._sealer is not None:
            self._sealer.close()
            self._sealer = None

    def __enter__(self) -> Trace:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- data ----------------------------------------------------------------------------------------------------

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """Events until the trace ends, at most for `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            while self._queue:
                yield self._queue.popleft()
            session = self._session
            if session is None:
                return
            if session.stopping:
                session.finish()
                if not self._queue:
                    return
                continue
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            session.poll(left)

    def run(self, timeout: float | None = None) -> None:
        """Handle events until the trace ends or for `timeout` seconds; they stay queued for `events()`."""
        if self._session is not None:
            self._session.run(timeout)

    @property
    def maps(self) -> Mapping[str, dict[Any, Any]]:
        """The script's maps as dicts, read now while the trace runs, as of its end afterwards. A scalar map has the
        one key None."""
        session = self._session
        if session is None:
            return self._last_maps
        return {name: self._read(session, name) for name in session.maps}

    @property
    def lost(self) -> int:
        """Events that did not fit into the ring buffer; of the whole trace once it is over."""
        return self._session.count_lost() if self._session is not None else self._lost

    @property
    def deferred(self) -> Account | None:
        """What became of deferred blocks so far, of the whole trace once it is over; None for scripts without."""
        return self._session.count_deferred() if self._session is not None else self._deferred

    @staticmethod
    def _read(session: Session, name: str) -> dict[Any, Any]:
        return {_hashable(key): value for key, value in session.maps[name].contents().items}


def _hashable(key: Any) -> Any:
    if isinstance(key, tuple | list):
        return tuple(_hashable(part) for part in key)
    return tuple(key.items()) if isinstance(key, dict) else key


class _Collector(OutputSink):
    """A sink whose events become Event objects."""

    def __init__(self, queue: deque[Event], session: Session) -> None:
        from bpfseal.runtime.render.resolve import Resolver
        from bpfseal.runtime.render.text import TextValues

        self._queue = queue
        self._probes = session.reader.probes
        self._values = TextValues(Resolver(session).text)
        super().__init__(_Queue(queue, self._values), allow_system=False)

    def _on_printf(self, session: Session, event: Any) -> Handler:
        text = self._format(session, event)
        decode: list[tuple[int, Callable[[Any, int], Any]]] = [
            (f.offset, decoder(f.shape, session.reader.enums)) for f in event.fields
        ]
        action, probes, queue = event.action, self._probes, self._queue

        def handle(record: memoryview) -> None:
            probe = int.from_bytes(record[4:8], "little")
            values = tuple(read(record, at) for at, read in decode)
            queue.append(Event(action, values, text(record), probes[probe] if probe < len(probes) else ""))

        return handle


class _Queue:
    """The Output of a trace that is read by a program."""

    def __init__(self, queue: deque[Event], values: Any) -> None:
        self._queue = queue
        self._values = values

    def printf(self, text: str) -> None:
        self._queue.append(Event("printf", (), text))

    def message(self, kind: str, text: str) -> None:
        self._queue.append(Event(kind, (), text))

    def value(self, value: Any, shape: Shape) -> None:
        self._queue.append(Event("print", (value,), self._values.text(value, shape)))

    def map(self, contents: MapContents) -> None:
        self._queue.append(Event("map", tuple(contents.items), contents.name))

    def diagnostic(self, kind: str, text: str, where: str, trail: str = "") -> None:
        self._queue.append(Event(kind, (), text))

    def trouble(self, trouble: Trouble) -> None:
        self._queue.append(Event("runtime_error", (trouble.helper or trouble.kind, trouble.code), trouble.text()))

    def full(self, name: str, failed: int, entries: int) -> None:
        self._queue.append(Event("map_full", (name, failed, entries), f"{failed} updates of {name} found no room"))

    def skipped(self, probe: str, times: int) -> None:
        self._queue.append(Event("skipped", (probe, times), f"the kernel skipped {probe} {times} times"))

    def deferred(self, account: Account, dropped: int, *, last: bool) -> None:
        if last:
            self._queue.append(Event("deferred", (account,), account.text()))

    def attached(self, probes: int) -> None:
        pass

    def lost(self, events: int, total: int, *, last: bool) -> None:
        if events:
            self._queue.append(Event("lost", (events,), f"Lost {events} events"))

    def clean(self, text: str) -> str:
        return text

    def native(self) -> int | None:
        return None

    def text(self, value: Any, shape: Shape) -> str:
        text: str = self._values.text(value, shape)
        return text

    def flush(self) -> None:
        pass

    def end(self) -> None:
        pass


def trace(
    text: str,
    *params: str,
    pid: int = 0,
    cmd: str | None = None,
    signing: str = "auto",
    policy: str | None = None,
    unsafe: bool = False,
    config: Mapping[str, str | int | bool] | None = None,
) -> Trace:
    """A trace of the program `text`, not yet started: enter it. `params` are $1, $2 …; `pid`, `cmd` as -p and -c;
    `signing` require, auto or off; `config` wins over the script's config block."""
    request = Request(text=text, params=params, pid=pid, command=cmd, unsafe=unsafe, config=dict(config or {}))
    return Trace(request, Signing(signing, policy, 0, unsafe))


__all__ = ["Event", "Session", "Trace", "trace"]
