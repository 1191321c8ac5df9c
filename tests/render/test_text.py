"""Rendering without a kernel: values, histograms, time series, troubles, JSON, control characters."""

from __future__ import annotations

import io
import itertools
import json
from typing import Any

import pytest

from bpfseal.compiler.layout import MapLayout, Shape, hist_bucket_low, lhist_bucket_low, lhist_buckets
from bpfseal.runtime.aggregates import Slot, total
from bpfseal.runtime.maps import MapContents
from bpfseal.runtime.render.histogram import Bucket, linear_label, log2_label, rows
from bpfseal.runtime.render.json_output import JsonOutput
from bpfseal.runtime.render.text import TextValues, visible
from bpfseal.runtime.render.text_output import TextOutput
from bpfseal.runtime.render.trouble import Trouble, context, place
from bpfseal.runtime.render.tseries import chart
from bpfseal.runtime.values import EnumValue, Fields, Pointer

U64 = Shape(kind="int", size=8)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (7, "7"),
        (-1, "-1"),
        (EnumValue(2, "TWO"), "TWO"),
        (EnumValue(9, ""), "9"),
        (Pointer(255), "0xff"),
        ("a\nb", "a\nb"),
        (b"a\x01\\", "a\\x01\\x5c"),
        ((1, "x", True), "(1, x, true)"),
        ([1, 2], "[1,2]"),
        (Fields(a=1, b=(2, 3)), "{ .a = 1, .b = (2, 3) }"),
    ],
)
def test_values(value: Any, text: str) -> None:
    assert TextValues(str).text(value) == text


def test_key_of_a_tuple_has_no_brackets() -> None:
    assert TextValues(str).key((1, ("a", 2))) == "1, (a, 2)"


def test_every_byte_is_harmless_on_a_terminal() -> None:
    text = bytes(range(256)).decode("utf-8", "surrogateescape")
    shown = visible(text)
    assert all(c.isprintable() or c in "\t\n" for c in shown)
    assert visible("plain é \n\t") == "plain é \n\t"
    assert visible("\x1b[31m\x9b\x7f\udc9b") == "\\x1b[31m\\x9b\\x7f\\x9b"


@pytest.mark.parametrize(
    ("bucket", "label"),
    [
        (Bucket(None, 0, 1), "(..., 0)"),
        (Bucket(0, 1, 1), "[0]"),
        (Bucket(1, 2, 1), "[1]"),
        (Bucket(2, 4, 1), "[2, 4)"),
        (Bucket(512, 1024, 1), "[512, 1K)"),
        (Bucket(1 << 20, 1 << 21, 1), "[1M, 2M)"),
        (Bucket(1 << 62, 1 << 63, 1), "[4E, 8E)"),
    ],
)
def test_labels_of_powers(bucket: Bucket, label: str) -> None:
    assert log2_label(bucket) == label


def test_rows_are_scaled_to_the_largest() -> None:
    assert rows([("[1]", 2), ("[2, 4)", 1), ("[4, 8)", 0)]) == [
        f"[1]                    2 |{'@' * 52}|",
        f"[2, 4)                 1 |{'@' * 26}{' ' * 26}|",
        f"[4, 8)                 0 |{' ' * 52}|",
    ]


@pytest.mark.parametrize(("low", "high", "step"), [(0, 10, 2), (0, 10, 3), (-4, 5, 4), (0, 1, 1)])
def test_linear_buckets_cover_the_range_once(low: int, high: int, step: int) -> None:
    """Each value has one bucket, by the same arithmetic as in the kernel; labels do not overlap."""
    number = lhist_buckets(low, high, step)
    lows = [lhist_bucket_low(n, low, high, step) for n in range(1, number)]
    assert lows[0] == low
    assert all(b is not None and a is not None and b - a == step for a, b in itertools.pairwise(lows))
    assert lows[-1] is not None
    assert high - step < lows[-1] <= high
    for value in range(low, high):
        bucket = 1 + (value - low) // step
        start = lhist_bucket_low(bucket, low, high, step)
        assert bucket < number
        assert start is not None
        assert start <= value


@pytest.mark.parametrize("bits", [0, 2, 5])
def test_power_buckets_grow(bits: int) -> None:
    lows = [hist_bucket_low(n, bits) for n in range(1, 200)]
    assert all(a is not None and b is not None and a < b for a, b in itertools.pairwise(lows))


def layout(kind: str, *params: int | str, signed: bool = False) -> MapLayout:
    return MapLayout(name="@", index=0, key=None, value=Shape(kind=kind, size=8, signed=signed, params=params))


