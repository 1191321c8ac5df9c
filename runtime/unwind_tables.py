"""Call frame information of ELF files as the rows that `compiler.unwind` walks by.

Read from `.eh_frame` (Linux Standard Base, "Exception Frames"; instructions: DWARF 5, section 6.4), for x86-64, as far
as it is needed to find callers: where the frame address is, and the caller's frame pointer. What a row cannot say ends
the walk there. Files may be anything: an entry that does not make sense is left out.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from bpfseal.compiler.unwind import CFA, DEREF, END, FRAME, OWN, PLT, SAME, SIGNAL, STACK
from bpfseal.runtime.elf import Elf, ElfError

_X86_64: Final = 62
_RBP, _RSP, _RA = 6, 7, 16
_ROW: Final = struct.Struct("<IBBhiI")
_TAIL: Final = struct.Struct("<BBhiI")  # of a row, behind its address
_NOTHING: Final = _TAIL.pack(END, SAME, 0, 0, 0)
_MAX_ROWS: Final = 1 << 22
_MAX_DEPTH: Final = 64  # of remembered states
# rsp + 8 + ((rip & 15) >= 11) * 8, as linkers write it for procedure linkage tables
_PLT: Final = bytes.fromhex("770880003f1a3b2a332422")
_BREG_RBP, _DEREF = 0x76, 0x06

_PCREL, _ABSOLUTE, _OMIT = 0x10, 0x00, 0xFF
_FORMATS: Final = {0x00: "<Q", 0x02: "<H", 0x03: "<I", 0x04: "<Q", 0x0A: "<h", 0x0B: "<i", 0x0C: "<q"}


class Rule(NamedTuple):
    """What a row says; see `compiler.unwind`."""

    kind: int = END
    frame_at: int = 0
    base: int = SAME
    base_at: int = 0


def _tail(rule: Rule) -> bytes:
    return _TAIL.pack(rule.kind, rule.base, rule.base_at, rule.frame_at, 0)


class _Cie(NamedTuple):
    code: int
    data: int
    encoding: int
    augmented: bool
    signal: bool
    first: Rule


class _BadError(Exception):
    """An entry that does not make sense."""


def rows(elf: Elf) -> bytes:
    """All rows of a file, by address; empty for files without, and of other machines."""
    if elf.machine != _X86_64 or elf.bits != 64:
        return b""
    try:
        section = elf.section(".eh_frame")
        if section is None:
            return b""
        table = _Table(elf.contents(section), section.address)
    except ElfError:
        return b""
    return table.rows()


class _Table:
    """`functions`: first address, end, and the rows in between as (distance from the first, what follows the address in
    a row). Equal lists are one: a library of 150 MB has a million rows, of which few are of their own."""

    def __init__(self, data: bytes, address: int) -> None:
        self.data, self.address = data, address
        self.functions: list[tuple[int, int, list[tuple[int, bytes]]]] = []
        self._cies: dict[int, _Cie] = {}
        self._known: dict[tuple[int, bytes], list[tuple[int, bytes]]] = {}
        at = rows = 0
        while at + 4 <= len(data) and rows < _MAX_ROWS:
            (length,) = struct.unpack_from("<I", data, at)
            start, end = at + 4, at + 4 + length
            if length in (0, 0xFFFFFFFF) or end > len(data) or length < 4:
                if length == 0:  # an end mark, which linkers leave in the middle
                    at += 4
                    continue
                break
            (id,) = struct.unpack_from("<I", data, start)
            if id:
                try:
                    self.functions.append(self._entry(start, end, start - id))
                    rows += len(self.functions[-1][2])
                except (_BadError, struct.error, IndexError, ValueError):
                    pass
            at = end
        self.functions.sort(key=lambda function: function[:2])

    def rows(self) -> bytes:
        """All of them, by address; what says the same as the one before is left out."""
        out = bytearray()
        pack = struct.Struct("<I").pack
        before, behind = b"", 0
        for first, end, made in self.functions:
            if first < behind:  # two say what this is: the one before has said it
                continue
            if behind and first > behind and before != _NOTHING and behind < 1 << 32:
                out += pack(behind) + _NOTHING
                before = _NOTHING
            for distance, tail in made:
                address = first + distance
                if tail != before and address < end and address < 1 << 32:
                    out += pack(address) + tail
                    before = tail
            behind = end
        if 0 < behind < 1 << 32:
            out += pack(behind) + _NOTHING
        return bytes(out)

    # Entries

    def _cie(self, at: int) -> _Cie:
        found = self._cies.get(at)
        if found is None:
            found = self._cies[at] = self._read_cie(at)
        return found

    def _read_cie(self, at: int) -> _Cie:
        if at < 0:
            raise _BadError
        length, id = struct.unpack_from("<II", self.data, at)
        end = at + 4 + length
        if id or end > len(self.data):
            raise _BadError
        at += 8
        version = self.data[at]
        stop = self.data.index(b"\0", at + 1, end)
        augmentation = self.data[at + 1 : stop]
        at = stop + 1
        code, at = _unsigned(self.data, at)
        data, at = _signed(self.data, at)
        if version == 1:
            at += 1
        else:
            _, at = _unsigned(self.data, at)
        encoding, signal, augmented = _ABSOLUTE, False, augmentation.startswith(b"z")
        if augmented:
            size, at = _unsigned(self.data, at)
            behind = at + size
            for letter in augmentation[1:]:
                if letter == ord("R"):
                    encoding = self.data[at]
                    at += 1
                elif letter == ord("L"):
                    at += 1
                elif letter == ord("P"):
                    at += 1 + struct.calcsize(_FORMATS.get(self.data[at] & 15, "<Q"))
                elif letter == ord("S"):
                    signal = True
                elif letter != ord("B"):
                    break
            at = behind
        elif augmentation:
            raise _BadError
        cie = _Cie(code, data, encoding, augmented, signal, Rule())
        run = _Run(self.data, cie)
        run.execute(at, end)
        return cie._replace(first=run.rule())

    def _entry(self, at: int, end: int, cie_at: int) -> tuple[int, int, list[tuple[int, bytes]]]:
        """One function."""
        cie = self._cie(cie_at)
        at += 4
        first, at = self._pointer(at, cie.encoding)
        size, at = self._pointer(at, cie.encoding & 15)
        if cie.augmented:
            skipped, at = _unsigned(self.data, at)
            at += skipped
        if cie.signal:
            return first, first + size, [(0, _tail(Rule(SIGNAL)))]
        key = (cie_at, self.data[at:end])
        made = self._known.get(key)
        if made is None:
            run = _Run(self.data, cie)
            run.execute(at, end)
            made = self._known[key] = run.done()
        return first, first + size, made

    def _pointer(self, at: int, encoding: int) -> tuple[int, int]:
        format = _FORMATS.get(encoding & 15)
        if encoding == _OMIT or format is None or encoding & 0x70 not in (_ABSOLUTE, _PCREL):
            raise _BadError
        (value,) = struct.unpack_from(format, self.data, at)
        if encoding & 0x70 == _PCREL:
            value += self.address + at
        return value & (1 << 64) - 1, at + struct.calcsize(format)


class _Run:
    """The instructions of one entry, and the rules that they make, by distance from its first address."""

    def __init__(self, data: bytes, cie: _Cie) -> None:
        self.data, self.cie, self.address = data, cie, 0
        self.made: dict[int, Rule] = {}
        self.now = cie.first
        self.stack: list[Rule] = []
        self.outermost = False

    def rule(self) -> Rule:
        small = -(1 << 15) <= self.now.base_at < 1 << 15 and -(1 << 31) <= self.now.frame_at < 1 << 31
        return self.now if small and not self.outermost else Rule()

    def done(self) -> list[tuple[int, bytes]]:
        self.made[self.address] = self.rule()
        return [(distance, _tail(rule)) for distance, rule in self.made.items()]

    def _advance(self, by: int) -> None:
        self.made[self.address] = self.rule()
        self.address += by * self.cie.code

    def execute(self, at: int, end: int) -> None:
        data = self.data
        while at < end:
            code = data[at]
            at += 1
            high, low = code & 0xC0, code & 0x3F
            if high == 0x40:
                self._advance(low)
            elif high == 0x80:
                offset, at = _unsigned(data, at)
                self._saved(low, offset * self.cie.data)
            elif high == 0xC0:
                self._restore(low)
            else:
                at = self._other(code, at)

    def _other(self, code: int, at: int) -> int:
        data = self.data
        match code:
            case 0x00:
                pass
            case 0x02 | 0x03 | 0x04:
                format = {0x02: "<B", 0x03: "<H", 0x04: "<I"}[code]
                self._advance(struct.unpack_from(format, data, at)[0])
                at += struct.calcsize(format)
            case 0x05 | 0x11 | 0x2F:
                register, at = _unsigned(data, at)
                offset, at = _signed(data, at) if code == 0x11 else _unsigned(data, at)
                self._saved(register, (-offset if code == 0x2F else offset) * self.cie.data)
            case 0x06:
                register, at = _unsigned(data, at)
                self._restore(register)
            case 0x07:
                register, at = _unsigned(data, at)
                self.outermost |= register == _RA
            case 0x08:
                register, at = _unsigned(data, at)
                if register == _RBP:
                    self.now = self.now._replace(base=SAME, base_at=0)
            case 0x09:
                _, at = _unsigned(data, at)
                _, at = _unsigned(data, at)
            case 0x0A:
                if len(self.stack) >= _MAX_DEPTH:
                    raise _BadError
                self.stack.append(self.now)
            case 0x0B:
                # As compilers write it, the frame address comes back as well.
                self.now = self.stack.pop()
            case 0x0C | 0x12:
                register, at = _unsigned(data, at)
                offset, at = _signed(data, at) if code == 0x12 else _unsigned(data, at)
                self._frame(register, offset * (self.cie.data if code == 0x12 else 1))
            case 0x0D:
                register, at = _unsigned(data, at)
                self._frame(register, self.now.frame_at)
            case 0x0E | 0x13:
                offset, at = _signed(data, at) if code == 0x13 else _unsigned(data, at)
                self.now = self.now._replace(frame_at=offset * (self.cie.data if code == 0x13 else 1))
            case 0x0F:
                expression, at = _block(data, at)
                self._computed(expression)
            case 0x10 | 0x16:
                register, at = _unsigned(data, at)
                expression, at = _block(data, at)
                if register == _RBP:
                    self._base_computed(expression if code == 0x10 else b"")
                elif register == _RA:
                    self.outermost = True
            case 0x14 | 0x15:
                _, at = _unsigned(data, at)
                _, at = _unsigned(data, at)
            case 0x2E:
                _, at = _unsigned(data, at)
            case _:
                raise _BadError
        return at

    def _saved(self, register: int, offset: int) -> None:
        if register == _RBP:
            self.now = self.now._replace(base=CFA, base_at=offset)
        elif register == _RA:
            self.outermost = offset != -8

    def _restore(self, register: int) -> None:
        if register == _RBP:
            self.now = self.now._replace(base=self.cie.first.base, base_at=self.cie.first.base_at)

    def _frame(self, register: int, offset: int) -> None:
        kind = {_RSP: STACK, _RBP: FRAME}.get(register, END)
        self.now = self.now._replace(kind=kind, frame_at=offset)

    def _computed(self, expression: bytes) -> None:
        kind, offset = END, 0
        if expression == _PLT:
            kind = PLT
        elif len(expression) > 2 and expression[0] == _BREG_RBP:
            number, at = _signed(expression, 1)
            if expression[at:] == bytes([_DEREF]):
                kind, offset = DEREF, number
        self.now = self.now._replace(kind=kind, frame_at=offset)

    def _base_computed(self, expression: bytes) -> None:
        if len(expression) > 1 and expression[0] == _BREG_RBP:
            number, at = _signed(expression, 1)
            if at == len(expression):
                self.now = self.now._replace(base=OWN, base_at=number)
                return
        self.now = self.now._replace(base=SAME, base_at=0)


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    """ULEB128."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
        if shift > 70:
            raise _BadError


def _signed(data: bytes, at: int) -> tuple[int, int]:
    """SLEB128."""
    start = at
    value, at = _unsigned(data, at)
    bits = 7 * (at - start)
    return (value - (1 << bits) if value >> (bits - 1) else value), at


def _block(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = _unsigned(data, at)
    if at + size > len(data):
        raise _BadError
    return data[at : at + size], at + size
