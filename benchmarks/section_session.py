"""A long stream with an exact account, and a session that has nothing to do."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import OURS, Section, reference, rounds, row
from section_events import PROGRAM, flood, root_of

EVENTS = 10_000_000
IDLE_SECONDS = 10


@dataclass
class Account:
    """Of a stream: lines that arrived, events reported lost, events produced, seconds of wall clock and of CPU."""

    printed: int
    lost: int
    produced: int
    wall: float
    cpu: float


def stream(command: Sequence[str]) -> Account:
    """Run to the end; every line is counted, none kept but the last."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    errors: list[bytes] = []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))  # type: ignore[union-attr]
    reader.start()
    lines, tail = 0, b""
    while part := os.read(process.stdout.fileno(), 1 << 20):
        lines += part.count(b"\n")
        tail = (tail + part)[-100:]
    reader.join()
    _, _, usage = os.wait4(process.pid, 0)
    lost = re.search(rb"Total lost event count: (\d+)", errors[0])
    produced = re.search(rb"^@: (\d+)$", tail, re.M)
    # Behind the events there are two empty lines and the map.
    return Account(
        lines - 3,
        int(lost[1]) if lost else 0,
        int(produced[1]) if produced else 0,
        time.monotonic() - start,
        usage.ru_utime + usage.ru_stime,
    )


def idle(command: Sequence[str]) -> float:
    """CPU of a waiting session and its helper, in percent of one CPU."""
    process = subprocess.Popen(
        [*command, "-q", "-e", 'BEGIN { printf("up\\n"); } interval:s:3600 { @ = count(); }'],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        time.sleep(5 if command[0] == "chroot" else 2)  # the reference keeps its output back
        before = _cpu(process.pid)
        time.sleep(IDLE_SECONDS)
        return 100 * (_cpu(process.pid) - before) / IDLE_SECONDS
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _cpu(pid: int) -> float:
    """Seconds, children included."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    total = 0.0
    for one in (str(pid), *children):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def section() -> Section:
    other = reference()
    base = root_of(other) if other else Path("/")
    ours, theirs = [], []
    with tempfile.TemporaryDirectory(dir=base / "tmp") as name:
        path = flood(Path(name))
        inside = "/" + str(Path(path).relative_to(base))
        for _ in range(rounds(1)):
            ours.append(stream([*OURS, "-q", "-c", f"{path} {EVENTS}", "-e", PROGRAM]))
            if other:
                theirs.append(stream([*other, "-q", "-c", f"{inside} {EVENTS}", "-e", PROGRAM]))
    rows = [
        row("events produced", "", [float(a.produced) for a in ours], [float(b.produced) for b in theirs]),
        row("events printed", "", [float(a.printed) for a in ours], [float(b.printed) for b in theirs]),
        row("events reported lost", "", [float(a.lost) for a in ours], [float(b.lost) for b in theirs]),
        row("produced - printed - lost", "", [float(a.produced - a.printed - a.lost) for a in ours],
            [float(b.produced - b.printed - b.lost) for b in theirs], goal="0"),
        row("events printed per second of wall clock", "1/s", [a.printed / a.wall for a in ours],
            [b.printed / b.wall for b in theirs], goal="≥ 1.5"),
        row("CPU of tracer and child", "s", [a.cpu for a in ours], [b.cpu for b in theirs]),
        row("idle session, CPU", "%", [idle(OURS)], [idle(other)] if other else [], goal="< 0.5"),
    ]  # fmt: skip
    return Section(
        "A long session",
        f"{EVENTS:,} events as above, every line counted as it comes out of a pipe; a session with an interval of an "
        f"hour, watched for {IDLE_SECONDS} seconds.",
        rows,
    )
