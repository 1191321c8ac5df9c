"""CO-RE: what a program says about the kernel's types, settled for one kernel.

Records are those of `.BTF.ext` (struct bpf_core_relo, include/uapi/linux/bpf.h); what each kind asks and which
instructions may carry it is in the kernel's tools/lib/bpf/relo_core.c and LLVM's BPFCORE.h. Only types of the kernel
itself are looked at, not those of modules.

An access that the kernel does not have may stand in code that a check keeps from running. Such instructions become a
store that no verifier lets pass where it can be reached, and that does no harm where it cannot.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from bpfseal.errors import BpfsealError
from bpfseal.signer import btf as kinds
from bpfseal.signer.btf import Btf, BtfError

(
    FIELD_BYTE_OFFSET, FIELD_BYTE_SIZE, FIELD_EXISTS, FIELD_SIGNED, FIELD_LSHIFT, FIELD_RSHIFT, TYPE_ID_LOCAL,
    TYPE_ID_TARGET, TYPE_EXISTS, TYPE_SIZE, ENUMVAL_EXISTS, ENUMVAL_VALUE, TYPE_MATCHES,
) = range(13)  # fmt: skip
_EXISTENCE: Final = frozenset((FIELD_EXISTS, TYPE_EXISTS, ENUMVAL_EXISTS, TYPE_MATCHES))
_FIELDS: Final = frozenset((FIELD_BYTE_OFFSET, FIELD_BYTE_SIZE, FIELD_EXISTS, FIELD_SIGNED, FIELD_LSHIFT, FIELD_RSHIFT))
_STRUCTS: Final = frozenset((kinds.STRUCT, kinds.UNION))
_ENUMS: Final = frozenset((kinds.ENUM, kinds.ENUM64))
_MAX_DEPTH: Final = 64
_SLOT: Final = struct.Struct("<BBhi")
_LD_IMM64: Final = 0x18
# st [r10+8] = 0: above the frame
_IMPOSSIBLE: Final = _SLOT.pack(0x7A, 10, 8, 0)
_SIZES: Final = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}
_CODES: Final = {size: code for code, size in _SIZES.items()}


class CoreError(BpfsealError):
    """A relocation that makes no sense or has no one answer."""


@dataclass(frozen=True)
class Place:
    """Where an access ends: the type there, its offset in bits, and the size in bits of a bit-field (0 for none)."""

    type: int
    bits: int
    bitfield: int


class Core:
    """Settles relocations of one object (`local`) for one kernel (`target`). `used` once anything was looked up."""

    def __init__(self, local: Btf, target: Btf) -> None:
        self.local = local
        self.target = target
        self.used = False
        self._known: dict[tuple[int, str, int], tuple[int, int | None]] = {}

    def apply(self, code: bytearray, slot: int, type: int, access: str, kind: int) -> None:
        """Settles the relocation of one instruction in place. Raises CoreError, BtfError."""
        key = (type, access, kind)
        if key not in self._known:
            self._known[key] = self._settle(type, access, kind)
        before, value = self._known[key]
        self.used = self.used or kind != TYPE_ID_LOCAL
        at = 8 * slot
        if value is None:
            wide = code[at] == _LD_IMM64
            code[at : at + (16 if wide else 8)] = _IMPOSSIBLE * (2 if wide else 1)
            return
        _patch(code, at, before, value, kind, self._loads(type, access, kind))

    # Values -------------------------------------------------------------------------------------------------------

    def _settle(self, type: int, access: str, kind: int) -> tuple[int, int | None]:
        """The value for the object's own type and for the kernel's, None if that has no such thing."""
        if kind == TYPE_ID_LOCAL:
            return type, type
        local = self._local(type, access, kind)
        found = {self._value(kind, candidate) for candidate in self._candidates(type, access, kind)}
        if kind in _EXISTENCE:
            return local, int(bool(found))
        if len(found) > 1:
            raise CoreError(f"{self._say(type, access)}: the kernel has several types of that name that differ")
        return local, found.pop() if found else None

    def _local(self, type: int, access: str, kind: int) -> int:
        if kind in _EXISTENCE:
            return 1
        if kind in _FIELDS:
            return _field_value(self.local, kind, self._walk_local(type, access)[1])
        if kind == TYPE_SIZE:
            return size_of(self.local, type)
        if kind == ENUMVAL_VALUE:
            return self._enumerator(type, access)[1]
        return type

    def _value(self, kind: int, found: tuple[int, Place | None, int]) -> int:
        id, place, number = found
        if kind in _EXISTENCE:
            return 1
        if place is not None:
            return _field_value(self.target, kind, place)
        if kind == TYPE_SIZE:
            return size_of(self.target, id)
        return number if kind == ENUMVAL_VALUE else id

    def _candidates(self, type: int, access: str, kind: int) -> list[tuple[int, Place | None, int]]:
        """Types of the kernel's that fit: (id, where a field is, an enumerator's value)."""
        root = self.local.resolve(type) if kind not in (TYPE_EXISTS, TYPE_SIZE, TYPE_ID_TARGET, TYPE_MATCHES) else type
        name = _essential(self.local.name(type) or self.local.name(root))
        found: list[tuple[int, Place | None, int]] = []
        for id in self._named(name):
            if not self._same_kind(root, id):
                continue
            if kind in _FIELDS:
                place = self._walk_target(id, self._walk_local(type, access)[0])
                if place is not None:
                    found.append((id, place, 0))
            elif kind in (ENUMVAL_EXISTS, ENUMVAL_VALUE):
                wanted = _essential(self._enumerator(type, access)[0])
                found += [(id, None, v) for n, v in self.target.enumerators(id) if _essential(n) == wanted]
            elif self._compatible(root, id, 0):
                found.append((id, None, 0))
        return found

    def _same_kind(self, local: int, target: int) -> bool:
        mine = self.local.kind(self.local.resolve(local))
        other = self.target.kind(self.target.resolve(target))
        return mine == other or {mine, other} <= _ENUMS

    def _named(self, name: str) -> list[int]:
        return _names(self.target).get(name, []) if name else []

    # Walks --------------------------------------------------------------------------------------------------------

    def _walk_local(self, type: int, access: str) -> tuple[list[str | int], Place]:
        """The path of an access, by member names and array indexes, and where it ends."""
        btf = self.local
        numbers = _numbers(access)
        id = btf.resolve(type)
        path: list[str | int] = [numbers[0]]
        bits, bitfield = numbers[0] * 8 * size_of(btf, id), 0
        for number in numbers[1:]:
            id = btf.resolve(id)
            if btf.kind(id) in _STRUCTS:
                members = btf.members(id)
                if number >= len(members):
                    raise CoreError(f"{self._say(type, access)}: no such member")
                name, id, offset, bitfield = members[number]
                bits += offset
                if name:
                    path.append(name)
            elif btf.kind(id) == kinds.ARRAY:
                id = btf.array(id)[0]
                bits += number * 8 * size_of(btf, id)
                path.append(number)
            else:
                raise CoreError(f"{self._say(type, access)}: neither a member nor an element")
        return path, Place(id, bits, bitfield)

    def _walk_target(self, id: int, path: list[str | int]) -> Place | None:
        btf = self.target
        assert isinstance(path[0], int)
        bits, bitfield = path[0] * 8 * size_of(btf, id) if path[0] else 0, 0
        for step in path[1:]:
            id = btf.resolve(id)
            if isinstance(step, str):
                member = _member(btf, id, _essential(step), 0) if btf.kind(id) in _STRUCTS else None
                if member is None:
                    return None
                id, offset, bitfield = member
                bits += offset
            else:
                if btf.kind(id) != kinds.ARRAY:
                    return None
                id, _, count = btf.array(id)
                if count and step >= count:
                    return None
                bits += step * 8 * size_of(btf, id)
        return Place(id, bits, bitfield)

    def _enumerator(self, type: int, access: str) -> tuple[str, int]:
        values = self.local.enumerators(self.local.resolve(type))
        numbers = _numbers(access)
        if len(numbers) != 1 or numbers[0] >= len(values):
            raise CoreError(f"{self._say(type, access)}: no such enumerator")
        return values[numbers[0]]

    def _compatible(self, local: int, target: int, depth: int) -> bool:
        """Types of the same shape; names of structs, unions and enums are compared at the top only."""
        mine, other = self.local.resolve(local), self.target.resolve(target)
        kind, kind2 = self.local.kind(mine), self.target.kind(other)
        if depth > _MAX_DEPTH or (kind != kind2 and not {kind, kind2} <= _ENUMS):
            return False
        if kind == kinds.PTR:
            return self._compatible(self.local.size_or_type(mine), self.target.size_or_type(other), depth + 1)
        if kind == kinds.ARRAY:
            return self._compatible(self.local.array(mine)[0], self.target.array(other)[0], depth + 1)
        if kind == kinds.FUNC_PROTO:
            params, params2 = self.local.params(mine), self.target.params(other)
            pairs = [(self.local.size_or_type(mine), self.target.size_or_type(other))]
            pairs += [(a[1], b[1]) for a, b in zip(params, params2, strict=False)]
            return len(params) == len(params2) and all(self._compatible(a, b, depth + 1) for a, b in pairs)
        return True

    def _loads(self, type: int, access: str, kind: int) -> tuple[int, int] | None:
        """Sizes in bytes of an accessed field here and there, for the width of a load."""
        if kind != FIELD_BYTE_OFFSET:
            return None
        mine = self._walk_local(type, access)[1]
        found = self._candidates(type, access, kind)
        if mine.bitfield or not found or found[0][1] is None or found[0][1].bitfield:
            return None
        try:
            return size_of(self.local, mine.type), size_of(self.target, found[0][1].type)
        except BtfError:
            return None

    def _say(self, type: int, access: str) -> str:
        return f"CO-RE relocation of {self.local.name(type)[:64] or 'a type'} ({access[:64]})"


@lru_cache(maxsize=2)
def _names(btf: Btf) -> dict[str, list[int]]:
    """Ids of a kernel's named types, by name without flavour."""
    found: dict[str, list[int]] = {}
    for kind in (kinds.STRUCT, kinds.UNION, kinds.ENUM, kinds.ENUM64, kinds.TYPEDEF, kinds.INT):
        for text, id in btf.all_named(kind):
            found.setdefault(_essential(text), []).append(id)
    return found


