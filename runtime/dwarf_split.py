"""Split debug information: units that are in files of their own (.dwo) or in a package of those (.dwp).

What is left in the program is a skeleton per unit with the name of the file, an id, and the table of addresses (DWARF
5, sections 3.1.2 and 7.3.5). pyelftools reads neither file: here the sections are handed to it under the names that it
knows, and the two base offsets that split units leave out are put in.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from bpfseal.runtime.dwarf_entries import text, value
from bpfseal.runtime.elf import Elf, ElfError, debug_folders

if TYPE_CHECKING:
    from elftools.dwarf.compileunit import CompileUnit
    from elftools.dwarf.dwarfinfo import DWARFInfo

_OFFSETS_HEADER: Final = 8  # of .debug_str_offsets.dwo in 32-bit DWARF 5: length, version, padding
# Columns of .debug_cu_index, version 5 (section 7.3.5.3); version 2 has the same numbers for these.
_COLUMNS: Final = {1: "info", 3: "abbrev", 4: "line", 5: "loclists", 6: "str_offsets", 8: "rnglists"}
_PER_UNIT: Final = frozenset(_COLUMNS.values())
_SECTIONS: Final = (*_COLUMNS.values(), "str")


def is_skeleton(unit: CompileUnit) -> bool:
    """Whether the unit only points to a split one."""
    return unit.get_top_DIE().tag == "DW_TAG_skeleton_unit"


def whole(elf: Elf, info: DWARFInfo, skeleton: CompileUnit) -> CompileUnit | None:
    """The split unit of a skeleton in the file `elf` with the debug information `info`; None where its file is not to
    be found. Raises what pyelftools raises for damaged input."""
    top = skeleton.get_top_DIE()
    id = int(skeleton.header.get("dwo_id") or 0)
    for path in _paths(elf, text(top.attributes.get("DW_AT_dwo_name")), text(top.attributes.get("DW_AT_comp_dir"))):
        try:
            file = Elf(path)
        except ElfError:
            continue
        sections = _sections(file, id)
        if sections is not None and (unit := _unit(sections, info, skeleton, id, file.bits)) is not None:
            return unit
    return None


def _paths(elf: Elf, name: str, folder: str) -> Iterator[str]:
    """The package beside the program comes first, as for debuggers."""
    own = os.path.realpath(elf.path)
    yield own + ".dwp"
    if not name:
        return
    yield os.path.join(folder, name)
    for place in (os.path.dirname(own), *debug_folders(os.path.dirname(own))):
        yield os.path.join(place, os.path.basename(own) + ".dwp")
        yield os.path.join(place, os.path.basename(name))


def _sections(file: Elf, id: int) -> dict[str, bytes] | None:
    """Contents of the sections of one unit by name, without ".debug_" and ".dwo"; None where it is not in `file`."""
    found = {}
    for name in _SECTIONS:
        section = file.section(f".debug_{name}.dwo")
        if section is not None:
            found[name] = bytes(file.contents(section))
    index = file.section(".debug_cu_index")
    if index is None:
        return found or None
    parts = _contribution(bytes(file.contents(index)), id)
    if parts is None:
        return None
    for name in _PER_UNIT & found.keys():
        start, size = parts.get(name, (0, 0))
        found[name] = found[name][start : start + size]
    return found


def _contribution(index: bytes, id: int) -> dict[str, tuple[int, int]] | None:
    """(offset, size) by section of the unit with an id in a package's index: a hash table of ids with rows of a table
    of offsets, and one of sizes behind that."""
    _, columns, units, slots = struct.unpack_from("<IIII", index)
    for slot in range(slots):
        found, row = (
            struct.unpack_from("<Q", index, 16 + 8 * slot)[0],
            struct.unpack_from("<I", index, 16 + 8 * slots + 4 * slot)[0],
        )
        if row and found == id:
            break
    else:
        return None
    table = 16 + 12 * slots
    kinds = struct.unpack_from(f"<{columns}I", index, table)
    starts = struct.unpack_from(f"<{columns}I", index, table + 4 * columns * row)
    sizes = struct.unpack_from(f"<{columns}I", index, table + 4 * columns * (units + row))
    return {_COLUMNS[k]: (a, n) for k, a, n in zip(kinds, starts, sizes, strict=True) if k in _COLUMNS}


def _unit(sections: dict[str, bytes], info: DWARFInfo, skeleton: CompileUnit, id: int, bits: int) -> CompileUnit | None:
    from elftools.common.exceptions import DWARFError as Incomplete
    from elftools.dwarf.die import AttributeValue
    from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DwarfConfig, DWARFInfo

    def descriptor(name: str) -> Any:
        data = sections.get(name)
        return DebugSectionDescriptor(BytesIO(data), f".debug_{name}", 0, len(data), 0) if data else None

    parts = {f"debug_{name}_sec": descriptor(name) for name in _SECTIONS if name != "line"}
    others = ("aranges", "frame", "loc", "ranges", "line", "pubtypes", "pubnames", "line_str", "sup", "types")
    parts |= {f"debug_{name}_sec": None for name in others}
    config = DwarfConfig(little_endian=True, machine_arch="x64", default_address_size=bits // 8)
    split = DWARFInfo(
        config=config,
        eh_frame_sec=None,
        gnu_debugaltlink_sec=None,
        debug_addr_sec=info.debug_addr_sec,
        **parts,
    )
    for unit in split.iter_CUs():
        if unit.header.get("dwo_id") != id:
            continue
        try:
            unit.get_top_DIE()
        except Incomplete:
            pass  # for want of the bases that come now; the entry is kept all the same
        attributes = unit.get_top_DIE().attributes
        bases = {
            "DW_AT_str_offsets_base": _OFFSETS_HEADER,
            "DW_AT_addr_base": value(skeleton.get_top_DIE(), "DW_AT_addr_base") or 0,
        }
        for name, base in bases.items():
            attributes.setdefault(name, AttributeValue(name, "DW_FORM_sec_offset", base, base, 0, 0))
        return unit
    return None
