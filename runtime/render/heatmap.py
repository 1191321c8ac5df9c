"""Heat maps: how a histogram fills over time, as one SVG file without scripts. Time goes to the right, values upwards,
and the darker a cell the more values fell into that bucket in that interval."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from bpfseal.compiler.layout import Shape
from bpfseal.runtime.render.flamegraph import escaped
from bpfseal.runtime.render.histogram import Bucket, label

if TYPE_CHECKING:
    from bpfseal.compiler.layout import Reader
    from bpfseal.runtime.maps import MapContents

_MOST = 200  # columns; then two become one
_WIDTH, _ROW, _LEFT, _EDGE, _HEAD, _FOOT = 1200, 16, 130, 10, 40, 40
_CLOCK = 75  # of a time of day
_LARGEST_PANEL = 40  # rows; more buckets than that share rows

Counts = dict[tuple[int | None, int | None], int]


class Panel:
    """One map: what was added to its buckets in each interval, over all keys."""

    def __init__(self, name: str, shape: Shape) -> None:
        self.name = name
        self.shape = shape
        self.columns: list[Counts] = []
        self._before: Counts = {}

    def add(self, items: list[tuple[Any, list[Bucket]]]) -> None:
        now: Counts = {}
        for _, buckets in items:
            for bucket in buckets:
                place = (bucket.low, bucket.high)
                now[place] = now.get(place, 0) + bucket.count
        # A map that was cleared meanwhile starts anew.
        new = {place: count - self._before.get(place, 0) for place, count in now.items()}
        if any(count < 0 for count in new.values()):
            new = now
        self.columns.append({place: count for place, count in new.items() if count})
        self._before = now

    def halve(self) -> None:
        """Two columns become one."""
        joined = []
        for at in range(0, len(self.columns), 2):
            column: Counts = {}
            for part in self.columns[at : at + 2]:
                for place, count in part.items():
                    column[place] = column.get(place, 0) + count
            joined.append(column)
        self.columns = joined


class HeatMap:
    """The histograms of a trace over time, as a watcher (see `runtime.watch`)."""

    def __init__(self, reader: Reader, contents: Callable[[str], Iterator[MapContents]]) -> None:
        """`contents`: the map of a name as it is now (`Trace.contents`)."""
        self.seconds = 0.1
        self._contents = contents
        self._began = time.time()
        self._panels = {
            layout.name: Panel(layout.name, layout.value)
            for layout in reader.maps
            if layout.value.kind in ("hist", "lhist")
        }

    def look(self, now: float) -> None:
        for name, panel in self._panels.items():
            for contents in self._contents(name):
                panel.add(contents.items)
        if any(len(panel.columns) > _MOST for panel in self._panels.values()):
            for panel in self._panels.values():
                panel.halve()
            self.seconds *= 2

    def svg(self) -> str | None:
        """The picture; None when no histogram has a value."""
        panels = [panel for name, panel in sorted(self._panels.items()) if any(panel.columns)]
        return svg(panels, self.seconds, self._began) if panels else None


def svg(panels: list[Panel], seconds: float, began: float) -> str:
    """`panels` one below the other; columns are `seconds` wide, the first begins at `began` (seconds since 1970)."""
    drawn = []
    top = 0
    for panel in panels:
        lines, height = _panel(panel, seconds, began, top)
        drawn += lines
        top += height
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top}" viewBox="0 0 {_WIDTH} {top}" '
        f'font-family="monospace" font-size="11">'
    )
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{top}" fill="#fdfdf8"/>', *drawn, "</svg>"]) + "\n"


def _panel(panel: Panel, seconds: float, began: float, top: int) -> tuple[list[str], int]:
    places = sorted({place for column in panel.columns for place in column}, key=_order)
    rows = _rows(places, panel)
    largest = max(sum(column.get(place, 0) for place in row) for column in panel.columns for row in rows)
    width = (_WIDTH - _LEFT - _EDGE) / len(panel.columns)
    bottom = top + _HEAD + len(rows) * _ROW
    lines = [
        f'<text x="{_WIDTH / 2}" y="{top + 24}" text-anchor="middle" font-size="15">{escaped(panel.name)}</text>',
    ]
    for number, row in enumerate(rows):
        y = bottom - (number + 1) * _ROW
        name = label(Bucket(row[0][0], row[-1][1], 0), panel.shape)
        lines.append(f'<text x="{_LEFT - 6}" y="{y + 12}" text-anchor="end">{escaped(name)}</text>')
        for at, column in enumerate(panel.columns):
            if count := sum(column.get(place, 0) for place in row):
                when = _clock(began + at * seconds)
                lines.append(
                    f'<rect x="{_LEFT + at * width:.2f}" y="{y}" width="{width:.2f}" height="{_ROW}" '
                    f'fill="{_colour(count, largest)}"><title>{when} {escaped(name)}: {count}</title></rect>'
                )
    for at in range(0, len(panel.columns), max(1, len(panel.columns) // 8)):
        x = _LEFT + at * width
        anchor = "end" if x + _CLOCK > _WIDTH else "start"
        lines.append(
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="{anchor}">{_clock(began + at * seconds)}</text>'
        )
        lines.append(f'<path d="M{x:.1f} {bottom}v4" stroke="#888"/>')
    lines.append(f'<path d="M{_LEFT} {bottom}H{_WIDTH - _EDGE}" stroke="#888"/>')
    return lines, _HEAD + len(rows) * _ROW + _FOOT


def _order(place: tuple[int | None, int | None]) -> float:
    return float("-inf") if place[0] is None else place[0]


def _rows(places: list[tuple[int | None, int | None]], panel: Panel) -> list[list[tuple[int | None, int | None]]]:
    """Buckets by rows, smallest first: the empty ones between others too, and several in a row where there are many."""
    if panel.shape.kind == "hist" and not (panel.shape.params and panel.shape.params[0]):
        filled: list[tuple[int | None, int | None]] = []
        for place in places:
            while filled and filled[-1][1] is not None and place[0] is not None and filled[-1][1] < place[0]:
                low = filled[-1][1]
                filled.append((low, max(1, low * 2)))
            filled.append(place)
        places = filled
    size = -(-len(places) // _LARGEST_PANEL)
    return [places[at : at + size] for at in range(0, len(places), size)]


def _colour(count: int, largest: int) -> str:
    """From pale yellow to dark red, by the root of the share, so that rare values stay visible."""
    share = (count / largest) ** 0.5
    return f"hsl({55 - 55 * share:.0f},90%,{88 - 58 * share:.0f}%)"


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{int(seconds * 10) % 10}"
