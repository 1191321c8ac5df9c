"""Flame graphs: maps whose key is or holds a stack, as one SVG file without scripts.

Width is the value (count, sum, or a plain number), the root is at the bottom, callees are above their callers; the
full name and the share stand in each box's <title>, which browsers show under the pointer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from bpfseal.runtime.maps import MapContents
from bpfseal.runtime.values import Fields, StackValue

_WIDTH, _HEIGHT, _EDGE = 1200, 17, 10
_LETTER = 7.0  # width of a character, about
_SMALLEST = 0.3  # boxes that are narrower are left out


class Node:
    """A function as called by its parent; `value` includes the callees'."""

    __slots__ = ("callees", "name", "value")

    def __init__(self, name: str) -> None:
        self.name = name
        self.value = 0
        self.callees: dict[str, Node] = {}

    def add(self, path: list[str], value: int) -> None:
        """Count `value` for the call path, outermost function first."""
        node = self
        node.value += value
        for name in path:
            node = node.callees.setdefault(name, Node(name))
            node.value += value

    def depth(self, least: float = 0) -> int:
        """Levels below this one, of nodes whose value is `least` or more."""
        deepest, level = 0, [self]
        while level := [callee for node in level for callee in node.callees.values() if callee.value >= least]:
            deepest += 1
        return deepest


def tree(maps: list[MapContents], frames: Callable[[StackValue], list[str]]) -> Node | None:
    """All maps with stacks in their keys as one tree; None when there are none. `frames` gives a stack's names,
    innermost first."""
    root = Node("all")
    for contents in maps:
        for key, value in contents.items:
            weight = value["count"] if isinstance(value, Fields) and "count" in value else value
            path = list(_path(key, frames))
            if any(isinstance(part, StackValue) for part in _parts(key)) and isinstance(weight, int) and weight > 0:
                root.add(path, weight)
    return root if root.callees else None


def _parts(key: Any) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)


def _path(key: Any, frames: Callable[[StackValue], list[str]]) -> Iterator[str]:
    """Outermost first: what is no stack (names, pids), then user frames, then the kernel's on top of them."""
    parts = _parts(key)
    yield from (str(part) for part in parts if not isinstance(part, StackValue))
    for space in ("user", "kernel"):
        for part in parts:
            if isinstance(part, StackValue) and part.space == space:
                yield from reversed(frames(part))


def svg(root: Node, title: str = "") -> str:
    """The picture."""
    scale = (_WIDTH - 2 * _EDGE) / root.value
    levels = root.depth(_SMALLEST / scale) + 1
    height = levels * _HEIGHT + 4 * _EDGE + 20
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
            f'viewBox="0 0 {_WIDTH} {height}" font-family="monospace" font-size="11">'
        ),
        f'<rect width="{_WIDTH}" height="{height}" fill="#fdfdf8"/>',
        f'<text x="{_WIDTH / 2}" y="24" text-anchor="middle" font-size="15">{escaped(title)}</text>',
    ]
    stack: list[tuple[Node, float, int]] = [(root, float(_EDGE), 0)]
    while stack:
        node, x, level = stack.pop()
        width = node.value * scale
        if width < _SMALLEST:
            continue
        y = height - 2 * _EDGE - (level + 1) * _HEIGHT
        lines.append(_box(node, x, y, width, 100 * node.value / root.value))
        for name in sorted(node.callees):
            callee = node.callees[name]
            stack.append((callee, x, level + 1))
            x += callee.value * scale
    lines.append("</svg>")
    return "\n".join(lines) + "\n"


_SCRIPT = """
const find = document.getElementById("find");
find.oninput = () => {
  const word = find.value.toLowerCase();
  for (const box of document.querySelectorAll("g"))
    box.style.opacity = !word || box.querySelector("title").textContent.toLowerCase().includes(word) ? 1 : 0.25;
};
scrollTo(0, document.body.scrollHeight);  // where the stacks begin
"""


def html(root: Node, title: str = "") -> str:
    """The picture in a page of its own, where what is typed stands out; nothing is loaded from elsewhere."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>\n'
        "<style>body { margin: 1em; font-family: monospace } #find { position: sticky; top: 1em }\n"
        "g:hover rect { stroke: #000 }</style></head>\n"
        f'<body><input id="find" type="search" placeholder="function">\n{svg(root, title)}'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _box(node: Node, x: float, y: float, width: float, percent: float) -> str:
    room = int((width - 4) / _LETTER)
    label = node.name if len(node.name) <= room else node.name[: room - 2] + ".." if room > 3 else ""
    # A colour by the name, so that one function looks the same everywhere and in every picture.
    shade = sum(node.name.encode("utf-8", "replace")) * 37 % 60
    text = f'<text x="{x + 2:.1f}" y="{y + 12:.1f}">{escaped(label)}</text>' if label else ""
    return (
        f"<g><title>{escaped(node.name)}: {node.value} ({percent:.2f} %)</title>"
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width - 0.3, 0.2):.1f}" height="{_HEIGHT - 1}" '
        f'fill="hsl({shade},85%,64%)" rx="1"/>{text}</g>'
    )


def escaped(text: str) -> str:
    """For XML, which has no control characters even escaped."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
