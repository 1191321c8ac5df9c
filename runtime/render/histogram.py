"""Histograms: bucket ranges and bars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_BAR = 52
_SUFFIXES = {10: "K", 20: "M", 30: "G", 40: "T", 50: "P", 60: "E"}


@dataclass(frozen=True, slots=True)
class Bucket:
    """Values in [low, high), either end None when open; `count` of them."""

    low: int | None
    high: int | None
    count: int


def log2_buckets(counts: Sequence[int], bits: int = 0) -> list[Bucket]:
    """Buckets of hist(): `counts` by index as the compiler numbers them (0: negative, 1: zero, then powers of two,
    each split in 2**bits linear parts), trimmed to the populated range."""
    filled = [i for i, c in enumerate(counts) if c]
    if not filled:
        return []
    return [Bucket(*log2_range(i, bits), counts[i]) for i in range(filled[0], filled[-1] + 1)]


def log2_range(index: int, bits: int) -> tuple[int | None, int | None]:
    """[low, high) of bucket `index`: 0 negatives, 1 zero; then values below 2**(bits+1) one per bucket, and above
    that 2**bits buckets per power of two."""
    if index == 0:
        return None, 0
    first = index - 1
    return _lower(first, bits), _lower(first + 1, bits)


def _lower(slot: int, bits: int) -> int:
    if slot < 1 << (bits + 1):
        return slot
    power = (slot >> bits) - 1
    return ((slot & ((1 << bits) - 1)) | (1 << bits)) << power


def linear_buckets(counts: Sequence[int], low: int, high: int, step: int) -> list[Bucket]:
    """Buckets of lhist(): index 0 below `low`, the last at or above `high`, trimmed to the populated range."""
    filled = [i for i, c in enumerate(counts) if c]
    if not filled:
        return []
    buckets = []
    last = len(counts) - 1
    for i in range(filled[0], filled[-1] + 1):
        if i == 0:
            bucket = Bucket(None, low, counts[i])
        elif i == last:
            bucket = Bucket(high, None, counts[i])
        else:
            start = low + (i - 1) * step
            bucket = Bucket(start, min(start + step, high), counts[i])
        buckets.append(bucket)
    return buckets


def log2_label(bucket: Bucket) -> str:
    if bucket.low is None:
        return "(..., 0)"
    assert bucket.high is not None
    if bucket.high == bucket.low + 1:
        return f"[{_short(bucket.low)}]"
    return f"[{_short(bucket.low)}, {_short(bucket.high)})"


def linear_label(bucket: Bucket) -> str:
    if bucket.low is None:
        return f"(..., {bucket.high})"
    if bucket.high is None:
        return f"[{bucket.low}, ...)"
    return f"[{bucket.low}, {bucket.high})"


def _short(value: int) -> str:
    """Powers of 1024 with their letter, others plain."""
    for power, letter in reversed(_SUFFIXES.items()):
        if value >= 1 << power and value % (1 << power) == 0:
            return f"{value >> power}{letter}"
    return str(value)


def rows(labelled: Iterable[tuple[str, int]]) -> list[str]:
    """One line per bucket: label, count, bar scaled to the largest."""
    items = list(labelled)
    largest = max((count for _, count in items), default=0)
    return [
        f"{label:<16}{count:>8} |{'@' * (count * _BAR // largest if largest else 0):<{_BAR}}|" for label, count in items
    ]
