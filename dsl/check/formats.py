"""printf formats: which conversions there are and what they accept."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

from bpfseal.dsl import typed
from bpfseal.dsl.check.conversions import is_unknown
from bpfseal.dsl.check.state import State
from bpfseal.dsl.source import Span
from bpfseal.dsl.types import Bool, Buf, Enum, Int, Ptr, Str, Sym, Type, Void

# %[flags][width][.precision][length]conversion; r, rx, rh and gr are the language's own.
PATTERN = re.compile(
    rb"%(?P<flags>[-+ #0]*)(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d+))?(?P<length>[hlLjzt]*)"
    rb"(?P<conversion>rh|rx|gr|[diouxXeEfFgGaAcspnr%])"
)

NUMBERS = frozenset(["d", "i", "u", "o", "x", "X", "c", "p", "gr"])
BUFFERS = frozenset({"r", "rx", "rh"})
MAX_WIDTH = 4096

# What bpf_trace_printk accepts.
TRACE_CONVERSIONS = frozenset({"d", "u", "x", "p", "s"})


class Conversion(Struct, frozen=True):
    """One conversion; `text` as written."""

    name: str
    text: str
    width: int = 0


def parse(format: bytes) -> list[Conversion]:
    """The conversions of a format that take an argument, in order."""
    found = []
    for match in PATTERN.finditer(format):
        name = match["conversion"].decode()
        if name != "%":
            width = match["width"]
            found.append(Conversion(name, match[0].decode(), int(width) if width and width != b"*" else 0))
    return found


def check(c: State, function: str, format: bytes, args: Sequence[typed.Expr], span: Span) -> bool:
    """Whether `args` suit `format`; reports what does not."""
    conversions = parse(format)
    if len(conversions) != len(args):
        few = len(args) < len(conversions)
        c.error(
            span,
            f"{function}(): {'not enough' if few else 'too many'} arguments for the format, "
            f"{len(conversions)} expected, {len(args)} given",
            "write %% for a percent sign" if few else "each argument needs a conversion such as %d or %s",
        )
        return False
    good = True
    for conversion, arg in zip(conversions, args, strict=True):
        problem, hint = _problem(function, conversion, arg.type)
        if problem:
            c.error(arg.span, f"{function}(): {problem}", hint)
            good = False
    return good


def _problem(function: str, conversion: Conversion, type: Type) -> tuple[str, str | None]:
    name = conversion.name
    if is_unknown(type):
        return "", None
    if isinstance(type, Void):
        return f"{conversion.text} is given something that has no value", None
    if function == "debugf" and name not in TRACE_CONVERSIONS:
        return f"{conversion.text} cannot be used here", "the kernel's trace pipe knows %d %u %x %p and %s"
    if conversion.width > MAX_WIDTH:
        return f"the width of {conversion.text} is too large", f"at most {MAX_WIDTH}"
    if name == "s":
        return "", None
    if name in BUFFERS:
        if isinstance(type, Buf):
            return "", None
        return f"{conversion.text} needs a buffer, not {type}", "use buf()"
    if name in NUMBERS:
        if isinstance(type, Int | Bool | Enum | Ptr):
            return "", None
        return f"{conversion.text} needs a number, not {type}", "use %s" if _texty(type) else None
    return f"the conversion {conversion.text} is not supported", "there are d i u o x X c s p r rx rh and gr"


def _texty(type: Type) -> bool:
    return isinstance(type, Str | Sym)
