"""C types while they are read, and their layout for the x86-64 and arm64 ABIs (LP64, little endian).

A record is known by name, so that records may point to each other; what the language sees (`dsl.types`) is made when
asked for, when all sizes are known.
"""

from __future__ import annotations

from typing import Union

from bpfseal.dsl.node import Node
from bpfseal.dsl.source import Span
from bpfseal.dsl.types import BOOL, Field, Int, Type


class Scalar(Node, frozen=True):
    """An arithmetic type; `size` is its alignment too."""

    type: Type
    size: int


class Void(Node, frozen=True):
    pass


class Pointer(Node, frozen=True):
    to: CType


class ArrayOf(Node, frozen=True):
    element: CType
    count: int


class RecordRef(Node, frozen=True):
    """ "struct x", "union x", or a made-up name."""

    name: str
    span: Span


class EnumRef(Node, frozen=True):
    name: str
    size: int
    signed: bool


class Function(Node, frozen=True):
    """Only ever pointed to."""


class Known(Node, frozen=True):
    """A type that the kernel knows by this name."""

    type: Type


CType = Union[Scalar, Void, Pointer, ArrayOf, RecordRef, EnumRef, Function, Known]  # noqa: UP007 - forward references


class Member(Node, frozen=True):
    """`bits` None unless it is a bit-field (0 for `: 0`); `name` "" for anonymous records and unnamed bit-fields."""

    name: str
    type: CType
    bits: int | None
    align: int
    packed: bool
    span: Span


class Placed(Node, frozen=True):
    """A member with its place: `offset` in bits from the start of the record."""

    member: Member
    offset: int


class Layout:
    """A record with its members placed."""

    def __init__(self, name: str, union: bool, span: Span) -> None:
        self.name = name
        self.union = union
        self.span = span
        self.complete = False
        self.size = 0
        self.align = 1
        self.placed: list[Placed] = []


def _signed(bits: int) -> Int:
    return Int(bits)


def _unsigned(bits: int) -> Int:
    return Int(bits, False)


# Specifier words, sorted, to type and size.
ARITHMETIC: dict[tuple[str, ...], Scalar] = {}
for _words, _type, _size in (
    ("char", _signed(8), 1),
    ("signed char", _signed(8), 1),
    ("unsigned char", _unsigned(8), 1),
    ("short", _signed(16), 2),
    ("short int", _signed(16), 2),
    ("signed short", _signed(16), 2),
    ("signed short int", _signed(16), 2),
    ("unsigned short", _unsigned(16), 2),
    ("unsigned short int", _unsigned(16), 2),
    ("int", _signed(32), 4),
    ("signed", _signed(32), 4),
    ("signed int", _signed(32), 4),
    ("unsigned", _unsigned(32), 4),
    ("unsigned int", _unsigned(32), 4),
    ("long", _signed(64), 8),
    ("long int", _signed(64), 8),
    ("signed long", _signed(64), 8),
    ("signed long int", _signed(64), 8),
    ("unsigned long", _unsigned(64), 8),
    ("unsigned long int", _unsigned(64), 8),
    ("long long", _signed(64), 8),
    ("long long int", _signed(64), 8),
    ("signed long long", _signed(64), 8),
    ("signed long long int", _signed(64), 8),
    ("unsigned long long", _unsigned(64), 8),
    ("unsigned long long int", _unsigned(64), 8),
    ("_Bool", BOOL, 1),
    ("bool", BOOL, 1),
    # kept as the bits they are: BPF has no floating point
    ("float", _unsigned(32), 4),
    ("double", _unsigned(64), 8),
):
    ARITHMETIC[tuple(sorted(_words.split()))] = Scalar(_type, _size)

WORDS = frozenset(word for words in ARITHMETIC for word in words) | {"__int128"}

# Names that <stdint.h>, <stddef.h> and <linux/types.h> give; the same wherever there is a kernel.
STANDARD: dict[str, Scalar] = {
    **{f"{p}int{b}_t": Scalar(Int(b, not p), b // 8) for p in ("", "u") for b in (8, 16, 32, 64)},
    **{f"{p}int{b}": Scalar(Int(b, not p), b // 8) for p in ("", "u") for b in (8, 16, 32, 64)},
    **{f"{u}{p}{b}": Scalar(Int(b, p == "s"), b // 8) for u in ("", "__") for p in "su" for b in (8, 16, 32, 64)},
    **{f"__{e}{b}": Scalar(Int(b, False), b // 8) for e in ("le", "be") for b in (16, 32, 64)},
    **{name: Scalar(Int(64, False), 8) for name in ("size_t", "uintptr_t", "ulong", "uintmax_t", "dev_t", "ino_t")},
    **{name: Scalar(Int(64), 8) for name in ("ssize_t", "intptr_t", "ptrdiff_t", "intmax_t", "off_t", "time_t")},
    **{name: Scalar(Int(32, False), 4) for name in ("uint", "uid_t", "gid_t", "mode_t", "socklen_t")},
    "pid_t": Scalar(Int(32), 4),
    "ushort": Scalar(Int(16, False), 2),
    "uchar": Scalar(Int(8, False), 1),
}


def bitfield(name: str, at: int, bits: int, signed: bool) -> Field:
    """A bit-field whose first bit is bit `at` of the record, read as the smallest aligned unit that holds it."""
    for size in (1, 2, 4, 8):
        offset = at // 8 // size * size
        if at + bits <= (offset + size) * 8:
            return Field(name, Int(size * 8, signed), offset, bits, at - offset * 8)
    return Field(name, Int(64, signed), at // 8, bits, at % 8)


def up(value: int, align: int) -> int:
    return (value + align - 1) // align * align
