"""The script's maps: read in batches, aggregated over CPUs, sorted as bpftrace prints them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bpfseal.compiler.layout import MapLayout, Reader
from bpfseal.errors import BpfsealError
from bpfseal.runtime import bpf
from bpfseal.runtime.aggregates import sort_key, value_reader
from bpfseal.runtime.values import decoder


@dataclass(frozen=True)
class MapContents:
    """A map read at one moment. `items` are (key, value), key None for a scalar map; values by `kind`: numbers for
    count sum min max avg and plain maps, Fields for stats, lists of Bucket for hist and lhist."""

    name: str
    kind: str
    items: list[tuple[Any, Any]]


class ScriptMap:
    """One map of the script by its layout and fd; the fd stays the session's."""

    def __init__(self, layout: MapLayout, fd: int, reader: Reader) -> None:
        self.layout = layout
        self.fd = fd
        self.key_size = layout.key.size if layout.key is not None else 4
        self._value_size = (
            bpf.per_cpu_stride(layout.value.size) * bpf.possible_cpus() if layout.per_cpu else layout.value.size
        )
        self._key = decoder(layout.key, reader.enums) if layout.key is not None else None
        self._read = value_reader(layout, reader.enums)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """(key, value) in the kernel's order."""
        for raw_key, raw_value in self.raw():
            value = self._read(raw_value)
            if value is not None:
                yield (self._key(raw_key, 0) if self._key is not None else None), value

    def raw(self) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) bytes as the kernel has them; per-CPU values side by side."""
        return bpf.map_items(self.fd, self.key_size, self._value_size, max(self.layout.max_entries, 1))

    def contents(self, *, top: int = 0, div: int = 0) -> MapContents:
        """Everything, smallest first; the `top` largest, values divided by `div`, where given."""
        items = sorted(self, key=sort_key(self.layout))
        if top:
            items = items[-top:]
        if div > 1:
            items = [(key, _divide(value, div)) for key, value in items]
        return MapContents(self.layout.name, self.layout.value.kind, items)

    def clear(self) -> None:
        """Delete all elements; a scalar map in an array goes back to zero."""
        if self.layout.key is None and self.layout.array:
            self.zero()
        else:
            bpf.map_clear(self.fd, self.key_size, self._value_size, max(self.layout.max_entries, 1))

    def zero(self) -> None:
        """Set every value to zero, keys stay."""
        for key in [key for key, _ in self.raw()]:
            bpf.map_update(self.fd, key, bytes(self._value_size))


def _divide(value: Any, div: int) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value / div) if value < 0 else value // div
    if isinstance(value, list):
        from dataclasses import replace

        return [replace(bucket, count=bucket.count // div) for bucket in value]
    return value


class Maps:
    """The script's maps by name ("@" for the anonymous one)."""

    def __init__(self, reader: Reader, fds: tuple[int, ...]) -> None:
        self._reader = reader
        self._fds = fds
        self._open: dict[str, ScriptMap] = {}

    def __getitem__(self, name: str) -> ScriptMap:
        found = self._open.get(name)
        if found is None:
            for layout in self._reader.maps:
                if layout.name == name:
                    found = self._open[name] = ScriptMap(layout, self._fds[layout.index], self._reader)
                    return found
            raise BpfsealError(f"the script has no map {name}")
        return found

    def __iter__(self) -> Iterator[str]:
        return (layout.name for layout in self._reader.maps)

    def all_contents(self) -> Iterator[MapContents]:
        """Every map in order of its name, as printed at the end."""
        for name in sorted(self):
            yield self[name].contents()
