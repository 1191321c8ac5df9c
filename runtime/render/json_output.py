"""The JSON format: one object per line, valid JSON whatever bytes the traced world produced.

Undecodable bytes become U+FFFD, so that every reader accepts every line; integers beyond 2^53 that are unsigned 64-bit
with the top bit set are strings, as in bpftrace.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from bpfseal.compiler.layout import Shape
from bpfseal.runtime.aggregates import Slot
from bpfseal.runtime.maps import MapContents
from bpfseal.runtime.render.histogram import Bucket
from bpfseal.runtime.render.resolve import Resolver
from bpfseal.runtime.render.text import TextValues
from bpfseal.runtime.render.trouble import Trouble, place
from bpfseal.runtime.values import CgroupPathValue, Fields, StackValue, SymbolValue, TimestampValue, UserId

if TYPE_CHECKING:
    from bpfseal.runtime.deferred import Account
    from bpfseal.runtime.ring import RingReader
    from bpfseal.runtime.session import Consumer

_TYPES = {"hist": "hist", "lhist": "hist", "avg": "stats", "stats": "stats", "tseries": "tseries"}


def clean(text: str) -> str:
    """Surrogate escapes (bytes that are no UTF-8) as replacement characters."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class JsonOutput:
    """Writes to `file`; nothing goes to stderr but what is not part of the trace."""

    def __init__(self, file: TextIO, resolver: Resolver, *, quiet: bool = False, escape: bool = False) -> None:
        """`quiet`: no line about the trace itself. `escape`: `file` is a terminal, which gets control characters
        escaped."""
        self._file = file
        self._escape = escape
        self._write = file.write
        self._quiet = quiet
        self._values = TextValues(resolver.text)
        self._resolver = resolver
        self._encode: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=escape, separators=(", ", ": ")).encode
        if escape:
            plain = self._encode
            self._encode = lambda value: plain(value).replace("\x7f", "\\u007f")

    def _line(self, kind: str, data: str) -> None:
        self._write(f'{{"type": "{kind}", "data": {data}}}\n')

    def printf(self, text: str) -> None:
        self._line("printf", self._encode(clean(text)))

    def message(self, kind: str, text: str) -> None:
        self._line(kind, self._encode(clean(text.removesuffix("\n") if kind == "join" else text)))

    def text(self, value: Any, shape: Shape) -> str:
        return self._values.text(value, shape)

    def value(self, value: Any, shape: Shape) -> None:
        self._line("value", self._json(value))

    def map(self, contents: MapContents) -> None:
        kind = _TYPES.get(contents.kind, "map")
        if not contents.items:
            if kind == "stats":  # of all empty maps bpftrace shows these
                self._line(kind, f"{{{self._encode(contents.name)}: {{}}}}")
            return
        if contents.layout.key is None:
            data = self._json(contents.items[0][1])
        else:
            pairs = (f"{self._encode(self._key(key))}: {self._json(value)}" for key, value in contents.items)
            data = "{" + ", ".join(pairs) + "}"
        self._line(kind, f"{{{self._encode(contents.name)}: {data}}}")

    def clean(self, text: str) -> str:
        """As it is: a JSON string has its own escapes."""
        return text

    def native(self) -> Callable[[RingReader, Any], Consumer] | None:
        if self._escape:
            return None
        from bpfseal.runtime.native import NativeConsumer

        descriptor = self._file.fileno()
        return lambda ring, events: NativeConsumer(ring, events, descriptor, json=True)

    def diagnostic(self, kind: str, text: str, where: str, trail: str = "") -> None:
        if not where:  # it is not the program that says it
            sys.stderr.write(f"ERROR: {clean(text)}\n")
            return
        self._entry({"type": kind, "msg": clean(text)}, where)

    def trouble(self, trouble: Trouble) -> None:
        if trouble.kind == "helper":
            entry = {"type": "helper_error", "msg": trouble.reason, "helper": trouble.helper, "retcode": trouble.code}
        else:
            entry = {"type": "runtime_error", "msg": trouble.reason}
        self._entry(entry, trouble.where)

    def _entry(self, entry: dict[str, Any], where: str) -> None:
        name, line, column, _ = place(where)
        self._write(self._encode({**entry, "filename": name, "line": line, "col": column}) + "\n")

    def full(self, name: str, failed: int, entries: int) -> None:
        self._line("map_full", self._encode({"map": name, "failed": failed, "max_entries": entries}))

    def skipped(self, probe: str, times: int) -> None:
        self._line("skipped", self._encode({"probe": probe, "times": times}))

    def deferred(self, account: Account, dropped: int, *, last: bool) -> None:
        """One line at the end: scheduled = run + dropped + cancelled."""
        if last:
            scheduled, run, missed, cancelled, kernel = account
            data = {"scheduled": scheduled, "run": run, "dropped": missed, "cancelled": cancelled}
            self._line("deferred", self._encode(data | {"kernel_threads": kernel}))

    def attached(self, probes: int) -> None:
        if not self._quiet:
            self._write(f'{{"type": "attached_probes", "count": {probes}, "data": {{"probes": {probes}}}}}\n')

    def lost(self, events: int, total: int, *, last: bool) -> None:
        if events:
            self._write(f'{{"type": "lost_events", "count": {events}, "data": {{"events": {events}}}}}\n')
        if last and total:
            sys.stderr.write(f"WARNING: Total lost event count: {total}\n")

    def end(self) -> None:
        pass

    def flush(self) -> None:
        self._file.flush()

    def _key(self, key: Any) -> str:
        """A key is a string in JSON: parts joined by commas."""
        parts = key if isinstance(key, tuple) else (key,)
        return clean(",".join(self._key_part(part) for part in parts))

    def _key_part(self, part: Any) -> str:
        """Without spaces around what it is made of; those of the traced world stay."""
        if isinstance(part, Fields):
            return "{" + ",".join(f".{name}={self._key_part(value)}" for name, value in part.items()) + "}"
        if isinstance(part, tuple):
            return "(" + ",".join(map(self._key_part, part)) + ")"
        if isinstance(part, StackValue):
            return "".join(line.strip(" ") + "\n" for line in self._values.text(part).split("\n")[:-1])
        return self._values.text(part)

    def _json(self, value: Any) -> str:
        match value:
            case bool():
                return "true" if value else "false"
            case UserId():
                return self._encode(clean(value.name))
            case int():
                return _number(int(value))
            case str():
                return self._encode(clean(value))
            case bytes():
                return "[" + ",".join(map(str, value)) + "]"
            case dict():
                pairs = (f"{self._encode(name)}: {self._json(part)}" for name, part in value.items())
                return "{" + ", ".join(pairs) + "}"
            case Bucket():
                return _bucket(value)
            case Slot():
                return f'{{"interval_start":{self._encode(_instant(value))},"value":{value.value}}}'
            case tuple() | list():
                return "[" + ",".join(self._json(part) for part in value) + "]"
            case StackValue() | SymbolValue() | TimestampValue() | CgroupPathValue():
                return self._encode(clean(self._resolver.text(value)))
            case None:
                return "null"
        return self._encode(value)


def _number(value: int) -> str:
    """A number that a JavaScript reader could not hold, since doubles do not, is a string."""
    return str(value) if int(float(value)) == value else f'"{value}"'


def _bucket(bucket: Bucket) -> str:
    """Bounds are inclusive here, unlike in text."""
    parts = []
    if bucket.low is not None:
        parts.append(f'"min": {_number(bucket.low)}')
    if bucket.high is not None:
        parts.append(f'"max": {_number(bucket.high - 1)}')
    return "{" + ", ".join([*parts, f'"count": {bucket.count}']) + "}"


def _instant(slot: Slot) -> str:
    """Start of an interval as local time."""
    seconds, rest = divmod(slot.start_ns, 1_000_000_000)
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) + f".{rest:09d}"
