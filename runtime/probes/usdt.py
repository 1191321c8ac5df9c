"""usdt: static probes of user programs (systemtap's sys/sdt.h), found through their notes.

A probe may stand at several places, since the compiler inlines; each place is a Point of its own, with its own
locations of the arguments. `Args.extra["argN"]` says where argument N is, in words:

    u8 const -5              eight bytes; s, u before the size say whether it is signed
    s4 reg 80                low four bytes of the register at that offset of struct pt_regs
    u1 reg 80 8              the same, shifted right by 8 bits first (%ah)
    s4 mem 32 -20            memory at register + displacement
    s4 mem 32 -20 96 8       memory at register + displacement + index register * scale

Arguments that are elsewhere (vector registers) are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from bpfseal.runtime.elf import Elf, ElfError, Note
from bpfseal.runtime.probes import AbsentError, ProbeError, Provider, is_wild, matcher
from bpfseal.runtime.probes.binaries import mapped_files, open_elf, resolve
from bpfseal.runtime.probes.world import World

if TYPE_CHECKING:
    from bpfseal.dsl.env import Args, AttachSpec, Point

# fmt: off
_X86_LONG: Final = ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")
_X86: Final = (
    {f"r{name}": (name, 8, 0) for name in _X86_LONG} | {f"e{name}": (name, 4, 0) for name in _X86_LONG}
    | {name: (name, 2, 0) for name in _X86_LONG}
    | {f"{name[0]}l": (name, 1, 0) for name in _X86_LONG[:4]} | {f"{name[0]}h": (name, 1, 8) for name in _X86_LONG[:4]}
    | {f"{name}l": (name, 1, 0) for name in _X86_LONG[4:]}
    | {f"r{n}{suffix}": (f"r{n}", size, 0) for n in range(8, 16)
       for suffix, size in (("", 8), ("d", 4), ("w", 2), ("b", 1), ("l", 1))}
    | {"rip": ("ip", 8, 0), "eip": ("ip", 4, 0)}
)
# fmt: on
_NUMBER = r"[+-]?(?:0x[0-9a-fA-F]+|\d+)"
_TYPED: Final = re.compile(r"(?:(-?\d+)(f?)@)?(.*)", re.DOTALL)
_X86_MEMORY: Final = re.compile(
    r"(?P<disp>" + _NUMBER + r"|[A-Za-z_.$][\w.$@]*(?:[+-]\d+)?|)(?P<more>[+-]\d+)?"
    r"\((?:%(?P<base>\w+))?(?:,%(?P<index>\w+)(?:,(?P<scale>\d+))?)?\)"
)
_ARM_MEMORY: Final = re.compile(
    r"\[\s*(?P<base>\w+)\s*(?:,\s*(?:#?(?P<disp>" + _NUMBER + r")|(?P<index>\w+)(?:,\s*lsl #?(?P<shift>\d+))?))?\s*\]"
)


def _expand(world: World, spec: AttachSpec) -> Sequence[Point]:
    path, rest = spec.parts[0], spec.parts[1:]
    provider, name = rest if len(rest) == 2 else ("", rest[0])
    in_provider, in_name = matcher(provider or "*"), matcher(name)
    points: list[Point] = []
    files = _files(world, path)
    for file in files:
        for location, note in _notes(file):
            if in_provider(note.provider) and in_name(note.name):
                points += _point(file, location, note)
    if not points and len(files) == 1 and not is_wild(path) and not _notes(files[0]):
        raise ProbeError(f"{files[0]} has no USDT probes", hint="readelf -n shows them as .note.stapsdt")
    return points


def _files(world: World, path: str) -> list[str]:
    """A process without a path stands for its program and its libraries."""
    pid = world.target.pid
    if not path or path == "*":
        return mapped_files(pid)
    files = resolve(path, pid)
    if not files:
        raise AbsentError(f"usdt target file '{path}' does not exist or is not executable")
    return files if is_wild(path) else files[:1]


def _notes(path: str) -> list[tuple[int, Note]]:
    """(index among the places of the same probe, note), in the file's order."""
    try:
        notes = open_elf(path).usdt
    except ElfError:
        return []
    seen: dict[tuple[str, str], int] = {}
    found = []
    for note in notes:
        key = (note.provider, note.name)
        found.append((seen.get(key, 0), note))
        seen[key] = seen.get(key, 0) + 1
    return found


def _point(path: str, location: int, note: Note) -> list[Point]:
    from bpfseal.dsl.env import Point

    elf = open_elf(path)
    offset = elf.to_offset(note.address)
    if offset is None:
        return []
    semaphore = _semaphore(elf, note.semaphore)
    params = (("semaphore", semaphore), ("location", location))
    name = f"usdt:{path}:{note.provider}:{note.name}"
    return [Point("usdt", name, path, note.name, note.provider, offset, params)]


