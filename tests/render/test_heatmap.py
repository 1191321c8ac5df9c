"""Heat maps and the parts of the live view without a session."""

from __future__ import annotations

import xml.etree.ElementTree
from typing import Any

import pytest

from bpfseal.compiler.layout import Shape
from bpfseal.runtime.live import History, short, sparkline, weight
from bpfseal.runtime.render.heatmap import Panel, svg
from bpfseal.runtime.render.histogram import Bucket
from bpfseal.runtime.values import Fields

HIST = Shape(kind="hist", size=8, params=(0,))
SPACE = "{http://www.w3.org/2000/svg}"


def panel(*looks: list[Bucket], shape: Shape = HIST) -> Panel:
    made = Panel("@<&", shape)
    for buckets in looks:
        made.add([(None, buckets)])
    return made


def test_columns_are_what_was_added() -> None:
    made = panel([Bucket(4, 8, 1)], [Bucket(4, 8, 3), Bucket(8, 16, 2)], [Bucket(4, 8, 3), Bucket(8, 16, 2)])
    assert made.columns == [{(4, 8): 1}, {(4, 8): 2, (8, 16): 2}, {}]


def test_a_cleared_map_starts_anew() -> None:
    assert panel([Bucket(4, 8, 5)], [Bucket(4, 8, 2)]).columns == [{(4, 8): 5}, {(4, 8): 2}]


def test_halving_keeps_the_sum() -> None:
    made = panel([Bucket(4, 8, 1)], [Bucket(4, 8, 3)], [Bucket(4, 8, 4)])
    made.halve()
    assert made.columns == [{(4, 8): 3}, {(4, 8): 1}]


def test_picture_is_whole_and_names_are_escaped() -> None:
    root = xml.etree.ElementTree.fromstring(svg([panel([Bucket(1, 2, 1)], [Bucket(1, 2, 1), Bucket(16, 32, 9)])], 1, 0))
    texts = [text.text for text in root.iter(f"{SPACE}text")]
    assert "@<&" in texts
    # Empty buckets between filled ones are rows too.
    assert [text for text in texts if text and text[0] == "["] == ["[1]", "[2, 4)", "[4, 8)", "[8, 16)", "[16, 32)"]
    assert [title.text for title in root.iter(f"{SPACE}title")][-1].endswith("[16, 32): 9")  # type: ignore[union-attr]


def test_many_buckets_share_rows() -> None:
    fine = Shape(kind="lhist", size=8, params=(0, 1000, 5))
    made = panel([Bucket(at, at + 5, 1) for at in range(0, 1000, 5)], shape=fine)
    root = xml.etree.ElementTree.fromstring(svg([made], 1, 0))
    cells = [title.text or "" for title in root.iter(f"{SPACE}title")]
    assert len(cells) == 40
    assert sum(int(text.rpartition(" ")[2]) for text in cells) == 200


@pytest.mark.parametrize(
    ("values", "line"),
    [([], ""), ([0, 0], "  "), ([1, 2, 4, 8], "▁▂▄█"), ([5], "█"), ([-3, 8], " █"), ([0.001, 1000], "▁█")],
)
def test_sparkline(values: list[float], line: str) -> None:
    assert sparkline(values) == line


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1.5, "1.5"), (1000, "1.0K"), (2_340_000, "2.3M"), (-1500, "-1.5K")]
)
def test_short_rates(number: float, text: str) -> None:
    assert short(number) == text


@pytest.mark.parametrize(
    ("value", "amount"),
    [
        (5, 5),
        (True, None),
        ("x", None),
        (Fields(count=3, average=1, total=3), 3),
        ([Bucket(1, 2, 4), Bucket(2, 4, 1)], 5),
    ],
)
def test_weight(value: Any, amount: int | None) -> None:
    assert weight(value) == amount


def test_history_forgets_keys_that_are_not_shown() -> None:
    history = History()
    assert history.rate("@", 1, 10, 0.0) == (0.0, [])
    history.looked()
    assert history.rate("@", 1, 30, 2.0) == (10.0, [10.0])
    history.looked()
    history.looked()
    assert history.rate("@", 1, 50, 3.0) == (0.0, [])


def test_times_stay_within_the_picture() -> None:
    """At the right edge a time stands before its mark."""
    for columns in range(1, 60):
        root = xml.etree.ElementTree.fromstring(svg([panel(*([Bucket(1, 2, at + 1)] for at in range(columns)))], 1, 0))
        times = [t for t in root.iter(f"{SPACE}text") if t.text and t.text[2:3] == ":"]
        assert times
        for one in times:
            at = float(one.attrib["x"])
            assert at <= 1200 if one.attrib["text-anchor"] == "end" else at + 10 * 7 < 1200
