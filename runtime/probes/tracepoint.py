"""tracepoint: events of tracefs, their arguments from the format files.

System call tracepoints are special: they are all the same two raw tracepoints, so the compiler can serve any number of
them by one program. Their arguments are then registers, and what the format file says is only the types.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from bpfseal.runtime.probes import Provider, is_wild, matcher
from bpfseal.runtime.probes.world import World

if TYPE_CHECKING:
    from bpfseal.dsl.env import Args, AttachSpec, Point
    from bpfseal.dsl.types import Type
    from bpfseal.runtime.event_format import EventField

SYSCALL_NUMBER: Final = 6  # the "argument" that stands for the system call's number
_ENTER, _EXIT = "sys_enter_", "sys_exit_"


def _expand(world: World, spec: AttachSpec) -> Sequence[Point]:
    category, event = spec.parts
    if not is_wild(category) and not is_wild(event):
        # One file is quicker to look for than the whole list is to read.
        return [_point(world, category, event)] if world.tracefs.event_id(category, event) is not None else []
    in_category, in_event = matcher(category), matcher(event)
    return [_point(world, c, e) for c, e in world.events if in_category(c) and in_event(e)]


def _point(world: World, category: str, event: str) -> Point:
    from bpfseal.dsl.env import Point

    params: tuple[tuple[str, str | int], ...] = ()
    if category == "syscalls":
        number = _number(event)
        params = (("nr", number),) if number is not None else ()
    elif world.types is not None and world.types.find("t", f"btf_trace_{event}"):
        params = (("btf", f"btf_trace_{event}"),)
    return Point("tracepoint", f"tracepoint:{category}:{event}", function=event, category=category, params=params)


def _number(event: str) -> int | None:
    from bpfseal.signer.syscall_names import numbers

    for prefix in (_ENTER, _EXIT):
        if event.startswith(prefix):
            return numbers().get(event.removeprefix(prefix))
    return None


def _args(world: World, point: Point) -> Args:
    from bpfseal.dsl.env import Args
    from bpfseal.dsl.types import Field, RecordInfo
    from bpfseal.runtime.event_format import parse

    text = world.tracefs.event_format(point.category, point.function)
    fields = parse(text) if text is not None else ()
    if any(key == "nr" for key, _ in point.params):
        return _syscall_args(world, point, fields)
    size = max((field.offset + field.size for field in fields), default=0)
    converted = tuple(
        Field(
            field.name,
            field_type(world, field, "kernel"),
            field.offset,
            data_loc=field.data_loc,
            relative=field.relative,
        )
        for field in fields
    )
    return Args(RecordInfo("args", size, converted), "ctx")


def _syscall_args(world: World, point: Point, fields: Sequence[EventField]) -> Args:
    """Fields by their number among the arguments. The format's common fields do not exist here."""
    from bpfseal.dsl.env import Args
    from bpfseal.dsl.types import Field, Int, RecordInfo

    own = [field for field in fields if not field.common]
    found = [Field("__syscall_nr", Int(32), argument=SYSCALL_NUMBER)]
    arguments = [field for field in own if field.name not in ("__syscall_nr", "nr") or field.offset > 8]
    enter = point.function.startswith(_ENTER)
    for number, field in enumerate(arguments[: 6 if enter else 1]):
        found.append(Field(field.name, field_type(world, field, "user"), 8 * number, argument=number))
    return Args(RecordInfo("args", 48, tuple(found)), "syscall" if enter else "syscall_exit")


def field_type(world: World, field: EventField, space: str) -> Type:
    """Type of a field by what its author wrote, of the size that the compiler of the kernel gave it.

    Pointers are to the address space `space`. Names that BTF does not know count as integers of the size.
    """
    from bpfseal.dsl.types import Bool, Enum, Int, Ptr, Record, Void, size_of

    if field.data_loc:
        return Int(64, True, space="kernel")  # the address of the data
    base = world.types.type_named(field.type) if world.types is not None else None
    if base is None and field.type.rstrip().endswith("*"):
        base = Ptr(None)
    if isinstance(base, Ptr):
        base = Ptr(base.to, space)
    if field.elements >= 0:
        return _array_type(field, base)
    if base is None or isinstance(base, Void):
        return _sized(field.size, field.signed)
    if isinstance(base, Int):
        return _sized(field.size, field.signed)
    if isinstance(base, Enum) and field.size in (1, 2, 4, 8):
        return Enum(base.name, field.size * 8, field.signed)
    if isinstance(base, Bool | Ptr | Record) and size_of(base) == field.size:
        return base
    return _sized(field.size, field.signed)


def _array_type(field: EventField, base: Type | None) -> Type:
    from bpfseal.dsl.types import Array, Int, Str, Void, size_of

    if field.type == "char":
        return Str(field.elements or field.size)
    if base is None or isinstance(base, Void) or not size_of(base):
        # The bounds tell the size of an element of a type that we do not know.
        width = field.size // field.elements if field.elements else 0
        base = _sized(width, field.signed) if width and width * field.elements == field.size else Int(8, False)
    return Array(base, field.elements or field.size // size_of(base))


def _sized(size: int, signed: bool) -> Type:
    from bpfseal.dsl.types import Array, Int

    return Int(size * 8, signed) if size in (1, 2, 4, 8) else Array(Int(8, False), size)


def _names(world: World, kind: str, pattern: str) -> Iterable[str]:
    return [f"{category}:{event}" for category, event in world.events]


def _describe(world: World, kind: str, name: str) -> Iterable[str]:
    from bpfseal.runtime.event_format import parse

    category, _, event = name.partition(":")
    text = world.tracefs.event_format(category, event) or ""
    return [field.text for field in parse(text) if not field.common]


PROVIDER = Provider(_expand, _args, _names, _describe)
