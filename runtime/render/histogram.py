"""Histograms: bucket ranges and bars."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

_BAR = 52
_SUFFIXES = {10: "K", 20: "M", 30: "G", 40: "T", 50: "P", 60: "E"}


class Bucket(msgspec.Struct, frozen=True):
    """Values in [low, high), either end None when open; `count` of them."""

    low: int | None
    high: int | None
    count: int


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
    if bucket.high == bucket.low + 1:
        return f"[{bucket.low}]"
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
