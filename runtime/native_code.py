"""LLVM IR of the native consumer (see `runtime.native`): one function for the printf sites of a script."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from bpfseal.compiler.layout import EventField, EventLayout
from bpfseal.runtime.native_lines import NUMBER, Lines
from bpfseal.runtime.native_walk import PRELUDE, WALK
from bpfseal.runtime.render.printf import CONVERSION, bits_of, narrowed

_MOST_WIDTH: Final = 4096


@dataclass(frozen=True)
class Program:
    """IR with `i64 @consume(ptr state)`; `bound`: bytes that the longest line can take."""

    text: str
    bound: int


class _Unknown(Exception):
    """A format that is Python's business."""


def program(events: Sequence[EventLayout], *, json: bool = False) -> Program | None:
    """IR for the events that can be written natively, as lines of JSON or as text; None when there are none."""
    done = {n: lines for n, event in enumerate(events) if (lines := _event(n, event, json)) is not None}
    if not done:
        return None
    bound = max(lines.bound for lines in done.values()) + 64
    return Program("\n".join(_module(done, bound)), bound)


def _event(number: int, event: EventLayout, json: bool) -> Lines | None:
    if event.action != "printf":
        return None
    lines = Lines(number, json=json)
    try:
        lines.fixed(b'{"type": "printf", "data": "' if json else b"")
        _format(lines, event.format, event.fields)
        lines.fixed(b'"}\n' if json else b"")
    except _Unknown:
        return None
    return lines


def _format(lines: Lines, format: bytes, fields: Sequence[EventField]) -> None:
    source = format.decode("utf-8", "surrogateescape")
    at = number = 0
    for match in CONVERSION.finditer(source):
        lines.literal(source[at : match.start()].encode("utf-8", "surrogateescape"))
        at = match.end()
        if match["kind"] == "%":
            lines.literal(b"%")
            continue
        if number >= len(fields):
            raise _Unknown
        _conversion(lines, match, fields[number])
        number += 1
    lines.literal(source[at:].encode("utf-8", "surrogateescape"))


def _conversion(lines: Lines, match: re.Match[str], field: EventField) -> None:
    # The space flag and precisions do nothing, as in Python's formatter.
    flags, width, kind = match["flags"].replace(" ", ""), match["width"] or "", match["kind"]
    shape = field.shape
    if int(width or 0) > _MOST_WIDTH:
        raise _Unknown
    if shape.kind == "str" and kind == "s":
        if lines.json and width:
            raise _Unknown
        if not width:
            (lines.plain_string if lines.json else lines.string)(field)
            return
        if "0" in flags:
            raise _Unknown
        pointer, most = lines.ended(field)
        lines.printf(f"%{flags.strip('+#')}{width}.{most}s".encode(), f"ptr {pointer}", max(int(width or 0), most))
        return
    if shape.kind not in ("int", "ptr", "bool", "enum"):
        raise _Unknown
    plain = not flags and not width
    field = narrowed(match, field)
    value = lines.load(field)
    match kind:
        case "d" | "i":
            letter = "d"
        case "u" | "x" | "X" | "o":
            value, letter, flags = lines.masked(value, field.shape, bits_of(match)), kind, flags.replace("+", "")
        case "p":
            letter, flags = "x", flags.replace("+", "").replace("#", "") + "#"
        case "c" if plain and not lines.json:
            lines.character(value)
            return
        case _:
            raise _Unknown
    if plain and kind in "diux":
        lines.number({"d": "signed", "u": "unsigned", "x": "hexadecimal"}[letter], value)
        return
    # Zeros that C puts behind signs and prefixes, and streams before them.
    if "0" in flags and (letter == "d" or set(flags) & {"-", "#"}):
        raise _Unknown
    lines.printf(f"%{flags}{width}ll{letter}".encode(), f"i64 {value}", max(int(width or 0), NUMBER))


def _module(done: dict[int, Lines], bound: int) -> Iterator[str]:
    for lines in done.values():
        yield from lines.constants
    yield PRELUDE
    yield WALK.replace("BOUND", str(bound)).replace(
        "CASES", " ".join(f"i32 {number}, label %event{number}" for number in done)
    )
    for number, lines in done.items():
        yield f"event{number}:"
        yield f"%o{number}_0 = load ptr, ptr %place"
        yield from lines.code
        yield f"store ptr {lines.out()}, ptr %place"
        yield "br label %written"
    yield "}"
