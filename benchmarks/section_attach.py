"""Attaching and detaching many points."""

from __future__ import annotations

from measure import OURS, Section, in_turn, reference, rounds, run, times

PROBES = "tracepoint:syscalls:sys_enter_*"


def section() -> Section:
    other = reference()
    program = PROBES + " { @[probe] = count(); } interval:ms:1 { exit(); }"
    run([*OURS, "-q", "-e", program])
    a, b = in_turn(
        lambda: run([*OURS, "-q", "-e", program]),
        (lambda: run([*other, "-q", "-e", program])) if other else None,
        rounds(1),
    )
    return Section(
        "Attach and detach",
        f"`{PROBES}` counted by probe, for one millisecond; ours with the compilation in the cache.",
        times(PROBES, a, b, "0.05"),
    )
