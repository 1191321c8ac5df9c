"""Per-CPU values of a map element to the one value a user means; layouts in `compiler.layout.MapLayout`."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from bpfseal.compiler.layout import MapLayout, hist_bucket_low, lhist_bucket_low, lhist_buckets
from bpfseal.runtime.render.histogram import Bucket
from bpfseal.runtime.values import Fields

Cpus = list[bytes]  # one value per CPU, or just one
# (bucket number, values) of one element's buckets
Buckets = list[tuple[int, Cpus]]


class Slot(msgspec.Struct, frozen=True):
    """One interval of a time series: `epoch` counts intervals of `interval_ns` since 1970."""

    epoch: int
    interval_ns: int
    value: int

    @property
    def start_ns(self) -> int:
        """Wall clock at the interval's start, ns since 1970."""
        return self.epoch * self.interval_ns


def total(layout: MapLayout) -> Callable[[Buckets], Any] | None:
    """The function from an element's buckets to its value; None for maps that are no aggregations.

    The function returns None for an element that does not exist.
    """
    signed = layout.value.signed
    params = layout.value.params
    match layout.value.kind:
        case "count":
            return lambda buckets: _sum(buckets, "<Q")
        case "sum":
            return lambda buckets: _sum(buckets, "<q" if signed else "<Q")
        case "min" | "max" as kind:
            return lambda buckets: _extreme(buckets, "<qQ" if signed else "<QQ", min if kind == "min" else max)
        case "avg":
            return lambda buckets: _average(buckets, signed)
        case "stats":
            return lambda buckets: _stats(buckets, signed)
        case "hist":
            bits = int(params[0]) if params else 0
            return lambda buckets: _histogram(buckets, lambda i: hist_bucket_low(i, bits))
        case "lhist":
            low, high, step = (int(p) for p in params[:3])
            last = lhist_buckets(low, high, step) - 1
            return lambda buckets: _histogram(buckets, lambda i: lhist_bucket_low(i, low, high, step), last)
        case "tseries":
            return lambda buckets: _series(buckets, int(params[0]), str(params[2]), signed)
    return None


def none(layout: MapLayout) -> Any:
    """What an aggregation without events is: the zero of its kind."""
    match layout.value.kind:
        case "hist" | "lhist" | "tseries":
            return []
        case "stats":
            return Fields(count=0, average=0, total=0)
    return 0


def _sum(buckets: Buckets, code: str) -> int:
    unpack = struct.Struct(code).unpack_from
    return sum(unpack(value)[0] for _, cpus in buckets for value in cpus)


def _extreme(buckets: Buckets, code: str, choose: Callable[[Iterable[int]], int]) -> int | None:
    pairs = [struct.unpack_from(code, value) for _, cpus in buckets for value in cpus]
    values = [value for value, there in pairs if there]
    return choose(values) if values else None


def _totals(buckets: Buckets, signed: bool) -> tuple[int, int]:
    pairs = [struct.unpack_from("<qQ" if signed else "<QQ", value) for _, cpus in buckets for value in cpus]
    return sum(t for t, _ in pairs), sum(n for _, n in pairs)


def divide(total: int, count: int) -> int:
    """Quotient cut towards zero, as the kernel and C do; 0 for no values."""
    if count == 0:
        return 0
    return -(-total // count) if total < 0 else total // count


def _average(buckets: Buckets, signed: bool) -> int | None:
    value, count = _totals(buckets, signed)
    return divide(value, count) if count or value else None


def _stats(buckets: Buckets, signed: bool) -> Fields | None:
    value, count = _totals(buckets, signed)
    if not count and not value:
        return None
    return Fields(count=count, average=divide(value, count), total=value)


def _histogram(buckets: Buckets, low: Callable[[int], int | None], last: int | None = None) -> list[Bucket] | None:
    unpack = struct.Struct("<Q").unpack_from
    counts = {number: sum(unpack(value)[0] for value in cpus) for number, cpus in buckets}
    filled = [number for number, count in counts.items() if count]
    if not filled:
        return None
    made = []
    for number in range(min(filled), max(filled) + 1):
        start = low(number)
        end = None if number == last else low(number + 1)
        made.append(Bucket(start, end, counts.get(number, 0)))
    return made


def _series(buckets: Buckets, interval: int, kind: str, signed: bool) -> list[Slot] | None:
    found: dict[int, list[tuple[int, int]]] = {}
    for _, cpus in buckets:
        for raw in cpus:
            epoch, value, meta = struct.unpack_from("<QqQ" if signed else "<QQQ", raw)
            if meta:
                found.setdefault(epoch, []).append((value, meta))
    if not found:
        return None
    combine = _COMBINE[kind]
    return [Slot(epoch, interval, combine(found[epoch])) for epoch in sorted(found)]


_COMBINE: dict[str, Callable[[list[tuple[int, int]]], int]] = {
    "sum": lambda pairs: sum(value for value, _ in pairs),
    "min": lambda pairs: min(value for value, _ in pairs),
    "max": lambda pairs: max(value for value, _ in pairs),
    "avg": lambda pairs: divide(sum(value for value, _ in pairs), sum(count for _, count in pairs)),
    "none": lambda pairs: max(pairs, key=lambda pair: pair[1])[0],
}


def sort_key(layout: MapLayout) -> Callable[[tuple[Any, Any]], Any]:
    """Order of a printed map: numbers by value, then by key; histograms by their number of entries, stats by their
    average; what is no number by its key alone."""
    match layout.value.kind:
        case "hist" | "lhist":
            return lambda item: (sum(bucket.count for bucket in item[1]), comparable(item[0]))
        case "stats":
            return lambda item: (item[1]["average"], comparable(item[0]))
        case "int" | "enum" | "count" | "sum" | "min" | "max" | "avg":
            return lambda item: (int(item[1]), comparable(item[0]))
    return lambda item: comparable(item[0])


def comparable(value: Any) -> Any:
    """Something that orders values of one shape: numbers by value, strings by text, tuples by parts."""
    match value:
        case None:
            return ()
        case tuple() | list():
            return tuple(comparable(part) for part in value)
        case dict():
            return tuple(comparable(part) for part in value.values())
        case int() | float() | str() | bytes():
            return value
    return str(value)
