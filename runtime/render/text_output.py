"""The text format: what a person reads, character for character as bpftrace writes it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from bpfseal.compiler.layout import MapLayout, Shape
from bpfseal.runtime.maps import MapContents
from bpfseal.runtime.render.histogram import label, rows
from bpfseal.runtime.render.text import TextValues, visible
from bpfseal.runtime.render.trouble import Trouble

if TYPE_CHECKING:
    from bpfseal.runtime.deferred import Account

_CHUNK = 8192


def _plain(layout: MapLayout) -> bool:
    """Both key and value print as Python prints integers."""
    key, value = layout.key, layout.value
    if key is None or key.kind != "int" or key.name or value.name:
        return False
    return value.kind in ("int", "count", "sum", "min", "max", "avg")


class TextOutput:
    """Writes to `file`; notes about the trace itself go to stderr unless `quiet`."""

    def __init__(
        self,
        file: TextIO,
        resolve: Callable[[Any], str],
        *,
        quiet: bool = False,
        warnings: bool = True,
        escape: bool = False,
        escape_stderr: bool = False,
    ) -> None:
        """`escape`: `file` is a terminal, which the traced world shall not control; `escape_stderr` likewise."""
        self._file = file
        self._write = file.write
        self._escape = escape
        self._values = TextValues(resolve, visible if escape else None)
        self._quiet = quiet
        self._stderr_escape = escape_stderr
        self._warnings = warnings

    def printf(self, text: str) -> None:
        self._write(text)

    def message(self, kind: str, text: str) -> None:
        self._write(text + "\n" if kind == "syscall" else text)

    def text(self, value: Any, shape: Shape) -> str:
        return self._values.text(value, shape)

    def value(self, value: Any, shape: Shape) -> None:
        self._write(self._values.text(value, shape) + "\n")

    def map(self, contents: MapContents) -> None:
        write = self._write
        if _plain(contents.layout):
            # Without a look at each: maps of numbers can be large.
            head, items = f"{contents.name}[", contents.items
            for at in range(0, len(items), _CHUNK):
                write("".join([f"{head}{key}]: {value}\n" for key, value in items[at : at + _CHUNK]]))
            return
        for key, value in contents.items:
            name = contents.name if key is None else f"{contents.name}[{self._values.key(key)}]"
            match contents.kind:
                case "hist" | "lhist":
                    write(f"{name}:\n")
                    for row in rows((label(bucket, contents.layout.value), bucket.count) for bucket in value):
                        write(row + "\n")
                    write("\n")
                case "tseries":
                    from bpfseal.runtime.render.tseries import chart, last_epoch

                    layout = contents.layout.value
                    last, keep = last_epoch(contents), int(layout.params[1])
                    write(f"{name}:\n{chart(value, last, keep, signed=layout.signed)}\n")
                case _:
                    write(f"{name}: {self._values.text(value)}\n")

    def clean(self, text: str) -> str:
        return visible(text) if self._escape else text

    def native(self) -> int | None:
        return None if self._escape else self._file.fileno()

    def diagnostic(self, kind: str, text: str, where: str, trail: str = "") -> None:
        if kind == "warnf" and not self._warnings:
            return
        self.flush()
        self._stderr(f"{f'{where}: ' if where else ''}{'WARNING' if kind == 'warnf' else 'ERROR'}: {text}\n{trail}")

    def trouble(self, trouble: Trouble) -> None:
        self.flush()
        self._stderr(trouble.text())

    def full(self, name: str, failed: int, entries: int) -> None:
        self.flush()
        self._stderr(
            f"WARNING: Map full; can't update element. {failed} update{'s' if failed != 1 else ''} of {name} failed, "
            f"which has room for {entries} keys. Set max_map_keys in the config block or declare the map with more: "
            f"`let {name} = hash(N)`\n"
        )

    def skipped(self, probe: str, times: int) -> None:
        self.flush()
        self._stderr(f"WARNING: the kernel skipped {probe} {times} times, so as not to run it inside itself\n")

    def deferred(self, account: Account, dropped: int, *, last: bool) -> None:
        self.flush()
        if not last:
            self._stderr(f"Dropped {dropped} deferred blocks\n")
        elif text := account.text():
            self._stderr(text)

    def attached(self, probes: int) -> None:
        if not self._quiet:
            self._stderr(f"Attached {probes} probe{'s' if probes != 1 else ''}\n")

    def lost(self, events: int, total: int, *, last: bool) -> None:
        self.flush()
        if events:
            self._stderr(f"Lost {events} events\n")
        if last and total:
            self._stderr(f"WARNING: Total lost event count: {total}\n")

    def end(self) -> None:
        """Between the last event and the final maps."""
        self._write("\n\n")

    def flush(self) -> None:
        self._file.flush()

    def _stderr(self, text: str) -> None:
        if self._stderr_escape:
            text = visible(text)
        sys.stderr.write(text)
        sys.stderr.flush()
