"""lsm: security hooks, observed or decided by programs (BPF LSM)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from bpfseal.runtime.probes import AbsentError, Provider, select
from bpfseal.runtime.probes.fentry import typed_arguments
from bpfseal.runtime.probes.world import World

if TYPE_CHECKING:
    from bpfseal.dsl.env import Args, AttachSpec, Point

_PREFIX = "bpf_lsm_"
_ACTIVE = "/sys/kernel/security/lsm"


def _hooks(world: World) -> list[str]:
    """Hooks are the members of union security_list_options; the function bpf_lsm_HOOK is where programs go."""
    options = world.types.record("union security_list_options") if world.types is not None else None
    if options is None or world.types is None:
        return []
    names = {field.name for field in options.fields if field.name != "lsm_func_addr"}
    return sorted(name for name in names if world.types.find("f", _PREFIX + name))


def _expand(world: World, spec: AttachSpec) -> Sequence[Point]:
    from bpfseal.dsl.env import Point

    if world.types is None:
        raise AbsentError("lsm needs the kernel's BTF")
    found = [Point("lsm", f"lsm:{hook}", "vmlinux", hook) for hook in select(spec.parts[0], _hooks(world))]
    if found and not active():
        raise AbsentError(
            "the kernel runs without the BPF security module, lsm probes would never fire",
            hint="add bpf to the lsm= boot parameter",
        )
    return found


def active() -> bool:
    """Whether "bpf" is among the active security modules; true where securityfs does not tell."""
    try:
        with open(_ACTIVE) as file:
            return "bpf" in file.read().strip().split(",")
    except OSError:
        return True


def _args(world: World, point: Point) -> Args:
    from bpfseal.dsl.env import Args
    from bpfseal.dsl.types import RecordInfo

    proto = world.types.prototype(_PREFIX + point.function) if world.types is not None else None
    if proto is None:
        return Args(None, "argument")
    fields, slots = typed_arguments((param.name, param.type) for param in proto.params)
    return Args(RecordInfo("args", 8 * slots, fields), "argument", proto.returns, {"arguments": slots})


def _names(world: World, kind: str, pattern: str) -> Iterable[str]:
    return _hooks(world)


def _describe(world: World, kind: str, name: str) -> Iterable[str]:
    proto = world.types.prototype(_PREFIX + name) if world.types is not None else None
    if proto is None or world.types is None:
        return []
    return [world.types.spell(param.id, param.name) for param in proto.params]


PROVIDER = Provider(_expand, _args, _names, _describe)
