"""An object that clang made, to a Bundle: sections to programs, relocations to map indexes, CO-RE settled.

Does what a loader library does at run time, once, for one kernel. What comes out is judged by the helper like any other
bundle; nothing here has to be believed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from bpfseal.compiler import layout
from bpfseal.errors import BpfsealError
from bpfseal.runtime.ahead import elf as elf_file
from bpfseal.runtime.ahead import object_btf, object_maps, sections
from bpfseal.runtime.ahead.core import Core
from bpfseal.runtime.ahead.elf import Elf, ElfError, Section, Symbol
from bpfseal.runtime.ahead.object_maps import Maps
from bpfseal.signer import btf as kinds
from bpfseal.signer.btf import Btf, BtfError
from bpfseal.signer.bundle import BUNDLE_VERSION, UNDECLARED, Bundle, ProgramSpec

_SLOT: Final = struct.Struct("<BBhi")
_LD_IMM64, _CALL = 0x18, 0x85
_BTF_ID, _FUNC, _MAP_IDX, _MAP_VALUE = 3, 4, 5, 6  # BPF_PSEUDO_*
_CALL_LOCAL, _CALL_KFUNC = 1, 2
_MAX_INSNS: Final = 1_000_000


@dataclass(frozen=True)
class Function:
    """`start` and `end` are bytes in the section."""

    name: str
    section: int
    start: int
    end: int
    hidden: bool


def bundle_of(data: bytes, kernel: Btf, name: str) -> tuple[Bundle, bool]:
    """The bundle for a kernel with the types `kernel`, and whether it is good for that kernel only. `name` is for the
    audit log. Raises BpfsealError."""
    try:
        return _Object(elf_file.read(data), kernel).bundle(name)
    except BtfError as error:
        raise BpfsealError(f"the object's type information: {error.message}") from None
    except struct.error as error:
        raise ElfError(f"damaged object: {error}") from None


class _Object:
    def __init__(self, elf: Elf, kernel: Btf) -> None:
        self.elf = elf
        self.kernel = kernel
        named = elf.by_name
        self.types = Btf(named[".BTF"].data) if ".BTF" in named else None
        self.extra = object_btf.Extra()
        if self.types is not None and ".BTF.ext" in named:
            self.extra = object_btf.extra(named[".BTF.ext"].data, self.types)
        self.core = Core(self.types, kernel) if self.types is not None else None
        self.maps: Maps = object_maps.read(elf, self.types)
        self.functions = _functions(elf)
        self.bound = False
        self.licence = named["license"].data.split(b"\0")[0].decode("ascii", "replace") if "license" in named else ""

    def bundle(self, name: str) -> tuple[Bundle, bool]:
        programs = []
        for function in self.functions:
            section = self.elf.sections[function.section]
            if section.name != ".text" and not section.name.startswith("?"):
                programs.append(self._program(function, section))
        if not programs:
            raise BpfsealError("the object has no programs")
        hidden = frozenset(f.name for f in self.functions if f.hidden)
        debug = any(program.func_info or program.line_info for program in programs)
        typed = any(spec.key_btf or spec.value_btf for spec in self.maps.specs)
        btf = object_btf.for_kernel(self.types, hidden) if self.types is not None and (debug or typed) else b""
        reader = layout.Reader(version=layout.READER_VERSION, maps=(), events=(), probes=())
        bundle = Bundle(
            version=BUNDLE_VERSION,
            programs=tuple(programs),
            maps=self.maps.specs,
            btf=btf,
            source=f"// object {''.join(c if c.isprintable() else '?' for c in name)}",
            reader=layout.encode(reader),
        )
        return bundle, self.bound or bool(self.core and self.core.used)

    # One program ------------------------------------------------------------------------------------------------

    def _program(self, main: Function, section: Section) -> ProgramSpec:
        kind, target = sections.kind_of(section.name)
        attach_btf, attach_id = "", 0
        if kind.target is not None:
            attach_btf = kind.target + target
            wanted = kinds.TYPEDEF if kind.target == "btf_trace_" else kinds.FUNC
            attach_id = self.kernel.find(attach_btf, wanted)
            self.bound = True
            if not attach_id:
                raise BpfsealError(f"section {section.name[:64]}: this kernel has no {attach_btf[:64]} to attach to")
        code, func_info, line_info = self._link(main)
        return ProgramSpec(
            name=main.name[:15],
            type=kind.type,
            insns=code,
            declared=UNDECLARED,
            attach=sections.attach_of(section.name, kind, target),
            expected_attach_type=kind.expected,
            license=self.licence,
            flags=kind.flags,
            attach_btf=attach_btf,
            attach_btf_id=attach_id,
            func_info=func_info,
            line_info=line_info,
        )

    def _link(self, main: Function) -> tuple[bytes, bytes, bytes]:
        """Instructions of a function and of all that it calls, with func_info and line_info."""
        order = [main]
        starts = {main: 0}
        parts: list[bytearray] = []
        calls: list[tuple[int, int, Function]] = []  # part, slot in it, what it refers to
        total = 0
        for number, function in enumerate(order):
            section = self.elf.sections[function.section]
            code = bytearray(section.data[function.start : function.end])
            self._relocate(code, function, section, number, calls)
            for _, _, other in calls:
                if other not in starts:
                    starts[other] = -1
                    order.append(other)
            starts[function] = total
            parts.append(code)
            total += len(code) // 8
            if total > _MAX_INSNS:
                raise BpfsealError(f"{main.name[:64]}: more than {_MAX_INSNS} instructions")
        for number, slot, other in calls:
            distance = starts[other] - (starts[order[number]] + slot) - 1
            struct.pack_into("<i", parts[number], 8 * slot + 4, distance)
        return b"".join(parts), self._func_info(order, starts), self._line_info(order, starts)

    def _func_info(self, order: list[Function], starts: dict[Function, int]) -> bytes:
        records = []
        for function in order:
            known = dict(self.extra.functions.get(self.elf.sections[function.section].name, []))
            if function.start not in known:
                return b""
            records.append(struct.pack("<II", starts[function], known[function.start]))
        return b"".join(records)

    def _line_info(self, order: list[Function], starts: dict[Function, int]) -> bytes:
        records = []
        for function in order:
            rows = self.extra.lines.get(self.elf.sections[function.section].name, [])
            mine = [row for row in rows if function.start <= row[0] < function.end]
            if not mine or mine[0][0] != function.start:  # the kernel wants one for the start of each function
                return b""
            for at, file, line, column in mine:
                records.append(struct.pack("<IIII", starts[function] + (at - function.start) // 8, file, line, column))
        return b"".join(records)

    # Relocations ------------------------------------------------------------------------------------------------

    def _relocate(
        self,
        code: bytearray,
        function: Function,
        section: Section,
        number: int,
        calls: list[tuple[int, int, Function]],
    ) -> None:
        for at, type_id, access, kind in self.extra.core.get(section.name, []):
            if function.start <= at < function.end and self.core is not None and self.types is not None:
                self._room(code, at - function.start)
                self.core.apply(code, (at - function.start) // 8, type_id, self.types.string(access), kind)
        done: set[int] = set()
        for offset, kind, symbol in section.relocations:
            if function.start <= offset < function.end:
                slot = self._room(code, offset - function.start) // 8
                done.add(slot)
                other = self._resolve(code, slot, kind, symbol)
                if other is not None:
                    calls.append((number, slot, other))
        slot = 0
        while slot < len(code) // 8:
            opcode, registers, _, imm = _SLOT.unpack_from(code, 8 * slot)
            if opcode == _CALL and registers >> 4 == _CALL_LOCAL and slot not in done:
                calls.append((number, slot, self._function(function.section, function.start + 8 * (slot + imm + 1))))
            slot += 2 if opcode == _LD_IMM64 else 1

    @staticmethod
    def _room(code: bytearray, at: int) -> int:
        """`at`, which must be an instruction of `code`, with its second half if it has one."""
        if at % 8 or at + (16 if code[at] == _LD_IMM64 else 8) > len(code):
            raise ElfError("damaged object: a relocation beside an instruction")
        return at

    def _resolve(self, code: bytearray, slot: int, kind: int, symbol: Symbol) -> Function | None:
        at = 8 * slot
        opcode, registers, _, imm = _SLOT.unpack_from(code, at)
        register = registers & 15
        if kind == elf_file.R_64_32 and opcode == _CALL:
            if symbol.section == elf_file.UNDEFINED:
                _SLOT.pack_into(code, at, opcode, _CALL_KFUNC << 4, 0, self._kfunc(symbol))
                return None
            _SLOT.pack_into(code, at, opcode, _CALL_LOCAL << 4, 0, 0)
            return self._function(symbol.section, symbol.value + 8 * (imm + 1))
        if kind != elf_file.R_64_64 or opcode != _LD_IMM64:
            raise BpfsealError(f"relocation {kind} of {symbol.name[:64]} on the instruction {opcode:#04x}")
        place = symbol.section, symbol.value
        if place in self.maps.at:
            _SLOT.pack_into(code, at, opcode, register | _MAP_IDX << 4, 0, self.maps.at[place])
            _SLOT.pack_into(code, at + 8, 0, 0, 0, 0)
        elif symbol.section in self.maps.sections:
            _SLOT.pack_into(code, at, opcode, register | _MAP_VALUE << 4, 0, self.maps.sections[symbol.section])
            _SLOT.pack_into(code, at + 8, 0, 0, 0, symbol.value + imm)
        elif symbol.section == elf_file.UNDEFINED:
            _SLOT.pack_into(code, at, opcode, register | _BTF_ID << 4, 0, self._variable(symbol))
            _SLOT.pack_into(code, at + 8, 0, 0, 0, 0)
        elif self.elf.sections[symbol.section].flags & elf_file.EXECINSTR:
            _SLOT.pack_into(code, at, opcode, register | _FUNC << 4, 0, 0)
            return self._function(symbol.section, symbol.value + imm)
        else:
            raise BpfsealError(f"{symbol.name[:64]}: it is neither a map nor a variable nor a function")
        return None

    def _function(self, section: int, start: int) -> Function:
        for function in self.functions:
            if function.section == section and function.start == start:
                return function
        raise ElfError("damaged object: a call into the middle of something")

    def _kfunc(self, symbol: Symbol) -> int:
        self.bound = True
        id = self.kernel.find(symbol.name, kinds.FUNC)
        if not id:
            raise BpfsealError(f"this kernel has no function {symbol.name[:64]} to call")
        return id

    def _variable(self, symbol: Symbol) -> int:
        """A variable of the kernel's, declared with its type (`extern … __ksym`)."""
        self.bound = True
        id = self.kernel.find(symbol.name, kinds.VAR)
        if not id:
            raise BpfsealError(
                f"{symbol.name[:64]}: not a variable that this kernel has types for",
                hint="addresses of symbols (typeless __ksym) and __kconfig values are not known when a file is built",
            )
        return id


def _functions(elf: Elf) -> tuple[Function, ...]:
    """Functions in the order in which they stand. Raises ElfError for ones that overlap or are no instructions."""
    found = []
    for symbol in elf.symbols:
        if symbol.type != elf_file.FUNC or symbol.section >= len(elf.sections):
            continue
        section = elf.sections[symbol.section]
        start, end = symbol.value, symbol.value + symbol.size
        if not section.flags & elf_file.EXECINSTR:
            continue
        if start % 8 or end % 8 or not start < end <= len(section.data):
            raise ElfError(f"damaged object: function {symbol.name[:64]} is not whole instructions")
        found.append(Function(symbol.name, symbol.section, start, end, symbol.visibility == elf_file.HIDDEN))
    return tuple(sorted(found, key=lambda function: (function.section, function.start)))
