"""Formats: what each conversion makes of a number's bytes."""

from __future__ import annotations

import struct

import pytest

from bpfseal.compiler.layout import EventField, Member, Shape
from bpfseal.runtime.render.gfp import gfp_text
from bpfseal.runtime.render.printf import compile_format


def written(format: str, value: int, size: int = 8, *, signed: bool = False, kind: str = "int", name: str = "") -> str:
    field = EventField(offset=0, shape=Shape(kind=kind, size=size, signed=signed, name=name))
    raw = struct.pack("<Q", value & (1 << 64) - 1)[:size]
    return compile_format(format.encode(), [field], {"e": {7: "SEVEN"}}, lambda v, shape: v.name)(raw)


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("%hhx", "ef"),
        ("%hx", "cdef"),
        ("%x", "78abcdef"),
        ("%lx", "12345678abcdef"),
        ("%jx", "12345678abcdef"),
        ("%hhd", "-17"),
        ("%hd", "-12817"),
        ("%d", "2024525295"),
        ("%u", "2024525295"),
        ("%lld", "5124095577148911"),
        ("%zu", "5124095577148911"),
        ("%p", "0x12345678abcdef"),
    ],
)
def test_length_cuts_a_number(format: str, text: str) -> None:
    assert written(format, 0x12345678ABCDEF) == text


@pytest.mark.parametrize(
    ("format", "value", "size", "signed", "text"),
    [
        ("%d", 2**64 - 1, 8, False, "-1"),
        ("%u", 2**64 - 1, 8, False, "4294967295"),
        ("%d", 2**32 - 1, 4, False, "-1"),
        ("%d", 200, 1, False, "200"),
        ("%hhd", 200, 1, False, "-56"),
        ("%u", -1, 1, True, "4294967295"),
        ("%llx", -1, 1, True, "ffffffffffffffff"),
        ("%hhx", -1, 1, True, "ff"),
        ("%5d|", 7, 8, True, "    7|"),
        # As C++ streams do it.
        ("%05d", -7, 2, True, "000-7"),
        ("%-05d", 42, 8, True, "42000"),
        ("%+05d", 42, 8, True, "00+42"),
        ("%+u", 42, 8, True, "42"),
        ("% d", 42, 8, True, "42"),
        ("%.3d", 5, 8, True, "5"),
        ("%#o", 8, 8, True, "010"),
        ("%#010x", 255, 8, True, "0000000xff"),
        ("%-#10x|", 255, 8, True, "0xff      |"),
        ("%05c", 68, 8, True, "0000D"),
        ("%p", 0, 8, False, "0"),
        ("%10p", 255, 8, False, "      0xff"),
        ("%#lx", 255, 8, True, "0xff"),
        ("%#x", 1 << 32, 8, True, "0"),
    ],
)
def test_sign_and_width(format: str, value: int, size: int, signed: bool, text: str) -> None:
    assert written(format, value, size, signed=signed) == text


def test_booleans_and_enumerators_are_numbers_and_names() -> None:
    assert written("%d", 1, 1, kind="bool") == "1"
    assert written("%d", 7, 4, kind="enum", name="e") == "7"
    assert written("%s", 7, 4, kind="enum", name="e") == "SEVEN"


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (0, "0"),
        (1, "GFP_DMA"),
        (0xCC0, "GFP_KERNEL"),
        (0xCC0 | 0x100, "GFP_KERNEL|__GFP_ZERO"),
        (0x820, "GFP_ATOMIC"),
        (1 << 40, "0x10000000000"),
        (0x1 | 1 << 40, "GFP_DMA|0x10000000000"),
    ],
)
def test_allocation_flags(flags: int, text: str) -> None:
    assert gfp_text(flags) == text


def test_what_is_no_conversion_is_text() -> None:
    """Another letter, flags in another order."""
    assert written("%y %d %+-d", 5) == "%y 5 %+-d"


@pytest.mark.parametrize(
    ("format", "text"),
    [("%5s|", "   ab|"), ("%-5s|", "ab   |"), ("%05s|", "000ab|"), ("%.1s", "ab"), ("%4.1s|", "  ab|"), ("%1s", "ab")],
)
def test_strings(format: str, text: str) -> None:
    field = EventField(offset=0, shape=Shape(kind="str", size=8))
    assert compile_format(format.encode(), [field], {}, lambda v, shape: v)(b"ab\0\0\0\0\0\0") == text


def test_width_of_a_tuple_is_used_up_by_its_bracket() -> None:
    member = Shape(kind="int", size=8)
    shape = Shape(kind="tuple", size=8, members=(Member("", 0, member),))
    assert compile_format(b"%5s|%-5s|", [EventField(0, shape)] * 2, {}, lambda v, shape: "(7)")(bytes(8)) == (
        "    (7)|(    7)|"
    )
