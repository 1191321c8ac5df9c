"""Histograms: bucket ranges and bars."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import msgspec

from bpfseal.compiler.layout import Shape

_BAR = 52
_DECADES = ("", "K", "M", "G", "T", "P", "E")
_FLOAT = struct.Struct("f")


class Bucket(msgspec.Struct, frozen=True):
    """Values in [low, high), either end None when open; `count` of them."""

    low: int | None
    high: int | None
    count: int


def log2_label(bucket: Bucket, bits: int = 0) -> str:
    """The range of a bucket of hist(n, bits)."""
    if bucket.low is None:
        return "(..., 0)"
    assert bucket.high is not None
    if bucket.high == bucket.low + 1:
        return f"[{bucket.low}]"
    return f"[{_short(bucket.low, bits)}, {_short(bucket.high, bits)})"


def linear_label(bucket: Bucket, step: int = 0) -> str:
    """The range of a bucket of lhist() with steps of `step`."""
    if bucket.low is not None and bucket.high == bucket.low + 1:
        return f"[{bucket.low}]"
    low, high = (_linear(end, step) for end in (bucket.low, bucket.high))
    if bucket.low is None:
        return f"(..., {high})"
    return f"[{low}, ...)" if bucket.high is None else f"[{low}, {high})"


def label(bucket: Bucket, shape: Shape) -> str:
    """The range of a bucket of a map of `shape`, which is of kind hist or lhist."""
    if shape.kind == "hist":
        return log2_label(bucket, int(shape.params[0]) if shape.params else 0)
    return linear_label(bucket, int(shape.params[2]) if len(shape.params) > 2 else 0)


def _short(value: int, bits: int) -> str:
    """A bound with the largest power of 1024 that the *width* of its bucket is a multiple of: with more bits than 0
    that is less than the value itself would allow ("[896, 1024)"), as in bpftrace."""
    decade = max(0, value.bit_length() - 1 - bits) // 10
    return f"{value >> 10 * decade}{_DECADES[decade]}"


def _linear(value: int | None, step: int) -> str:
    """K and M only where the steps are multiples of 1024."""
    if not value or not step or step % 1024:
        return str(value)
    if value % (1 << 20) == 0:
        return f"{value >> 20}M"
    return f"{value >> 10}K" if value % 1024 == 0 else str(value)


def rows(labelled: Iterable[tuple[str, int]]) -> list[str]:
    """One line per bucket: label, count, bar scaled to the largest."""
    items = list(labelled)
    largest = max((count for _, count in items), default=0)
    return [f"{label:<16}{count:>8} |{'@' * _length(count, largest):<{_BAR}}|" for label, count in items]


def _length(count: int, largest: int) -> int:
    """In single precision, as bpftrace computes it: a bar may be one shorter than the exact quotient."""
    if not largest:
        return 0
    return int(single(single(single(count) / single(largest)) * _BAR))


def single(value: float) -> float:
    """`value` rounded to C's float. Rounding the result of one operation on floats in double precision is exact."""
    rounded: float = _FLOAT.unpack(_FLOAT.pack(value))[0]
    return rounded
