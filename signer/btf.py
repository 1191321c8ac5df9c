"""`Btf`: types of the running kernel, of a module or of one program, read from raw BTF bytes.

Layout after `include/uapi/linux/btf.h`: a header, type records of 12 bytes plus a tail that depends on the kind,
and a table of NUL-terminated strings. Ids count from 1; 0 is void. Module BTF is *split*: its ids and string
offsets go on where vmlinux stops.

Nothing is copied: a Btf keeps the raw bytes and, from the first look-up by id on, one word per type with the
position of its record.
"""

from __future__ import annotations

import mmap
import re
import struct
from array import array as packed
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from bpfseal.errors import BpfsealError

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST = range(1, 11)
RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(11, 20)

# fmt: off
KIND_NAMES: Final = (
    "void", "int", "ptr", "array", "struct", "union", "enum", "fwd", "typedef", "volatile", "const", "restrict",
    "func", "func_proto", "var", "datasec", "float", "decl_tag", "type_tag", "enum64",
)
# fmt: on

# Words (4 bytes) of a record: fixed part and per element of `vlen`.
_FIXED: Final = dict.fromkeys(range(INT, ENUM64 + 1), 3) | {INT: 4, ARRAY: 6, VAR: 4, DECL_TAG: 4}
_PER_ELEMENT: Final = {STRUCT: 3, UNION: 3, DATASEC: 3, ENUM64: 3, ENUM: 2, FUNC_PROTO: 2}
_FIXED_BY_KIND: Final = [_FIXED.get(kind, 0) for kind in range(128)]
_EACH_BY_KIND: Final = [_PER_ELEMENT.get(kind, 0) for kind in range(128)]
_MODIFIERS: Final = frozenset((TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG))

_KIND_MASK: Final = 0x7F  # bits 24-30 of `info`; kernels before 7.1 define 24-28 and leave the rest zero
_VLEN_MASK: Final = 0xFFFFFF  # bits 0-23; 0-15 before 7.1
_MAGIC: Final = 0xEB9F
_SYSFS: Final = Path("/sys/kernel/btf")


class BtfError(BpfsealError):
    """Malformed BTF, an id out of range, or no BTF on this kernel."""