def _essential(name: str) -> str:
    """A name without its flavour: what follows three underscores is for the object's own use."""
    at = name.rfind("___")
    return name[:at] if 0 < at < len(name) - 3 else name


def _numbers(access: str) -> list[int]:
    parts = access.split(":")
    if not all(part.isascii() and part.isdigit() and len(part) < 7 for part in parts) or len(parts) > _MAX_DEPTH:
        raise CoreError(f"CO-RE access {access[:64]!r} makes no sense")
    return [int(part) for part in parts]


def _member(btf: Btf, id: int, name: str, depth: int) -> tuple[int, int, int] | None:
    """(type, bit offset, bit-field size) of a member, looked for in anonymous ones too."""
    if depth > _MAX_DEPTH:
        return None
    for text, type, offset, size in btf.members(id):
        if text and _essential(text) == name:
            return type, offset, size
        inner = btf.resolve(type)
        if not text and btf.kind(inner) in _STRUCTS:
            found = _member(btf, inner, name, depth + 1)
            if found is not None:
                return found[0], offset + found[1], found[2]
    return None


def size_of(btf: Btf, id: int) -> int:
    """Bytes of a type. Raises BtfError for those that have no size."""
    count = 1
    for _ in range(_MAX_DEPTH):
        id = btf.resolve(id)
        kind = btf.kind(id)
        if kind == kinds.PTR:
            return count * 8
        if kind == kinds.ARRAY:
            id, _, elements = btf.array(id)
            count *= elements
            continue
        if kind in (kinds.INT, kinds.STRUCT, kinds.UNION, kinds.ENUM, kinds.ENUM64, kinds.FLOAT):
            return count * btf.size_or_type(id)
        break
    raise BtfError(f"BTF type {id} has no size")


