"""The script's maps: read in batches, aggregated over CPUs, sorted as bpftrace prints them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec

from bpfseal.compiler.layout import MapLayout, Reader
from bpfseal.errors import BpfsealError
from bpfseal.runtime import bpf
from bpfseal.runtime.aggregates import Buckets, divide, none, sort_key, total
from bpfseal.runtime.values import Fields, decoder

_U32 = 4
_CHUNK = 1 << 14
_LOW = (1 << 64) - 1
_Code = Literal["b", "B", "h", "H", "i", "I", "q", "Q"]
_CODES: dict[tuple[int, bool], _Code] = {
    (1, False): "B",
    (1, True): "b",
    (2, False): "H",
    (2, True): "h",
    (4, False): "I",
    (4, True): "i",
    (8, False): "Q",
    (8, True): "q",
}
# (kind, per CPU) of values that are the sum of what their CPUs have
_BUCKETED = {"hist", "lhist", "tseries"}
_SUMMED = {("int", False), ("count", True), ("sum", True), ("count", False), ("sum", False)}


class MapContents(msgspec.Struct, frozen=True):
    """A map read at one moment. `items` are (key, value), key None for a scalar map; values by `kind`: numbers for
    count sum min max avg and plain maps, Fields for stats, lists of Bucket for hist and lhist, of Slot for tseries.
    """

    name: str
    kind: str
    items: list[tuple[Any, Any]]
    layout: MapLayout


class ScriptMap:
    """One map of the script by its layout and fd; the fd stays the session's."""

    def __init__(self, layout: MapLayout, fd: int, reader: Reader) -> None:
        self.layout = layout
        self.fd = fd
        self._stride = bpf.per_cpu_stride(layout.value_size) if layout.per_cpu else layout.value_size
        self._cpus = bpf.possible_cpus() if layout.per_cpu else 1
        self._key = decoder(layout.key, reader.enums) if layout.key is not None else None
        self._total = total(layout)
        self._decode = None if self._total is not None else decoder(layout.value, reader.enums)
        self._zeroed = False  # an aggregation in an array: zero() was called when it had a value

    def raw(self) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) bytes as the kernel has them; per-CPU values side by side."""
        layout = self.layout
        try:
            yield from bpf.map_items(self.fd, layout.key_size, self._stride * self._cpus, max(layout.max_entries, 1))
        except OSError as error:
            raise BpfsealError(f"cannot read map {layout.name}: {error.strerror}") from None

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """(key, value) in the kernel's order."""
        if self._decode is not None:
            for raw_key, raw_value in self.raw():
                if self._exists(raw_value):
                    yield self._user_key(raw_key), self._decode(raw_value, 0)
            return
        assert self._total is not None
        for key, buckets in self._elements().items():
            value = self._total(buckets)
            if value is None and not self.layout.array:
                value = none(self.layout)  # the key is there: it was set to zero
            if value is not None:
                yield self._user_key(key), value

    def _exists(self, value: bytes) -> bool:
        at = self.layout.present
        if at < 0:
            return True
        return any(value[start + at : start + at + 8] != bytes(8) for start in range(0, len(value), self._stride))

    def _elements(self) -> dict[bytes, Buckets]:
        """Raw user key → its buckets; maps without buckets have one, number 0, per element."""
        layout, stride, size = self.layout, self._stride, self.layout.value_size
        starts = [cpu * stride for cpu in range(self._cpus)]
        elements: dict[bytes, Buckets] = {}
        for key, value in self.raw():
            if not self._exists(value):
                continue
            bucket = 0
            if layout.bucket >= 0:
                bucket = int.from_bytes(key[layout.bucket : layout.bucket + _U32], "little")
                key = key[: layout.bucket]
            elements.setdefault(key, []).append((bucket, [value[at : at + size] for at in starts]))
        return elements

    def _user_key(self, key: bytes) -> Any:
        return self._key(key, 0) if self._key is not None else None

    def _numbers(self) -> list[tuple[Any, Any]] | None:
        """(key, value) of a hash map from one integer to one, sorted; None for other maps. Such maps have a million
        keys now and then, and this takes a tenth of the time."""
        layout = self.layout
        if layout.key is None or layout.array or layout.bucket >= 0 or layout.present >= 0:
            return None
        key, value = (
            _CODES.get((layout.key.size, layout.key.signed)),
            _CODES.get((layout.value_size, layout.value.signed)),
        )
        if layout.key.kind != "int" or layout.key.name or layout.key_size != layout.key.size or key is None:
            return None
        if layout.value.name or value is None or (layout.value.kind, layout.per_cpu) not in _SUMMED:
            return None
        if layout.value.kind == "count":
            value = _CODES[8, False]
        cpus = self._cpus
        if cpus * layout.value_size != self._stride * cpus:
            return None
        # Key and value in one integer: sorting those takes a third of what pairs take.
        shift = 1 << (8 * layout.key_size - 1) if layout.key.signed else 0
        packed: list[Any] = []
        try:
            for _, keys, values in bpf.map_batches(self.fd, layout.key_size, self._stride * cpus, layout.max_entries):
                numbers: Iterable[int] = values.cast(value)
                if cpus > 1:
                    numbers = map(sum, zip(*(values.cast(value)[cpu::cpus] for cpu in range(cpus)), strict=True))
                pairs = zip(numbers, keys.cast(key), strict=True)
                packed += [number << 64 | one + shift for number, one in pairs]
        except OSError:
            return None
        packed.sort()
        for at in range(0, len(packed), _CHUNK):
            # In place: a second list of a million would be there beside the first.
            packed[at : at + _CHUNK] = [((one & _LOW) - shift, one >> 64) for one in packed[at : at + _CHUNK]]
        return packed

    def contents(self, *, top: int = 0, div: int = 0, zero: bool = False) -> MapContents:
        """Everything, smallest first; the `top` largest, values divided by `div`, where given. `zero`: a scalar map
        that has no value shows the zero of its type, as one that is read does; one of buckets has none to show."""
        numbers = self._numbers()
        kind = self.layout.value.kind
        items: list[tuple[Any, Any]]
        if numbers is not None:
            items = numbers
        else:
            items = sorted(self, key=sort_key(self.layout))
        if not items and self.layout.key is None and (self._zeroed or (zero and kind not in _BUCKETED)):
            items = self._zero()
        if top:
            items = items[-top:]
        if div > 1:
            items = [(key, _divided(value, div, kind)) for key, value in items]
        return MapContents(self.layout.name, self.layout.value.kind, items, self.layout)

    def _zero(self) -> list[tuple[Any, Any]]:
        if self._decode is not None:
            return [(None, self._decode(bytes(self.layout.value_size), 0))]
        return [(None, none(self.layout))]

    def clear(self) -> None:
        """Delete all elements; a map in an array goes back to how it was at first."""
        self._zeroed = False
        size = self._stride * self._cpus
        if self.layout.array:
            for key, _ in list(self.raw()):
                bpf.map_update(self.fd, key, bytes(size))
        else:
            bpf.map_clear(self.fd, self.layout.key_size, size, max(self.layout.max_entries, 1))

    def zero(self) -> None:
        """Set every value to zero; keys stay."""
        layout = self.layout
        if layout.array and self._total is not None:
            self._zeroed = self._zeroed or bool(list(self))
        for key, value in list(self.raw()):
            zeroed = bytearray(self._stride * self._cpus)
            if layout.present >= 0 and self._total is None:
                # The element goes on existing: its mark is not part of the value.
                for start in range(0, len(value), self._stride):
                    at = start + layout.present
                    zeroed[at : at + 8] = value[at : at + 8]
            bpf.map_update(self.fd, key, bytes(zeroed))


def _divided(value: Any, div: int, kind: str) -> Any:
    """As bpftrace does it: of statistics only the average, of linear histograms and time series nothing."""
    if kind == "stats":
        return Fields(value, average=divide(value["average"], div))
    if kind == "hist":
        return [msgspec.structs.replace(part, count=part.count // div) for part in value]
    if kind in ("lhist", "tseries"):
        return value
    if type(value) is int:
        return divide(value, div)
    if isinstance(value, tuple):
        return tuple(_divided(part, div, "") for part in value)
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
