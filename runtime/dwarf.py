"""DWARF of user programs: arguments and results of functions, their types, lines of source.

pyelftools reads the sections; it is imported when first needed (0.1 s). Units are found by the address they cover, so
that a large program is not read from front to back; only looking for a type by name has to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Final

from bpfseal.dsl.env import Args, Point
from bpfseal.dsl.types import BOOL, VOID, Array, Field, Int, Ptr, Record, RecordInfo, Str, Type, Void, size_of
from bpfseal.errors import BpfsealError
from bpfseal.runtime import dwarf_split
from bpfseal.runtime.dwarf_entries import DEPTH, die_name, end_address, file_names, value
from bpfseal.runtime.elf import Elf

if TYPE_CHECKING:
    from elftools.dwarf.aranges import ARanges
    from elftools.dwarf.compileunit import CompileUnit
    from elftools.dwarf.die import DIE
    from elftools.dwarf.dwarfinfo import DWARFInfo

_REGISTERS: Final = {62: 6, 183: 8}  # integer arguments in registers, by e_machine
_FLOATS: Final = frozenset((3, 4, 0x80, 0x81, 0x82))  # DW_ATE_complex_float, _float, lo_user…
_RECORD_TAGS: Final = {
    "DW_TAG_structure_type": "struct",
    "DW_TAG_class_type": "struct",
    "DW_TAG_union_type": "union",
}
_POINTER_TAGS: Final = frozenset(
    ("DW_TAG_pointer_type", "DW_TAG_reference_type", "DW_TAG_rvalue_reference_type", "DW_TAG_ptr_to_member_type")
)
_PEELED: Final = frozenset(
    (
        "DW_TAG_typedef",
        "DW_TAG_const_type",
        "DW_TAG_volatile_type",
        "DW_TAG_restrict_type",
        "DW_TAG_atomic_type",
        "DW_TAG_immutable_type",
    )
)


class DwarfError(BpfsealError):
    """No debug information, damaged debug information, or nothing there for what was asked."""


def has_debug_info(elf: Elf) -> bool:
    """Whether the file, or its separate debug file, describes its types."""
    return _carrier(elf) is not None


def _carrier(elf: Elf) -> Elf | None:
    for file in (elf, elf.debug_file):
        if file is not None and file.path and any(file.section(n) for n in (".debug_info", ".zdebug_info")):
            return file
    return None


def _place(die: DIE) -> tuple[int, int]:
    """What tells an entry from those of other files and units."""
    return id(die.dwarfinfo), die.offset


class Dwarf:
    """Debug information of one ELF file. Raises DwarfError when there is none.

    Records are called "struct NAME"; what has no name gets one from its place. Nothing else than DwarfError leaves
    this class for damaged input.
    """

    def __init__(self, elf: Elf, taken: Callable[[str], bool] = lambda name: False) -> None:
        """`taken`: whether a record's name is somebody else's (the kernel's) already."""
        carrier = _carrier(elf)
        if carrier is None:
            raise DwarfError(f"{elf.path} has no debug information", hint="build it with -g, or install its debug file")
        self.elf, self._path, self._taken = elf, carrier.path, taken
        self._types: dict[tuple[int, int], Type] = {}
        self._split: dict[int, CompileUnit | None] = {}
        self._records: dict[str, DIE] = {}

    @cached_property
    def _info(self) -> DWARFInfo:
        from elftools.elf.elffile import ELFFile

        with self._damage():
            self._file = open(self._path, "rb")  # noqa: SIM115 - read lazily for as long as this lives
            return ELFFile(self._file).get_dwarf_info(follow_links=True)

    @cached_property
    def _ranges(self) -> ARanges | None:
        """The table of which unit has which addresses: 0.1 s for a C library's, and it is not kept there."""
        return self._info.get_aranges()

    # Functions

    def arguments(self, point: Point) -> Args:
        """Arguments of the function at an entry point, or its result at a return."""
        with self._damage():
            die = self._function(point.function, dict(point.params).get("address"))
            if die is None:
                return Args(None, "registers")
            if point.kind == "uretprobe":
                return Args(None, "registers", self._returns(die))
            return Args(RecordInfo("args", 48, tuple(self._fields(die))), "registers")

    def describe(self, function: str) -> list[str]:
        """Declarations of the parameters, for listings: "const char* prompt"."""
        with self._damage():
            die = self._function(function, None)
            lines = []
            for parameter in self._parameters(die) if die is not None else ():
                name = die_name(parameter)
                lines.append(f"{self.spell(self._type_die(parameter))}{' ' + name if name else ''}")
            return lines

    @contextmanager
    def _damage(self) -> Iterator[None]:
        """pyelftools raises whatever damaged input makes it stumble over: DwarfError for all of it."""
        try:
            yield
        except BpfsealError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise DwarfError(f"the debug information of {self._path} is damaged ({reason})") from None

    def _function(self, name: str, address: object) -> DIE | None:
        if not isinstance(address, int):
            symbols = self.elf.named(name)
            if not symbols:
                return None
            address = symbols[0].address
        for unit in self._units_at(address):
            found = self._function_in(self._whole(unit), address)
            if found is not None:
                return found
        return None

    def _function_in(self, unit: CompileUnit, address: int) -> DIE | None:
        for die in self._walk(unit.get_top_DIE(), ("DW_TAG_namespace", "DW_TAG_class_type", "DW_TAG_structure_type")):
            if die.tag == "DW_TAG_subprogram" and value(die, "DW_AT_low_pc") == address:
                return die
        return None

    def _walk(self, die: DIE, inside: tuple[str, ...], depth: int = 16) -> Iterator[DIE]:
        """Children, and those of children of the tags `inside`."""
        for child in die.iter_children():
            yield child
            if depth and child.tag in inside:
                yield from self._walk(child, inside, depth - 1)

    def _units_at(self, address: int) -> Iterator[CompileUnit]:
        """Units that may hold the function at an address: by the table of ranges, else by their own ranges."""
        offset = self._ranges.cu_offset_at_addr(address) if self._ranges is not None else None
        if offset is not None:
            yield self._info.get_CU_at(offset)
            return
        for unit in self._info.iter_CUs():
            top = unit.get_top_DIE()
            low, high = value(top, "DW_AT_low_pc"), end_address(top)
            if low is None or high is None or "DW_AT_ranges" in top.attributes or low <= address < high:
                yield unit

    def _units(self) -> Iterator[CompileUnit]:
        return map(self._whole, self._info.iter_CUs())

    def _whole(self, unit: CompileUnit) -> CompileUnit:
        """The unit itself, or the split one that it stands for."""
        if not dwarf_split.is_skeleton(unit):
            return unit
        at = unit.cu_offset
        if at not in self._split:
            self._split[at] = dwarf_split.whole(self.elf, self._info, unit)
        return self._split[at] or unit

    def _fields(self, die: DIE) -> Iterator[Field]:
        """Parameters that arrive in integer registers (System V ABI, AAPCS64)."""
        limit, at = _REGISTERS.get(self.elf.machine, 0), 0
        if self._returns_in_memory(die):
            at = 1 if self.elf.machine == 62 else 0  # the caller passes where to put the result
        for number, parameter in enumerate(self._parameters(die)):
            target = self._peel(self._type_die(parameter))
            if target is not None and target.tag == "DW_TAG_base_type" and value(target, "DW_AT_encoding") in _FLOATS:
                continue
            type = self.convert(self._type_die(parameter))
            if isinstance(type, Record | Array):  # a record by value, a 128-bit integer: in memory when larger
                at += (size_of(type) + 7) // 8 if size_of(type) <= 16 else 0
                continue
            if at >= limit:
                return
            yield Field(die_name(parameter) or f"arg{number}", type, 8 * at, argument=at)
            at += 1

    def _returns(self, die: DIE) -> Type | None:
        target = self._type_die(self._origin(die))
        if target is None:
            return None
        type = self.convert(target)
        return type if isinstance(type, Int | Ptr) or type == BOOL else None

    def _returns_in_memory(self, die: DIE) -> bool:
        target = self._type_die(self._origin(die))
        type = self.convert(target) if target is not None else VOID
        return isinstance(type, Record) and type.size > 16

    def _parameters(self, die: DIE) -> list[DIE]:
        return [child for child in die.iter_children() if child.tag == "DW_TAG_formal_parameter"]

    def _origin(self, die: DIE) -> DIE:
        """Where a definition's or inlined copy's own attributes are."""
        for _ in range(DEPTH):
            for link in ("DW_AT_abstract_origin", "DW_AT_specification"):
                if link in die.attributes and "DW_AT_type" not in die.attributes:
                    die = die.get_DIE_from_attribute(link)
                    break
            else:
                break
        return die

    # Types

    def record(self, name: str) -> RecordInfo | None:
        """Members of a record that an argument's type named, or of any by "struct NAME"."""
        try:
            with self._damage():
                die = self._records.get(name) or self._find_record(name)
                if die is None:
                    return None
                fields = tuple(self._members(die, 0, DEPTH))
                size = value(die, "DW_AT_byte_size") or 0
                return RecordInfo(name, size, fields, die.tag == "DW_TAG_union_type")
        except DwarfError:
            return None

    def record_type(self, name: str) -> Record | None:
        """The type "struct NAME" if the program has it."""
        info = self.record(name)
        return Record(name, info.size) if info is not None else None

    def _find_record(self, name: str) -> DIE | None:
        word, _, tag = name.partition(" ")
        for unit in self._units():
            for die in self._walk(unit.get_top_DIE(), ("DW_TAG_namespace",)):
                if (
                    _RECORD_TAGS.get(str(die.tag)) == word
                    and die_name(die) == tag
                    and "DW_AT_declaration" not in die.attributes
                ):
                    self._records[name] = die
                    return die
        return None

    def _members(self, die: DIE, base: int, depth: int) -> Iterator[Field]:
        for member in die.iter_children():
            if member.tag == "DW_TAG_inheritance" and depth:
                parent = self._peel(self._type_die(member))
                if parent is not None:
                    yield from self._members(
                        parent, base + (value(member, "DW_AT_data_member_location") or 0), depth - 1
                    )
                continue
            if member.tag != "DW_TAG_member" or "DW_AT_external" in member.attributes:
                continue
            offset = base + (value(member, "DW_AT_data_member_location") or 0)
            name, target = die_name(member), self._type_die(member)
            if not name:
                inner = self._peel(target)
                if inner is not None and depth and inner.tag in _RECORD_TAGS:
                    yield from self._members(inner, offset, depth - 1)
                continue
            bits = value(member, "DW_AT_bit_size") or 0
            type = self.convert(target)
            yield self._bitfield(member, name, type, offset, bits) if bits else Field(name, type, offset)

    def _bitfield(self, member: DIE, name: str, type: Type, offset: int, bits: int) -> Field:
        """DW_AT_data_bit_offset counts from the record's start (DWARF 4), DW_AT_bit_offset from the storage unit's
        high end (before). As in the kernel's records they are never negative."""
        first = value(member, "DW_AT_data_bit_offset")
        if first is None:
            storage = (value(member, "DW_AT_byte_size") or size_of(type) or 4) * 8
            first = storage - (value(member, "DW_AT_bit_offset") or 0) - bits
        at = offset * 8 + first
        for size in (1, 2, 4, 8):
            start = at // 8 // size * size
            if at + bits <= (start + size) * 8:
                return Field(name, Int(size * 8, False), start, bits, at - start * 8)
        return Field(name, Int(64, False), at // 8, bits, at % 8)

    def convert(self, die: DIE | None) -> Type:
        """A type of the language; pointers are to user memory."""
        target = self._peel(die)
        if target is None:
            return VOID
        key = _place(target)
        if key not in self._types:
            self._types[key] = self._converted(target, die)
        return self._types[key]

    def _converted(self, die: DIE, written: DIE | None) -> Type:
        tag = str(die.tag)
        size = value(die, "DW_AT_byte_size") or 0
        if tag == "DW_TAG_base_type":
            encoding = value(die, "DW_AT_encoding")
            if encoding == 2 and size == 1:
                return BOOL
            return Int(size * 8, encoding in (5, 6)) if size in (1, 2, 4, 8) else Array(Int(8, False), size)
        if tag == "DW_TAG_enumeration_type":
            return Int(size * 8, False) if size in (1, 2, 4, 8) else Int(32, False)
        if tag in _POINTER_TAGS:
            self._types[_place(die)] = Ptr(None, "user")  # types may point to themselves
            to = self.convert(self._type_die(die))
            return Ptr(None if isinstance(to, Void) else to, "user")
        if tag in _RECORD_TAGS:
            return self._record(die, written, size)
        if tag == "DW_TAG_array_type":
            return self._array(die)
        return VOID

    def _record(self, die: DIE, written: DIE | None, size: int) -> Type:
        word, name = _RECORD_TAGS[str(die.tag)], die_name(die)
        if not name and written is not None and written.tag == "DW_TAG_typedef":
            full = die_name(written)
        else:
            full = f"{word} {name}" if name else f"{word} #{die.offset:x}"
        if self._taken(full):
            full += "#user"
        if "DW_AT_declaration" in die.attributes:
            return Record(full, size)  # defined in another unit: found by name
        known = self._records.setdefault(full, die)
        if _place(known) != _place(die) and (value(known, "DW_AT_byte_size") or 0) != size:
            full = f"{full}#{die.offset:x}"
            self._records[full] = die
        return Record(full, size)

    def _array(self, die: DIE) -> Type:
        element = self.convert(self._type_die(die))
        counts = []
        for child in die.iter_children():
            if child.tag == "DW_TAG_subrange_type":
                count = value(child, "DW_AT_count")
                upper = value(child, "DW_AT_upper_bound")
                counts.append(count if count is not None else upper + 1 if upper is not None else 0)
        target = self._peel(self._type_die(die))
        is_char = target is not None and value(target, "DW_AT_encoding") in (6, 8)
        for position, count in enumerate(reversed(counts or [0])):
            if position == 0 and is_char and isinstance(element, Int) and element.bits == 8:
                element = Str(count)
            else:
                element = Array(element, count)
        return element

    def _peel(self, die: DIE | None) -> DIE | None:
        for _ in range(DEPTH):
            if die is None or die.tag not in _PEELED:
                return die
            die = self._type_die(die)
        return None

    def _type_die(self, die: DIE | None) -> DIE | None:
        if die is None:
            return None
        die = self._origin(die)
        return die.get_DIE_from_attribute("DW_AT_type") if "DW_AT_type" in die.attributes else None

    def spell(self, die: DIE | None, depth: int = DEPTH) -> str:
        """A type as listings show it."""
        if die is None or not depth:
            return "void"
        tag, name = str(die.tag), die_name(die)
        if tag in _RECORD_TAGS or tag == "DW_TAG_enumeration_type":
            return f"{_RECORD_TAGS.get(tag, 'enum')} {name or '<anonymous>'}"
        if tag in ("DW_TAG_base_type", "DW_TAG_typedef"):
            return name
        inner = self._type_die(die)
        if tag in _POINTER_TAGS:
            return self.spell(inner, depth - 1) + ("&" if "reference" in tag else "*")
        if tag in ("DW_TAG_const_type", "DW_TAG_volatile_type"):
            word = tag.removeprefix("DW_TAG_").removesuffix("_type")
            if inner is not None and inner.tag in _POINTER_TAGS:
                return f"{self.spell(inner, depth - 1)} {word}"
            return f"{word} {self.spell(inner, depth - 1)}"
        if tag == "DW_TAG_restrict_type":
            return self.spell(inner, depth - 1)
        return "<unknown type>"

    # Lines

    def line_address(self, file: str, line: int, column: int = 0) -> int:
        """Address of the first instruction of a line of source. Raises DwarfError with what is near.

        `file` is a path or its end; of several places the first statement of the lowest address counts.
        """
        exact: list[int] = []
        others: set[int] = set()
        seen = False
        with self._damage():
            for path, row_line, row_column, address in self._rows():
                if path != file and not path.endswith("/" + file.lstrip("/")):
                    continue
                seen = True
                if row_line == line and column in (0, row_column):
                    exact.append(address)
                else:
                    others.add(row_line)
        if exact:
            return min(exact)
        if not seen:
            raise DwarfError(f"no source file '{file}' in the debug information of {self.elf.path}")
        where = f"{file}:{line}" + (f":{column}" if column else "")
        near = sorted(others, key=lambda other: (abs(other - line), other))[:3]
        hint = "lines with code near it: " + ", ".join(map(str, sorted(near))) if near else None
        raise DwarfError(f"no instruction of {self.elf.path} belongs to {where}", hint=hint)

    def _rows(self) -> Iterator[tuple[str, int, int, int]]:
        """(file, line, column, address) of every statement."""
        for unit in self._info.iter_CUs():
            program = self._info.line_program_for_CU(unit)
            if program is None:
                continue
            names = file_names(program, unit)
            for entry in program.get_entries():
                state = entry.state
                if state is not None and state.is_stmt and not state.end_sequence:
                    yield names.get(state.file, ""), state.line, state.column, state.address
