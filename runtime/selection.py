"""Which of a script's probes are used: those of the mode, those that --probe-filter names."""

from __future__ import annotations

import re

from msgspec.structs import replace

from bpfseal.dsl.typed import Probe, TypedScript
from bpfseal.errors import BpfsealError, UsageError

TRIALS = ("test", "bench")


def chosen(script: TypedScript, mode: str, filter: str) -> TypedScript:
    """The script with the probes that `mode` ("", "test", "bench") runs, and of their points those whose names the
    regular expression `filter` finds something in; begin and end always stay. Raises BpfsealError when that leaves
    nothing although there was something."""

    def wanted(kind: str) -> bool:
        return kind in ("begin", "end", mode) if mode in TRIALS else kind not in TRIALS

    kept = tuple(probe for probe in script.probes if wanted(probe.points[0].kind))
    if not kept:
        left_out = {probe.points[0].kind for probe in script.probes}
        flags = " or ".join(f"--{trial} to run {trial} probes" for trial in TRIALS if trial in left_out)
        raise BpfsealError("No probes attached" + (f"; use {flags}." if flags else "."))
    if filter:
        kept = _filtered(kept, filter)
    return script if kept == script.probes else replace(script, probes=kept)


def _filtered(probes: tuple[Probe, ...], filter: str) -> tuple[Probe, ...]:
    try:
        search = re.compile(filter).search
    except re.error as error:
        raise UsageError(f"Invalid --probe-filter regex: {error}") from None
    kept = []
    for probe in probes:
        points = tuple(p for p in probe.points if p.kind in ("begin", "end") or search(p.name))
        if points:
            kept.append(probe if points == probe.points else replace(probe, points=points))
    if not kept:
        raise BpfsealError("--probe-filter matches the name of no probe\nNo probes to attach")
    return tuple(kept)
