"""The text format: what a person reads, character for character as bpftrace writes it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TextIO

from bpfseal.compiler.layout import Shape
from bpfseal.runtime.maps import MapContents
from bpfseal.runtime.render.histogram import linear_label, log2_label, rows
from bpfseal.runtime.render.text import TextValues


class TextOutput:
    """Writes to `file`; notes about the trace itself go to stderr unless `quiet`."""

    def __init__(
        self, file: TextIO, resolve: Callable[[Any], str], *, quiet: bool = False, warnings: bool = True
    ) -> None:
        self._file = file
        self._write = file.write
        self._values = TextValues(resolve)
        self._quiet = quiet
        self._warnings = warnings

    def printf(self, text: str) -> None:
        self._write(text)

    def message(self, kind: str, text: str) -> None:
        self._write(text)

    def text(self, value: Any, shape: Shape) -> str:
        return self._values.text(value, shape)

    def value(self, value: Any, shape: Shape) -> None:
        self._write(self._values.text(value, shape) + "\n")

    def map(self, contents: MapContents) -> None:
        write = self._write
        for key, value in contents.items:
            name = contents.name if key is None else f"{contents.name}[{self._values.key(key)}]"
            match contents.kind:
                case "hist" | "lhist":
                    label = log2_label if contents.kind == "hist" else linear_label
                    write(f"{name}:\n")
                    for row in rows((label(bucket), bucket.count) for bucket in value):
                        write(row + "\n")
                    write("\n")
                case "tseries":
                    from bpfseal.runtime.render.tseries import chart

                    write(f"{name}:\n{chart(value, int(contents.layout.value.params[1]))}\n")
                case _:
                    write(f"{name}: {self._values.text(value)}\n")

    def diagnostic(self, kind: str, text: str, where: str) -> None:
        self.flush()
        if kind == "errorf":
            self._stderr(f"{where}: ERROR: {text}" if where else f"ERROR: {text}")
        elif kind == "warnf":
            if self._warnings:
                self._stderr(f"{where}: WARNING: {text}")
        else:
            self._stderr(f"{where}: WARNING: {text}\n")

    def attached(self, probes: int) -> None:
        if not self._quiet:
            self._stderr(f"Attached {probes} probe{'s' if probes != 1 else ''}\n")

    def lost(self, events: int) -> None:
        self.flush()
        self._stderr(f"Lost {events} events\n")

    def end(self) -> None:
        """Between the last event and the final maps."""
        if not self._quiet:
            self._write("\n\n")

    def flush(self) -> None:
        self._file.flush()

    def _stderr(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
