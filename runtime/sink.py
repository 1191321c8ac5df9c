"""From event records to an Output: builds one handler per event site of a session."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from bpfseal.compiler.layout import EventLayout, Shape
from bpfseal.errors import BpfsealError
from bpfseal.runtime.render.printf import compile_format
from bpfseal.runtime.values import Buffer, SymbolValue, decoder

if TYPE_CHECKING:
    from bpfseal.runtime.deferred import Account
    from bpfseal.runtime.maps import MapContents
    from bpfseal.runtime.pcap import PacketFile
    from bpfseal.runtime.render.trouble import Trouble
    from bpfseal.runtime.ring import RingReader
    from bpfseal.runtime.session import Consumer, Session

Handler = Callable[[memoryview], None]


class Output(Protocol):
    """One way of writing what a trace has to say. Strings carry undecodable bytes as surrogate escapes."""

    def printf(self, text: str) -> None: ...

    def message(self, kind: str, text: str) -> None:
        """`kind`: time, join, cat, syscall (the output of system())."""

    def value(self, value: Any, shape: Shape) -> None: ...

    def map(self, contents: MapContents) -> None: ...

    def diagnostic(self, kind: str, text: str, where: str, trail: str = "") -> None:
        """`kind`: errorf or warnf. `trail`: for people, lines that name the macros' call sites."""

    def trouble(self, trouble: Trouble) -> None:
        """An error at run time that the program reports."""

    def full(self, name: str, failed: int, entries: int) -> None:
        """`failed` updates of the map `name`, which has room for `entries`, found none since the last report."""

    def skipped(self, probe: str, times: int) -> None:
        """The kernel did not run a program `times` times, to keep it from interrupting itself."""

    def deferred(self, account: Account, dropped: int, *, last: bool) -> None:
        """`dropped` more deferred blocks were; `last`: this is the end, tell what became of all."""

    def attached(self, probes: int) -> None: ...

    def lost(self, events: int, total: int, *, last: bool) -> None:
        """`events` more did not fit into the ring; `last`: this is the end, tell the `total`."""

    def text(self, value: Any, shape: Shape) -> str:
        """A value inside a format string."""

    def clean(self, text: str) -> str:
        """Text of the traced world as it may be shown: on a terminal its control characters are escaped."""

    def native(self) -> int | Callable[[RingReader, Any], Consumer] | None:
        """The descriptor when lines of printf, with the traced world's bytes as they are, may be written to it past
        this object after `flush()`, or what makes a consumer that writes others; None when they may not."""

    def flush(self) -> None: ...

    def end(self) -> None:
        """Called once between the last event and the final maps."""


