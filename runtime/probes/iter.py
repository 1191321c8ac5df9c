"""iter: BPF iterators, which walk over objects of the kernel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from bpfseal.runtime.probes import AbsentError, Provider
from bpfseal.runtime.probes.world import World
from bpfseal.signer import btf as raw

if TYPE_CHECKING:
    from bpfseal.dsl.env import Args, AttachSpec, Point

_PREFIX = "bpf_iter_"
_CONTEXT = "bpf_iter__"  # struct with what one step of the iterator gives


def _expand(world: World, spec: AttachSpec) -> Sequence[Point]:
    from bpfseal.dsl.env import Point

    if world.types is None:
        raise AbsentError("iter needs the kernel's BTF")
    name = spec.parts[0]
    if not world.types.find("s", _CONTEXT + name) or not world.types.find("f", _PREFIX + name):
        return []
    params = (("pin", spec.parts[1]),) if len(spec.parts) > 1 else ()
    return [Point("iter", f"iter:{name}", "vmlinux", name, params=params)]


def _args(world: World, point: Point) -> Args:
    from bpfseal.dsl.env import Args

    record = world.types.record(f"struct {_CONTEXT}{point.function}") if world.types is not None else None
    return Args(record, "ctx")


def _names(world: World, kind: str, pattern: str) -> Iterable[str]:
    btf = world.types.btf() if world.types is not None else None
    if btf is None or world.types is None:
        return []
    names = (name.removeprefix(_CONTEXT) for name, _ in btf.all_named(raw.STRUCT) if name.startswith(_CONTEXT))
    return sorted(name for name in names if world.types.find("f", _PREFIX + name))


def _describe(world: World, kind: str, name: str) -> Iterable[str]:
    """What a step gives; the first parameter, `meta`, is the iterator's own."""
    proto = world.types.prototype(_PREFIX + name) if world.types is not None else None
    if proto is None or world.types is None:
        return []
    return [world.types.spell(param.id, param.name) for param in proto.params[1:]]


PROVIDER = Provider(_expand, _args, _names, _describe)
