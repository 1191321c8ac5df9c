"""ELF files as a tracer needs them: function symbols, where addresses are in the file, notes of USDT probes.

Read directly: a symbol table is an array, and libraries with tens of thousands of symbols are looked at on every run.
Layouts: the ELF specification (System V ABI), 32 and 64 bit. Every number of the file is checked before it is used;
whatever does not fit is an ElfError or is left out, nothing else is raised for a bad file.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Final, NamedTuple

from bpfseal.errors import BpfsealError

EXEC, DYN = 2, 3
_PT_LOAD, _PF_X = 1, 1
_SHT_SYMTAB, _SHT_NOTE, _SHT_NOBITS, _SHT_DYNSYM = 2, 7, 8, 11
_OBJECT, _FUNC, _IFUNC = 1, 2, 10  # STT_OBJECT, STT_FUNC, STT_GNU_IFUNC
_MAX_SECTIONS, _MAX_SEGMENTS = 1 << 16, 1 << 12
_LARGEST_MINI: Final = 256 << 20  # of .gnu_debugdata, unpacked
_DEBUG_ROOT: Final = "/usr/lib/debug"
_SEARCHED: list[str] = []


def search_debug_files(folders: Iterable[str]) -> None:
    """Look for separate debug information in these folders too (--debuginfo), from now on, in this process."""
    _SEARCHED[:] = folders


def debug_folders(beside: str) -> Iterator[str]:
    """The folders of `search_debug_files`: one that is relative is looked for beside the program, whose folder is
    `beside`, and then here."""
    for folder in _SEARCHED:
        if not os.path.isabs(folder):
            yield os.path.join(beside, folder)
        yield folder


class ElfError(BpfsealError):
    """Not an ELF file, damaged, or without what was asked for."""


class Symbol(NamedTuple):
    """A function. `offset` is its place in the file."""

    name: str
    address: int
    size: int
    offset: int


class Section(NamedTuple):
    name: str
    type: int
    address: int
    offset: int
    size: int
    link: int


class Segment(NamedTuple):
    """A loaded part of the file."""

    address: int
    offset: int
    file_size: int
    memory_size: int
    executable: bool


class Note(NamedTuple):
    """A USDT probe: `address` and `semaphore` (0 for none) are virtual, corrected for prelinking."""

    provider: str
    name: str
    address: int
    semaphore: int
    arguments: str


class Elf:
    """One file, mapped. Raises ElfError when it cannot be opened or is no ELF file.

    `type` is EXEC, DYN or another ET_ number, `machine` an EM_ number, `bits` 32 or 64.
    """

    type: int
    machine: int
    bits: int

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ElfError(f"cannot open {path}: {error.strerror}") from None
        try:
            size = os.fstat(fd).st_size
            self._data: mmap.mmap | bytes = mmap.mmap(fd, size, prot=mmap.PROT_READ) if size else b""
        except (OSError, ValueError):
            raise ElfError(f"{path} is not a regular file") from None
        finally:
            os.close(fd)
        self._parse_header()

    @classmethod
    def from_bytes(cls, data: bytes, path: str = "") -> Elf:
        """An ELF file in memory."""
        elf = cls.__new__(cls)
        elf.path, elf._data = path, data
        elf._parse_header()
        return elf

    def _parse_header(self) -> None:
        ident = self._data[:16]
        if len(ident) < 16 or ident[:4] != b"\x7fELF" or ident[4] not in (1, 2) or ident[5] not in (1, 2):
            raise ElfError(f"{self.path} is not an ELF file")
        self.bits = 64 if ident[4] == 2 else 32
        self._order = "<" if ident[5] == 1 else ">"
        word = "Q" if self.bits == 64 else "I"
        self._word = word
        layout = struct.Struct(f"{self._order}HHI{word}{word}{word}IHHHHHH")
        try:
            (self.type, self.machine, _, self.entry, self._phoff, self._shoff, _, _, self._phentsize, self._phnum,
             self._shentsize, self._shnum, self._shstrndx) = layout.unpack_from(self._data, 16)  # fmt: skip
        except struct.error:
            raise ElfError(f"{self.path} is cut short") from None

    def __len__(self) -> int:
        return len(self._data)

    # Sections and segments

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        found = []
        for at in range(min(self._phnum, _MAX_SEGMENTS)):
            try:
                if self.bits == 64:
                    type, flags, offset, address, _, file_size, memory_size = struct.unpack_from(
                        f"{self._order}IIQQQQQ", self._data, self._phoff + at * self._phentsize
                    )
                else:
                    type, offset, address, _, file_size, memory_size, flags = struct.unpack_from(
                        f"{self._order}IIIIIII", self._data, self._phoff + at * self._phentsize
                    )
            except (struct.error, OverflowError):
                break
            if type == _PT_LOAD:
                found.append(Segment(address, offset, file_size, memory_size, bool(flags & _PF_X)))
        return tuple(found)

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """In the file's order, the empty first one included; a section past the end of the file has size 0."""
        w = self._word
        layout = struct.Struct(f"{self._order}II{w}{w}{w}{w}II{w}{w}")
        rows = []
        count = self._shnum
        for at in range(_MAX_SECTIONS):
            if at >= max(count, 1) or not self._shoff:
                break
            try:
                row = layout.unpack_from(self._data, self._shoff + at * self._shentsize)
            except (struct.error, OverflowError):
                break
            if at == 0 and count == 0:
                count = row[5]  # more sections than the header's field holds
            rows.append(row)
        index = self._shstrndx if self._shstrndx != 0xFFFF else (rows[0][6] if rows else 0)
        names = b""
        if index < len(rows) and rows[index][1] != _SHT_NOBITS:
            names = self._bytes(rows[index][4], rows[index][5])
        found = []
        for name, type, _, address, offset, size, link, *_rest in rows:
            real = size if type == _SHT_NOBITS or offset + size <= len(self._data) else 0
            found.append(Section(_string(names, name), type, address, offset, real, link))
        return tuple(found)

    def section(self, name: str) -> Section | None:
        """The first section of that name."""
        return next((section for section in self.sections if section.name == name), None)

    def contents(self, section: Section) -> bytes:
        """What the file holds for a section."""
        return b"" if section.type == _SHT_NOBITS else self._bytes(section.offset, section.size)

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes of the file."""
        return self._data[offset : offset + size] if offset >= 0 and size > 0 else b""

    def _bytes(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size] if offset + size <= len(self._data) else b""

    def to_offset(self, address: int) -> int | None:
        """Where a virtual address is in the file; None when it is not of the file."""
        for segment in self.segments:
            if segment.address <= address < segment.address + segment.file_size:
                return address - segment.address + segment.offset
        return None

    def to_address(self, offset: int) -> int | None:
        """The virtual address of a place in the file, executable segments first."""
        for segment in sorted(self.segments, key=lambda s: not s.executable):
            if segment.offset <= offset < segment.offset + segment.file_size:
                return offset - segment.offset + segment.address
        return None

    # Symbols

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """Every function that is defined here: by .symtab and .dynsym, else by the packed symbol table or the
        separate debug file too. Sorted by name, then address; an alias is a symbol of its own."""
        return tuple(sorted(self._all_symbols()))

    def symbol(self, name: str) -> Symbol:
        """The first function of that name. Raises ElfError."""
        found = self.named(name)
        if not found:
            raise ElfError(f"{self.path} has no function {name}")
        return found[0]

    def named(self, name: str) -> list[Symbol]:
        """All functions of one name, by address: static functions may share one."""
        known = self._named.get(name)
        if known is None:
            known = self._named[name] = sorted(self._all_symbols(name))
        return known

    def object_named(self, name: str) -> Symbol | None:
        """A variable or function by name; variables of .bss have the offset 0."""
        found = sorted(self._own_symbols(self, name, (_OBJECT, _FUNC, _IFUNC)))
        return found[0] if found else None

    def function_at(self, address: int) -> Symbol | None:
        """The function that an address is in."""
        from bisect import bisect_right

        at = bisect_right(self._by_address, (address, 1 << 64)) - 1
        for start, end, symbol in self._spans[max(at - 7, 0) : at + 1][::-1]:  # aliases share starts
            if start <= address < end:
                return symbol
        return None

    @cached_property
    def _named(self) -> dict[str, list[Symbol]]:
        return {}

    @cached_property
    def _spans(self) -> list[tuple[int, int, Symbol]]:
        return sorted((s.address, s.address + s.size, s) for s in self.symbols)

    @cached_property
    def _by_address(self) -> list[tuple[int, int]]:
        return [(start, end) for start, end, _ in self._spans]

    def _all_symbols(self, only: str | None = None) -> set[Symbol]:
        found = set(self._own_symbols(self, only))
        if not any(section.type == _SHT_SYMTAB for section in self.sections):
            extra = self.debug_file
            if extra is not None:
                found |= set(extra._own_symbols(self, only))
        return found

    def _own_symbols(self, place: Elf, only: str | None, kinds: tuple[int, ...] = (_FUNC, _IFUNC)) -> Iterator[Symbol]:
        """From this file's tables, those named `only` if given; file offsets are those in `place`."""
        sections = self.sections
        for section in sections:
            if section.type not in (_SHT_SYMTAB, _SHT_DYNSYM) or section.link >= len(sections):
                continue
            strings = self.contents(sections[section.link])
            table = self.contents(section)
            wanted = _offsets(strings, only) if only is not None else None
            if wanted is not None and not wanted:
                continue
            if self.bits == 64:
                layout = struct.Struct(f"{self._order}IBBHQQ")
                rows = layout.iter_unpack(table[: len(table) // layout.size * layout.size])
                entries = ((n, info, shndx, value, size) for n, info, _, shndx, value, size in rows)
            else:
                layout = struct.Struct(f"{self._order}IIIBBH")
                rows = layout.iter_unpack(table[: len(table) // layout.size * layout.size])
                entries = ((n, info, shndx, value, size) for n, value, size, info, _, shndx in rows)
            for name, info, shndx, value, size in entries:
                if wanted is not None and name not in wanted:
                    continue
                if info & 15 in kinds and shndx and value:
                    offset = place.to_offset(value)
                    if offset is None and info & 15 == _OBJECT:
                        offset = 0
                    text = _string(strings, name).partition("@")[0]
                    if offset is not None and text and (only is None or text == only):
                        yield Symbol(text, value, size, offset)

    # Debug information

    @cached_property
    def build_id(self) -> str:
        """Hexadecimal, empty when the linker gave none."""
        section = self.section(".note.gnu.build-id")
        for owner, type, data in self._notes(section) if section is not None else ():
            if owner == b"GNU" and type == 3:
                return data.hex()
        return ""

    @cached_property
    def debug_file(self) -> Elf | None:
        """Where symbols and debug information are that are not in the file: by build id, by debug link, or the packed
        table of .gnu_debugdata."""
        for path in self._debug_paths():
            try:
                elf = Elf(path)
            except ElfError:
                continue
            if not self.build_id or elf.build_id == self.build_id:
                return elf
        packed = self.section(".gnu_debugdata")
        if packed is not None:
            import lzma

            try:
                data = lzma.LZMADecompressor().decompress(self.contents(packed), _LARGEST_MINI)
                return Elf.from_bytes(data, self.path)
            except (lzma.LZMAError, ElfError, EOFError):
                return None
        return None

    def _debug_paths(self) -> Iterator[str]:
        if len(self.build_id) > 2:
            yield f"{_DEBUG_ROOT}/.build-id/{self.build_id[:2]}/{self.build_id[2:]}.debug"
        link = self.section(".gnu_debuglink")
        name = self.contents(link).partition(b"\0")[0].decode("utf-8", "surrogateescape") if link is not None else ""
        folder = os.path.dirname(os.path.realpath(self.path))
        for place in debug_folders(folder):
            if len(self.build_id) > 2:
                yield f"{place}/.build-id/{self.build_id[:2]}/{self.build_id[2:]}.debug"
            yield f"{place}/{name if name and '/' not in name else os.path.basename(self.path) + '.debug'}"
        if name and "/" not in name:
            for place in (folder, f"{folder}/.debug", _DEBUG_ROOT + folder):
                candidate = f"{place}/{name}"
                if os.path.realpath(candidate) != os.path.realpath(self.path):
                    yield candidate

    # Notes

    @cached_property
    def usdt(self) -> tuple[Note, ...]:
        """USDT probes in the order of the notes: section .note.stapsdt, see systemtap's sys/sdt.h."""
        section, base = self.section(".note.stapsdt"), self.section(".stapsdt.base")
        if section is None:
            return ()
        layout = struct.Struct(f"{self._order}{self._word * 3}")
        found = []
        for owner, type, data in self._notes(section):
            if owner != b"stapsdt" or type != 3 or len(data) < layout.size:
                continue
            address, noted_base, semaphore = layout.unpack_from(data)
            words = data[layout.size :].split(b"\0")
            if len(words) < 3:
                continue
            provider, name, arguments = (word.decode("utf-8", "replace") for word in words[:3])
            shift = base.address - noted_base if base is not None else 0
            found.append(Note(provider, name, address + shift, semaphore + shift if semaphore else 0, arguments))
        return tuple(found)

    def _notes(self, section: Section) -> Iterator[tuple[bytes, int, bytes]]:
        data, at = self.contents(section), 0
        while at + 12 <= len(data):
            name_size, size, type = struct.unpack_from(f"{self._order}III", data, at)
            name = at + 12
            start = name + (name_size + 3 & ~3)
            if start + size > len(data):
                return
            yield data[name : name + name_size].rstrip(b"\0"), type, data[start : start + size]
            at = start + (size + 3 & ~3)


def _string(table: bytes, offset: int) -> str:
    end = table.find(b"\0", offset)
    return table[offset:end].decode("utf-8", "backslashreplace") if 0 <= offset <= end else ""


def _offsets(table: bytes, name: str) -> set[int]:
    """Where in a string table `name` can be read, with or without a version behind it."""
    wanted, found = name.encode("utf-8", "surrogateescape"), set()
    for ending in (b"\0", b"@"):
        at = table.find(wanted + ending)
        while at >= 0:
            found.add(at)
            at = table.find(wanted + ending, at + 1)
    return found