class OutputSink:
    """The session's sink: decodes, acts on maps, stops the trace, hands the rest to `output`."""

    def __init__(
        self,
        output: Output,
        *,
        allow_system: bool = False,
        when_attached: Callable[[], None] | None = None,
        packets: PacketFile | None = None,
    ) -> None:
        """`when_attached` is called once, before what begin probes have to say is written; `packets` is what capture()
        writes to."""
        self.output = output
        self.allow_system = allow_system
        self.when_attached = when_attached
        self.packets = packets
        self._packet_files = [packets] if packets is not None else []

    def bind(self, session: Session) -> list[Handler]:
        return [self._handler(session, event) for event in session.reader.events]

    def lost(self, events: int, total: int, *, last: bool) -> None:
        self.output.lost(events, total, last=last)

    def full(self, name: str, failed: int, entries: int) -> None:
        self.output.full(name, failed, entries)

    def skipped(self, probe: str, times: int) -> None:
        self.output.skipped(probe, times)

    def deferred(self, account: Account, dropped: int, *, last: bool) -> None:
        self.output.deferred(account, dropped, last=last)

    def attached(self, probes: int) -> None:
        self.output.attached(probes)
        if self.when_attached is not None:
            self.output.flush()
            self.when_attached()

    def native(self) -> int | Callable[[RingReader, Any], Consumer] | None:
        return self.output.native()

    def idle(self) -> None:
        self.output.flush()
        for file in self._packet_files:
            file.flush()

    def _handler(self, session: Session, event: EventLayout) -> Handler:
        build = getattr(self, f"_on_{event.action}", None)
        if build is None:
            raise ValueError(f"no handler for event {event.action!r}")
        handler: Handler = build(session, event)
        return handler

    def _format(self, session: Session, event: EventLayout) -> Callable[[Buffer], str]:
        return compile_format(event.format, event.fields, session.reader.enums, self.output.text, self.output.clean)

    def _on_printf(self, session: Session, event: EventLayout) -> Handler:
        write, text = self.output.printf, self._format(session, event)
        return lambda record: write(text(record))

    def _on_errorf(self, session: Session, event: EventLayout) -> Handler:
        text, action = self._format(session, event), event.action
        trail = _trail(str(event.options.get("via", "")), action, session.bundle.source)
        return lambda record: self.output.diagnostic(action, text(record), event.where, trail)

    _on_warnf = _on_errorf

    def _on_print(self, session: Session, event: EventLayout) -> Handler:
        field = event.fields[0]
        decode = decoder(field.shape, session.reader.enums)
        return lambda record: self.output.value(decode(record, field.offset), field.shape)

    def _on_print_map(self, session: Session, event: EventLayout) -> Handler:
        top, div = int(event.options.get("top", 0)), int(event.options.get("div", 0))
        return lambda record: self.output.map(session.maps[event.map].contents(top=top, div=div, zero=True))

    def _on_clear(self, session: Session, event: EventLayout) -> Handler:
        return lambda record: session.maps[event.map].clear()

    def _on_zero(self, session: Session, event: EventLayout) -> Handler:
        return lambda record: session.maps[event.map].zero()

    def _on_exit(self, session: Session, event: EventLayout) -> Handler:
        if not event.fields:
            return lambda record: session.exit(0)
        field = event.fields[0]
        decode = decoder(field.shape, session.reader.enums)
        return lambda record: session.exit(int(decode(record, field.offset)) & 0xFF)

    def _on_time(self, session: Session, event: EventLayout) -> Handler:
        format = event.format.decode("utf-8", "surrogateescape")
        return lambda record: self.output.message("time", time.strftime(format))

    def _on_join(self, session: Session, event: EventLayout) -> Handler:
        fields = [(f.offset, decoder(f.shape, session.reader.enums)) for f in event.fields]
        separator = event.format.decode("utf-8", "surrogateescape")

        def join(record: memoryview) -> None:
            words = [decode(record, at) for at, decode in fields]
            while words and not words[-1]:
                words.pop()
            self.output.message("join", self.output.clean(separator.join(words)) + "\n")

        return join

    def _on_cat(self, session: Session, event: EventLayout) -> Handler:
        path = self._format(session, event)
        limit = int(session.reader.config.get("max_cat_bytes", 10240))
        return lambda record: self._cat(path(record), limit)

    def _cat(self, path: str, limit: int) -> None:
        try:
            with open(os.fsencode(path), "rb") as file:
                data = file.read(limit)
        except OSError as error:
            self.output.diagnostic("errorf", f"failed to open file '{path}' ({error.strerror})", "")
            return
        self.output.message("cat", self.output.clean(data.decode("utf-8", "surrogateescape")))

    def _on_system(self, session: Session, event: EventLayout) -> Handler:
        command = self._format(session, event)
        return lambda record: self._system(session, command(record), event.where)

    def _system(self, session: Session, command: str, where: str) -> None:
        if session.hurried:
            return
        # The compiler lets system() through only with --unsafe; a bundle from elsewhere is held to it here.
        if not self.allow_system:
            self.output.diagnostic("errorf", "system() needs --unsafe", where)
            return
        import subprocess

        from bpfseal.runtime.child import end_with_parent

        self.output.flush()
        # What it says on stderr is part of its output, as in bpftrace.
        done = subprocess.run(
            ["/bin/sh", "-c", os.fsencode(command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            preexec_fn=end_with_parent,
        )
        self.output.message("syscall", self.output.clean(done.stdout.decode("utf-8", "surrogateescape")))
        if done.returncode < 0:
            self.output.diagnostic("errorf", f"child process did not exit normally (signal {-done.returncode})", "")
        elif done.returncode:
            self.output.diagnostic("errorf", f"command exited with code {done.returncode}", "")

    def _on_runtime_error(self, session: Session, event: EventLayout) -> Handler:
        from bpfseal.runtime.render.trouble import Trouble

        code = struct.Struct("<i")
        kind, helper = str(event.options.get("kind", "helper")), str(event.options.get("helper", ""))
        offset = event.fields[0].offset
        source = session.bundle.source

        def failed(record: memoryview) -> None:
            self.output.trouble(Trouble(kind, event.where, helper, code.unpack_from(record, offset)[0], source))

        return failed

    def _on_unwatch(self, session: Session, event: EventLayout) -> Handler:
        field = event.fields[0]
        decode = decoder(field.shape, session.reader.enums)
        return lambda record: session.unwatch(int(decode(record, field.offset)))

    def _on_skboutput(self, session: Session, event: EventLayout) -> Handler:
        from bpfseal.runtime.pcap import PacketFile

        packets = PacketFile(event.format.decode("utf-8", "surrogateescape"))
        self._packet_files.append(packets)
        field = event.fields[0]
        return lambda record: packets.write(record[field.offset :])

    def _on_capture(self, session: Session, event: EventLayout) -> Handler:
        packets = self.packets
        if packets is None:
            raise BpfsealError("capture() needs a file to write to", hint="--pcap FILE")
        packets.of_type(int(event.options.get("link", 1)))
        when, length, data = (field.offset for field in event.fields)
        time_of, length_of = struct.Struct("<Q").unpack_from, struct.Struct("<I").unpack_from
        write = packets.write
        return lambda record: write(record[data:], time_of(record, when)[0], length_of(record, length)[0])


def _trail(places: str, action: str, source: str) -> str:
    """Where the macros were called that an errorf or warnf stands in, each with its line of the script."""
    from bpfseal.runtime.render.trouble import context

    word = "WARNING" if action == "warnf" else "ERROR"
    return "".join(f"{at}: {word}: expanded from\n{context(source, at)}" for at in places.splitlines())


__all__ = ["Output", "OutputSink", "SymbolValue"]
