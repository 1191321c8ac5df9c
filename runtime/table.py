"""Events and maps by columns: NumPy arrays, and frames of whatever library is installed.

Events of a site have a fixed layout, so their columns are views of the kernel's bytes: no Python runs per event.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from bpfseal.errors import BpfsealError
from bpfseal.runtime.records.stream import Piece, View

if TYPE_CHECKING:
    from bpfseal.compiler.layout import Shape
    from bpfseal.runtime.collect import Collector, Entry, Site
    from bpfseal.runtime.event import Event
    from bpfseal.runtime.maps import MapContents


class _Columns(Protocol):
    def pandas(self) -> Any: ...


def _module(name: str) -> Any:
    """A library of the user's choice. Raises BpfsealError when it is not installed."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise BpfsealError(f"this needs {name}", hint=f"pip install {name}") from None


class _Frames:
    """What pandas can hold, other libraries can take over."""

    def pandas(self: _Columns) -> Any:
        raise NotImplementedError

    def polars(self: _Columns) -> Any:
        """As `pandas`, as a polars frame. Raises BpfsealError when a library is missing."""
        polars = _module("polars")
        _module("pyarrow")
        return polars.from_pandas(self.pandas())

    def arrow(self: _Columns) -> Any:
        """As `pandas`, as an Arrow table. Raises BpfsealError when a library is missing."""
        return _module("pyarrow").Table.from_pandas(self.pandas(), preserve_index=False)


class Batch(_Frames):
    """Events that arrived together. Iterating gives them one by one."""

    def __init__(self, collector: Collector, entries: list[Entry]) -> None:
        self._collector = collector
        self._entries = entries

    def __len__(self) -> int:
        return sum(len(entry) if isinstance(entry, Piece) else 1 for entry in self._entries)

    def __iter__(self) -> Iterator[Event]:
        event = self._collector.event
        for entry in self._entries:
            if isinstance(entry, Piece):
                yield from map(event, entry)
            else:
                yield event(entry) if isinstance(entry, bytes) else entry

    def _blocks(self) -> tuple[dict[int, Any], Any]:
        """({number of a site: its records as rows of bytes}, the site of each row of all)."""
        from bpfseal.runtime.records.frames import blocks

        _module("numpy")
        few: list[Any] = []
        spans: list[Any] = []
        for entry in self._entries:
            if isinstance(entry, Piece):
                spans += [(few, 0, len(few)), (entry, 0, len(entry))]
                few = []
            elif isinstance(entry, bytes):
                few.append(entry)
        return blocks(View([*spans, (few, 0, len(few))]), self._collector.sites.keys())

    def numpy(self) -> Any:
        """The records of the program's printf (or print) as a structured array, one field for each argument: integers,
        addresses and booleans as themselves, strings as bytes up to their NUL, all else as raw bytes. Where the
        program has several, a dict of arrays by their places ("line:column-column"). Without events an empty dict."""
        import numpy as np

        found, _ = self._blocks()
        arrays = {}
        for number, rows in found.items():
            site = self._collector.sites[number]
            if site.event.fields:
                dtype = np.dtype(structure(site, rows.shape[1]))
                arrays[site.event.where.partition(":")[2]] = np.ascontiguousarray(rows).view(dtype).reshape(len(rows))
        return next(iter(arrays.values())) if len(arrays) == 1 else arrays

    def pandas(self) -> Any:
        """A pandas frame of the events in the order of arrival, text as categories; with a column "site" where the
        program has several printfs. Raises BpfsealError without pandas."""
        from bpfseal.runtime.records import frames

        pd = frames.pandas()
        found, order = self._blocks()
        collector = self._collector
        reader = collector.reader
        found = {number: rows for number, rows in sorted(found.items()) if reader.events[number].fields}
        made = {
            number: frames.of_block(rows, number, reader, collector.source, collector.lookup)
            for number, rows in found.items()
        }
        if len(made) < 2:
            return next(iter(made.values()), pd.DataFrame())
        keep = [number for number in order if number in made]
        return frames.together(made, keep, reader.events).reset_index(drop=True)


_KINDS = {"int": "", "enum": "", "ptr": "u", "bool": "?"}


def structure(site: Site, size: int) -> dict[str, Any]:
    """The NumPy dtype of records of `site`, which take `size` bytes."""
    formats = [_format(field.shape) for field in site.event.fields]
    offsets = [field.offset for field in site.event.fields]
    return {"names": list(site.names), "formats": formats, "offsets": offsets, "itemsize": size}


def _format(shape: Shape) -> str:
    if shape.kind == "bool":
        return "?"
    if shape.kind in _KINDS:
        size = 8 if shape.kind == "ptr" else shape.size
        return f"<{'i' if shape.signed and shape.kind != 'ptr' else 'u'}{size}"
    return f"{'S' if shape.kind == 'str' else 'V'}{shape.size}"


class Table(_Frames):
    """A map as it was at one moment, by columns: one for each part of the key and for the value; histograms have a row
    per bucket (low, high, count), time series one per interval (time, value)."""

    def __init__(self, collector: Collector, contents: MapContents) -> None:
        self._collector = collector
        self._contents = contents

    def __len__(self) -> int:
        return len(self._contents.items)

    def pandas(self) -> Any:
        """A pandas frame in the order in which the map prints: smallest first. Raises BpfsealError without pandas."""
        from bpfseal.runtime.records import frames

        return frames.of_map(self._contents, self._collector.source, self._collector.lookup)

    def numpy(self) -> tuple[Any, Any]:
        """(keys, values) of a map from numbers to numbers, as arrays of 64-bit integers: keys have a column for each
        part where they have several. Raises BpfsealError for other maps."""
        np = _module("numpy")
        keys = [key for key, _ in self._contents.items]
        values = [value for _, value in self._contents.items]
        flat = (part for key in keys for part in (key if isinstance(key, tuple) else (key,)))
        if not all(isinstance(number, int) for number in (*flat, *values)):
            raise BpfsealError(f"{self._contents.name} is not a map from numbers to numbers", hint="use pandas()")
        return _integers(np, keys), _integers(np, values)


def _integers(np: Any, numbers: list[Any]) -> Any:
    try:
        return np.array(numbers, dtype=np.int64)
    except OverflowError:
        return np.array(numbers, dtype=np.uint64)
