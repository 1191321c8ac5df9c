"""The life of a trace: compiled, sealed, loaded, started, ended, given back, whoever reads what it says."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

from bpfseal.errors import BpfsealError
from bpfseal.runtime.build import Built, Request, build
from bpfseal.runtime.sealing import Sealer, Signing
from bpfseal.runtime.session import Session

if TYPE_CHECKING:
    from bpfseal.runtime.collect import Collector
    from bpfseal.runtime.deferred import Account
    from bpfseal.runtime.maps import MapContents
    from bpfseal.runtime.pcap import PacketFile
    from bpfseal.runtime.render.resolve import Resolver
    from bpfseal.runtime.session_sink import Sink
    from bpfseal.signer.bundle import SealedBundle


class Life:
    """What `runtime.api.Trace` is built on."""

    def __init__(self, request: Request, signing: Signing, *, pcap: str | None = None) -> None:
        """`pcap`: the file that capture() writes packets to."""
        self._request = request
        self._pcap = pcap
        self.packets: PacketFile | None = None
        self._resolver: Resolver | None = None
        self._signing = signing
        self._collector: Collector | None = None
        self._session: Session | None = None
        self._sealer: Sealer | None = None
        # Held while descriptors are used by who does not handle events; reentrant for handlers of signals.
        self._lock = threading.RLock()
        # Held while events are handled, and while all comes to an end.
        self._handling = threading.RLock()
        self._last: dict[str, MapContents] = {}
        self._lost = 0
        self._status = 0
        self._deferred: Account | None = None
        self.built: Built | None = None

    def build(self, *, helper: bool = True) -> Built:
        """Compile, while the helper starts. Raises BpfsealError (DslError for a wrong script)."""
        if helper and self._sealer is None:
            self._sealer = Sealer(self._signing)
            self._sealer.start()
        if self.built is None:
            try:
                self.built = build(self._request)
            except BaseException:
                _release_targets(None)
                raise
        return self.built

    def load(self, *, quiet: bool = True, log_level: int = 0, sealed: SealedBundle | None = None) -> Session:
        """Compile, seal and load; nothing runs yet. `quiet`: do not tell on stderr when the kernel cannot verify
        signatures; `log_level`: of the verifier; `sealed`: what `built` was sealed to before. Raises BpfsealError."""
        if self._session is not None:
            raise BpfsealError("this trace is running already")
        try:
            built = self.build(helper=sealed is None)
            if sealed is None:
                assert self._sealer is not None
                sealed = self._sealer.seal(built.data, quiet=quiet)
            request = self._request
            session = Session(
                built.bundle,
                sealed,
                pid=request.pid,
                command=request.command,
                dwarf_pids=request.dwarf_pids,
                log_level=log_level,
            )
            with self._lock:
                self._session = session
            if self._pcap is not None:
                from bpfseal.runtime.pcap import for_capture

                self.packets = for_capture(self._pcap, built.reader)
        except BaseException:
            self.abandon()
            raise
        finally:
            _release_targets(self.built)
        return session

    def start(self, sink: Sink | None = None) -> Self:
        """Load if that was not done, run BEGIN and attach. With a `sink` of one's own there are no events here. Raises
        BpfsealError."""
        session = self._session or self.load()
        try:
            if sink is None:
                from bpfseal.runtime.collect import Collector

                sink = self._collector = Collector(session, self.packets, allow_system=self._request.unsafe)
            session.start(sink)
        except BaseException:
            self.abandon()
            raise
        return self

    def rehearse(self, sink: Sink) -> None:
        """Attach everything and take it away again: nothing of the program runs for its own sake. Raises
        BpfsealError."""
        (self._session or self.load()).rehearse(sink)

    def stop(self) -> None:
        """End the trace soon: who waits for events gets the last ones. From any thread or signal handler."""
        with self._lock:
            if self._session is not None:
                self._session.stop()

    def interrupt(self) -> None:
        """As `stop`, for who does not want to wait: commands of system() that are due are not run."""
        session = self._session
        if session is not None:
            session.interrupt()

    def finish(self) -> None:
        """Detach, run the end probes and handle what is left; maps can be read until `close()`. Idempotent."""
        with self._handling:
            if self._session is not None:
                self._session.finish()

    def close(self) -> None:
        """End the trace and give everything back to the kernel; events that were not taken, and maps, stay readable.
        Idempotent, and from any thread: who waits for events in another one gets to the end."""
        self.stop()
        with self._handling:
            session = self._session
            if session is not None:
                try:
                    self._end(session)
                finally:
                    with self._lock:
                        self._session = None
                        session.close()
            self._release()

    def abandon(self) -> None:
        """Give everything back to the kernel at once: without END, last events and maps. Idempotent."""
        with self._handling, self._lock:
            session, self._session = self._session, None
            if session is not None:
                session.close()
            self._release()

    def _release(self) -> None:
        """What there is beside the session."""
        if self._resolver is not None:
            self._resolver.close()
            self._resolver = None
        if self._sealer is not None:
            self._sealer.close()
            self._sealer = None
        if self.packets is not None:
            self.packets.close()

    def _end(self, session: Session) -> None:
        session.finish()
        self._lost, self._status, self._deferred = session.lost, session.status, session.deferred
        if self._collector is not None:
            from bpfseal.runtime.records.lookup import needs_session

            self._last = {name: session.maps[name].contents() for name in session.maps}
            lookup = self._collector.lookup
            self._collector.learn()
            for contents in self._last.values():
                if needs_session(contents.layout.key) or needs_session(contents.layout.value):
                    lookup.learn(part for item in contents.items for part in item)
            lookup.close()

    def poll(self, timeout: float | None = None) -> bool:
        """Wait for events at most `timeout` seconds and handle what there is; False once the trace is ending."""
        with self._handling:
            return self._session is not None and self._session.poll(timeout)

    @property
    def stopping(self) -> bool:
        """Whether the trace has ended or is about to."""
        session = self._session
        return session is None or session.stopping

    def contents(self, name: str = "") -> Iterator[MapContents]:
        """The maps as they are printed at the end, in that order; of `name` alone where one is given. While the trace
        is loaded they are read one by one."""
        with self._lock:
            names = [name] if name else sorted(self._session.maps if self._session is not None else self._last)
        for one in names:
            with self._lock:
                contents = self._session.maps[one].contents() if self._session is not None else self._last[one]
            yield contents

    @property
    def session(self) -> Session:
        """The loaded session, for who runs its programs one by one. Raises BpfsealError when there is none."""
        if self._session is None:
            raise BpfsealError("this trace is not loaded")
        return self._session

    @property
    def resolver(self) -> Resolver:
        """Names of stacks, symbols, times and cgroups while the trace is loaded."""
        session = self.session
        if self._resolver is None:
            from bpfseal.runtime.render.resolve import Resolver

            self._resolver = Resolver(session)
        return self._resolver

    @property
    def captured(self) -> int:
        """Packets that capture() has written so far."""
        return self.packets.packets if self.packets is not None else 0

    @property
    def lost(self) -> int:
        """Events that did not fit into the ring buffer so far; of the whole trace once it is over."""
        session = self._session
        return session.lost if session is not None else self._lost

    @property
    def status(self) -> int:
        """What exit() said."""
        session = self._session
        return session.status if session is not None else self._status

    @property
    def deferred(self) -> Account | None:
        """What became of deferred blocks so far, of the whole trace once it is over; None for scripts without."""
        with self._lock:
            return self._session.count_deferred() if self._session is not None else self._deferred


def _release_targets(built: Built | None) -> None:
    """Programs that a script is attached to were held by descriptors until it was loaded."""
    programs = sys.modules.get("bpfseal.runtime.probes.programs")
    if programs is not None:
        programs.release(built.bundle if built is not None else None)
