"""Integer and string literals: text to values."""

from __future__ import annotations

import re

_INTEGER = re.compile(
    r"(?P<hex>0[xX][0-9a-fA-F_]+?)(?P<hs>[uU]?[lL]{0,2})\Z"
    r"|(?P<digits>[0-9][0-9_]*)(?:[eE](?P<exponent>[0-9][0-9_]*))?(?P<suffix>[A-Za-z]\w*)?\Z"
)
_SIZE = re.compile(r"(?:[uU][lL]{0,2}|[lL]{1,2})\Z")
_NANOSECONDS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
}
_ESCAPE = re.compile(r"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|(.)|\Z)", re.DOTALL)
_LETTERS = {"n": b"\n", "t": b"\t", "r": b"\r", '"': b'"', "\\": b"\\"}


class LiteralError(Exception):
    """`start` and `end` are offsets into the literal."""

    def __init__(self, message: str, start: int, end: int, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.start = start
        self.end = end
        self.hint = hint


def decode_integer(text: str) -> int:
    """Value of a decimal, octal (leading 0), hexadecimal or scientific literal with underscores and a suffix.

    Suffixes of size (u, l, ul, …) change nothing; those of time (ns, us, ms, s, m, h, d) multiply up to nanoseconds.
    Raises LiteralError for anything that does not fit 64 bits.
    """
    if text.isascii() and text.isdigit() and text[0] != "0" and len(text) < 19:
        return int(text)
    found = _INTEGER.match(text)
    if found is None:
        raise LiteralError("this is not an integer", 0, len(text), "decimal, 0x hexadecimal or 0 octal digits")
    if found["hex"]:
        digits = found["hex"]
        value = int(_plain(digits[2:], 2), 16)
    else:
        digits = _plain(found["digits"], 0)
        exponent = found["exponent"]
        if digits[0] == "0" and len(digits) > 1 and exponent is None:
            if set(digits) - set("01234567"):
                raise LiteralError("8 and 9 are no octal digits", 0, len(text), "a number that starts with 0 is octal")
            value = _sized(digits, 8, text)
        else:
            value = _sized(digits, 10, text)
        if exponent is not None:
            power = int(_plain(exponent, 0)[:6])
            if power > 19 and value:
                raise LiteralError("this number does not fit 64 bits", 0, len(text))
            value *= 10 ** min(power, 20)
        suffix = found["suffix"] or ""
        if suffix and not _SIZE.match(suffix):
            if suffix not in _NANOSECONDS:
                raise LiteralError(
                    f"invalid integer suffix '{suffix}'",
                    len(text) - len(suffix),
                    len(text),
                    "suffixes: ns us ms s m h d for durations; u l ul ll ull",
                )
            value *= _NANOSECONDS[suffix]
    if value >= 1 << 64:
        raise LiteralError("this number does not fit 64 bits", 0, len(text))
    return value


def _plain(digits: str, at: int) -> str:
    if digits.endswith("_"):
        raise LiteralError("an underscore ends the digits of this number", at, at + len(digits))
    return digits.replace("_", "")


def _sized(digits: str, base: int, text: str) -> int:
    if len(digits) > 64:  # int() of very long text takes very long, and refuses above some length
        raise LiteralError("this number does not fit 64 bits", 0, len(text))
    return int(digits, base)


def decode_string(text: str) -> bytes:
    """Bytes of a literal given with its quotes. Raises LiteralError for unknown escapes."""
    inner = text[1:-1]
    if "\\" not in inner:
        return inner.encode("utf-8", "surrogateescape")
    parts = []
    at = 0
    for escape in _ESCAPE.finditer(inner):
        parts.append(inner[at : escape.start()].encode("utf-8", "surrogateescape"))
        at = escape.end()
        octal, hexadecimal, letter = escape.groups()
        if octal:
            value = int(octal, 8)
            if value > 255:
                raise LiteralError(f"'\\{octal}' is more than a byte", escape.start() + 1, at + 1, "the most is \\377")
            parts.append(bytes([value]))
        elif hexadecimal:
            parts.append(bytes([int(hexadecimal, 16)]))
        elif letter in _LETTERS:
            parts.append(_LETTERS[letter])
        elif letter in ("x", "X"):
            raise LiteralError("'\\x' needs hexadecimal digits", escape.start() + 1, at + 1)
        else:
            shown = letter if letter and letter.isprintable() else repr(letter)
            raise LiteralError(
                f"unknown escape '\\{shown}'", escape.start() + 1, at + 1, 'escapes: \\n \\t \\r \\" \\\\ \\0nn \\xnn'
            )
    parts.append(inner[at:].encode("utf-8", "surrogateescape"))
    return b"".join(parts)
