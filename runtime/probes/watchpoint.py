"""watchpoint: hardware breakpoints on data. What the CPU can do: x86 knows w, rw and x, arm64 also r."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from bpfseal.runtime.probes import ProbeError, Provider, registers
from bpfseal.runtime.probes.world import World

if TYPE_CHECKING:
    from bpfseal.dsl.env import Args, AttachSpec, Point

_MODES: Final = {"x86_64": ("rw", "w", "x"), "aarch64": ("r", "rw", "w", "x")}
_BITS: Final = {"r": 1, "w": 2, "x": 4}  # HW_BREAKPOINT_R, _W, _X


def _expand(world: World, spec: AttachSpec) -> Sequence[Point]:
    from bpfseal.dsl.env import Point

    address, length, mode = int(spec.parts[0]), int(spec.parts[1]), "".join(sorted(spec.parts[2]))
    allowed = _MODES.get(os.uname().machine, ("rw", "w", "x"))
    if mode not in allowed:
        raise ProbeError(f"this CPU has no watchpoints of mode '{mode}'", hint="modes: " + ", ".join(allowed))
    if mode != "x" and address % length:
        raise ProbeError(f"a watchpoint of {length} bytes must stand at a multiple of {length}, {address:#x} is none")
    params = (("length", length), ("mode", sum(_BITS[letter] for letter in mode)))
    return [Point(spec.kind, f"watchpoint:{address}:{length}:{mode}", number=address, params=params)]


def _args(world: World, point: Point) -> Args:
    return registers()


def _names(world: World, kind: str, pattern: str) -> Iterable[str]:
    return ()


PROVIDER = Provider(_expand, _args, _names)
