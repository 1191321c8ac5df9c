"""Time series as a chart of text: one row per interval, time downwards, values across. Arithmetic is in single
precision where bpftrace's is, so that the stars stand where its do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bpfseal.runtime.aggregates import Slot
from bpfseal.runtime.render.histogram import single

if TYPE_CHECKING:
    from bpfseal.runtime.maps import MapContents

_WIDTH = 53  # columns of the plot, its edges included
_LEFT = 21  # of which the smallest value's label takes as many


def last_epoch(contents: MapContents) -> int:
    """Number of the newest interval of all keys, at which all their charts end; 0 for none."""
    return max((slots[-1].epoch for _, slots in contents.items if slots), default=0)


def chart(slots: list[Slot], last: int = 0, keep: int = 0, *, signed: bool = True) -> str:
    """The rows of `slots` (ascending), with axes above and below: one for each interval up to number `last` (0: that
    of the last slot), with gaps for those without value, of the newest `keep` (0: all). Without slots a note, and no
    newline behind it."""
    last = last or (slots[-1].epoch if slots else 0)
    values = {slot.epoch: slot.value for slot in slots if not keep or slot.epoch > last - keep}
    if not values:
        return "<no data>"
    low, high = min(values.values()), max(values.values())
    if low == high:
        least, most = (-(1 << 63), (1 << 63) - 1) if signed else (0, (1 << 64) - 1)
        low, high = max(low - 1, least), min(high + 1, most)
    interval, first = slots[0].interval_ns, min(values)
    digits, unit = _precision(interval if last > first else 0)
    stamp = len("hh:mm:ss") + (1 + digits if digits else 0)
    left = " " * (stamp + 1)
    axis = f"{left}{low:<{_LEFT}}{high:>{_WIDTH - _LEFT}}"
    # Columns are counted in bytes there, of which the letter of microseconds has two.
    unit_column = f"hh:mm:ss{unit}{' ' * (stamp + 1 - len(f'hh:mm:ss{unit}'.encode()))}"
    zero = int(single(single(single(_WIDTH) * single(-low)) / single(high - low))) if low < 0 < high else 0
    lines = [axis, f"{unit_column}|{'_' * (_WIDTH - 2)}|"]
    for epoch in range(first, last + 1):
        row = ["|", *" " * (_WIDTH - 2), "|"]
        if zero:
            row[zero] = "."
        value = values.get(epoch)
        if value is not None:
            row[_column(value, low, high)] = "*"
        lines.append(f"{_instant(epoch * interval, digits)} {''.join(row)} {'-' if value is None else value}")
    lines += [f"{left}v{'_' * (_WIDTH - 2)}v", axis]
    return "".join(line + "\n" for line in lines)


def _column(value: int, low: int, high: int) -> int:
    at = int(single(single(single(_WIDTH - 1) * single(value - low)) / single(high - low)))
    return max(0, min(_WIDTH - 1, at))


def _precision(interval_ns: int) -> tuple[int, str]:
    """Digits behind the second, and the unit in the headline."""
    if interval_ns >= 1_000_000_000:
        return 0, ""
    if interval_ns >= 1_000_000:
        return 3, ".ms"
    return (6, ".μs") if interval_ns >= 1_000 else (9, ".ns")


def _instant(ns: int, digits: int) -> str:
    seconds, rest = divmod(ns, 1_000_000_000)
    fraction = f".{rest:09d}"[: digits + 1] if digits else ""
    return time.strftime("%H:%M:%S", time.localtime(seconds)) + fraction
