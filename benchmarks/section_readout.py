"""Read-out: maps with many keys printed at the end."""

from __future__ import annotations

import tempfile
from pathlib import Path

from measure import OURS, Section, in_turn, reference, rounds, row, run
from section_events import flood, root_of


def section() -> Section:
    other = reference()
    base = root_of(other) if other else Path("/")
    rows = []
    with tempfile.TemporaryDirectory(dir=base / "tmp") as name:
        path = flood(Path(name))
        inside = "/" + str(Path(path).relative_to(base))
        for keys in (1_000, 100_000, 1_000_000):
            program = (
                f"config = {{ max_map_keys = {keys + 10} }} "
                "tracepoint:syscalls:sys_enter_getppid /pid == cpid/ { @n++; @m[@n] = nsecs; }"
            )
            a, b = in_turn(
                lambda keys=keys, program=program: run([*OURS, "-q", "-c", f"{path} {keys}", "-e", program]),
                (lambda keys=keys, program=program: run([*other, "-q", "-c", f"{inside} {keys}", "-e", program]))
                if other
                else None,
                rounds(1 if keys > 100_000 else 3),
            )
            goal = "0.7" if keys == 1_000_000 else ""
            rows += [
                row(f"{keys:,} keys: wall clock", "s", [r.wall for r in a], [r.wall for r in b], goal=goal),
                row(f"{keys:,} keys: CPU", "s", [r.cpu for r in a], [r.cpu for r in b]),
                row(f"{keys:,} keys: peak memory", "MiB", [r.rss_kib / 1024 for r in a], [r.rss_kib / 1024 for r in b]),
            ]
    return Section("Map read-out", "A map of as many keys is filled by a child and printed; start-up included.", rows)
