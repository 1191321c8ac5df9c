"""The format files of tracepoints: what is where in the record that a program gets.

A line is `field:TYPE NAME[COUNT];\toffset:N;\tsize:N;\tsigned:N;` (kernel/trace/trace_events.c, f_show). TYPE is what
the tracepoint's author wrote, so nothing about it is certain; sizes and offsets are the compiler's and are trusted,
within bounds.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_LINE: Final = re.compile(r"\s*field:(?P<text>[^;]+);\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);(?P<rest>.*)")
_NAME: Final = re.compile(r"(?P<type>.*?)(?P<name>[A-Za-z_]\w*)\s*(?P<array>\[[^\[\]]*\])?\s*\Z", re.DOTALL)
_LIMIT: Final = 1 << 16  # a trace event is at most a page; more is not a record


class EventField(NamedTuple):
    """`type` in C, without array bounds; `elements` -1: not an array, 0: open-ended. `common`: in every event."""

    name: str
    type: str
    offset: int
    size: int
    signed: bool
    elements: int = -1
    data_loc: bool = False
    relative: bool = False
    common: bool = False
    text: str = ""


def parse(text: str) -> tuple[EventField, ...]:
    """Fields in order. Lines that cannot be understood are left out; never raises."""
    found: list[EventField] = []
    common = True
    for line in text.split("\n"):
        if line.startswith("print fmt:"):
            break
        if not line.strip():
            common = common and not found
            continue
        if (field := _field(line, common)) is not None:
            found.append(field)
    return tuple(found)


def _field(line: str, common: bool) -> EventField | None:
    match = _LINE.match(line)
    if match is None:
        return None
    text = match["text"].strip()
    name = _NAME.match(text)
    if name is None or len(match["offset"]) > 8 or len(match["size"]) > 8:
        return None
    offset, size = int(match["offset"]), int(match["size"])
    if offset + size > _LIMIT:
        return None
    words, data_loc, relative = name["type"].strip(), False, False
    if not words:
        return None
    if words.startswith(("__data_loc ", "__rel_loc ")):
        relative = words.startswith("__rel_loc ")
        words, data_loc = words.partition(" ")[2].strip().removesuffix("[]").strip(), True
    count = -1
    if name["array"] is not None:
        digits = name["array"][1:-1].strip()
        count = int(digits) if digits.isdecimal() and len(digits) < 8 else 0
    signed = "signed:1;" in match["rest"]
    return EventField(name["name"], words, offset, size, signed, count, data_loc, relative, common, text)
