"""Start-up: an empty one-liner, compiled anew and from the cache, with and without a private helper."""

from __future__ import annotations

from measure import OURS, Section, in_turn, reference, rounds, run, times

PROGRAM = "BEGIN { exit(); }"


def section() -> Section:
    other = reference()
    there = (lambda: run([*other, "-q", "-e", PROGRAM])) if other else None
    run([*OURS, "-q", "-e", PROGRAM])  # fills the cache
    rows = []
    for what, flags, goal in (
        ("warm (compiled before), private helper", [], "0.8"),
        ("warm, no signature (--signing=off)", ["--signing=off"], "0.3"),
        ("cold (--no-cache), no signature", ["--no-cache", "--signing=off"], "0.6"),
        ("cold, private helper", ["--no-cache"], "0.8"),
    ):
        a, b = in_turn(lambda flags=flags: run([*OURS, "-q", *flags, "-e", PROGRAM]), there, rounds(5))
        rows += times(what, a, b, goal)
    return Section(
        "Start-up",
        "`BEGIN { exit(); }` from exec to exit. Memory is the largest process's; CPU includes the private helper's.",
        rows,
    )
