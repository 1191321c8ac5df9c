"""--live: the maps as a full-screen view that is drawn anew twice a second, with rates and sparklines."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING, Any

from bpfseal.errors import BpfsealError
from bpfseal.runtime.render.histogram import label
from bpfseal.runtime.render.text import TextValues, visible
from bpfseal.runtime.render.text_output import TextOutput
from bpfseal.runtime.values import Fields

if TYPE_CHECKING:
    from types import TracebackType

    from bpfseal.runtime.api import Trace
    from bpfseal.runtime.maps import MapContents

_BARS = " ▁▂▃▄▅▆▇█"
_HISTORY = 24  # looks that a sparkline shows
_TAIL = 200
_ENTER, _LEAVE = b"\x1b[?1049h\x1b[?25l\x1b[2J", b"\x1b[?1049l\x1b[?25h"  # the other screen without cursor, and back


def sparkline(values: list[float]) -> str:
    """One character for each value, from nothing to a full block for the largest."""
    largest = max(values, default=0)
    if largest <= 0:
        return _BARS[0] * len(values)
    return "".join(_BARS[min(8, ceil(8 * max(value, 0) / largest))] for value in values)


def short(number: float) -> str:
    """A rate in four or five characters."""
    for unit in ("", "K", "M", "G", "T"):
        if abs(number) < 1000:
            return f"{number:.0f}{unit}" if unit == "" and number == int(number) else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.0f}P"


def weight(value: Any) -> int | None:
    """What of a map's value a rate is taken: a number itself, how many a histogram or statistic has; None for text."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Fields):
        count = value.get("count")
        return count if isinstance(count, int) else None
    if isinstance(value, list) and all(hasattr(part, "count") and hasattr(part, "low") for part in value):
        return sum(int(part.count) for part in value)
    return None


class History:
    """Weights of keys over the last looks; of keys that were not asked for at a look nothing is kept."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, Any], tuple[float, int]] = {}
        self._rates: dict[tuple[str, Any], deque[float]] = {}
        self._asked: set[tuple[str, Any]] = set()

    def rate(self, name: str, key: Any, value: int, now: float) -> tuple[float, list[float]]:
        """(change per second since the last look, that and those before)."""
        place = (name, repr(key))
        self._asked.add(place)
        rates = self._rates.setdefault(place, deque(maxlen=_HISTORY))
        if place in self._last:
            then, before = self._last[place]
            if now > then:
                rates.append((value - before) / (now - then))
        self._last[place] = (now, value)
        return (rates[-1] if rates else 0.0), list(rates)

    def looked(self) -> None:
        """The end of a look."""
        for place in [place for place in self._last if place not in self._asked]:
            del self._last[place], self._rates[place]
        self._asked.clear()


class LiveOutput(TextOutput):
    """The trace's output while the view is up: what it prints is kept as lines to show; notes are told afterwards."""

    def __init__(self, resolve: Callable[[Any], str]) -> None:
        self.lines: deque[str] = deque(maxlen=_TAIL)
        self.notes: list[str] = []
        self._rest = ""
        super().__init__(self, resolve, quiet=True, escape=True, escape_stderr=True)  # type: ignore[arg-type]

    def write(self, text: str) -> None:
        *whole, self._rest = (self._rest + text).split("\n")
        self.lines.extend(visible(line) for line in whole)

    def fileno(self) -> int:
        raise OSError("the view has no descriptor of its own")

    def flush(self) -> None:
        pass

    def _stderr(self, text: str) -> None:
        self.notes.append(visible(text))
        self.lines.extend(visible(text).rstrip("\n").split("\n"))


