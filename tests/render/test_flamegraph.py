"""Flame graphs from made-up maps, and one from the running kernel."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from bpfseal.compiler.layout import MapLayout, Shape
from bpfseal.runtime.maps import MapContents
from bpfseal.runtime.render.flamegraph import svg, tree
from bpfseal.runtime.values import StackValue

STACKS = {1: ["leaf", "middle", "main"], 2: ["other<T>", "main"], 3: ["sys_read", "entry"]}


def stack(number: int, space: str = "user") -> StackValue:
    return StackValue(space, number, 1, 0, 3, "bpftrace", 127)


def contents(*items: tuple[object, object]) -> MapContents:
    layout = MapLayout(name="@", index=0, key=Shape(kind="ustack", size=24), value=Shape(kind="count", size=8))
    return MapContents("@", "count", list(items), layout)


def frames(value: StackValue) -> list[str]:
    return STACKS[value.id]


def test_tree_merges_common_callers() -> None:
    root = tree([contents((stack(1), 3), (stack(2), 1))], frames)
    assert root is not None
    assert (root.value, list(root.callees)) == (4, ["main"])
    main = root.callees["main"]
    assert {name: node.value for name, node in main.callees.items()} == {"middle": 3, "other<T>": 1}
    assert root.depth() == 3


def test_kernel_frames_stand_on_user_frames() -> None:
    root = tree([contents((("cat", stack(3, "kernel"), stack(2)), 5))], frames)
    path = []
    node = root
    while node is not None and node.callees:
        (node,) = node.callees.values()
        path.append(node.name)
    assert path == ["cat", "main", "other<T>", "entry", "sys_read"]


def test_maps_without_stacks_are_no_picture() -> None:
    assert tree([contents(("x", 1), ((1, 2), 3))], frames) is None


def test_picture_is_well_formed_and_to_scale() -> None:
    root = tree([contents((stack(1), 3), (stack(2), 1))], frames)
    assert root is not None
    picture = ElementTree.fromstring(svg(root, "a & b\x1b"))
    widths = {}
    for group in picture.iter("{http://www.w3.org/2000/svg}g"):
        name = (group.findtext("{http://www.w3.org/2000/svg}title") or "").rpartition(":")[0]
        box = group.find("{http://www.w3.org/2000/svg}rect")
        assert box is not None
        widths[name] = float(box.attrib["width"])
    assert widths["main"] == widths["all"]
    assert widths["middle"] / widths["other<T>"] == pytest.approx(3, rel=0.01)
    assert "script" not in svg(root)


@pytest.mark.host
def test_of_a_running_kernel(tmp_path: Path) -> None:
    from tests.session.conftest import trace

    target = tmp_path / "flame.svg"
    done = trace("BEGIN { @[kstack] = count(); exit(); }", "--flamegraph", str(target))
    if "Operation not permitted" in done.err:
        pytest.skip("bpf(2) is not permitted here")
    assert done.status == 0, done.err
    assert re.search(r"<title>all: 1 \(100.00 %\)</title>", target.read_text())
