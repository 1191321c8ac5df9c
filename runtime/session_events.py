"""The events of a session: from its rings to the handlers of its sink, or to machine code where there are very many."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from bpfseal.runtime.ring import RingReader

if TYPE_CHECKING:
    from bpfseal.compiler.layout import Reader, Shape
    from bpfseal.runtime.session import Session
    from bpfseal.runtime.session_sink import Consumer, Sink

# Events in one batch from which on compiling a consumer (0.1 s) is worth it, and buffers that it fills in one go.
_BUSY_BATCH = 2000
_NATIVE_ROUNDS = 16
_NUMBER = struct.Struct("I")
_MAP_ACTIONS = frozenset(("clear", "zero", "print_map"))


class Events:
    """`exited`: the script has said exit(), and what was produced behind it is passed over."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.exited = False
        reader = session.reader
        self.rings = [
            RingReader(session.map_fd(index), session.bundle.maps[index].max_entries)
            for index in (reader.ring, reader.control)
            if index >= 0
        ]
        self._handlers: list[Callable[[memoryview], None]] = []
        self._sink: Sink | None = None
        self._native: Consumer | None = None
        self._tried_native = False
        self._last_words: frozenset[int] = frozenset()  # events that end the trace, where maps are worked on besides

    def bind(self, sink: Sink) -> None:
        """Send events to `sink` from now on."""
        self._sink = sink
        self._handlers = sink.bind(self._session)
        actions = [event.action for event in self._session.reader.events]
        if not _MAP_ACTIONS.isdisjoint(actions):
            self._last_words = frozenset(number for number, action in enumerate(actions) if action == "exit")

    def hold(self) -> list[bytes]:
        """What the begin probes sent, to be handled once everything is attached, as in bpftrace. exit() among it means
        that nothing needs attaching."""
        events = self._session.reader.events
        held = [bytes(record) for ring in self.rings for record in ring.read()]
        self.exited = any(events[_NUMBER.unpack_from(record)[0]].action == "exit" for record in held)
        return held

    def replay(self, held: list[bytes]) -> None:
        self.exited = False
        for record in held:
            if not self.exited:
                self._handlers[_NUMBER.unpack_from(record)[0]](memoryview(record))

    def drain(self) -> bool:
        """Handle what is in the rings now, up to a batch of each; whether there was anything."""
        handlers = self._handlers
        number = _NUMBER.unpack_from
        total = 0
        for ring in self.rings:
            if self._native is not None and ring is self.rings[0] and not self.exited:
                total += self._drain_natively(ring, self._native)
                continue
            seen = 0
            for record in self._looked_through(ring) if self._last_words else ring.read():
                seen += 1
                if not self.exited:
                    handlers[number(record)[0]](record)
            if seen >= _BUSY_BATCH and ring is self.rings[0]:
                self._go_native(ring)
            total += seen
        return total > 0

    def drain_all(self) -> None:
        while self.drain():
            pass

    def _looked_through(self, ring: RingReader) -> list[memoryview]:
        """What is in the ring; with exit() among it probes are off before clear() and print(), which come first, are
        done: they would find what probes have done since."""
        batch = [memoryview(bytes(record)) for record in ring.read()]
        if any(_NUMBER.unpack_from(record)[0] in self._last_words for record in batch):
            self._session.probes.detach()
        return batch

    def _go_native(self, ring: RingReader) -> None:
        """More than Python should handle: have the lines written by machine code, where there is some for them."""
        if self._tried_native or self._sink is None or (wanted := self._sink.native()) is None:
            return
        self._tried_native = True
        events = self._session.reader.events
        try:
            if callable(wanted):
                self._native = wanted(ring, events)
                return
            from bpfseal.runtime.native import NativeConsumer

            self._native = NativeConsumer(ring, events, wanted)
        except (ImportError, OSError, RuntimeError):
            return  # slower, not wrong

    def _drain_natively(self, ring: RingReader, native: Consumer) -> int:
        """As `drain` for one ring; records that machine code does not know are handled here, in their turn."""
        self.idle()  # what was said before comes first
        total = 0
        for _ in range(_NATIVE_ROUNDS):
            reason, count = native.run()
            total += count
            if reason == 1:
                for record in ring.read(1):
                    total += 1
                    self._handlers[_NUMBER.unpack_from(record)[0]](record)
                self.idle()
                if self.exited:
                    break
            elif reason == 0:
                break
        return total

    def idle(self) -> None:
        """The sink may flush."""
        if self._sink is not None:
            self._sink.idle()

    def close(self) -> None:
        if self._native is not None:
            self._native.close()
        for ring in self.rings:
            ring.close()


OF_PROCESSES: Final = ("ustack", "usym")
OF_THE_KERNEL: Final = ("kstack", "ksym")


def shows_addresses(reader: Reader, kinds: tuple[str, ...] = OF_PROCESSES) -> bool:
    """Whether a script shows addresses by name, of processes unless said otherwise."""
    shapes = [field.shape for event in reader.events for field in event.fields]
    shapes += [shape for layout in reader.maps for shape in (layout.key, layout.value) if shape is not None]
    return any(_is_address(shape, kinds) for shape in shapes)


def _is_address(shape: Shape, kinds: tuple[str, ...]) -> bool:
    if shape.kind in kinds:
        return True
    parts = [member.shape for member in shape.members]
    if shape.element is not None:
        parts.append(shape.element)
    return any(_is_address(part, kinds) for part in parts)
