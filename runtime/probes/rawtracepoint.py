"""rawtracepoint: tracepoints with the arguments that the kernel calls them with, typed by BTF."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from bpfseal.runtime.probes import AbsentError, Provider, is_wild, matcher
from bpfseal.runtime.probes.world import World

if TYPE_CHECKING:
    from bpfseal.dsl.env import Args, AttachSpec, Point
    from bpfseal.dsl.types import Type

_PREFIX: Final = "btf_trace_"


def _expand(world: World, spec: AttachSpec) -> Sequence[Point]:
    if world.types is None:
        raise AbsentError("rawtracepoint needs the kernel's BTF", hint="a tracepoint does without")
    module, event = spec.parts if len(spec.parts) == 2 else ("*", spec.parts[0])
    if not is_wild(event):
        modules = ["vmlinux", *world.types.modules()] if is_wild(module) else [module]
        in_module = matcher(module)
        return [_point(m, event) for m in modules if in_module(m) and _own(world, m, event)][:1]
    in_event, in_module = matcher(event), matcher(module)
    return [_point(m, e) for m, e in _all(world) if in_module(m) and in_event(e)]


def _point(module: str, event: str) -> Point:
    from bpfseal.dsl.env import Point

    name = f"rawtracepoint:{module}:{event}"
    return Point("rawtracepoint", name, module=module, function=event, params=(("btf", _PREFIX + event),))


def _own(world: World, module: str, event: str) -> bool:
    """Whether the module itself has the tracepoint: its BTF builds on the kernel's, where it would be found too."""
    assert world.types is not None
    proto = world.types.tracepoint(event, module)
    base = world.types.btf()
    return proto is not None and base is not None and (module == "vmlinux") == (proto.id < len(base))


def _all(world: World) -> list[tuple[str, str]]:
    """(module, event), sorted."""
    names = world.names
    if names is None:
        return []
    # Nothing but the types of tracepoints begins with that.
    return [(module, name) for module in names.modules() for name in names.typedefs_behind(module, _PREFIX)]


def _args(world: World, point: Point) -> Args:
    from bpfseal.dsl.env import Args
    from bpfseal.dsl.types import Field, RecordInfo

    proto = world.types.tracepoint(point.function, point.module) if world.types is not None else None
    if proto is None:
        return Args(None, "argument")
    fields = tuple(
        Field(param.name, trusted(param.type), 8 * number, argument=number) for number, param in enumerate(proto.params)
    )
    return Args(RecordInfo("args", 8 * len(fields), fields), "argument")


def trusted(type: Type) -> Type:
    """Arguments of typed programs: pointers to records that the verifier knows load directly, others are numbers to
    it (btf_ctx_access, kernel/bpf/btf.c)."""
    from bpfseal.dsl.types import Ptr, Record

    if isinstance(type, Ptr) and type.space == "none":
        known = isinstance(type.to, Record) and type.to.size > 0
        return Ptr(type.to, "btf" if known else "kernel")
    return type


def _names(world: World, kind: str, pattern: str) -> Iterable[str]:
    return [f"{module}:{event}" for module, event in _all(world)]


def _describe(world: World, kind: str, name: str) -> Iterable[str]:
    module, _, event = name.partition(":")
    proto = world.types.tracepoint(event, module) if world.types is not None else None
    if proto is None or world.types is None:
        return []
    return [world.types.spell(param.id, param.name, module) for param in proto.params]


PROVIDER = Provider(_expand, _args, _names, _describe)
