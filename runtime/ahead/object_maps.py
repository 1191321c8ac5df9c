"""Maps of an object: those declared in `.maps`, and its variables, which live in maps of one value.

`.maps` are variables whose struct types carry the numbers: `__uint(x, n)` is a pointer to an array of n elements,
`__type(x, t)` a pointer to t (libbpf's bpf_helpers.h).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from bpfseal.errors import BpfsealError
from bpfseal.runtime.ahead.core import size_of
from bpfseal.runtime.ahead.elf import Elf, Section
from bpfseal.signer import btf as kinds
from bpfseal.signer.btf import Btf, BtfError
from bpfseal.signer.bundle import MapSpec

_ARRAY, _PERF_EVENT_ARRAY = 2, 4
# Map types that the kernel takes no types of keys and values for (map_check_btf in kernel/bpf/syscall.c).
_UNTYPED: Final = frozenset((4, 7, 8, 22, 23, 27, 30))
_ENTRIES_FOR_CPUS: Final = 1024
_NUMBERS: Final = frozenset(("type", "key_size", "value_size", "max_entries", "map_flags", "pinning", "map_extra"))
_DATA: Final = re.compile(r"\.(data|bss|rodata)(\..*)?")


@dataclass(frozen=True)
class Maps:
    """`at`: (section, offset of the symbol) of a declared map to its index; `sections`: sections of variables to the
    index of their map."""

    specs: tuple[MapSpec, ...]
    at: dict[tuple[int, int], int]
    sections: dict[int, int]


def read(elf: Elf, types: Btf | None) -> Maps:
    """Raises BpfsealError."""
    specs: list[MapSpec] = []
    at: dict[tuple[int, int], int] = {}
    sections: dict[int, int] = {}
    if "maps" in elf.by_name:
        raise BpfsealError("maps in the old form (section maps)", hint='declare them in SEC(".maps")')
    for section in elf.sections:
        if section.name == ".maps":
            if types is None:
                raise BpfsealError("the object has maps and no type information", hint="compile it with -g")
            for symbol in elf.symbols:
                if symbol.section == section.index and symbol.type == 1:
                    at[section.index, symbol.value] = len(specs)
                    specs.append(_declared(symbol.name, types, specs))
        elif _DATA.fullmatch(section.name) and section.size and section.type in (1, 8):
            sections[section.index] = len(specs)
            specs.append(_variables(section, specs))
        elif section.name.startswith((".struct_ops", ".arena")):
            raise BpfsealError(f"section {section.name}: it replaces kernel functions or shares memory with user space")
    return Maps(tuple(specs), at, sections)


def _unique(name: str, specs: list[MapSpec]) -> str:
    clean = "".join(c if c.isascii() and (c.isalnum() or c in "_.") else "_" for c in name)[:15]
    names = {spec.name for spec in specs}
    number = 2
    found = clean
    while found in names:
        found = f"{clean[: 15 - len(str(number)) - 1]}.{number}"
        number += 1
    return found


def _variables(section: Section, specs: list[MapSpec]) -> MapSpec:
    for offset, _, symbol in section.relocations:
        raise BpfsealError(f"{section.name}+{offset}: variables that hold addresses ({symbol.name[:64]})")
    constant = section.name.startswith(".rodata")
    zero = not any(section.data)
    return MapSpec(
        name=_unique(section.name, specs),
        type=_ARRAY,
        key_size=4,
        value_size=section.size,
        max_entries=1,
        initial=b"" if zero and not constant else section.data,
        frozen=constant,
    )


def _declared(name: str, types: Btf, specs: list[MapSpec]) -> MapSpec:
    variable = types.find(name, kinds.VAR)
    if not variable:
        raise BpfsealError(f"map {name[:64]}: no type information")
    try:
        members = types.members(types.resolve(types.size_or_type(variable)))
        numbers, key, value = _definition(name, types, members)
    except BtfError as error:
        raise BpfsealError(f"map {name[:64]}: {error.message}") from None
    for what in ("pinning", "map_extra"):
        if numbers.get(what):
            raise BpfsealError(f"map {name[:64]}: {what} is not something that a sealed file can do")
    type = numbers.get("type", 0)
    typed = bool(key or value) and type not in _UNTYPED
    entries = numbers.get("max_entries", 0)
    if type == _PERF_EVENT_ARRAY:
        entries = entries or _ENTRIES_FOR_CPUS
    size = 4 if type in (_PERF_EVENT_ARRAY, 8) else 0
    return MapSpec(
        name=_unique(name, specs),
        type=type,
        key_size=numbers.get("key_size", size_of(types, key) if key else size),
        value_size=numbers.get("value_size", size_of(types, value) if value else size),
        max_entries=entries,
        flags=numbers.get("map_flags", 0),
        key_btf=key if typed else 0,
        value_btf=value if typed else 0,
    )


def _definition(name: str, types: Btf, members: list[tuple[str, int, int, int]]) -> tuple[dict[str, int], int, int]:
    """Numbers by name, type ids of key and value."""
    numbers: dict[str, int] = {}
    ids = {"key": 0, "value": 0}
    for member, type, _, _ in members:
        target = types.size_or_type(types.resolve(type)) if types.kind(types.resolve(type)) == kinds.PTR else 0
        if member in _NUMBERS and target:
            numbers[member] = types.array(types.resolve(target))[2]
        elif member in ids and target:
            ids[member] = target
        else:
            what = "an inner map or programs" if member == "values" else f"the member {member[:64]}"
            raise BpfsealError(f"map {name[:64]}: its declaration has {what}")
    return numbers, ids["key"], ids["value"]
