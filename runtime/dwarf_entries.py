"""Attributes of DWARF entries and file names of line tables, as pyelftools gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from elftools.dwarf.die import DIE

DEPTH: Final = 64  # of entries that refer to each other


def file_names(program: Any, unit: Any) -> dict[int, str]:
    """Paths by the file numbers of a line table; they count from 1 before DWARF 5."""
    import posixpath

    header = program.header
    five = header.version >= 5
    folder = text(unit.get_top_DIE().attributes.get("DW_AT_comp_dir"))
    folders = [decode(item) for item in header.include_directory]
    if not five:
        folders.insert(0, folder)
    names = {}
    for number, entry in enumerate(header.file_entry, 0 if five else 1):
        name = decode(entry.name)
        place = folders[entry.dir_index] if entry.dir_index < len(folders) else ""
        names[number] = posixpath.normpath(posixpath.join(folder, place, name))
    return names


def decode(raw: object) -> str:
    if isinstance(raw, bytes):
        return raw.decode("utf-8", "replace")
    return decode(getattr(raw, "DW_LNCT_path", b"")) if not isinstance(raw, str) else raw


def text(attribute: Any) -> str:
    return decode(attribute.value) if attribute is not None and isinstance(attribute.value, bytes) else ""


def die_name(die: DIE) -> str:
    """Name of a DIE or of what it is a copy of."""
    for _ in range(DEPTH):
        if "DW_AT_name" in die.attributes:
            return text(die.attributes["DW_AT_name"])
        for link in ("DW_AT_abstract_origin", "DW_AT_specification"):
            if link in die.attributes:
                die = die.get_DIE_from_attribute(link)
                break
        else:
            return ""
    return ""


def value(die: DIE, name: str) -> int | None:
    attribute = die.attributes.get(name)
    return attribute.value if attribute is not None and isinstance(attribute.value, int) else None


def end_address(die: DIE) -> int | None:
    """DW_AT_high_pc is an address, or an offset from the low one."""
    attribute, low = die.attributes.get("DW_AT_high_pc"), value(die, "DW_AT_low_pc")
    if attribute is None or low is None or not isinstance(attribute.value, int):
        return None
    return int(attribute.value) if attribute.form == "DW_FORM_addr" else low + int(attribute.value)
