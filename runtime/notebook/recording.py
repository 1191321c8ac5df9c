"""A sink that keeps records as the kernel wrote them: a stream of millions costs one copy each, and is decoded by
columns (`frames`) or one by one (`Recording.event`) only when somebody looks."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bpfseal.compiler.layout import EventLayout, Reader, Shape
from bpfseal.runtime.records.lookup import Lookup, needs_session
from bpfseal.runtime.records.stream import Entry, Note, Piece, Stream
from bpfseal.runtime.render.printf import compile_format
from bpfseal.runtime.sink import Handler, OutputSink
from bpfseal.runtime.values import decoder

if TYPE_CHECKING:
    from bpfseal.runtime.api import Event
    from bpfseal.runtime.deferred import Account
    from bpfseal.runtime.maps import MapContents
    from bpfseal.runtime.records.bulk import BulkConsumer
    from bpfseal.runtime.render.trouble import Trouble
    from bpfseal.runtime.ring import RingReader
    from bpfseal.runtime.session import Session

LIMIT = 2_000_000
"""Events that are kept; then the oldest go."""


class Recording(OutputSink):
    """`entries` in the order of arrival. Only the session's thread appends; others look at `entries.view()`."""

    def __init__(self, *, limit: int = LIMIT, allow_system: bool = False) -> None:
        super().__init__(_Notes(self), allow_system=allow_system)
        self.entries = Stream()
        self.lost_events = 0
        self.limit = max(1, limit)
        self.lookup: Lookup | None = None
        self.reader: Reader | None = None
        self._text: dict[int, Callable[[bytes], str]] = {}
        self._decode: dict[int, list[tuple[int, Callable[[Any, int], Any]]]] = {}

    def bind(self, session: Session) -> list[Handler]:
        self.reader = session.reader
        self.lookup = Lookup(session)
        for number, event in enumerate(session.reader.events):
            if event.action in ("printf", "print"):
                self._text[number] = self._writer(session.reader, event)
                self._decode[number] = [(f.offset, decoder(f.shape, session.reader.enums)) for f in event.fields]
        return super().bind(session)

    def _writer(self, reader: Reader, event: EventLayout) -> Callable[[bytes], str]:
        assert self.lookup is not None
        text = self.lookup.text
        if event.action == "printf":
            return compile_format(event.format, event.fields, reader.enums, text)
        field = event.fields[0]
        decode = decoder(field.shape, reader.enums)
        return lambda record: text(decode(record, field.offset), field.shape) + "\n"

    def _on_printf(self, session: Session, event: EventLayout) -> Handler:
        append = self.entries.append
        return lambda record: append(bytes(record))

    _on_print = _on_printf

    def native(self) -> Callable[[RingReader, Any], BulkConsumer]:
        """What takes over when the stream is busy."""
        from bpfseal.runtime.records.bulk import BulkConsumer

        def take(data: bytes, places: bytes) -> None:
            self.entries.extend(Piece(data, places))

        return lambda ring, events: BulkConsumer(ring, events, self._text.keys(), take)

    def idle(self) -> None:
        # In steps of a tenth, since cutting the front off takes time.
        if len(self.entries) > self.limit + self.limit // 10:
            self.entries.cut(self.limit)

    # --- reading -------------------------------------------------------------------------------------------------

    def text(self, entry: Entry) -> str:
        """What the command line would have written, newline included."""
        if isinstance(entry, Note):
            return entry.text
        return self._text[int.from_bytes(entry[:4], "little")](entry)

    def event(self, entry: Entry) -> Event:
        from bpfseal.runtime.api import Event

        if isinstance(entry, Note):
            return Event(entry.kind, entry.values, entry.text)
        assert self.reader is not None
        number, probe = int.from_bytes(entry[:4], "little"), int.from_bytes(entry[4:8], "little")
        values = tuple(read(entry, at) for at, read in self._decode[number])
        probes = self.reader.probes
        where = probes[probe] if probe < len(probes) else ""
        return Event(self.reader.events[number].action, values, self.text(entry), where)

    def learn(self) -> None:
        """Look everything up that needs the session, which is about to close."""
        if self.reader is None or self.lookup is None:
            return
        sites = {
            number: [(f.offset, f.shape, decoder(f.shape, self.reader.enums)) for f in event.fields]
            for number, event in enumerate(self.reader.events)
            if number in self._decode and any(needs_session(field.shape) for field in event.fields)
        }
        if not sites:
            return
        seen: set[tuple[int, bytes]] = set()
        for entry in self.entries.view():
            if isinstance(entry, bytes) and (site := sites.get(int.from_bytes(entry[:4], "little"))):
                for at, shape, read in site:
                    # A stack comes thousands of times, and decoding it once is enough.
                    raw = entry[at : at + shape.size]
                    if needs_session(shape) and (at, raw) not in seen:
                        seen.add((at, raw))
                        self.lookup.learn([read(entry, at)])


class _Notes:
    """The Output behind a Recording: everything that is no record becomes a Note."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    def _note(self, kind: str, text: str, values: tuple[Any, ...] = ()) -> None:
        self._recording.entries.append(Note(kind, text, values))

    def _lookup(self) -> Lookup:
        assert self._recording.lookup is not None
        return self._recording.lookup

    def printf(self, text: str) -> None:
        self._note("printf", text)

    def message(self, kind: str, text: str) -> None:
        self._note(kind, text)

    def value(self, value: Any, shape: Shape) -> None:
        self._note("print", self._lookup().text(value, shape) + "\n", (value,))

    def map(self, contents: MapContents) -> None:
        self._note("map", map_text(contents, self._lookup()), tuple(contents.items))

    def diagnostic(self, kind: str, text: str, where: str, trail: str = "") -> None:
        self._note(kind, f"{where}: {'WARNING' if kind == 'warnf' else 'ERROR'}: {text}\n")

    def trouble(self, trouble: Trouble) -> None:
        self._note("runtime_error", trouble.text(), (trouble.helper or trouble.kind, trouble.code))

    def full(self, name: str, failed: int, entries: int) -> None:
        self._note("map_full", f"WARNING: {failed} updates of {name} found no room for more than {entries} keys\n")

    def skipped(self, probe: str, times: int) -> None:
        self._note("skipped", f"WARNING: the kernel skipped {probe} {times} times, so as not to run it inside itself\n")

    def deferred(self, account: Account, dropped: int, *, last: bool) -> None:
        if last and (text := account.text()):
            self._note("deferred", text)

    def attached(self, probes: int) -> None:
        pass

    def lost(self, events: int, total: int, *, last: bool) -> None:
        self._recording.lost_events = total

    def text(self, value: Any, shape: Shape) -> str:
        return self._lookup().text(value, shape)

    def clean(self, text: str) -> str:
        return text

    def native(self) -> int | None:
        return None

    def flush(self) -> None:
        pass

    def end(self) -> None:
        pass


def map_text(contents: MapContents, lookup: Lookup) -> str:
    """A map as the command line prints it."""
    from bpfseal.runtime.render.text_output import TextOutput

    file = io.StringIO()
    TextOutput(file, lookup.located, quiet=True).map(contents)
    return file.getvalue()
