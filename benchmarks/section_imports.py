"""What the start-up path imports, and what each costs. What may be on it is a test (tests/session/test_imports.py)."""

from __future__ import annotations

import re
import statistics

from measure import OURS, Row, Section, rounds, run

_LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \| (\s*)(\S+)")


def section() -> Section:
    command = [OURS[0], "-X", "importtime", *OURS[1:], "-q", "--signing=off", "-e", "BEGIN { exit(); }"]
    run(command)
    runs: list[dict[str, float]] = []
    for _ in range(rounds(5)):
        found = _LINE.findall(run(command).err)
        runs.append({name: int(own) / 1000 for own, _, _, name in found})
    names = sorted(runs[0], key=lambda name: -statistics.median(r.get(name, 0.0) for r in runs))
    rows = [
        Row(name, "ms", statistics.median(values), raw={"ours": values})
        for name in names[:20]
        if (values := [r[name] for r in runs if name in r])
    ]
    total = [sum(r.values()) for r in runs]
    rows.insert(0, Row(f"all {len(names)} modules", "ms", statistics.median(total), raw={"ours": total}))
    return Section(
        "Imports of a cached one-liner",
        "Each module's own time by `python -X importtime`, which takes a good part of it; the twenty that cost most.",
        rows,
    )
