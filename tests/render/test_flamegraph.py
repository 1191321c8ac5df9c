"""Flame graphs from made-up maps, and one from the running kernel."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bpfseal.compiler.layout import MapLayout, Shape
from bpfseal.runtime.maps import MapContents
from bpfseal.runtime.render.flamegraph import Node, html, svg, tree
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


def test_height_is_that_of_what_is_drawn() -> None:
    """A tower that is too thin to be drawn takes no room."""
    root = Node("all")
    root.add(["wide"], 1_000_000)
    root.add([f"f{level}" for level in range(100)], 1)
    assert root.depth() == 100
    assert ElementTree.fromstring(svg(root)).attrib["height"] == str(2 * 17 + 60)


class Page(HTMLParser):
    """What a page has: elements, what they load, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.loads: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.loads += [f"{name}={value}" for name, value in attrs if name in ("src", "href", "action", "data")]

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1] == "script":
            self.scripts.append(data)


HOSTILE = "</title><script>alert(1)</script>"


def hostile() -> Node:
    root = tree([contents((stack(1), 3), (stack(2), 1))], frames)
    assert root is not None
    root.add([HOSTILE], 4)
    return root


def test_page_is_the_picture_and_loads_nothing() -> None:
    root = hostile()
    page = Page(html(root, "a & b"))
    assert svg(root, "a & b") in html(root, "a & b")
    assert page.loads == []
    assert page.elements.count("script") == 1
    assert page.elements.count("input") == 1
    assert page.elements.count("g") == svg(root).count("<g>") == 6
    assert "alert" not in "".join(page.scripts)
    assert "@import" not in html(root)
    assert "url(" not in html(root)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_page_in_a_browser(tmp_path: Path) -> None:
    """What is typed stands out, names of functions are text, and the page is looked at from the bottom."""
    root = hostile()
    root.add([f"level {number}" for number in range(80)], 2)
    path = tmp_path / "flame.html"
    probe = (
        '<script>find.value = "MIDDLE"; find.oninput(); document.title = JSON.stringify({scrolled: scrollY > 0, '
        'bright: [...document.querySelectorAll("g")].filter(g => g.style.opacity == 1).length, '
        'boxes: document.querySelectorAll("g").length, alerts: document.querySelectorAll("g script").length})</script>'
    )
    path.write_text(html(root).replace("</body>", f"{probe}</body>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    done = subprocess.run([*command, "--dump-dom", f"file://{path}"], capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert title is not None, done.stdout[:500] + done.stderr
    assert title[1] == '{"scrolled":true,"bright":1,"boxes":86,"alerts":0}'


@pytest.mark.host
def test_page_of_a_running_kernel(tmp_path: Path) -> None:
    from tests.session.conftest import trace

    target = tmp_path / "flame.html"
    done = trace("BEGIN { @[kstack] = count(); exit(); }", "--flamegraph", str(target))
    if "Operation not permitted" in done.err:
        pytest.skip("bpf(2) is not permitted here")
    assert done.status == 0, done.err
    assert target.read_text().startswith("<!DOCTYPE html>\n")
    assert "<title>all: 1 (100.00 %)</title>" in target.read_text()


@pytest.mark.host
def test_of_a_running_kernel(tmp_path: Path) -> None:
    from tests.session.conftest import trace

    target = tmp_path / "flame.svg"
    done = trace("BEGIN { @[kstack] = count(); exit(); }", "--flamegraph", str(target))
    if "Operation not permitted" in done.err:
        pytest.skip("bpf(2) is not permitted here")
    assert done.status == 0, done.err
    assert re.search(r"<title>all: 1 \(100.00 %\)</title>", target.read_text())
