"""ELF objects for BPF as clang writes them: sections, symbols, relocations. Reading only, of bytes from strangers.

Layout: ELF-64 little endian, relocatable (gABI chapter 4); relocation types from LLVM's
llvm/include/llvm/BinaryFormat/ELFRelocs/BPF.def.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from bpfseal.errors import BpfsealError

EM_BPF: Final = 247
PROGBITS, SYMTAB, STRTAB, NOBITS, REL = 1, 2, 3, 8, 9
ALLOC, EXECINSTR = 2, 4
NOTYPE, OBJECT, FUNC, SECTION = range(4)
R_64_64, R_64_32 = 1, 10
UNDEFINED, COMMON = 0, 0xFFF2
WEAK, HIDDEN = 2, 2
_MAX_SECTIONS: Final = 4096
_MAX_ITEMS: Final = 1 << 18
_MAX_ZEROES: Final = 64 << 20
_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_REL: Final = struct.Struct("<QQ")


class ElfError(BpfsealError):
    """Not an object of the kind that clang makes for BPF."""


@dataclass
class Section:
    """`data` of a NOBITS section are zeros. `relocations`: (offset, type, symbol)."""

    index: int
    name: str
    type: int
    flags: int
    size: int
    data: bytes
    relocations: list[tuple[int, int, Symbol]] = field(default_factory=list)


@dataclass(frozen=True)
class Symbol:
    name: str
    type: int
    bind: int
    visibility: int
    section: int
    value: int
    size: int


@dataclass(frozen=True)
class Elf:
    """`sections` by index; `by_name` has the first of each name."""

    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]

    @property
    def by_name(self) -> dict[str, Section]:
        return {section.name: section for section in reversed(self.sections)}


def read(data: bytes) -> Elf:
    """Raises ElfError."""
    try:
        return _read(data)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ElfError(f"damaged object: {error}") from None


def _read(data: bytes) -> Elf:
    ident, kind, machine, *_, at, _flags, _size, _, _, entry, count, names_index = _HEADER.unpack_from(data)
    if ident[:7] != b"\x7fELF\x02\x01\x01":
        raise ElfError("not a 64-bit little-endian ELF object")
    if machine != EM_BPF or kind != 1:
        raise ElfError("not an object for BPF", hint="clang -g -O2 -target bpf -c …")
    if entry != _SECTION.size or not 0 < count <= _MAX_SECTIONS:
        raise ElfError(f"damaged object: {count} sections of {entry} bytes")
    heads = [_SECTION.unpack_from(data, at + entry * index) for index in range(count)]
    names = _part(data, heads[names_index])
    sections = tuple(
        Section(index, _string(names, head[0]), head[1], head[2], head[5], _part(data, head))
        for index, head in enumerate(heads)
    )
    symbols = _symbols(sections, heads)
    for section, head in zip(sections, heads, strict=True):
        if section.type == REL:
            _relocations(section, sections[head[7]], symbols)
    return Elf(sections, symbols)


def _part(data: bytes, head: tuple[int, ...]) -> bytes:
    type, offset, size = head[1], head[4], head[5]
    if type == NOBITS:
        if size > _MAX_ZEROES:
            raise ElfError(f"damaged object: a section of {size} bytes")
        return bytes(size)
    if type == 0:
        return b""
    if offset + size > len(data):
        raise ElfError("damaged object: a section past its end")
    return data[offset : offset + size]


def _string(table: bytes, at: int) -> str:
    end = table.find(b"\0", at)
    if at >= len(table) or end < 0 or end - at > 4096:
        raise ElfError("damaged object: a name past the end of its table")
    return table[at:end].decode()


def _symbols(sections: tuple[Section, ...], heads: list[tuple[int, ...]]) -> tuple[Symbol, ...]:
    tables = [section for section in sections if section.type == SYMTAB]
    if len(tables) != 1 or len(tables[0].data) > _MAX_ITEMS * _SYMBOL.size:
        raise ElfError("damaged object: one table of symbols is wanted")
    strings = sections[heads[tables[0].index][6]].data
    found = []
    for name, info, other, section, value, size in _SYMBOL.iter_unpack(tables[0].data):
        text = _string(strings, name) if name else ""
        if section < 0xFF00 and section >= len(sections):
            raise ElfError(f"damaged object: symbol {text[:64]} in section {section}")
        found.append(Symbol(text, info & 15, info >> 4, other & 3, section, value, size))
    return tuple(found)


def _relocations(section: Section, target: Section, symbols: tuple[Symbol, ...]) -> None:
    if len(section.data) > _MAX_ITEMS * _REL.size:
        raise ElfError("damaged object: too many relocations")
    for offset, info in _REL.iter_unpack(section.data):
        if offset >= target.size:
            raise ElfError(f"damaged object: a relocation past the end of {target.name[:64]}")
        target.relocations.append((offset, info & 0xFFFFFFFF, symbols[info >> 32]))