def _semaphore(elf: Elf, address: int) -> int:
    """Where in the file the counter is: the kernel counts it up in every process that maps it."""
    return (elf.to_offset(address) or 0) if address else 0


def _args(world: World, point: Point) -> Args:
    from bpfseal.dsl.env import Args

    location = dict(point.params)["location"]
    for number, note in _notes(point.module):
        if (note.provider, note.name, number) == (point.category, point.function, location):
            return Args(None, "usdt", extra=dict(arguments(open_elf(point.module), note)))
    return Args(None, "usdt")


def arguments(elf: Elf, note: Note) -> Iterable[tuple[str, str | int]]:
    """("argN", location) of a probe's arguments that can be read."""
    for number, text in enumerate(split(note.arguments)):
        where = location(elf, note, text)
        if where is not None:
            yield f"arg{number}", where


def split(text: str) -> list[str]:
    """Arguments are separated by spaces; on arm64 there are some inside of brackets too."""
    return re.findall(r"(?:\[[^\]]*\]|\S)+", text)


def location(elf: Elf, note: Note, text: str) -> str | None:
    """The location of one argument as its assembler operand tells, None when a program cannot read it."""
    match = _TYPED.fullmatch(text)
    if match is None or match[2]:
        return None
    size, operand = int(match[1] or 8), match[3]
    if abs(size) not in (1, 2, 4, 8):
        return None
    head = f"{'s' if size < 0 else 'u'}{abs(size)}"
    where = _x86(elf, note, operand) if elf.machine == 62 else _arm(operand) if elf.machine == 183 else None
    return f"{head} {where}" if where is not None else None


def _offset(register: str) -> int | None:
    from bpfseal.compiler.arch import registers

    return registers().names.get(register)


def _x86(elf: Elf, note: Note, operand: str) -> str | None:
    if re.fullmatch(r"\$" + _NUMBER, operand):
        return f"const {int(operand[1:], 0)}"
    if operand.startswith("%"):
        name, _, shift = _X86.get(operand[1:], ("", 0, 0))
        offset = _offset(name)
        return None if offset is None else f"reg {offset} {shift}" if shift else f"reg {offset}"
    match = _X86_MEMORY.fullmatch(operand)
    if match is None:
        return None
    base = _offset(_X86.get(match["base"] or "", ("", 0, 0))[0])
    displacement = _displacement(elf, note, match["disp"], match["more"], match["base"] == "rip")
    if base is None or displacement is None:
        return None
    if match["index"] is None:
        return f"mem {base} {displacement}"
    index = _offset(_X86.get(match["index"], ("", 0, 0))[0])
    return f"mem {base} {displacement} {index} {match['scale'] or 1}" if index is not None else None


def _displacement(elf: Elf, note: Note, text: str, more: str | None, relative: bool) -> int | None:
    """A number, or a variable by name that is addressed from the probe's own place."""
    if not text:
        return 0
    if re.fullmatch(_NUMBER, text):
        return int(text, 0) + int(more or 0)
    if not relative:
        return None
    name, sign, digits = re.match(r"([^+-]*)([+-]?)(\d*)", text).groups()  # type: ignore[union-attr]
    symbol = elf.object_named(name.partition("@")[0])
    if symbol is None:
        return None
    extra = int(digits or 0) * (-1 if sign == "-" else 1) + int(more or 0)
    return symbol.address + extra - note.address


def _arm(operand: str) -> str | None:
    if re.fullmatch(_NUMBER, operand):
        return f"const {int(operand, 0)}"
    match = _ARM_MEMORY.fullmatch(operand)
    if match is None:
        offset = _arm_register(operand)
        return f"reg {offset}" if offset is not None else None
    base = _arm_register(match["base"])
    if base is None:
        return None
    if match["index"] is None:
        return f"mem {base} {int(match['disp'] or '0', 0)}"
    index = _arm_register(match["index"])
    return f"mem {base} 0 {index} {1 << int(match['shift'] or 0)}" if index is not None else None


def _arm_register(name: str) -> int | None:
    if re.fullmatch(r"[xw]\d+", name):
        return 8 * int(name[1:]) if int(name[1:]) < 31 else None
    return {"sp": 8 * 31, "wsp": 8 * 31}.get(name)


def _names(world: World, kind: str, pattern: str) -> Iterable[str]:
    path = pattern.partition(":")[0] if ":" in pattern else "*"
    for file in sorted(_files(world, path)):
        yield from sorted({f"{file}:{note.provider}:{note.name}" for _, note in _notes(file)})


PROVIDER = Provider(_expand, _args, _names)
