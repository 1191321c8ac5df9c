"""A trace of the Python API in a thread of its own: the notebook's cells stay free, and an interrupt reaches only who
waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from bpfseal.errors import BpfsealError
from bpfseal.runtime.api import Trace
from bpfseal.runtime.notebook.data import Data, Seal, Snapshot
from bpfseal.runtime.notebook.recording import LIMIT, Recording

if TYPE_CHECKING:
    from bpfseal.runtime.api import Event, Session
    from bpfseal.runtime.build import Request
    from bpfseal.runtime.maps import MapContents
    from bpfseal.runtime.sealing import Signing

_FRESH = 0.05


class _Trace(Trace):
    """The API's trace, which also says who sealed it."""

    def seal(self, session: Session) -> Seal:
        """For the badge. Asks the helper, which is up since it has just sealed."""
        client = self._sealer.client if self._sealer is not None else None
        if client is None:
            return Seal(why="signing is off")
        sealed = session.sealed
        return Seal(
            signed_by=f"{client.mode} helper",
            verified=sealed.abi > 0 and bool(sealed.signature),
            why=client.why_unverified() if sealed.abi == 0 else "",
            certificate=sealed.certificate.hex(),
            record=sealed.record,
        )


class Run(Data):
    """A running or ended trace. `start` compiles in the caller's thread, so that mistakes in the program are raised
    there; all else happens in the thread, the only one that handles events. Maps are read from any.
    """

    def __init__(
        self,
        request: Request,
        signing: Signing,
        *,
        name: str = "",
        seconds: float = 0.0,
        limit: int = LIMIT,
    ) -> None:
        """`seconds` 0: until stopped or until the program says exit()."""
        self.name = name or "trace"
        self.request = request
        self.seconds = seconds
        self.state = "new"
        self.error: BaseException | None = None
        self.status = 0
        self._signing = signing
        self._recording = Recording(limit=limit, allow_system=request.unsafe)
        self._trace: _Trace | None = None
        self._session: Session | None = None
        self._warnings: tuple[str, ...] = ()
        self._contents: dict[str, MapContents] = {}
        self._seal = Seal()
        self._began = self._ended = 0.0
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._done = threading.Event()
        # Held while maps are read and while the session closes their descriptors.
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    # --- life ----------------------------------------------------------------------------------------------------

    def start(self) -> Run:
        """Compile, then seal, load and attach in the thread; returns when tracing has begun. Raises BpfsealError
        (DslError for a wrong program); KeyboardInterrupt ends the trace."""
        if self._thread is not None:
            raise BpfsealError("this trace was started before", hint="run the cell again")
        trace = _Trace(self.request, self._signing)
        try:
            self._warnings = trace.build().warnings
        except BaseException as error:
            trace.abandon()
            self._done.set()
            if not isinstance(error, KeyboardInterrupt):
                self.state, self.error = "failed", error
            raise
        self._trace = trace
        self.state = "starting"
        self._thread = threading.Thread(target=self._work, name=f"bpfseal {self.name}", daemon=True)
        self._thread.start()
        try:
            self._ready.wait()
        except BaseException:
            self.interrupt()
            raise
        if self.error is not None:
            self._thread.join()
            raise self.error
        return self

    def _work(self) -> None:
        assert self._trace is not None
        try:
            self._run(self._trace)
        except BaseException as error:
            self.error = error
            self.state = "failed"
        finally:
            self._ended = self._ended or time.monotonic()
            self._done.set()
            self._ready.set()

    def _run(self, trace: _Trace) -> None:
        session = trace.load()
        self._seal = trace.seal(session)
        trace.start(self._recording)
        try:
            with self._lock:
                self._session = session
            self._began = time.monotonic()
            self.state = "running"
            if self._stop.is_set():
                trace.stop()
            self._ready.set()
            trace.run(self.seconds or None)
            session.finish()
            self.status = session.status
        finally:
            self._close(trace, session)
        if self.state == "running":
            self.state = "done"

    def _close(self, trace: Trace, session: Session) -> None:
        """Keep what only the session knows, then give everything back."""
        with self._lock:
            self._ended = time.monotonic()
            try:
                self._contents = self._read(session)
                self._recording.learn()
                lookup = self._recording.lookup
                if lookup is not None:
                    for contents in self._contents.values():
                        lookup.learn(part for item in contents.items for part in item)
                    lookup.close()
            finally:
                self._session = None
                trace.close()

    def stop(self) -> Run:
        """End the trace and wait until nothing of it is left in the kernel; its data stays. Idempotent."""
        self._stop.set()
        if self._trace is not None:
            self._trace.stop()
        else:
            self._done.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        return self

    def wait(self, seconds: float | None = None, tick: Callable[[], object] | None = None, every: float = 0.5) -> Run:
        """Until the trace has ended, at most `seconds`; `tick` is called every so often. KeyboardInterrupt stops the
        trace and keeps its data."""
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            while not self._done.is_set():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return self
                # Waits without a limit cannot be interrupted on every platform; this one wakes up now and then.
                self._done.wait(min(every, left) if left is not None else every)
                if tick is not None:
                    tick()
        except KeyboardInterrupt:
            self.interrupt()
        if self.error is not None:
            raise self.error
        return self

    def interrupt(self) -> None:
        """As `stop`, for the stop button: `state` says so afterwards, unless the trace was over before."""
        before = self.state
        self.stop()
        if self.error is None and before != "done":
            self.state = "interrupted"

    @property
    def running(self) -> bool:
        return self._thread is not None and not self._done.is_set()

    def __enter__(self) -> Run:
        return self if self._thread is not None else self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    # --- data ----------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Everything up to now; what comes later does not change it."""
        with self._lock:
            session = self._session
            contents = self._contents
            if session is not None and self._ready.is_set():
                contents = self._read(session)
                if self._recording.lookup is not None:
                    for one in contents.values():
                        self._recording.lookup.learn(part for item in one.items for part in item)
            return Snapshot(
                name=self.name,
                source=self.request.text,
                state=self.state,
                seconds=self.traced,
                entries=self._recording.entries.view(),
                contents=contents,
                recording=self._recording,
                seal=self._seal,
                warnings=self._warnings,
                trouble=str(self.error) if self.error is not None else "",
                planned=self.seconds,
            )

    @staticmethod
    def _read(session: Session) -> dict[str, MapContents]:
        return {name: session.maps[name].contents() for name in session.maps}

    def __iter__(self) -> Iterator[Event]:
        """Events from the beginning, then as they come, until the trace has ended."""
        recording = self._recording
        at = 0
        while True:
            ended = self._done.is_set()
            view = recording.entries.view(at)
            at = view.first
            for entry in view:
                at += 1
                yield recording.event(entry)
            if ended:
                return
            self._done.wait(_FRESH)

    @property
    def traced(self) -> float:
        """Seconds from when everything was attached to now, or to the end."""
        return (self._ended or time.monotonic()) - self._began if self._began else 0.0

    @property
    def arrived(self) -> int:
        """Events so far, those that were let go included."""
        return len(self._recording.entries) + self._recording.entries.dropped

    @property
    def lost(self) -> int:
        """Events that did not fit into the ring buffer."""
        return self._recording.lost_events

    @property
    def seal(self) -> Seal:
        return self._seal

    def __repr__(self) -> str:
        what = f"{len(self._recording.entries)} events"
        return f"<bpfseal trace {self.name!r}: {self.state}, {what}>"
