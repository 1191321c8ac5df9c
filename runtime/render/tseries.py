"""Time series as a chart of text: one row per interval, time downwards, values across."""

from __future__ import annotations

import time

from bpfseal.runtime.aggregates import Slot

_WIDTH = 53  # columns of the plot, its edges included


def chart(slots: list[Slot], keep: int = 0) -> str:
    """The rows of `slots` (ascending, at least one), the newest `keep` of them, with axes above and below."""
    shown = slots[-keep:] if keep else slots
    low, high = min(s.value for s in shown), max(s.value for s in shown)
    if low == high:
        low, high = low - 1, high + 1
    digits, unit = _precision(shown[0].interval_ns)
    stamp = len("hh:mm:ss.") + digits
    left = " " * (stamp + 1)
    axis = f"{left}{low}{high:>{_WIDTH - len(str(low))}}"
    zero = _column(0, low, high) if low < 0 < high else -1
    lines = [axis, f"{f'hh:mm:ss.{unit}':<{stamp}} |{'_' * (_WIDTH - 2)}|"]
    for slot in shown:
        row = ["|", *" " * (_WIDTH - 2), "|"]
        if zero >= 0:
            row[zero] = "."
        row[_column(slot.value, low, high)] = "*"
        lines.append(f"{_instant(slot, digits)} {''.join(row)} {slot.value}")
    lines += [f"{left}v{'_' * (_WIDTH - 2)}v", axis]
    return "".join(line + "\n" for line in lines)


def _column(value: int, low: int, high: int) -> int:
    return (value - low) * (_WIDTH - 1) // (high - low)


def _precision(interval_ns: int) -> tuple[int, str]:
    """Digits behind the second, and the name of that unit."""
    if 1_000_000 <= interval_ns < 1_000_000_000:
        return 3, "ms"
    if 1_000 <= interval_ns < 1_000_000:
        return 6, "us"
    return 9, "ns"


def _instant(slot: Slot, digits: int) -> str:
    seconds, rest = divmod(slot.start_ns, 1_000_000_000)
    return time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{rest:09d}"[: digits + 1]
