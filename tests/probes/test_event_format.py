"""Format files of tracepoints: known lines, odd lines, every line of this machine, and noise."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfseal.dsl.types import BOOL, Array, Enum, Int, Ptr, Str, Type
from bpfseal.runtime.event_format import EventField, parse
from bpfseal.runtime.probes.tracepoint import field_type
from bpfseal.runtime.probes.world import World
from bpfseal.runtime.tracefs import TracefsError, tracefs

WORLD = World()

EXEC = """name: sched_process_exec
ID: 353
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:__data_loc char[] filename;\toffset:8;\tsize:4;\tsigned:0;
\tfield:__rel_loc u8[] data;\toffset:12;\tsize:4;\tsigned:0;
\tfield:pid_t pid;\toffset:16;\tsize:4;\tsigned:1;
\tfield:const char *const * argv;\toffset:24;\tsize:8;\tsigned:0;
\tfield:__u8 saddr[28];\toffset:32;\tsize:28;\tsigned:0;
\tfield:char buf[];\toffset:60;\tsize:0;\tsigned:0;

print fmt: "filename=%s field:int fake;\toffset:1;\tsize:1;\tsigned:0;", REC->filename
"""


def test_a_whole_file() -> None:
    fields = {field.name: field for field in parse(EXEC)}
    assert list(fields) == ["common_type", "common_pid", "filename", "data", "pid", "argv", "saddr", "buf"]
    assert [f.name for f in fields.values() if f.common] == ["common_type", "common_pid"]
    assert (fields["filename"].data_loc, fields["filename"].relative, fields["filename"].type) == (True, False, "char")
    assert (fields["data"].data_loc, fields["data"].relative, fields["data"].type) == (True, True, "u8")
    assert (fields["pid"].signed, fields["pid"].offset, fields["pid"].size) == (True, 16, 4)
    assert fields["argv"].type == "const char *const *"
    assert (fields["saddr"].elements, fields["saddr"].type) == (28, "__u8")
    assert fields["buf"].elements == 0
    assert fields["saddr"].text == "__u8 saddr[28]"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "\tfield:;\toffset:0;\tsize:1;\tsigned:0;",
        "\tfield:int 5x;\toffset:-1;\tsize:1;\tsigned:0;",
        "\tfield:int x;\toffset:99999999999;\tsize:1;\tsigned:0;",
        "\tfield:int x;\toffset:65530;\tsize:100;\tsigned:0;",
        "\tfield:int x offset:0 size:4",
        "field",
        "\tfield:int [];\toffset:0;\tsize:4;\tsigned:1;",
    ],
)
def test_lines_that_are_none(line: str) -> None:
    assert parse(line) == ()


def test_bounds_that_are_no_number() -> None:
    (field,) = parse("\tfield:__u8 saddr[sizeof(struct sockaddr_in6)];\toffset:8;\tsize:28;\tsigned:0;")
    assert (field.name, field.elements, field.size) == ("saddr", 0, 28)
    assert field_type(WORLD, field, "kernel") == Array(Int(8, False), 28)


@settings(deadline=None)
@given(st.text(max_size=400))
def test_noise(text: str) -> None:
    for field in parse(text):
        assert field.offset + field.size <= 1 << 16


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_files(data: st.DataObject) -> None:
    text = list(EXEC)
    for _ in range(data.draw(st.integers(1, 12))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at] = data.draw(st.sampled_from(["", ";", "\t", "[", "]", "*", ":", "9", "\n", "é", "field:"]))
    for field in parse("".join(text)):
        type = field_type(WORLD, field, "kernel")
        assert isinstance(type, Int | Array | Str | Ptr | Enum) or type == BOOL


@pytest.mark.parametrize(
    ("declared", "size", "signed", "count", "expected"),
    [
        ("int", 4, True, -1, Int(32)),
        ("int", 8, False, -1, Int(64, False)),
        ("umode_t", 8, False, -1, Int(64, False)),
        ("no_such_t", 2, True, -1, Int(16)),
        ("no_such_t", 24, False, -1, Array(Int(8, False), 24)),
        ("struct no_such *", 8, False, -1, Ptr(None, "kernel")),
        ("bool", 1, False, -1, BOOL),
        ("char", 16, False, 16, Str(16)),
        ("unsigned long", 48, False, 6, Array(Int(64, False), 6)),
        ("no_such_t", 12, True, 3, Array(Int(32), 3)),
        ("char", 0, False, 0, Str(0)),
    ],
)
def test_types(declared: str, size: int, signed: bool, count: int, expected: Type) -> None:
    assert field_type(WORLD, EventField("x", declared, 8, size, signed, count), "kernel") == expected


@pytest.mark.host
def test_every_format_of_this_machine() -> None:
    try:
        files = tracefs()
    except TracefsError as error:
        pytest.skip(str(error))
    for category, event in files.events():
        text = files.event_format(category, event)
        assert text is not None
        fields = parse(text)
        assert len(fields) == text.partition("print fmt")[0].count("\tfield:")
        assert sum(field.common for field in fields) >= 4
        ends = [field.offset + field.size for field in fields]
        assert ends == sorted(ends), (category, event)
