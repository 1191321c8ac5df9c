"""The sink of a trace that a program reads: records are kept as the kernel wrote them, and decoded when asked for.

A stream that is too busy for Python is taken over by machine code, which copies thousands of records at once (see
`runtime.records.bulk`); order is kept.
"""

from __future__ import annotations

from collections import deque, namedtuple
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from bpfseal.compiler.layout import EventLayout, Reader, Shape
from bpfseal.runtime.event import Event
from bpfseal.runtime.records.columns import of_call
from bpfseal.runtime.records.lookup import Lookup, needs_session
from bpfseal.runtime.records.stream import Piece
from bpfseal.runtime.render.printf import compile_format
from bpfseal.runtime.sink import Handler, OutputSink
from bpfseal.runtime.values import decoder

if TYPE_CHECKING:
    from bpfseal.runtime.deferred import Account
    from bpfseal.runtime.maps import MapContents
    from bpfseal.runtime.pcap import PacketFile
    from bpfseal.runtime.records.bulk import BulkConsumer
    from bpfseal.runtime.render.trouble import Trouble
    from bpfseal.runtime.ring import RingReader
    from bpfseal.runtime.session import Session


class Site:
    """One printf or print of the program: how its records are read."""

    def __init__(self, number: int, event: EventLayout, reader: Reader, source: str, lookup: Lookup) -> None:
        self.number = number
        self.event = event
        self.reader = reader
        self.names = of_call(source, event.where, len(event.fields), format=event.action != "print")
        self.located = any(needs_session(field.shape) for field in event.fields)
        kind: Any = namedtuple  # mypy wants its names written out
        self._make: Callable[[Iterator[Any]], tuple[Any, ...]] = kind(event.action, self.names, rename=True)._make
        self._decode = [(f.offset, decoder(f.shape, reader.enums)) for f in event.fields]
        if event.action == "print":
            shape = event.fields[0].shape
            self._text: Callable[[bytes], str] = lambda record: lookup.text(self.values(record)[0], shape)
        else:
            self._text = compile_format(event.format, event.fields, reader.enums, lookup.text)

    def values(self, record: bytes) -> tuple[Any, ...]:
        return self._make(read(record, at) for at, read in self._decode)

    def read(self, record: bytes) -> Event:
        probe, probes = int.from_bytes(record[4:8], "little"), self.reader.probes
        where = probes[probe] if probe < len(probes) else ""
        return Event(self.event.action, self.values(record), self._text(record), where)


Entry = bytes | Event | Piece


class Collector(OutputSink):
    """`entries`: what has arrived and nobody took yet, oldest first."""

    def __init__(self, session: Session, packets: PacketFile | None = None, *, allow_system: bool = False) -> None:
        self.entries: deque[Entry] = deque()
        self.reader = session.reader
        self.source = session.bundle.source
        self.lookup = Lookup(session)
        self.sites = {
            number: Site(number, event, session.reader, session.bundle.source, self.lookup)
            for number, event in enumerate(session.reader.events)
            if event.action in ("printf", "print")
        }
        super().__init__(_Output(self), allow_system=allow_system, packets=packets)

    def _on_printf(self, session: Session, event: EventLayout) -> Handler:
        append = self.entries.append
        return lambda record: append(bytes(record))

    _on_print = _on_printf

    def native(self) -> Callable[[RingReader, Any], BulkConsumer]:
        from bpfseal.runtime.records.bulk import BulkConsumer

        def take(data: bytes, places: bytes) -> None:
            self.entries.append(Piece(data, places))

        return lambda ring, events: BulkConsumer(ring, events, self.sites.keys(), take)

    def event(self, record: bytes) -> Event:
        return self.sites[int.from_bytes(record[:4], "little")].read(record)

    def take(self) -> Iterator[Event]:
        """Everything that has arrived, one by one; what arrives meanwhile too."""
        entries = self.entries
        while entries:
            entry = entries.popleft()
            if isinstance(entry, Event):
                yield entry
            elif isinstance(entry, Piece):
                yield from map(self.event, entry)
            else:
                yield self.event(entry)

    def learn(self) -> None:
        """Look up what only the session knows about entries that nobody took yet: it is about to close."""
        if not any(site.located for site in self.sites.values()):
            return
        for entry in self.entries:
            for record in entry if isinstance(entry, Piece) else (entry,):
                if isinstance(record, bytes) and self.sites[int.from_bytes(record[:4], "little")].located:
                    self.lookup.learn(self.sites[int.from_bytes(record[:4], "little")].values(record))


class _Output:
    """What is no record becomes an Event at once."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def _say(self, action: str, values: tuple[Any, ...], text: str) -> None:
        self._collector.entries.append(Event(action, values, text))

    def printf(self, text: str) -> None:
        self._say("printf", (), text)

    def message(self, kind: str, text: str) -> None:
        self._say(kind, (), text)

    def value(self, value: Any, shape: Shape) -> None:
        self._say("print", (value,), self.text(value, shape))

    def map(self, contents: MapContents) -> None:
        self._say("map", tuple(contents.items), contents.name)

    def diagnostic(self, kind: str, text: str, where: str, trail: str = "") -> None:
        self._say(kind, (), text)

    def trouble(self, trouble: Trouble) -> None:
        self._say("runtime_error", (trouble.helper or trouble.kind, trouble.code), trouble.text())

    def full(self, name: str, failed: int, entries: int) -> None:
        self._say("map_full", (name, failed, entries), f"{failed} updates of {name} found no room")

    def skipped(self, probe: str, times: int) -> None:
        self._say("skipped", (probe, times), f"the kernel skipped {probe} {times} times")

    def deferred(self, account: Account, dropped: int, *, last: bool) -> None:
        if last:
            self._say("deferred", (account,), account.text())

    def attached(self, probes: int) -> None:
        pass

    def lost(self, events: int, total: int, *, last: bool) -> None:
        if events:
            self._say("lost", (events,), f"Lost {events} events")

    def clean(self, text: str) -> str:
        return text

    def native(self) -> int | None:
        return None

    def text(self, value: Any, shape: Shape) -> str:
        return self._collector.lookup.text(value, shape)

    def flush(self) -> None:
        pass

    def end(self) -> None:
        pass