class Btf:
    """Types in one BTF blob, on top of `base` for split BTF.

    Every accessor takes a type id and raises BtfError if there is no such type or its kind does not have the
    thing asked for. Nothing beyond bounds is checked: `btf_check.check_program_btf` is for bytes from strangers.
    """

    def __init__(
        self, data: bytes | mmap.mmap, base: Btf | None = None, positions: Sequence[int] | None = None
    ) -> None:
        """`positions`: what `positions()` of an equal blob returned, to spare the scan."""
        if len(data) < 24:
            raise BtfError(f"BTF of {len(data)} bytes is shorter than its header")
        magic, version, _flags, header, type_off, type_len, str_off, str_len = struct.unpack_from("<HBBIIIII", data)
        if magic != _MAGIC:
            raise BtfError(f"bad BTF magic {magic:#06x}")
        if version != 1:
            raise BtfError(f"BTF version {version} is not 1")
        types, strings = header + type_off, header + str_off
        if header < 24 or types + type_len > len(data) or strings + str_len > len(data):
            raise BtfError("BTF section past the end of the data")
        if type_len % 4 or types % 4:
            raise BtfError("BTF type section is not made of whole words")
        if (str_len and data[strings + str_len - 1]) or (base is None and (not str_len or data[strings])):
            raise BtfError("BTF string section does not start and end with a NUL")
        self.base = base
        self.raw = data
        self._words = memoryview(data)[types : types + type_len].cast("I")
        self._types: int = types
        self._strings: int = strings
        self._strings_end: int = strings + str_len
        self._first = len(base) if base is not None else 1
        self._string_first: int = base._string_first + base._strings_end - base._strings if base is not None else 0
        self._positions: Sequence[int] = packed("I") if positions is None else positions
        self._unread = 0 if positions is None else len(self._words)  # where the scan stopped
        self._index: dict[int, dict[int, int]] = {}
        self._tagged: dict[str, frozenset[int]] = {}

    # Where it comes from

    _vmlinux: Btf | None = None
    _modules: Final[dict[str, Btf]] = {}

    @classmethod
    def vmlinux(cls) -> Btf:
        """BTF of the running kernel (5 MB), mapped where that is possible (Linux 6.16), once per process. Raises
        BtfError where the kernel has none."""
        if Btf._vmlinux is None:
            Btf._vmlinux = cls(_map(_SYSFS / "vmlinux"))
        return Btf._vmlinux

    @classmethod
    def module(cls, name: str) -> Btf:
        """Split BTF of the loaded module `name` on top of vmlinux; not kept when the module goes and comes back."""
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,55}", name, re.ASCII) or name == "vmlinux":
            raise BtfError(f"bad module name {name[:64]!r}")
        data = _read(_SYSFS / name)
        known = Btf._modules.get(name)
        if known is None or known.raw != data:
            known = Btf._modules[name] = cls(data, cls.vmlinux())
        return known

    # One type

    def __len__(self) -> int:
        """One more than the highest valid id (void counts as a type)."""
        return self._first + len(self._offsets())

    def kind(self, id: int) -> int:
        """Kind of a type, one of this module's constants; 0 for void."""
        if id == 0:
            return 0
        words, at = self._at(id)
        return words[at + 1] >> 24 & _KIND_MASK

    def name(self, id: int) -> str:
        """Name of a type, empty for anonymous ones and void."""
        if id == 0:
            return ""
        words, at = self._at(id)
        return self.string(words[at])

    def size_or_type(self, id: int) -> int:
        """The third word: bytes for int, struct, union, enum, float, datasec; a type id for the others."""
        words, at = self._at(id)
        return words[at + 2]

    def vlen(self, id: int) -> int:
        """Number of members, parameters, enumerators; the linkage of a func."""
        words, at = self._at(id)
        return words[at + 1] & _VLEN_MASK

    def kflag(self, id: int) -> bool:
        """`kind_flag`: bit-fields in a struct, signed enum, union fwd."""
        words, at = self._at(id)
        return bool(words[at + 1] >> 31)

    def members(self, id: int) -> list[tuple[str, int, int, int]]:
        """(name, type id, bit offset, bit-field size or 0) of a struct's or union's members, in order."""
        words, at = self._kind_at(id, STRUCT, UNION)
        info, found = words[at + 1], []
        for i in range(at + 3, at + 3 + 3 * (info & _VLEN_MASK), 3):
            offset, size = words[i + 2], 0
            if info >> 31:
                offset, size = offset & 0xFFFFFF, offset >> 24
            found.append((self.string(words[i]), words[i + 1], offset, size))
        return found

    def params(self, id: int) -> list[tuple[str, int]]:
        """(name, type id) of a func_proto's parameters; (\"\", 0) at the end means variable arguments."""
        words, at = self._kind_at(id, FUNC_PROTO)
        end = at + 3 + 2 * (words[at + 1] & _VLEN_MASK)
        return [(self.string(words[i]), words[i + 1]) for i in range(at + 3, end, 2)]

    def enumerators(self, id: int) -> list[tuple[str, int]]:
        """(name, value) of an enum's or enum64's values; negative where kflag says signed."""
        words, at = self._kind_at(id, ENUM, ENUM64)
        info, found = words[at + 1], []
        step = 3 if info >> 24 & _KIND_MASK == ENUM64 else 2
        for i in range(at + 3, at + 3 + step * (info & _VLEN_MASK), step):
            value = words[i + 1] | words[i + 2] << 32 if step == 3 else words[i + 1]
            if info >> 31 and value >> (63 if step == 3 else 31):
                value -= 1 << (64 if step == 3 else 32)
            found.append((self.string(words[i]), value))
        return found

    def array(self, id: int) -> tuple[int, int, int]:
        """(element type id, index type id, number of elements) of an array."""
        words, at = self._kind_at(id, ARRAY)
        return words[at + 3], words[at + 4], words[at + 5]

    def int_info(self, id: int) -> tuple[int, int, int]:
        """(encoding, bit offset, bits) of an int; encoding: 1 signed, 2 char, 4 bool."""
        words, at = self._kind_at(id, INT)
        return words[at + 3] >> 24 & 15, words[at + 3] >> 16 & 255, words[at + 3] & 255

    def linkage(self, id: int) -> int:
        """Linkage of a var (0 static, 1 global, 2 extern) or a func (0 static, 1 global, 2 extern)."""
        words, at = self._kind_at(id, VAR, FUNC)
        return words[at + 3] if words[at + 1] >> 24 & _KIND_MASK == VAR else words[at + 1] & _VLEN_MASK

    def sections(self, id: int) -> list[tuple[int, int, int]]:
        """(var type id, offset, size) of a datasec's variables."""
        words, at = self._kind_at(id, DATASEC)
        end = at + 3 + 3 * (words[at + 1] & _VLEN_MASK)
        return [(words[i], words[i + 1], words[i + 2]) for i in range(at + 3, end, 3)]

    def resolve(self, id: int) -> int:
        """The id behind typedefs, const, volatile, restrict and type tags. Raises BtfError on a cycle."""
        for _ in range(64):
            if self.kind(id) not in _MODIFIERS:
                return id
            id = self.size_or_type(id)
        raise BtfError(f"BTF type {id}: more than 64 modifiers in a row")

    def string(self, offset: int) -> str:
        """The string at an offset of the string table. Raises BtfError past its end."""
        if offset < self._string_first and self.base is not None:
            return self.base.string(offset)
        start = self._strings + offset - self._string_first
        end = self.raw.find(b"\0", start, self._strings_end)
        if end < 0:
            raise BtfError(f"BTF string offset {offset} is past the end of the table")
        return self.raw[start:end].decode("utf-8", "backslashreplace")

    def words(self) -> list[int]:
        """The type section of this blob as 32-bit words: for passes over all types."""
        return self._words.tolist()

    def strings_behind(self, prefix: str) -> list[str]:
        """What follows `prefix` in the strings of this blob that begin with it, sorted: names of many types at once,
        without a look at the types."""
        text = self.raw[self._strings : self._strings_end]
        found = re.findall(rb"\0" + re.escape(prefix.encode()) + rb"([^\0]+)", text)
        return sorted(name.decode("utf-8", "backslashreplace") for name in found)

    @property
    def string_bytes(self) -> int:
        """Size of this blob's own string table."""
        return self._strings_end - self._strings

    # Look-up

    def find(self, name: str, kind: int) -> int:
        """Lowest id of the type of that kind and name, 0 if there is none. Anonymous types are not found."""
        if not name:
            return 0
        if self.base is not None and (found := self.base.find(name, kind)):
            return found
        index = self._by_name(kind)
        for offset in self._string_offsets(name):
            if found := index.get(offset, 0):
                return found
        return 0

    def all_named(self, kind: int) -> Iterator[tuple[str, int]]:
        """(name, id) of every named type of a kind in this blob (not its base), by id; 5 ms per 10,000."""
        words = self._words
        for id, at in enumerate(self._offsets(), self._first):
            if words[at + 1] >> 24 & _KIND_MASK == kind and words[at]:
                yield self.string(words[at]), id

    def decl_tags(self, id: int) -> list[str]:
        """Tags of a whole declaration (`component_idx` -1), e.g. \"bpf_kfunc\" on a kernel function."""
        return [name for name, component in self.tags(id) if component == -1]

    def tags(self, id: int) -> list[tuple[str, int]]:
        """(tag, component index or -1) of every DECL_TAG that points at `id`, in this blob and its base."""
        found = self.base.tags(id) if self.base is not None and id < self._first else []
        words = self._words
        for at in self._tag_index().get(id, ()):
            component = words[at + 3]
            found.append((self.string(words[at]), -1 if component == 0xFFFFFFFF else component))
        return found

    def is_kfunc(self, id: int) -> bool:
        """Whether a FUNC is marked `bpf_kfunc` (pahole writes the tag since 1.26, Linux 6.10)."""
        return id in self.tagged("bpf_kfunc") and self.kind(id) == FUNC

    def tagged(self, tag: str) -> frozenset[int]:
        """Ids in this blob with a tag on the whole declaration. Found by the bytes of such records, without a scan of
        all types."""
        known = self._tagged.get(tag)
        if known is None:
            found: set[int] = set()
            begin, words = self._types, self._words
            for offset in self._string_offsets(tag):
                record = struct.pack("<II", offset, DECL_TAG << 24)
                at = self.raw.find(record, begin, begin + 4 * len(words) - 8)
                while at >= 0:
                    index = (at - begin) // 4
                    if (at - begin) % 4 == 0 and words[index + 3] == 0xFFFFFFFF:
                        found.add(words[index + 2])
                    at = self.raw.find(record, at + 4, begin + 4 * len(words) - 8)
            known = self._tagged[tag] = frozenset(found)
        return known

    # Inside

    def positions(self) -> Sequence[int]:
        """Word position of every record of this blob, by id: can be kept and given to the constructor."""
        return self._offsets()

    def _offsets(self) -> Sequence[int]:
        """Word position of every record, by id; the one scan over all types (40 ms for vmlinux)."""
        if self._unread < len(self._words):
            self._scan(len(self._words))
        return self._positions

    def _scan(self, count: int) -> None:
        """Find the positions of at least `count` more records, as far as there are any. Raises BtfError for unknown
        kinds and a cut last record."""
        words, positions, at = self._words, self._positions, self._unread
        assert isinstance(positions, packed)
        append, end = positions.append, len(words)
        stop = len(positions) + count
        while at < end - 2:
            append(at)
            info = words[at + 1]
            size = _FIXED_BY_KIND[info >> 24 & 0x7F]
            if not size:
                raise BtfError(f"BTF type {self._first + len(positions) - 1} has the unknown kind {info >> 24 & 0x7F}")
            at += size + _EACH_BY_KIND[info >> 24 & 0x7F] * (info & 0xFFFFFF)
            if len(positions) >= stop:
                break
        if at > end or end - 3 < at < end:
            raise BtfError("last BTF type is cut short")
        self._unread = at

    def _at(self, id: int) -> tuple[memoryview[int], int]:
        owner: Btf | None = self
        while owner is not None and 0 < id < owner._first:
            owner = owner.base
        if owner is not None and owner._first <= id:
            positions, index = owner._positions, id - owner._first
            if index >= len(positions) and owner._unread < len(owner._words):
                owner._scan(index + 1 - len(positions))
            if index < len(positions):
                return owner._words, positions[index]
        raise BtfError(f"no BTF type {id}")

    def _kind_at(self, id: int, *kinds: int) -> tuple[memoryview[int], int]:
        words, at = self._at(id)
        kind = words[at + 1] >> 24 & _KIND_MASK
        if kind not in kinds:
            raise BtfError(f"BTF type {id} is a {KIND_NAMES[kind]}, not a {KIND_NAMES[kinds[0]]}")
        return words, at

    def _by_name(self, kind: int) -> dict[int, int]:
        """String offset → lowest id, for one kind."""
        index = self._index.get(kind)
        if index is None:
            words = self._words
            index = {}
            for id, at in enumerate(self._offsets(), self._first):
                if words[at + 1] >> 24 & _KIND_MASK == kind:
                    index.setdefault(words[at], id)
            self._index[kind] = index
        return index

    def _string_offsets(self, name: str) -> Iterator[int]:
        """Offsets at which `name` can be read: as a string of its own first, then as the tail of a longer one."""
        if self.base is not None:
            yield from self.base._string_offsets(name)
        wanted = name.encode() + b"\0"
        step: Callable[[bytes, int, int], int] = self.raw.find
        for lead in (b"\0", b""):
            at = step(lead + wanted, self._strings, self._strings_end)
            while at >= 0:
                yield at + len(lead) - self._strings + self._string_first
                at = step(lead + wanted, at + 1, self._strings_end)
        if self.base is not None and self.raw[self._strings : self._strings + len(wanted)] == wanted:
            yield self._string_first  # split tables need not begin with the empty string

    _tags: dict[int, list[int]] | None = None

    def _tag_index(self) -> dict[int, list[int]]:
        if self._tags is None:
            words = self._words
            index: dict[int, list[int]] = {}
            for at in self._offsets():
                if words[at + 1] >> 24 & _KIND_MASK == DECL_TAG:
                    index.setdefault(words[at + 2], []).append(at)
            self._tags = index
        return self._tags


def _map(path: Path) -> bytes | mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)
    except (OSError, ValueError):
        return _read(path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BtfError(
            f"no kernel type information: {path}: {error.strerror}", hint="needs a kernel with CONFIG_DEBUG_INFO_BTF"
        ) from None
