"""--flamegraph and --heatmap: pictures of a trace's maps, written when it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from bpfseal.errors import BpfsealError

if TYPE_CHECKING:
    from bpfseal.runtime.maps import MapContents
    from bpfseal.runtime.render.heatmap import HeatMap
    from bpfseal.runtime.values import StackValue


def flamegraph(maps: Iterable[MapContents], frames: Callable[[StackValue], list[str]], path: str) -> None:
    """The maps with stacks in their keys, as SVG or, by the name, HTML; `frames` gives a stack's names, innermost
    first. Raises BpfsealError."""
    from bpfseal.runtime.render.flamegraph import html, svg, tree

    root = tree(list(maps), frames)
    if root is None:
        raise BpfsealError("nothing to draw: no map has a stack in its key", hint="for example @[kstack] = count()")
    _write(path, html(root, "bpfseal") if path.endswith((".html", ".htm")) else svg(root, "bpfseal"))


def heatmap(found: HeatMap, path: str) -> None:
    """The histograms over time, as SVG. Raises BpfsealError."""
    text = found.svg()
    if text is None:
        raise BpfsealError("nothing to draw: no histogram has a value", hint="for example @ = hist(args.count)")
    _write(path, text)


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise BpfsealError(f"cannot write {path}: {error.strerror}") from None
