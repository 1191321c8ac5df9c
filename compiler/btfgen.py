"""BTF of our own programs: functions and their types, for the kernel to know callbacks by; values of maps.

Layout after `include/uapi/linux/btf.h`: header, types, strings, without gaps.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from msgspec import structs

from bpfseal.compiler.ir import PTR
from bpfseal.signer.bundle import MapSpec

if TYPE_CHECKING:
    from bpfseal.compiler.link import Linked
    from bpfseal.compiler.plan import Program
    from bpfseal.compiler.unit import Unit

_INT, _PTR, _ARRAY, _STRUCT, _FUNC, _FUNC_PROTO = 1, 2, 3, 4, 12, 13
_SIGNED: Final = 1 << 24
_STATIC, _GLOBAL = 0, 1
_MAGIC: Final = 0xEB9F
_HEADER: Final = struct.Struct("<HBBIIIII")
_WORDS: Final = struct.Struct("<III")


class Writer:
    """Types get ids from 1 in the order in which they are added; equal ones are added once."""

    def __init__(self) -> None:
        self._types: list[bytes] = []
        self._known: dict[bytes, int] = {}
        self._strings = bytearray(b"\0")
        self._string_at: dict[str, int] = {"": 0}

    def _string(self, text: str) -> int:
        at = self._string_at.get(text)
        if at is None:
            at = self._string_at[text] = len(self._strings)
            self._strings += text.encode() + b"\0"
        return at

    def _add(self, name: str, kind: int, length: int, size_or_type: int, tail: bytes = b"") -> int:
        record = _WORDS.pack(self._string(name), kind << 24 | length, size_or_type) + tail
        found = self._known.get(record)
        if found is None:
            self._types.append(record)
            found = self._known[record] = len(self._types)
        return found

    def integer(self, size: int = 8, *, signed: bool = True) -> int:
        name = {1: "char", 2: "short", 4: "int", 8: "long"}[size]
        encoding = (_SIGNED if signed else 0) | size * 8
        return self._add(name if signed else f"unsigned {name}", _INT, 0, size, struct.pack("<I", encoding))

    def pointer(self, to: int = 0) -> int:
        return self._add("", _PTR, 0, to)

    def array(self, element: int, count: int) -> int:
        return self._add("", _ARRAY, 0, 0, struct.pack("<III", element, self.integer(4), count))

    def structure(self, name: str, size: int, members: Sequence[tuple[str, int, int]]) -> int:
        """`members`: (name, type, offset in bytes)."""
        tail = b"".join(_WORDS.pack(self._string(n), type, 8 * at) for n, type, at in members)
        return self._add(name, _STRUCT, len(members), size, tail)

    def function(self, name: str, returns: str, params: Sequence[str], linkage: int) -> int:
        """A function by the register types of its result and parameters."""
        tail = b"".join(struct.pack("<II", self._string(f"a{n}"), self._value(p)) for n, p in enumerate(params))
        proto = self._add("", _FUNC_PROTO, len(params), self._value(returns), tail)
        return self._add(name, _FUNC, linkage, proto)

    def _value(self, type: str) -> int:
        if type == "void":
            return 0
        return self.pointer() if type == PTR else self.integer()

    def bytes(self) -> bytes:
        types = b"".join(self._types)
        return _HEADER.pack(_MAGIC, 1, 0, 24, 0, len(types), len(types), len(self._strings)) + types + self._strings


def map_types(unit: Unit, maps: Sequence[MapSpec], writer: Writer) -> tuple[MapSpec, ...]:
    """The maps, those with values that the kernel has to know with their types: a struct that begins with a special
    member of the kernel's, whose name says what it is, and has plain bytes behind it."""
    found = []
    for index, spec in enumerate(maps):
        name = unit.value_types.get(index)
        if name is not None:
            word = writer.integer(8, signed=False)
            special = writer.structure(name, 8, [("__opaque", word, 0)])
            rest = writer.array(writer.integer(1), spec.value_size - 8)
            value = writer.structure(f"value_{index}", spec.value_size, [("special", special, 0), ("data", rest, 8)])
            spec = structs.replace(spec, key_btf=word, value_btf=value)
        found.append(spec)
    return tuple(found)


def describe(
    unit: Unit, programs: Sequence[Program], linked: Sequence[Linked], writer: Writer
) -> tuple[bytes, list[bytes]]:
    """BTF of a bundle and the func_info of its programs. Only programs with callbacks have any."""
    infos = []
    for program, found in zip(programs, linked, strict=True):
        records = b""
        for name, start in found.functions if found.callbacks else ():
            returns, params = unit.signatures[name]
            linkage = _GLOBAL if name == program.name else _STATIC
            records += struct.pack("<II", start, writer.function(name, returns, params, linkage))
        infos.append(records)
    return writer.bytes(), infos
