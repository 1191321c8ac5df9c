"""Histograms and time series as small inline SVG."""

from __future__ import annotations

import time
from html import escape

from bpfseal.runtime.aggregates import Slot
from bpfseal.runtime.render.histogram import Bucket, linear_label, log2_label

_BAR = 360
_ROW = 16
_LABEL = 130
_COUNT = 70
_BLUE = "#4c8bf5"


def histogram(buckets: list[Bucket], *, log: bool) -> str:
    """One row per bucket: range, bar, count."""
    label = log2_label if log else linear_label
    largest = max((bucket.count for bucket in buckets), default=0) or 1
    height = _ROW * len(buckets) + 4
    parts = [_open(_LABEL + _BAR + _COUNT + 10, height, "histogram")]
    for row, bucket in enumerate(buckets):
        y = row * _ROW
        width = _BAR * bucket.count / largest
        shown = escape(label(bucket))
        parts.append(
            f'<text x="{_LABEL - 6}" y="{y + 12}" text-anchor="end">{shown}</text>'
            f'<rect x="{_LABEL}" y="{y + 2}" width="{max(width, 1 if bucket.count else 0):.1f}" height="{_ROW - 4}" '
            f'fill="{_BLUE}"><title>{shown}: {bucket.count}</title></rect>'
            f'<text x="{_LABEL + width + 5:.1f}" y="{y + 12}">{bucket.count}</text>'
        )
    return "".join(parts) + "</svg>"


def series(slots: list[Slot]) -> str:
    """A line over time with a dot per interval; the axis is marked with least and greatest value, first and last
    time."""
    width, height, left, top = 520, 150, 80, 10
    low, high = min(0, *(s.value for s in slots)), max(s.value for s in slots)
    span = (high - low) or 1
    first, last = slots[0].epoch, slots[-1].epoch
    across = max(last - first, 1)

    def place(slot: Slot) -> tuple[float, float]:
        return left + width * (slot.epoch - first) / across, top + height * (1 - (slot.value - low) / span)

    points = [(slot, *place(slot)) for slot in slots]
    line = " ".join(f"{x:.1f},{y:.1f}" for _, x, y in points)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{_BLUE}"><title>{_clock(slot)}: {slot.value}</title></circle>'
        for slot, x, y in points
    )
    return (
        _open(left + width + 20, top + height + 24, "time series")
        + f'<path d="M{left} {top}V{top + height}H{left + width}" fill="none" stroke="currentColor" opacity=".4"/>'
        f'<text x="{left - 6}" y="{top + 9}" text-anchor="end">{high}</text>'
        f'<text x="{left - 6}" y="{top + height}" text-anchor="end">{low}</text>'
        f'<text x="{left}" y="{top + height + 16}">{_clock(slots[0])}</text>'
        f'<text x="{left + width}" y="{top + height + 16}" text-anchor="end">{_clock(slots[-1])}</text>'
        f'<polyline points="{line}" fill="none" stroke="{_BLUE}" stroke-width="1.5"/>{dots}</svg>'
    )


def _clock(slot: Slot) -> str:
    seconds, rest = divmod(slot.start_ns, 1_000_000_000)
    text = time.strftime("%H:%M:%S", time.localtime(seconds))
    return text if slot.interval_ns >= 1_000_000_000 else f"{text}.{rest // 1_000_000:03d}"


def _open(width: float, height: float, what: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{what}" width="{width:.0f}" '
        f'height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:100%">'
    )
