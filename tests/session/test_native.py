"""The consumer in machine code against Python's formatter: the same bytes for the same records."""

from __future__ import annotations

import ctypes
import io
import struct
from types import SimpleNamespace

import pytest

from bpfseal.compiler.layout import EventField, EventLayout, Shape
from bpfseal.runtime import native
from bpfseal.runtime.native_code import program
from bpfseal.runtime.render.json_output import JsonOutput
from bpfseal.runtime.render.printf import compile_format

U64, I64 = Shape(kind="int", size=8), Shape(kind="int", size=8, signed=True)
U32, I32 = Shape(kind="int", size=4), Shape(kind="int", size=4, signed=True)
U8, I8 = Shape(kind="int", size=1), Shape(kind="int", size=1, signed=True)
STR, PTR, BOOL = Shape(kind="str", size=16), Shape(kind="ptr", size=8), Shape(kind="bool", size=1)

NUMBERS = [0, 1, 9, 10, 99, 100, 127, 128, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
STRINGS = [b"", b"a", b"comm\0rubbish", b"sixteen bytes!!!", b"\xff\x80\x01\x1b[", "é".encode(), b"%d %s"]

FORMATS = [
    *((f"<{conversion}>\n".encode(), shape) for conversion in ("%d", "%i", "%u", "%x", "%X", "%o", "%lld", "%hhx",
      "%5d", "%-5d|", "%05d", "%-05d", "%+05d", "%+d", "%+6d", "% d", "%.3d", "%08x", "%+x", "%#x", "%#o", "%#10llx",
      "%#010x", "%20llu") for shape in (U64, I64, U32, I32, U8, I8)),
    *((f"100%% {conversion}".encode(), STR) for conversion in ("%s", "%20s", "%-20s", "%.3s", "%8.3s", "%020s",
      "%-020s")),
    (b"%p\n", PTR),
    (b"%20p|", PTR),
    (b"%-20p|", PTR),
    (b"%c", U8),
    (b"%c", I64),
    (b"%d", BOOL),
]  # fmt: skip


def values(shape: Shape) -> list[bytes]:
    if shape.kind == "str":
        return [value.ljust(shape.size, b"\0")[: shape.size] for value in STRINGS]
    return sorted({struct.pack("<Q", value)[: shape.size] for value in NUMBERS})


def consume(
    events: list[EventLayout], records: list[bytes], room: int = 1 << 16, *, json: bool = False
) -> tuple[int, bytes, int]:
    """(reason, output, records done) for a ring of 4096 bytes that holds `records`."""
    made = program(events, json=json)
    assert made is not None
    engine, address = native._compile(made)
    data = b"".join(struct.pack("<II", len(r), 0) + r.ljust((len(r) + 7) & ~7, b"\0") for r in records)
    size = 1 << max(12, (len(data) - 1).bit_length())
    ring = ctypes.create_string_buffer(data, 2 * size)
    positions = (ctypes.c_uint64 * 2)(len(data), 0)
    out = ctypes.create_string_buffer(room)
    state = (ctypes.c_uint64 * 10)(
        ctypes.addressof(ring), size - 1, ctypes.addressof(positions), ctypes.addressof(positions) + 8,
        0, ctypes.addressof(out), room, 0, 0, size >> 2,
    )  # fmt: skip
    reason = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(address)(ctypes.addressof(state))
    assert positions[1] == state[4]  # the kernel knows where we are
    if reason == native.EMPTY:
        assert state[4] == len(data)
    del engine
    return reason, out.raw[: state[7]], state[8]


@pytest.mark.parametrize(("format", "shape"), FORMATS, ids=lambda v: str(getattr(v, "kind", v)))
def test_same_text_as_python(format: bytes, shape: Shape) -> None:
    field = EventField(offset=8, shape=shape)
    event = EventLayout(action="printf", size=8 + shape.size, format=format, fields=(field,))
    records = [struct.pack("<II", 0, 0) + value for value in values(shape)]
    python = compile_format(format, event.fields, {}, lambda value, shape: str(value))
    expected = "".join(python(record) for record in records).encode("utf-8", "surrogateescape")
    if program([event]) is None:
        pytest.skip("left to Python")
    assert consume([event], records) == (native.EMPTY, expected, len(records))


def test_most_formats_are_native() -> None:
    """The skips above are few: what machine code leaves to Python are zeros in front of signs, prefixes and strings."""
    left = [
        format
        for format, shape in FORMATS
        if program([EventLayout(action="printf", size=8, format=format, fields=(EventField(offset=8, shape=shape),))])
        is None
    ]
    assert all(b"0" in format for format in left), left


def two_kinds() -> list[EventLayout]:
    field = EventField(offset=8, shape=U64)
    return [
        EventLayout(action="printf", size=16, format=b"n=%lld\n", fields=(field,)),
        EventLayout(action="print_map", size=8, map="@"),
    ]


def test_stops_at_what_is_pythons() -> None:
    line = struct.pack("<IIQ", 0, 0, 7)
    reason, text, count = consume(two_kinds(), [line, line, struct.pack("<II", 1, 0), line])
    assert (reason, text, count) == (native.FOREIGN, b"n=7\nn=7\n", 2)


def test_stops_when_the_buffer_is_full_and_never_overruns_it() -> None:
    made = program(two_kinds())
    assert made is not None
    lines = [struct.pack("<IIQ", 0, 0, 2**63 - 1)] * 100
    reason, text, count = consume(two_kinds(), lines, room=made.bound + 50)
    assert reason == native.FULL
    assert text == b"n=9223372036854775807\n" * count
    assert 50 <= len(text) <= made.bound + 50


def test_stops_at_a_record_that_is_being_written() -> None:
    made = program(two_kinds())
    assert made is not None
    engine, address = native._compile(made)
    data = struct.pack("<IIIIQ", 16 | 1 << 31, 0, 0, 0, 7)
    ring = ctypes.create_string_buffer(data, 8192)
    positions = (ctypes.c_uint64 * 2)(len(data), 0)
    out = ctypes.create_string_buffer(1024)
    state = (ctypes.c_uint64 * 10)(
        ctypes.addressof(ring), 4095, ctypes.addressof(positions), ctypes.addressof(positions) + 8,
        0, ctypes.addressof(out), 1024, 0, 0, 1024,
    )  # fmt: skip
    assert ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(address)(ctypes.addressof(state)) == native.EMPTY
    assert (state[4], state[7]) == (0, 0)
    # A discarded record is passed over without a word.
    struct.pack_into("<I", ring, 0, 16 | 1 << 30)
    assert ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(address)(ctypes.addressof(state)) == native.EMPTY
    assert (state[4], state[7]) == (len(data), 0)
    del engine


def json_lines(event: EventLayout, records: list[bytes]) -> bytes:
    """What Python writes."""
    file = io.StringIO()
    output = JsonOutput(file, SimpleNamespace(text=str))  # type: ignore[arg-type]
    text = compile_format(event.format, event.fields, {}, lambda value, shape: str(value))
    for record in records:
        output.printf(text(record))
    return file.getvalue().encode("utf-8", "surrogateescape")


@pytest.mark.parametrize(("format", "shape"), FORMATS, ids=lambda v: str(getattr(v, "kind", v)))
def test_same_json_as_python(format: bytes, shape: Shape) -> None:
    """Strings that need an escape, or were cut, are left to Python in their turn."""
    field = EventField(offset=8, shape=shape)
    event = EventLayout(action="printf", size=8 + shape.size, format=b'"q"\\\xff\t' + format, fields=(field,))
    records = [struct.pack("<II", 0, 0) + value for value in values(shape)]
    if program([event], json=True) is None:
        pytest.skip("left to Python")
    at = 0
    for _ in records:
        reason, text, count = consume([event], records[at:], json=True)
        assert text == json_lines(event, records[at : at + count])
        at += count
        if reason == native.EMPTY:
            break
        assert reason == native.FOREIGN
        value = records[at][8:].split(b"\0")[0]
        assert len(value) == shape.size or any(byte < 32 or byte > 126 or byte in b'"\\' for byte in value)
        at += 1
    assert at == len(records)
