"""begin, end, self, test and bench: probes that the tracer itself fires."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from bpfseal.runtime.probes import Provider, nothing
from bpfseal.runtime.probes.world import World

if TYPE_CHECKING:
    from bpfseal.dsl.env import Args, AttachSpec, Point

SIGNALS = ("SIGUSR1",)


def _expand(world: World, spec: AttachSpec) -> Sequence[Point]:
    from bpfseal.dsl.env import Point

    if spec.kind == "self":
        name = spec.parts[1]
        number = getattr(signal, name, None) if name in SIGNALS else None
        return [Point("self", f"self:signal:{name}", "", name, "signal", int(number))] if number is not None else []
    if spec.kind in ("test", "bench"):
        return [Point(spec.kind, f"{spec.kind}:{spec.parts[0]}", function=spec.parts[0])]
    return [Point(spec.kind, spec.kind)]


def _args(world: World, point: Point) -> Args:
    return nothing()


def _names(world: World, kind: str, pattern: str) -> Iterable[str]:
    return [f"signal:{name}" for name in SIGNALS] if kind == "self" else []


PROVIDER = Provider(_expand, _args, _names)
