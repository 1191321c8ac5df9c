"""Flame graphs as one SVG: readable without a script; with one, a click zooms in and a click at the root out again.

Every box carries its place (start and width as shares of the whole) and its name as data attributes, from which the
script computes the zoomed picture; text of the traced world is only ever set as text.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from itertools import count

WIDTH = 900
_ROW = 17
_CHARACTER = 6.7
_LEAST = 0.3  # pixels: narrower boxes are left out
_MAX_DEPTH = 160
_numbers = count(1)


@dataclass(slots=True)
class Frame:
    """A function in the tree: `value` is its own and that of everything it called."""

    name: str
    value: int = 0
    calls: dict[str, Frame] = field(default_factory=dict)


def tree(stacks: Iterable[tuple[tuple[str, ...], int]]) -> Frame:
    """All stacks (outermost function first) merged; negative values count as nothing."""
    root = Frame("all")
    for names, value in stacks:
        value = max(value, 0)
        at = root
        at.value += value
        for name in names[:_MAX_DEPTH]:
            at = at.calls.setdefault(name, Frame(name))
            at.value += value
    return root


def _boxes(root: Frame) -> Iterator[tuple[Frame, int, int]]:
    """(frame, depth, start) of all frames, callers before callees, siblings by name."""
    waiting = [(root, 0, 0)]
    while waiting:
        frame, depth, start = waiting.pop()
        yield frame, depth, start
        for _, called in sorted(frame.calls.items()):
            waiting.append((called, depth + 1, start))
            start += called.value


def flame_graph(title: str, stacks: Iterable[tuple[tuple[str, ...], int]]) -> str:
    """HTML of the graph, growing upwards from its root."""
    root = tree(stacks)
    if not root.value:
        return '<div class="dim">no stacks</div>'
    scale = WIDTH / root.value
    boxes = [box for box in _boxes(root) if box[0].value * scale >= _LEAST]
    depth = max(at for _, at, _ in boxes) + 1
    identity = f"bpfseal-flame-{zlib.crc32(title.encode('utf-8', 'replace')):08x}-{next(_numbers)}"
    height = depth * _ROW + 4
    drawn = "".join(_box(frame, at, start, scale, depth, root.value) for frame, at, start in boxes)
    return (
        f'<svg id="{identity}" xmlns="http://www.w3.org/2000/svg" role="img" aria-label="flame graph" width="{WIDTH}" '
        f'height="{height}" viewBox="0 0 {WIDTH} {height}" style="max-width:100%;cursor:pointer">{drawn}</svg>'
        f"<script>{_SCRIPT % identity}</script>"
    )


def _box(frame: Frame, depth: int, start: int, scale: float, deepest: int, whole: int) -> str:
    x, width, y = start * scale, frame.value * scale, (deepest - depth - 1) * _ROW + 2
    name = _clean(frame.name)
    share = 100 * frame.value / whole
    return (
        f'<g data-s="{start / whole:.7f}" data-w="{frame.value / whole:.7f}" data-d="{depth}" data-n="{name}">'
        f"<title>{name}: {frame.value} ({share:.2f} %)</title>"
        f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{_ROW - 1}" rx="1" fill="{_colour(frame.name)}"/>'
        f'<text x="{x + 3:.2f}" y="{y + 12}" style="fill:#111;pointer-events:none">{_fit(frame.name, width)}</text></g>'
    )


def _fit(name: str, width: float) -> str:
    room = int((width - 6) / _CHARACTER)
    if room < 3:
        return ""
    return _clean(name if len(name) <= room else name[: room - 1] + "…")


def _clean(name: str) -> str:
    shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return escape("".join(c if c.isprintable() else "\ufffd" for c in shown))


def _colour(name: str) -> str:
    """The same name, the same warm colour, here and in every other graph."""
    mixed = zlib.crc32(name.encode("utf-8", "replace"))
    return f"hsl({mixed % 45 + 8},{70 + (mixed >> 8) % 20}%,{62 + (mixed >> 16) % 12}%)"


_SCRIPT = """(() => {
const svg = document.getElementById("%s");
if (!svg) return;
const boxes = Array.from(svg.querySelectorAll("g"));
const full = svg.viewBox.baseVal.width;
svg.addEventListener("click", event => {
  const chosen = event.target.closest("g");
  if (!chosen) return;
  const from = +chosen.dataset.s, share = +chosen.dataset.w, depth = +chosen.dataset.d, tiny = 1e-6;
  for (const box of boxes) {
    const start = +box.dataset.s, width = +box.dataset.w, level = +box.dataset.d;
    const below = level < depth && start <= from + tiny && start + width >= from + share - tiny;
    const above = level >= depth && start >= from - tiny && start + width <= from + share + tiny;
    box.style.display = below || above ? "" : "none";
    if (!below && !above) continue;
    const x = below ? 0 : (start - from) / share * full, wide = below ? full : width / share * full;
    const rect = box.querySelector("rect"), text = box.querySelector("text"), name = box.dataset.n;
    rect.setAttribute("x", x); rect.setAttribute("width", wide); rect.style.opacity = below ? 0.5 : 1;
    text.setAttribute("x", x + 3);
    const room = Math.floor((wide - 6) / 6.7);
    text.textContent = room < 3 ? "" : name.length <= room ? name : name.slice(0, room - 1) + "…";
  }
});
})();"""
