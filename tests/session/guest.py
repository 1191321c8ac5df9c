"""Runs in a test machine: `python -m tests.session.guest`. One line of JSON for each observation."""

from __future__ import annotations

import json
import re
import sys

from tests.probes import inside

CALLS = 200
# The outer probe's program asks for a stack, by the function that the inner one is on: the kernel does not run one
# probe inside another, and counts.
PROGRAM = (
    "kprobe:__x64_sys_getppid /pid == cpid/ {{ @outer[kstack(4)] = count(); @ran = count(); }} "
    "kprobe:{inner} {{ @inside = count(); }}"
)
CHILD = f"{sys.executable} -c 'import os\nfor _ in range({CALLS}): os.getppid()'"


def missed(inner: str) -> dict[str, object]:
    """Runs of the outer probe, runs of the inner, and what was said of those that the kernel passed over."""
    status, out, err = inside.run("-c", CHILD, "-e", PROGRAM.format(inner=inner))
    counted = {name: int(number) for name, number in re.findall(r"^@(ran|inside): (\d+)$", out, re.M)}
    skipped = {probe: int(times) for probe, times in re.findall(r"the kernel skipped (\S+) (\d+) times", err)}
    return {"inner": inner, "status": status, **counted, "skipped": skipped, "err": err[-2000:]}


if __name__ == "__main__":
    for name in ("get_perf_callchain", "get_perf_callchai*"):
        print(json.dumps(missed(name)), flush=True)
