"""Object file to instructions: sections and relocations become programs whose maps are named by index.

The ELF container is read by LLVM's own object reader. Each function has a section of its own; a program is its main
function, followed by the functions that it calls or passes as callbacks.

Relocations (`llvm/include/llvm/BinaryFormat/ELFRelocs/BPF.def`): R_BPF_64_64 on the two slots of an ld_imm64, against
`mN` (map N), `vN` (value of map N, the addend an offset in it) or a function (callback); R_BPF_64_32 on a call,
against a function or a kfunc.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final

from msgspec import Struct, field

from bpfseal.compiler.edit import Code
from bpfseal.compiler.unit import Declared
from bpfseal.errors import BpfsealError

_R_64_64, _R_64_32 = 1, 10
_SYMBOL: Final = struct.Struct("<IBBHQQ")  # st_name, st_info, st_other, st_shndx, st_value, st_size
_RELOCATION: Final = struct.Struct("<QQ")  # r_offset, r_info
_SLOT: Final = struct.Struct("<BBhi")
_PSEUDO_FUNC, _PSEUDO_MAP_IDX, _PSEUDO_MAP_IDX_VALUE = 4, 5, 6
_PSEUDO_CALL, _PSEUDO_KFUNC_CALL = 1, 2
_CALL, _LD_IMM64 = 0x85, 0x18
_SECTION: Final = ".f."  # prefix of functions' sections
DECLARATIONS: Final = "bpfseal.declared"
STACK_LIMIT: Final = 512


class LinkError(BpfsealError):
    """The object is not what the code generator wanted."""


class Function(Struct):
    """Instructions of one function and the names that they refer to: (slot, relocation type, symbol)."""

    name: str
    code: bytearray
    references: list[tuple[int, int, str]] = field(default_factory=list)


class Linked(Struct, frozen=True):
    """A finished program. `functions`: (name, first slot) of the main function and its subprograms, in order.
    `callbacks`: some of them are called by the kernel, which then wants to know them by BTF."""

    code: bytes
    functions: tuple[tuple[str, int], ...]
    callbacks: bool = False


def read_object(data: bytes) -> tuple[dict[str, Function], bytes]:
    """Functions by name, and the contents of the section of declarations."""
    from bpfseal.compiler import llvm

    sections = llvm.sections(data)
    by_name = dict(sections)
    strings = by_name.get(".strtab", b"")
    symbols = []
    for name_at, _, _, section, value, _ in _SYMBOL.iter_unpack(by_name.get(".symtab", b"")):
        name = strings[name_at : strings.index(b"\0", name_at)].decode() if name_at else ""
        if not name and 0 < section < len(sections):
            name = sections[section][0].removeprefix(_SECTION)
        if value and sections[section][0].startswith(_SECTION):
            raise LinkError(f"internal error: {name} does not start its section")
        symbols.append(name)
    functions = {}
    for name, content in sections:
        if name.startswith(_SECTION):
            function = Function(name.removeprefix(_SECTION), bytearray(content))
            for offset, info in _RELOCATION.iter_unpack(by_name.get(f".rel{name}", b"")):
                function.references.append((offset // 8, info & 0xFFFFFFFF, symbols[info >> 32]))
            functions[function.name] = function
    return functions, by_name.get(DECLARATIONS, b"")


def read_functions(data: bytes, prefix: str) -> tuple[dict[str, Function], dict[str, tuple[str, int, bytes]]]:
    """Functions of an object that another compiler wrote, each in a section of its own with a name that begins with
    `prefix`, by name; and of all symbols that are data: section, offset in it, the section's bytes."""
    from bpfseal.compiler import llvm

    sections = llvm.sections(data)
    by_name = dict(sections)
    strings = by_name.get(".strtab", b"")
    symbols: list[str] = []
    known: dict[str, tuple[str, int, bytes]] = {}
    for name_at, _, _, section, value, _ in _SYMBOL.iter_unpack(by_name.get(".symtab", b"")):
        name = strings[name_at : strings.index(b"\0", name_at)].decode() if name_at else ""
        if 0 < section < len(sections):
            where, content = sections[section]
            if where.startswith(prefix):
                name = where.removeprefix(prefix)
            else:
                name = name or where
                known[name] = where, value, content
        symbols.append(name)
    functions = {}
    for name, content in sections:
        if name.startswith(prefix):
            function = Function(name.removeprefix(prefix), bytearray(content))
            for offset, info in _RELOCATION.iter_unpack(by_name.get(f".rel{name}", b"")):
                function.references.append((offset // 8, info & 0xFFFFFFFF, symbols[info >> 32]))
            functions[function.name] = function
    return functions, known


def link(main: str, functions: dict[str, Function], kfunc_id: Callable[[str], int]) -> Linked:
    """One program: `main` and what it reaches, in order of first use."""
    order = _reached(main, functions)
    starts, at = {}, 0
    for name in order:
        starts[name] = at
        at += len(functions[name].code) // 8
    code = bytearray()
    for name in order:
        function = functions[name]
        part = bytearray(function.code)
        for slot, kind, symbol in function.references:
            _resolve(part, slot, kind, symbol, starts, starts[name], functions, kfunc_id)
        code += part
    edited = Code(code, list(starts.values()))
    edited.bound_loops()
    edited.tidy()
    final, slots = edited.encode()
    callbacks = any(
        kind == _R_64_64 and symbol in starts for name in order for _, kind, symbol in functions[name].references
    )
    return Linked(final, tuple(zip(starts, slots, strict=True)), callbacks)


def _reached(main: str, functions: dict[str, Function]) -> list[str]:
    order = [main]
    for name in order:
        for _, _, symbol in functions[name].references:
            if symbol in functions and symbol not in order:
                order.append(symbol)
    return order


def _resolve(
    code: bytearray,
    slot: int,
    kind: int,
    symbol: str,
    starts: dict[str, int],
    start: int,
    functions: dict[str, Function],
    kfunc_id: Callable[[str], int],
) -> None:
    at = slot * 8
    opcode, registers, _, immediate = _SLOT.unpack_from(code, at)
    if kind == _R_64_64 and opcode == _LD_IMM64:
        second = 0
        if symbol in starts:
            source, value = _PSEUDO_FUNC, starts[symbol] - (start + slot) - 1
        else:
            source = _PSEUDO_MAP_IDX if symbol[0] == "m" else _PSEUDO_MAP_IDX_VALUE
            value, second = int(symbol[1:]), immediate
        _SLOT.pack_into(code, at, opcode, registers & 15 | source << 4, 0, value)
        _SLOT.pack_into(code, at + 8, 0, 0, 0, second)
        return
    if kind == _R_64_32 and opcode == _CALL:
        if symbol in functions:
            _SLOT.pack_into(code, at, opcode, _PSEUDO_CALL << 4, 0, starts[symbol] - (start + slot) - 1)
        else:
            _SLOT.pack_into(code, at, opcode, _PSEUDO_KFUNC_CALL << 4, 0, kfunc_id(symbol))
        return
    raise LinkError(f"internal error: relocation {kind} of {symbol} on opcode {opcode:#04x}")


def stack_depth(code: bytes) -> int:
    """Deepest offset below the frame pointer that is accessed or taken the address of, in bytes."""
    deepest = 0
    from_frame = [False] * 16
    for opcode, registers, offset, immediate in _SLOT.iter_unpack(code):
        target, source = registers & 15, registers >> 4
        kind = opcode & 7
        if kind in (2, 3) and target == 10:
            deepest = min(deepest, offset)
        elif kind == 1:
            if source == 10:
                deepest = min(deepest, offset)
            from_frame[target] = False
        elif opcode == 0xBF:
            from_frame[target] = source == 10
        elif opcode == 0x07 and from_frame[target]:
            deepest = min(deepest, immediate)
            from_frame[target] = False
        elif kind in (0, 4, 7):
            from_frame[target] = False
    return -deepest


def parse_declarations(data: bytes) -> dict[str, Declared]:
    """What functions do, by name, from the object's section."""
    found = {}
    for line in data.decode().rstrip("\0").splitlines():
        name, helpers, kfuncs, maps = line.split(" ")
        declared = Declared(set(_names(helpers)), set(_names(kfuncs)))
        for part in maps.split(";") if maps else ():
            index, _, operations = part.partition(":")
            declared.use(int(index), *operations.split(","))
        found[name] = declared
    return found


def _names(text: str) -> Iterator[str]:
    return (name for name in text.split(",") if name)