class View:
    """The screen, as a watcher (see `runtime.watch`) and a context manager: leaving it gives the terminal back. Raises
    BpfsealError when standard output is no terminal or there is no rich."""

    seconds = 0.5

    def __init__(self, trace: Trace, title: str) -> None:
        if not os.isatty(1):
            raise BpfsealError("--live needs a terminal", hint="leave --live away to write into a file or pipe")
        try:
            from rich.console import Console
            from rich.live import Live
        except ImportError:
            raise BpfsealError("--live needs rich", hint="pip install rich") from None
        resolve = trace.resolver.text
        self.output = LiveOutput(resolve)
        self._trace = trace
        self._values = TextValues(resolve, visible)
        self._title = visible(" ".join(title.split()))
        self._history = History()
        self._began = time.monotonic()
        # Sizes are asked of the terminal at every look, so that it may be resized.
        self._console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
        self._live = Live(console=self._console, screen=True, auto_refresh=False, redirect_stdout=False,
                          redirect_stderr=False, vertical_overflow="crop")  # fmt: skip

    def __enter__(self) -> View:
        import signal

        self._live.start()
        self.look(time.monotonic())
        self._before = signal.signal(signal.SIGTSTP, lambda number, frame: self._suspend())
        return self

    def _suspend(self) -> None:
        """Ctrl-Z: the shell gets its screen, and the view comes back with the process."""
        import signal

        self.leave()
        os.kill(os.getpid(), signal.SIGSTOP)  # and here it goes on
        os.write(1, _ENTER)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        import signal

        signal.signal(signal.SIGTSTP, self._before)
        self._live.stop()
        for note in self.output.notes:
            sys.stderr.write(note)

    def leave(self) -> None:
        """The screen of before and the cursor, whatever else is going on; nothing is drawn any more."""
        if self._live.is_started:
            os.write(1, _LEAVE)

    def look(self, now: float) -> None:
        self._live.update(self.drawn(now), refresh=True)

    def drawn(self, now: float) -> Any:
        """What to show now, for the terminal as large as it is."""
        from rich.console import Group
        from rich.text import Text

        width, height = self._console.size
        maps = [contents for contents in self._trace.contents() if contents.items]
        lines = list(self.output.lines)
        tail = min(len(lines), max(0, height // 3 if maps else height - 2))
        lost = f"   {self._trace.lost} events lost" if self._trace.lost else ""
        head = Text(f"{now - self._began:5.0f} s   {self._title}", style="bold", no_wrap=True, overflow="ellipsis")
        if lost:
            head.append(lost, style="bold red")
        parts: list[Any] = [head]
        room = height - 1 - tail
        # Single values share a table; of the others each has one.
        single = [contents for contents in maps if contents.layout.key is None and weight_is_plain(contents)]
        groups = ([single] if single else []) + [[contents] for contents in maps if contents not in single]
        for number, group in enumerate(groups):
            # What one table leaves, the next ones have.
            part, used = self._table(group, now, width, min(max(3, room // (len(groups) - number)), room))
            if room < 3:
                break
            parts.append(part)
            room -= used
        self._history.looked()
        shown = lines[len(lines) - tail :] if tail else []
        parts += [Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in shown]
        return Group(*parts)

    def _table(self, maps: list[MapContents], now: float, width: int, height: int) -> tuple[Any, int]:
        """(a table of at most `height` lines, how many it has)."""
        from rich.table import Table
        from rich.text import Text

        first = maps[0]
        count = len(first.items)
        title = f"{first.name}  {count} key{'s' if count != 1 else ''}" if first.layout.key is not None else ""
        graph = min(_HISTORY, max(1, width // 4))
        table = Table(box=None, width=width, pad_edge=False, show_header=True, header_style="bold cyan")
        table.add_column(
            Text(title or (first.name if len(maps) == 1 else "")), ratio=2, no_wrap=True, overflow="ellipsis"
        )
        table.add_column("value", ratio=2, no_wrap=True, overflow="ellipsis", justify="right")
        table.add_column("/s", width=8, no_wrap=True, justify="right", style="green")
        table.add_column("", width=graph, no_wrap=True, style="green")
        used = 1
        items = [(contents, key, value) for contents in maps for key, value in reversed(contents.items)]
        for contents, key, value in items:
            if used >= height:
                break
            amount = weight(value)
            rate, rates = self._history.rate(contents.name, key, amount, now) if amount is not None else (None, [])
            if isinstance(value, list):
                shown = f"{amount} in all" if amount is not None else f"{len(value)} intervals"
            else:
                shown = self._values.text(value)
            name = self._values.key(key) if key is not None else contents.name
            table.add_row(
                Text(" ".join(name.split())),
                Text(" ".join(shown.split())),
                short(rate) if rate is not None else "",
                sparkline(rates[-graph:]),
            )
            used += 1
            for row in self._buckets(contents, value, height - used):
                table.add_row(*row)
                used += 1
        return table, used

    def _buckets(self, contents: MapContents, value: Any, room: int) -> list[tuple[Any, Any]]:
        """Rows of a histogram's largest buckets, in their order."""
        from rich.text import Text

        if contents.kind not in ("hist", "lhist") or room < 1:
            return []
        largest = max((bucket.count for bucket in value), default=1)
        kept = sorted(value, key=lambda bucket: -bucket.count)[: min(room, 16)]
        return [
            (Text(f"  {label(bucket, contents.layout.value)}"), Text(f"{bucket.count}  {_bar(bucket.count, largest)}"))
            for bucket in value
            if bucket in kept
        ]


def weight_is_plain(contents: MapContents) -> bool:
    """Whether a map's values take one line each."""
    return not any(isinstance(value, list) for _, value in contents.items)


def _bar(count: int, largest: int, width: int = 10) -> str:
    filled = width * 8 * count // largest if largest else 0
    return ("█" * (filled // 8) + (("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[filled % 8])).ljust(width)
