"""Formats: what each conversion makes of a number's bytes."""

from __future__ import annotations

import struct

import pytest

from bpfseal.compiler.layout import EventField, Shape
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
        ("%05d", -7, 2, True, "-0007"),
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
