"""printf: a format and shapes become one function from a record to text.

The common case (integers and strings) is one struct unpack and one `%`: formatting is the cost of a tracer's event
loop, so all decisions about conversions are taken once per event site, here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

from bpfseal.compiler.layout import EventField, Shape
from bpfseal.runtime.values import Buffer, Decoder, decoder

# Flags in this order only, and these letters: all else that starts with % is text.
CONVERSION = re.compile(
    r"%(?P<flags>-?\+? ?#?0?)(?P<width>\d+)?(?:\.(?P<precision>\d+))?(?P<length>hh|h|ll|l|j|z|t)?"
    r"(?P<kind>rh|rx|gr|[diouxXcspr%])"
)
# As in C: without a length it is an int, which is all that bpftrace shows of a larger number, too.
_BITS = {"hh": 8, "h": 16, None: 32}
_CODES = {(1, False): "B", (1, True): "b", (2, False): "H", (2, True): "h"}
_CODES |= {(4, False): "I", (4, True): "i", (8, False): "Q", (8, True): "q"}
_NUMERIC = frozenset(["d", "i", "u", "x", "X", "o", "p", "gr"])
_NUMBER_KINDS = frozenset(["int", "ptr", "bool", "enum"])

Text = Callable[[Any, Shape], str]


def compile_format(
    format: bytes,
    fields: Sequence[EventField],
    enums: dict[str, dict[int, str]],
    text: Text,
    clean: Callable[[str], str] | None = None,
) -> Callable[[Buffer], str]:
    """The function that writes a record with `fields` by `format`. `text` renders values that are no plain numbers
    or strings (stacks, symbols, tuples); `clean` makes strings fit to be shown."""
    source = format.decode("utf-8", "surrogateescape")
    template: list[str] = []
    converts: list[Callable[[Any], Any] | None] = []
    seen: list[EventField] = []
    at = number = 0
    for match in CONVERSION.finditer(source):
        template.append(source[at : match.start()].replace("%", "%%"))
        at = match.end()
        if match["kind"] == "%":
            template.append("%%")
            continue
        if number >= len(fields):
            template.append(match[0].replace("%", "%%"))
            continue
        seen.append(narrowed(match, fields[number]))
        conversion, convert = _conversion(match, seen[-1].shape, text, clean or _same)
        template.append(conversion)
        converts.append(convert)
        number += 1
    template.append(source[at:].replace("%", "%%"))
    return _formatter("".join(template), seen, converts, enums)


def bits_of(match: re.Match[str]) -> int:
    """Width of the number that a conversion shows."""
    return 64 if match["kind"] in ("p", "gr") else _BITS.get(match["length"], 64)


def narrowed(match: re.Match[str], field: EventField) -> EventField:
    """The part of `field` that a conversion of numbers shows, with the conversion's sign. Numbers that are narrower
    than the conversion stay as they are."""
    size = bits_of(match) // 8
    if match["kind"] not in _NUMERIC or field.shape.kind not in _NUMBER_KINDS or field.shape.size < size:
        return field
    # The kernel's bytes are little-endian on every architecture that we know: the low ones come first.
    return EventField(offset=field.offset, shape=Shape(kind="int", size=size, signed=match["kind"] in ("d", "i")))


def _formatter(
    template: str,
    fields: Sequence[EventField],
    converts: Sequence[Callable[[Any], Any] | None],
    enums: dict[str, dict[int, str]],
) -> Callable[[Buffer], str]:
    if not fields:
        fixed = template.replace("%%", "%")
        return lambda record: fixed
    packed = _pack(fields)
    if packed is not None:
        if not any(converts):
            return lambda record: template % packed.unpack_from(record)
        steps = [c if c is not None else _same for c in converts]
        return lambda record: template % tuple([c(v) for c, v in zip(steps, packed.unpack_from(record), strict=True)])
    parts: list[tuple[Decoder, int, Callable[[Any], Any]]] = [
        (decoder(f.shape, enums), f.offset, c if c is not None else _same)
        for f, c in zip(fields, converts, strict=True)
    ]
    return lambda record: template % tuple([convert(decode(record, at)) for decode, at, convert in parts])


def _same(value: Any) -> Any:
    return value


def _pack(fields: Sequence[EventField]) -> struct.Struct | None:
    """One struct for all fields when they are plain integers and pointers in ascending order, else None."""
    codes = ["<"]
    at = 0
    for field in fields:
        code = "Q" if field.shape.kind == "ptr" else _CODES.get((field.shape.size, field.shape.signed))
        if field.shape.kind not in ("int", "ptr") or field.shape.name or code is None or field.offset < at:
            return None
        if field.offset > at:
            codes.append(f"{field.offset - at}x")
        codes.append(code)
        at = field.offset + field.shape.size
    return struct.Struct("".join(codes))


def _conversion(
    match: re.Match[str], shape: Shape, text: Text, clean: Callable[[str], str]
) -> tuple[str, Callable[[Any], Any] | None]:
    """A Python `%` conversion and what to do with the value first. Widths and flags do what they do in bpftrace,
    which writes through C++ streams: zeros stand in front of signs and prefixes, pad strings, and stand behind numbers
    that are aligned to the left; the space flag and precisions do nothing."""
    kind, flags = match["kind"], match["flags"].replace(" ", "")
    width = int(match["width"] or 0)
    if kind in "diu" and "0" not in flags:
        plus = "+" if "+" in flags and kind != "u" else ""
        minus = "-" if "-" in flags else ""
        return f"%{minus}{plus}{width or ''}d", _number(match, shape)
    write = _writer(match, shape, text, clean)
    if not width:
        return "%s", write
    left, fill, lead = "-" in flags, "0" if "0" in flags else " ", _OPENING.get(shape.kind, "") if kind == "s" else ""
    return "%s", lambda v: padded(write(v), width, left, fill, lead)


# Values of several parts: a width is used up by the first thing that is written, which is this.
_OPENING = {"tuple": "(", "record": "{ ", "array": "["}


def _number(match: re.Match[str], shape: Shape) -> Callable[[Any], Any] | None:
    if match["kind"] == "u" and shape.signed:
        mask = (1 << bits_of(match)) - 1
        return lambda v: int(v) & mask
    return _integer(shape)


def _writer(match: re.Match[str], shape: Shape, text: Text, clean: Callable[[str], str]) -> Callable[[Any], str]:
    """The text of one value without width."""
    kind, flags, mask = match["kind"], match["flags"], (1 << bits_of(match)) - 1
    match kind:
        case "d" | "i":
            return (lambda v: f"{int(v):+d}") if "+" in flags else lambda v: str(int(v))
        case "u":
            return lambda v: str(int(v) & mask)
        case "x" | "X" | "o":
            # C writes no prefix for zero.
            prefix = {"x": "0x", "X": "0X", "o": "0"}[kind] if "#" in flags else ""
            return lambda v: f"{prefix if int(v) & mask else ''}{int(v) & mask:{kind}}"
        case "p":
            return lambda v: f"0x{int(v) & mask:x}" if int(v) & mask else "0"
        case "gr":
            from bpfseal.runtime.render.gfp import gfp_text

            return lambda v: gfp_text(int(v) & mask)
        case "c":
            return lambda v: clean(bytes([int(v) & 0xFF]).decode("utf-8", "surrogateescape"))
        case "r" | "rx" | "rh":
            style = {"r": "escape", "rx": "x", "rh": "h"}[kind]
            return lambda v: buffer_text(v, style)
    if "+" in flags and shape.kind == "int" and shape.signed:
        return lambda v: f"{v:+d}"
    return _text(shape, text, clean)


def padded(text: str, width: int, left: bool, fill: str = " ", lead: str = "") -> str:
    """`text` with as many `fill` that it has `width` bytes, to which side `left` says; `lead`: only this beginning of
    it is padded."""
    if lead and text.startswith(lead):
        return padded(lead, width, left, fill) + text[len(lead) :]
    missing = width - (len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape")))
    return text + fill * missing if left else fill * missing + text


def _integer(shape: Shape) -> Callable[[Any], Any] | None:
    return None if shape.kind == "int" else int


def _text(shape: Shape, text: Text, clean: Callable[[str], str]) -> Callable[[Any], str]:
    return clean if shape.kind == "str" else (lambda v: text(v, shape))


def buffer_text(value: bytes | str, style: str = "escape") -> str:
    """A buffer as text: "escape" printable ASCII (the backslash too, as in bpftrace) and \\xNN, "x" every byte as
    \\xNN, "h" hex pairs with spaces."""
    raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    if style == "x":
        return "".join(f"\\x{b:02x}" for b in raw)
    if style == "h":
        return " ".join(f"{b:02x}" for b in raw)
    return "".join(chr(b) if 32 <= b < 127 else f"\\x{b:02x}" for b in raw)
