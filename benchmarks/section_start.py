"""Start-up: an empty one-liner, compiled anew and from the cache, with the system's helper, a private one, and none."""

from __future__ import annotations

from measure import OURS, Section, in_turn, reference, rounds, run, system_helper, times

PROGRAM = "BEGIN { exit(); }"


def section() -> Section:
    other = reference()
    there = (lambda: run([*other, "-q", "-e", PROGRAM])) if other else None
    run([*OURS, "-q", "-e", PROGRAM])  # fills the cache
    rows = []
    with system_helper() as socket:
        for what, flags, helper, goal in (
            ("warm (compiled before), system helper", [], True, "0.3"),
            ("cold (--no-cache), system helper", ["--no-cache"], True, "0.6"),
            ("warm, private helper", [], False, "0.8"),
            ("cold, private helper", ["--no-cache"], False, "0.8"),
            ("warm, no signature (--signing=off)", ["--signing=off"], False, "0.3"),
            ("cold, no signature", ["--no-cache", "--signing=off"], False, "0.6"),
        ):
            # A socket that is not there stands for a machine without a helper, whatever runs on this one.
            env = {"BPFSEAL_SOCKET": socket if helper else socket + ".none"}
            a, b = in_turn(
                lambda flags=flags, env=env: run([*OURS, "-q", *flags, "-e", PROGRAM], env=env), there, rounds(11)
            )
            assert not any(r.status for r in a), a[0].err
            rows += times(what, a, b, goal, "0.6")
    return Section(
        "Start-up",
        "`BEGIN { exit(); }` from exec to exit. Memory is the largest process's; CPU includes the private helper's.",
        rows,
    )
