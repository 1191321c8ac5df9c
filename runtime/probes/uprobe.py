"""uprobe and uretprobe: functions, addresses and source lines of programs and libraries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from bpfseal.errors import BpfsealError
from bpfseal.runtime.elf import Elf, ElfError, Symbol
from bpfseal.runtime.probes import AbsentError, ProbeError, Provider, is_wild, matcher, registers
from bpfseal.runtime.probes.binaries import mapped_files, open_elf, resolve
from bpfseal.runtime.probes.world import World

if TYPE_CHECKING:
    from bpfseal.dsl.env import Args, AttachSpec, Point


def _expand(world: World, spec: AttachSpec) -> Sequence[Point]:
    path, rest = spec.parts[0], spec.parts[1:]
    paths = resolve(path, world.target.pid, unsafe=world.target.unsafe)
    if not paths:
        what = path or f"of process {world.target.pid}"
        raise AbsentError(f"{spec.kind} target file '{what}' does not exist or is not executable")
    if not is_wild(path):
        paths = paths[:1]
        world.binaries[paths[0]] = None
    if rest[0] == "@":
        return _at_source_line(spec, paths[0], rest[1:])
    language = rest[0] if len(rest) > 1 else ""
    points: list[Point] = []
    for file in paths:
        points += _in_file(world, spec.kind, file, language, rest[-1])
    if not points and len(paths) == 1 and not open_elf(paths[0]).symbols:
        raise ProbeError(
            f"{paths[0]} has no function symbols, it is stripped", hint="install its debug symbols, or give an address"
        )
    return points


def _in_file(world: World, kind: str, path: str, language: str, function: str) -> list[Point]:
    if function.isdecimal():
        return [_at_address(world, kind, path, int(function))]
    name, plus, digits = function.rpartition("+")
    offset = 0
    if plus and digits.isdecimal():
        function, offset = name, int(digits)
    try:
        elf = open_elf(path)
    except ElfError:
        if is_wild(path) or not world.target.unsafe:
            return []
        raise
    symbols: Iterable[Symbol]
    if language == "cpp":
        symbols = _demangled(elf, function)
    elif is_wild(function):
        matches = matcher(function)
        symbols = (symbol for symbol in elf.symbols if matches(symbol.name))
    else:
        symbols = elf.named(function)
    if is_wild(function) or language:
        symbols = (symbol for symbol in symbols if symbol.size or world.target.unsafe)
    return [_at_symbol(world, kind, path, language, symbol, offset) for symbol in symbols]


def _demangled(elf: Elf, pattern: str) -> Iterable[Symbol]:
    """C++ functions by readable name; parameters count only when the pattern has any. Plain symbols match too."""
    from bpfseal.runtime import demangle

    if not demangle.available():
        raise ProbeError("C++ names need the C++ runtime library (libstdc++.so.6)", hint="give the mangled name")
    matches, whole = matcher(pattern), "(" in pattern
    for symbol in elf.symbols:
        readable = demangle.demangle(symbol.name)
        if readable is not None and not whole:
            readable = demangle.without_parameters(readable)
        if matches(symbol.name) or (readable is not None and matches(readable)):
            yield symbol


def _at_symbol(world: World, kind: str, path: str, language: str, symbol: Symbol, offset: int) -> Point:
    from bpfseal.dsl.env import Point

    if not symbol.size and not offset and not world.target.unsafe:
        raise ProbeError(
            f"Could not determine boundary for {symbol.name} (symbol has size 0)",
            hint="--unsafe puts the probe there all the same; that can crash the traced program",
        )
    if offset and offset >= symbol.size:
        raise ProbeError(f"Offset outside the function bounds ('{symbol.name}' size is {symbol.size})")
    if offset:
        _check_boundary(world, path, symbol, offset)
    middle = f":{language}" if language else ""
    name = f"{kind}:{path}{middle}:{symbol.name}" + (f"+{offset}" if offset else "")
    params: list[tuple[str, str | int]] = [("address", symbol.address + offset)]
    if offset:
        params.append(("offset", offset))
    if language:
        params.append(("lang", language))
    return Point(kind, name, path, symbol.name, number=symbol.offset + offset, params=tuple(params))


def _at_address(world: World, kind: str, path: str, address: int) -> Point:
    """A virtual address as `nm` and debuggers show it; in a file that is no ELF file, with --unsafe, an offset."""
    from bpfseal.dsl.env import Point

    offset: int | None = address
    try:
        elf = open_elf(path)
        offset = elf.to_offset(address)
        symbol = elf.function_at(address)
    except ElfError:
        symbol = None
        if not world.target.unsafe:
            raise
    if offset is None:
        raise ProbeError(f"Could not resolve address: {path}:{address:#x} is not in the file")
    if symbol is not None and kind == "uretprobe" and symbol.address != address:
        raise ProbeError(f"a uretprobe must stand at the start of a function, {address:#x} is inside {symbol.name}")
    if symbol is not None and symbol.address != address:
        _check_boundary(world, path, symbol, address - symbol.address)
    elif symbol is None and not world.target.unsafe:
        raise ProbeError(
            f"Could not resolve address: {path}:{address:#x} is in no function that is known",
            hint="--unsafe puts it there all the same; in the middle of an instruction it crashes the program",
        )
    return Point(kind, f"{kind}:{path}:{address}", path, number=offset, params=(("address", address),))


def _check_boundary(world: World, path: str, symbol: Symbol, offset: int) -> None:
    """A probe in the middle of an instruction breaks the program. Raises ProbeError unless it cannot be there."""
    from bpfseal.runtime.instructions import boundary

    elf = open_elf(path)
    code = elf.read(symbol.offset, offset + 16)
    fits = boundary(elf.machine, code, offset)
    if fits or world.target.unsafe:
        return
    where = f"{path}:{symbol.name}+{offset}"
    reason = "is in the middle of an instruction" if fits is False else "may be in the middle of an instruction"
    raise ProbeError(f"{where} {reason}", hint="--unsafe puts it there all the same; that can crash the program")


def _at_source_line(spec: AttachSpec, path: str, rest: Sequence[str]) -> Sequence[Point]:
    from bpfseal.dsl.env import Point
    from bpfseal.runtime.dwarf import Dwarf

    file, line, column = rest[0], int(rest[1]), int(rest[2]) if len(rest) > 2 else 0
    elf = open_elf(path)
    address = Dwarf(elf).line_address(file, line, column)
    offset = elf.to_offset(address)
    if offset is None:
        raise ProbeError(f"{file}:{line} is not in the code of {path}")
    return [Point(spec.kind, f"{spec.kind}:{path}:{address}", path, number=offset, params=(("address", address),))]


def _args(world: World, point: Point) -> Args:
    if not point.function or any(key == "offset" for key, _ in point.params):
        return registers()
    try:
        elf = open_elf(point.module)
        from bpfseal.runtime.dwarf import has_debug_info

        if not has_debug_info(elf):
            return registers()
        return world.debug_info(elf).arguments(point)
    except BpfsealError:
        return registers()


def _names(world: World, kind: str, pattern: str) -> Iterable[str]:
    path, _, _ = pattern.rpartition(":")
    path = path.partition(":")[0]
    paths = mapped_files(world.target.pid) if path in ("", "*") else resolve(path, world.target.pid)
    if path and not is_wild(path):
        paths = paths[:1]
    for file in sorted(paths):
        for name in dict.fromkeys(symbol.name for symbol in open_elf(file).symbols):
            yield f"{file}:{name}"


def _describe(world: World, kind: str, name: str) -> Iterable[str]:
    path, _, function = name.partition(":")
    from bpfseal.runtime.dwarf import has_debug_info

    elf = open_elf(path)
    if not has_debug_info(elf):
        return []
    return world.debug_info(elf).describe(function)


PROVIDER = Provider(_expand, _args, _names, _describe)
