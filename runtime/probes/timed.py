"""interval and profile: the CPU clock, on one CPU or on all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from bpfseal.runtime.probes import ProbeError, Provider, registers
from bpfseal.runtime.probes.world import World

if TYPE_CHECKING:
    from bpfseal.dsl.env import Args, AttachSpec, Point

_NANOSECONDS: Final = {"us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
_LONGEST: Final = (1 << 63) - 1


def _expand(world: World, spec: AttachSpec) -> Sequence[Point]:
    from bpfseal.dsl.env import Point

    if len(spec.parts) != 2:
        return []
    unit, number = spec.parts[0], int(spec.parts[1])
    rate: tuple[str, str | int] = ("frequency", number)
    if unit != "hz":
        rate = ("period", number * _NANOSECONDS[unit])
        if number * _NANOSECONDS[unit] > _LONGEST:
            raise ProbeError(f"{spec.text}: the period is longer than 292 years")
    elif number > 1_000_000_000:
        raise ProbeError(f"{spec.text}: no clock ticks that often")
    return [Point(spec.kind, f"{spec.kind}:{unit}:{number}", number=number, params=(("unit", unit), rate))]


def _args(world: World, point: Point) -> Args:
    return registers()


def _names(world: World, kind: str, pattern: str) -> Iterable[str]:
    return [f"{unit}:" for unit in ("hz", "ms", "s", "us")]


PROVIDER = Provider(_expand, _args, _names)
