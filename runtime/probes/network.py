"""xdp and tc: packets of one network interface."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from bpfseal.runtime.probes import Provider, nothing, select
from bpfseal.runtime.probes.world import World

if TYPE_CHECKING:
    from bpfseal.dsl.env import Args, AttachSpec, Point


def _interfaces() -> list[str]:
    import socket

    return sorted(name for _, name in socket.if_nameindex())


def _expand(world: World, spec: AttachSpec) -> Sequence[Point]:
    from bpfseal.dsl.env import Point

    found = []
    for interface in select(spec.parts[0], _interfaces()):
        if spec.kind == "xdp":
            found.append(Point("xdp", f"xdp:{interface}", function=interface))
        else:
            params = (("egress", int(spec.parts[1] == "egress")),)
            found.append(Point("tc", f"tc:{interface}:{spec.parts[1]}", function=interface, params=params))
    return found


def _args(world: World, point: Point) -> Args:
    return nothing()


def _names(world: World, kind: str, pattern: str) -> Iterable[str]:
    names = _interfaces()
    return names if kind == "xdp" else [f"{name}:{way}" for name in names for way in ("egress", "ingress")]


PROVIDER = Provider(_expand, _args, _names)
