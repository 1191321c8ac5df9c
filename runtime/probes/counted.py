"""software and hardware: one sample every so many events of a kernel or CPU counter.

Numbers: enum perf_sw_ids and perf_hw_id (include/uapi/linux/perf_event.h). Default counts are the reference's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from bpfseal.runtime.probes import Provider, registers
from bpfseal.runtime.probes.world import World

if TYPE_CHECKING:
    from bpfseal.dsl.env import Args, AttachSpec, Point


class _Event(NamedTuple):
    name: str
    config: int
    default: int
    alias: str = ""


_SOFTWARE: Final = (
    _Event("alignment-faults", 7, 1),
    _Event("bpf-output", 10, 1),
    _Event("context-switches", 3, 1000, "cs"),
    _Event("cpu-clock", 0, 1_000_000, "cpu"),
    _Event("cpu-migrations", 4, 1),
    _Event("dummy", 9, 1),
    _Event("emulation-faults", 8, 1),
    _Event("major-faults", 6, 1),
    _Event("minor-faults", 5, 100),
    _Event("page-faults", 2, 100, "faults"),
    _Event("task-clock", 1, 1),
)
_HARDWARE: Final = (
    _Event("backend-stalls", 8, 1_000_000),
    _Event("branch-instructions", 4, 100_000, "branches"),
    _Event("branch-misses", 5, 100_000),
    _Event("bus-cycles", 6, 100_000),
    _Event("cache-misses", 3, 1_000_000),
    _Event("cache-references", 2, 1_000_000),
    _Event("cpu-cycles", 0, 1_000_000, "cycles"),
    _Event("frontend-stalls", 7, 1_000_000),
    _Event("instructions", 1, 1_000_000),
    _Event("ref-cycles", 9, 1_000_000),
)
_TYPES: Final = {"software": (1, _SOFTWARE), "hardware": (0, _HARDWARE)}


def _expand(world: World, spec: AttachSpec) -> Sequence[Point]:
    from bpfseal.dsl.env import Point

    type, events = _TYPES[spec.kind]
    wanted, written = spec.parts[0], int(spec.parts[1]) if len(spec.parts) > 1 else 0
    for event in events:
        if wanted and wanted in (event.name, event.alias):
            name = ":".join((spec.kind, wanted, *([str(written)] if written else [])))
            params = (("type", type), ("config", event.config))
            return [Point(spec.kind, name, function=event.name, number=written or event.default, params=params)]
    return []


def _args(world: World, point: Point) -> Args:
    return registers()


def names(kind: str) -> list[str]:
    """Every event of the kind by all its names, sorted, as listings show them."""
    return sorted(f"{name}:" for event in _TYPES[kind][1] for name in (event.name, event.alias) if name)


def _names(world: World, kind: str, pattern: str) -> Iterable[str]:
    return names(kind)


PROVIDER = Provider(_expand, _args, _names)
