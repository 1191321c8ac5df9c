"""Rendering without a kernel: values, histograms, time series, troubles, JSON, control characters."""

from __future__ import annotations

import io
import itertools
import json
from typing import Any

import pytest

from bpfseal.compiler.layout import MapLayout, Shape, hist_bucket_low, lhist_bucket_low, lhist_buckets
from bpfseal.runtime.aggregates import Slot, sort_key, total
from bpfseal.runtime.maps import MapContents
from bpfseal.runtime.render.histogram import Bucket, linear_label, log2_label, rows
from bpfseal.runtime.render.json_output import JsonOutput
from bpfseal.runtime.render.text import TextValues, visible
from bpfseal.runtime.render.text_output import TextOutput
from bpfseal.runtime.render.trouble import Trouble, context, place
from bpfseal.runtime.render.tseries import chart
from bpfseal.runtime.values import EnumValue, Fields, Pointer, UserId, decoder

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
        (b"a\x01\\", "a\\x01\\"),
        ((1, "x", True), "(1, x, true)"),
        ([1, 2], "[1,2]"),
        (Fields(a=1, b=(2, 3)), "{ .a = 1, .b = (2, 3) }"),
        (Fields(), "{}"),
        (None, "null"),
        (UserId(0), "root"),
        ((UserId(0), 1), "(root, 1)"),
        (UserId(4_000_000_000), "4000000000"),
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


@pytest.mark.parametrize(
    ("low", "high", "bits", "label"),
    [(896, 1024, 2, "[896, 1024)"), (7680, 8192, 3, "[7680, 8K)"), (4096, 4608, 3, "[4096, 4608)"), (6, 7, 2, "[6]")],
)
def test_labels_of_finer_buckets(low: int, high: int, bits: int, label: str) -> None:
    """As bpftrace shortens them: by the width of the bucket, not by its bounds."""
    assert log2_label(Bucket(low, high, 1), bits) == label


@pytest.mark.parametrize(
    ("bucket", "step", "label"),
    [
        (Bucket(5, 6, 1), 1, "[5]"),
        (Bucket(None, 0, 1), 1, "(..., 0)"),
        (Bucket(10, None, 1), 1, "[10, ...)"),
        (Bucket(4096, 5120, 1), 1024, "[4K, 5K)"),
        (Bucket(3 << 20, None, 1), 1 << 20, "[3M, ...)"),
        (Bucket(0, 1 << 20, 1), 1 << 20, "[0, 1M)"),
        (Bucket(1024, 2047, 1), 1023, "[1024, 2047)"),
    ],
)
def test_labels_of_linear_buckets(bucket: Bucket, step: int, label: str) -> None:
    assert linear_label(bucket, step) == label


def test_bars_are_as_long_as_in_single_precision() -> None:
    """49 of 49 * 3 in doubles would be a bar of 17 and a third; what counts is C's float."""
    assert [row.count("@") for row in rows([("a", 33), ("b", 49), ("c", 17), ("d", 7)])] == [35, 52, 18, 7]


def test_gaps_of_a_time_series_are_rows() -> None:
    slots = [Slot(7, 1_000_000, 5), Slot(9, 1_000_000, -5)]
    lines = chart(slots, last=10).splitlines()
    assert [line.split("|")[-1].split()[-1] for line in lines[2:6]] == ["5", "-", "-5", "-"]
    assert lines[1].startswith("hh:mm:ss.ms  |")
    assert lines[3][len("hh:mm:ss.mmm ") + 26] == "."
    # What is older than the newest intervals is not shown; a series without any value says so.
    assert len(chart(slots, last=10, keep=2).splitlines()) == 2 + 2 + 2
    assert chart(slots, last=20, keep=2) == "<no data>"
    assert chart([]) == "<no data>"


def test_time_series_at_the_end_of_the_range() -> None:
    one = chart([Slot(1, 1_000_000_000, 0)], signed=False).splitlines()
    assert one[0].split() == ["0", "1"]
    assert chart([Slot(1, 1_000_000_000, 0)]).splitlines()[0].split() == ["-1", "1"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1 << 53, "9007199254740992"), ((1 << 53) + 1, '"9007199254740993"'), (-(1 << 53) - 1, '"-9007199254740993"')],
)
def test_json_numbers_that_readers_could_not_hold_are_strings(value: int, text: str) -> None:
    file = io.StringIO()
    JsonOutput(file, Resolver()).value(value, U64)  # type: ignore[arg-type]
    assert file.getvalue() == f'{{"type": "value", "data": {text}}}\n'


def test_user_ids_are_decoded_with_their_names() -> None:
    value = decoder(Shape(kind="int", size=8, name="username"), {})(bytes(8), 0)
    assert (value, value.name) == (0, "root")


def test_order_of_maps() -> None:
    """Numbers by value, all else by key."""
    numbers = MapLayout(name="@m", index=0, key=U64, value=U64)
    assert sorted([(1, 7), (2, 3)], key=sort_key(numbers)) == [(2, 3), (1, 7)]
    for kind in ("str", "tuple", "bool", "ptr"):
        other = MapLayout(name="@m", index=0, key=U64, value=Shape(kind=kind, size=8))
        assert sorted([(2, "a"), (1, "b")], key=sort_key(other)) == [(1, "b"), (2, "a")]