def _field_value(btf: Btf, kind: int, place: Place) -> int:
    id = btf.resolve(place.type)
    if not place.bitfield:
        size = size_of(btf, id)
        offset, bits = place.bits // 8, 8 * size
        inside = 0
    else:
        # The smallest naturally aligned load that the bit-field is in.
        size = max(1, size_of(btf, id))
        offset = place.bits // 8 // size * size
        while place.bits + place.bitfield - 8 * offset > 8 * size and size < 8:
            size *= 2
            offset = place.bits // 8 // size * size
        bits, inside = place.bitfield, place.bits - 8 * offset
    if kind == FIELD_BYTE_OFFSET:
        return offset
    if kind == FIELD_BYTE_SIZE:
        return size
    if kind == FIELD_SIGNED:
        if btf.kind(id) == kinds.INT:
            return btf.int_info(id)[0] & 1
        return int(btf.kflag(id)) if btf.kind(id) in _ENUMS else 0
    if kind == FIELD_LSHIFT:
        return 64 - bits - inside
    return 64 - bits


def _patch(code: bytearray, at: int, before: int, value: int, kind: int, sizes: tuple[int, int] | None) -> None:
    """The new value into an instruction. Raises CoreError for one that cannot carry it."""
    opcode, registers, offset, immediate = _SLOT.unpack_from(code, at)
    form = opcode & 7
    if opcode == _LD_IMM64:
        _SLOT.pack_into(code, at, opcode, registers, offset, _s32(value & 0xFFFFFFFF))
        _SLOT.pack_into(code, at + 8, 0, 0, 0, _s32(value >> 32 & 0xFFFFFFFF))
    elif form in (4, 7) and not opcode & 8:  # arithmetic with a constant
        if not -(1 << 31) <= value < 1 << 32:
            raise CoreError(f"CO-RE value {value} does not fit its instruction")
        _SLOT.pack_into(code, at, opcode, registers, offset, _s32(value & 0xFFFFFFFF))
    elif form in (1, 2, 3) and kind == FIELD_BYTE_OFFSET:  # load or store
        moved = offset - before + value
        if not -(1 << 15) <= moved < 1 << 15:
            raise CoreError(f"CO-RE offset {moved} does not fit its instruction")
        if sizes is not None and sizes[0] != sizes[1] and _SIZES[opcode & 0x18] == sizes[0]:
            if sizes[1] not in _CODES:
                raise CoreError(f"a field of {sizes[1]} bytes cannot be accessed at once")
            opcode = opcode & ~0x18 | _CODES[sizes[1]]
        _SLOT.pack_into(code, at, opcode, registers, moved, immediate)
    else:
        raise CoreError(f"CO-RE relocation {kind} on the instruction {opcode:#04x}")


def _s32(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value
