"""kprobe and kretprobe: any instruction, or the return, of a kernel function."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from bpfseal.runtime.probes import AbsentError, Provider, is_wild, matcher, registers
from bpfseal.runtime.probes.functions import listed_by_file, safe
from bpfseal.runtime.probes.world import World

if TYPE_CHECKING:
    from bpfseal.dsl.env import Args, AttachSpec, Point
    from bpfseal.dsl.types import Field, Type

PMU = "/sys/bus/event_source/devices/kprobe"
UNLISTED = ("unlisted", 1)
_REGISTERS = 6  # integer arguments that x86-64 passes in registers; arm64 has 8


def _expand(world: World, spec: AttachSpec) -> Sequence[Point]:
    from bpfseal.dsl.env import Point

    module, function = spec.parts if len(spec.parts) == 2 else ("", spec.parts[0])
    if (address := _address(function)) is not None:
        where = f"{module}:" if module else ""
        return [Point(spec.kind, f"{spec.kind}:{where}{address}", _plain(module), number=address)]
    name, plus, digits = function.partition("+")
    offset = int(digits) if plus else 0
    if module and not is_wild(module) and module != "vmlinux" and module not in world.functions.modules():
        raise AbsentError(f"specified module {module} in probe {spec.kind}:{module}:{name} is not loaded.")
    if not is_wild(module) and not is_wild(name):
        found = safe(name) and _exists(world, name, module)
        if found:
            return [_point(spec.kind, module, name, offset)]
        return [replace(_point(spec.kind, module, name, offset), params=(UNLISTED,))] if world.target.unsafe else []
    in_module, in_function = matcher(module or "*"), matcher(name)
    pairs = {
        (owner or "vmlinux" if module else "", function)
        for owner, functions in world.functions.traceable.items()
        if in_module(owner or "vmlinux")
        for function in filter(in_function, functions)
    }
    return [_point(spec.kind, owner, function, offset) for owner, function in sorted(pairs)]


def _address(text: str) -> int | None:
    from bpfseal.dsl.parse_literals import LiteralError, decode_integer

    try:
        return decode_integer(text)
    except LiteralError:
        return None


def _plain(module: str) -> str:
    return "" if module == "vmlinux" else module


def _point(kind: str, module: str, function: str, offset: int) -> Point:
    """`module` as written or found, "" when it was not asked for."""
    from bpfseal.dsl.env import Point

    where = f"{module}:" if module else ""
    name = f"{kind}:{where}{function}" + (f"+{offset}" if offset else "")
    # kprobe_multi takes names without a module: only where none was asked for
    params: tuple[tuple[str, str | int], ...] = (("multi", 1),) if not module and not offset else ()
    return Point(kind, name, _plain(module), function, number=offset, params=params)


def _exists(world: World, function: str, module: str) -> bool:
    """BTF answers in microseconds; what it does not know (assembly, modules) the symbol table may."""
    types = world.types if not listed_by_file() else None
    if not module or module == "vmlinux":
        if types is not None and types.find("f", function):
            return True
        return world.functions.has(function, _plain(module) if module else None)
    return world.functions.has(function, module)


def _args(world: World, point: Point) -> Args:
    """By BTF, for those that arrive in registers."""
    from bpfseal.dsl.env import Args
    from bpfseal.dsl.types import Field, Record, RecordInfo, size_of

    if point.kind == "kretprobe" or not point.function or point.number or world.types is None:
        return registers()
    proto = world.types.prototype(point.function, point.module)
    if proto is None:
        return registers()
    fields: list[Field] = []
    at = 0
    for param in proto.params:
        slots = max((size_of(param.type) + 7) // 8, 1) if isinstance(param.type, Record) else 1
        if at < _REGISTERS and not isinstance(param.type, Record):
            fields.append(Field(param.name, _kernel(param.type), 8 * at, argument=at))
        at += slots if slots <= 2 else 0  # larger records are on the stack
    return Args(RecordInfo("args", 8 * at, tuple(fields)), "registers")


def _kernel(type: Type) -> Type:
    from bpfseal.dsl.types import Int, Ptr, size_of

    if isinstance(type, Ptr) and type.space == "none":
        return Ptr(type.to, "kernel")
    return type if size_of(type) else Int(64, False)


def _names(world: World, kind: str, pattern: str) -> Iterable[str]:
    if not os.path.exists(PMU):
        return []  # nothing can be attached, whatever functions there are
    if ":" not in pattern:
        return sorted(world.functions.names)
    owners = sorted((owner or "vmlinux", functions) for owner, functions in world.functions.traceable.items())
    return (f"{owner}:{function}" for owner, functions in owners for function in sorted(functions))


def _describe(world: World, kind: str, name: str) -> Iterable[str]:
    module, _, function = name.rpartition(":")
    proto = world.types.prototype(function, module) if world.types is not None else None
    if proto is None or world.types is None:
        return []
    if kind == "kretprobe":
        return [world.types.spell(proto.return_id, "retval", module)] if proto.return_id else []
    return [world.types.spell(param.id, param.name, module) for param in proto.params]


PROVIDER = Provider(_expand, _args, _names, _describe)