def u64(*numbers: int) -> bytes:
    return b"".join((n & (1 << 64) - 1).to_bytes(8, "little") for n in numbers)


@pytest.mark.parametrize(
    ("kind", "signed", "cpus", "value"),
    [
        ("count", False, [u64(2), u64(3)], 5),
        ("sum", True, [u64(-7), u64(3)], -4),
        ("min", True, [u64(-7, 1), u64(-9, 0)], -7),
        ("max", False, [u64(7, 1), u64(9, 1)], 9),
        ("avg", True, [u64(-7, 1), u64(0, 1)], -3),
        ("min", False, [u64(0, 0), u64(0, 0)], None),
        ("stats", False, [u64(10, 2), u64(5, 1)], Fields(count=3, average=5, total=15)),
    ],
)
def test_totals_over_cpus(kind: str, signed: bool, cpus: list[bytes], value: Any) -> None:
    combine = total(layout(kind, signed=signed))
    assert combine is not None
    assert combine([(0, cpus)]) == value


def text_of(contents: MapContents) -> str:
    file = io.StringIO()
    TextOutput(file, str).map(contents)
    return file.getvalue()


def test_linear_histogram_ends_open() -> None:
    combine = total(layout("lhist", 0, 10, 3))
    assert combine is not None
    buckets = combine([(0, [u64(1)]), (4, [u64(1)])])
    assert [linear_label(bucket) for bucket in buckets] == ["(..., 0)", "[0, 3)", "[3, 6)", "[6, 9)", "[9, ...)"]


def test_maps_of_numbers() -> None:
    """The quick way for numbers writes what the long way does."""
    number = MapLayout(name="@m", index=0, key=U64, value=U64)
    items = [(n, n * 3) for n in range(20_000)]
    assert text_of(MapContents("@m", "int", items, number)) == "".join(f"@m[{k}]: {v}\n" for k, v in items)
    enums = MapLayout(name="@m", index=0, key=U64, value=Shape(kind="enum", size=4, name="e"))
    assert text_of(MapContents("@m", "enum", [(1, EnumValue(2, "TWO"))], enums)) == "@m[1]: TWO\n"


def test_time_series_chart() -> None:
    slots = [Slot(n, 1_000_000_000, value) for n, value in enumerate((0, 5, 10))]
    lines = chart(slots).splitlines()
    assert len(lines) == 2 + 3 + 2
    columns = [line.index("*") for line in lines[2:5]]
    assert columns == sorted(columns)
    assert lines[0].split() == ["0", "10"]


def test_json_is_valid_for_every_byte() -> None:
    file = io.StringIO()
    output = JsonOutput(file, Resolver())  # type: ignore[arg-type]
    text = bytes(range(1, 256)).decode("utf-8", "surrogateescape")
    output.printf(text)
    output.value(text, Shape(kind="str", size=256))
    for line in file.getvalue().encode("utf-8").splitlines():
        assert json.loads(line)["data"][:127] == text[:127]


class Resolver:
    """For values that need no look-up."""

    def text(self, value: Any) -> str:
        raise AssertionError(value)


def test_json_of_troubles() -> None:
    file = io.StringIO()
    output = JsonOutput(file, Resolver())  # type: ignore[arg-type]
    output.trouble(Trouble("helper", "a.bt:3:7-9", "map_update_elem", -7))
    output.diagnostic("errorf", "bad", "a.bt:1:2")
    assert [json.loads(line) for line in file.getvalue().splitlines()] == [
        {"type": "helper_error", "msg": "Argument list too long", "helper": "map_update_elem", "retcode": -7,
         "filename": "a.bt", "line": 3, "col": 7},
        {"type": "errorf", "msg": "bad", "filename": "a.bt", "line": 1, "col": 2},
    ]  # fmt: skip


def test_troubles_show_their_place() -> None:
    trouble = Trouble("divide_by_zero", "a.bt:2:3-8", source="BEGIN {\n\t\t4 / 0;\n}")
    first, shown, under = trouble.text().splitlines()
    assert first.startswith("a.bt:2:3-8: WARNING: Divide or modulo by 0 detected.")
    assert (shown, under) == ("\t\t4 / 0;", "\t\t~~~~~")
    assert "max_map_keys" in Trouble("helper", "a:1:1-2", "map_update_elem", -7).text()


def test_places() -> None:
    assert place("a:b.bt:3:7-9") == ("a:b.bt", 3, 7, 9)
    assert place("") == ("", 0, 0, 0)
    assert context("x", "a:9:1-2") == ""
