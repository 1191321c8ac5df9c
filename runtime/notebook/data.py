"""What a trace has found, at one moment (`Snapshot`) or now (`Data`, the base of a running trace)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bpfseal.compiler.layout import Reader
from bpfseal.runtime.notebook.recording import Recording, map_text
from bpfseal.runtime.notebook.trouble import Refused
from bpfseal.runtime.records.stream import Note, View

if TYPE_CHECKING:
    from bpfseal.runtime.api import Event
    from bpfseal.runtime.maps import MapContents


_LINES = 1000


@dataclass(frozen=True)
class Seal:
    """Who signed the programs, for the badge. `verified`: by the kernel; else `why` not. `certificate`: sha256 of the
    DER certificate, hex, "" for none; `record`: sequence number in the helper's audit log."""

    signed_by: str = "nobody"
    verified: bool = False
    why: str = ""
    certificate: str = ""
    record: int = 0


class Data:
    """Reading interface of traces and snapshots: `data["@map"]` and `data.events` are pandas frames, `data.maps` plain
    dicts. In a notebook it shows itself."""

    def snapshot(self) -> Snapshot:
        raise NotImplementedError

    @property
    def events(self) -> Any:
        """All printf and print events as one pandas frame; see `runtime.records.frames` for the dtypes."""
        return self.snapshot().frame()

    @property
    def text(self) -> str:
        """What the command line would have printed, maps at the end included."""
        return self.snapshot().as_text()

    @property
    def maps(self) -> dict[str, dict[Any, Any]]:
        """Maps as dicts, as `bpfseal.trace(…).maps`."""
        from bpfseal.runtime.api import _hashable

        return {
            name: {_hashable(key): value for key, value in contents.items}
            for name, contents in self.snapshot().contents.items()
        }

    def __getitem__(self, name: str) -> Any:
        """A map as a pandas frame, largest first. Raises KeyError for a map that the program does not have."""
        return self.snapshot().map_frame(name)

    def __contains__(self, name: object) -> bool:
        return name in self.snapshot().contents

    def _ipython_key_completions_(self) -> list[str]:
        return sorted(self.snapshot().contents)

    def polars(self, name: str | None = None) -> Any:
        """The events, or a map, as a polars frame. Raises BpfsealError when polars is not installed."""
        try:
            import polars
        except ImportError:
            raise Refused("polars is not installed", hint="pip install polars pyarrow") from None
        return polars.from_pandas(self.events if name is None else self[name])

    def arrow(self, name: str | None = None) -> Any:
        """The events, or a map, as an Arrow table. Raises BpfsealError when pyarrow is not installed."""
        try:
            import pyarrow
        except ImportError:
            raise Refused("Arrow is not installed", hint="pip install pyarrow") from None
        return pyarrow.Table.from_pandas(self.events if name is None else self[name], preserve_index=False)

    def plot(self, name: str | None = None, **options: Any) -> Any:
        """A matplotlib chart of a map (the only one, or `name`): bars for histograms and counts, a line for a time
        series. `options` go to pandas. Raises BpfsealError without matplotlib."""
        from bpfseal.runtime.notebook.plot import plot

        return plot(self.snapshot(), name, **options)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        shot = self.snapshot()
        return {"text/plain": shot.shown_text(), "text/html": shot.as_html()}

    def _repr_html_(self) -> str:
        return self.snapshot().as_html()


@dataclass
class Snapshot(Data):
    """Data of one moment. `state`: "running", "done", "interrupted" or "failed", then `trouble` says why; `seconds` of
    tracing, of those `planned` (0: until it is stopped)."""

    name: str
    source: str
    state: str
    seconds: float
    entries: View
    contents: dict[str, MapContents]
    recording: Recording
    seal: Seal
    warnings: tuple[str, ...] = ()
    planned: float = 0.0
    trouble: str = ""
    _frame: Any = field(default=None, repr=False)

    def snapshot(self) -> Snapshot:
        return self

    def __repr__(self) -> str:
        return f"<bpfseal trace {self.name!r}: {self.state}, {len(self.entries)} events, {len(self.contents)} maps>"

    @property
    def dropped(self) -> int:
        """The oldest events, which were let go."""
        return self.entries.first

    @property
    def reader(self) -> Reader:
        assert self.recording.reader is not None
        return self.recording.reader

    def __iter__(self) -> Iterator[Event]:
        return (self.recording.event(entry) for entry in self.entries)

    def frame(self) -> Any:
        """See `Data.events`."""
        from bpfseal.runtime.records import frames

        if self._frame is not None:
            return self._frame
        pd = frames.pandas()
        if self.recording.reader is None:
            return pd.DataFrame()
        lookup = self.recording.lookup
        assert lookup is not None
        # A printf without values has no columns; it is text between the data, like a headline.
        fields = [number for number, event in enumerate(self.reader.events) if event.fields]
        blocks, order = frames.blocks(self.entries, fields)
        made = {
            number: frames.of_block(block, number, self.reader, self.source, lookup)
            for number, block in sorted(blocks.items())
        }
        if not made:
            frame = pd.DataFrame()
        elif len(made) == 1:
            frame = next(iter(made.values()))
        else:
            frame = frames.together(made, order, self.reader.events).reset_index(drop=True)
        self._frame = frame
        return frame

    def map_frame(self, name: str) -> Any:
        """See `Data.__getitem__`; "@" in front may be left out."""
        from bpfseal.runtime.records import frames

        wanted = name if name in self.contents else f"@{name}"
        if wanted not in self.contents:
            known = ", ".join(sorted(self.contents)) or "none at all"
            raise KeyError(f"the program has no map {name!r}; it has {known}")
        lookup = self.recording.lookup
        assert lookup is not None
        contents = self.contents[wanted]
        frame = frames.of_map(contents, self.source, lookup)
        if contents.kind in ("hist", "lhist", "tseries"):
            return frame
        return frame.iloc[::-1].reset_index(drop=True)

    def as_text(self) -> str:
        texts = [self.recording.text(entry) for entry in self.entries]
        lookup = self.recording.lookup
        if lookup is not None:
            maps = [map_text(contents, lookup) for _, contents in sorted(self.contents.items())]
            if any(maps):
                texts += ["\n" if texts else "", *maps]
        if self.trouble:
            texts.append(f"ERROR: {self.trouble}\n")
        text = "".join(texts).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        return text or repr(self)

    def shown_text(self) -> str:
        """The end of the events and all maps, fit for a terminal: what was traced cannot control it."""
        from bpfseal.runtime.render.text import visible

        last = dataclasses.replace(self, entries=self.entries[-_LINES:], _frame=None)
        text = "".join(visible(line) for line in last.as_text().splitlines(keepends=True))
        hidden = len(self.entries) - len(last.entries)
        return (f"… {hidden} events before\n" if hidden else "") + text

    def as_html(self) -> str:
        from bpfseal.runtime.notebook.html import page

        return page(self)


__all__ = ["Data", "Note", "Seal", "Snapshot"]
