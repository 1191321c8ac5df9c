"""Throughput: printf of two integers and a string at full speed into a file descriptor that costs nothing."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from measure import OURS, Run, Section, in_turn, reference, rounds, row, run

EVENTS = 2_000_000
PROGRAM = 'tracepoint:syscalls:sys_enter_getppid /pid == cpid/ { printf("%d %d %s\\n", pid, tid, comm); @ = count(); }'
SOURCE = """
#define _DEFAULT_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int count, char **words)
{
	for (long i = atol(words[1]); i > 0; i--)
		syscall(SYS_getppid);
	if (count > 2) /* time for somebody to look at the tracer */
		usleep(300000);
}
"""


def flood(folder: Path) -> str:
    """A static program that makes as many getppid(2) as it is told; works inside any root directory."""
    source = folder / "flood.c"
    source.write_text(SOURCE)
    subprocess.run(["gcc", "-O2", "-static", "-o", folder / "flood", source], check=True)
    return str(folder / "flood")


def root_of(command: list[str]) -> Path:
    """Where the reference's / is: chroot's argument, or ours."""
    return Path(command[1]) if command[0] == "chroot" else Path("/")


def lines(result: Run) -> tuple[int, int]:
    """(events printed, events reported lost)."""
    lost = re.search(r"Total lost event count: (\d+)", result.err)
    return len(re.findall(r"^\d+ \d+ flood$", result.out, re.M)), int(lost[1]) if lost else 0


def section() -> Section:
    other = reference()
    base = root_of(other) if other else Path("/")
    with tempfile.TemporaryDirectory(dir=base / "tmp") as name:
        path = flood(Path(name))
        inside = "/" + str(Path(path).relative_to(base))

        def there() -> Run:
            return run([*other, "-q", "-c", f"{inside} {EVENTS}", "-e", PROGRAM], keep=1 << 28)  # type: ignore[misc]

        a, b = in_turn(
            lambda: run([*OURS, "-q", "-c", f"{path} {EVENTS}", "-e", PROGRAM], keep=1 << 28),
            there if other else None,
            rounds(3),
        )
    ours, theirs = [lines(r) for r in a], [lines(r) for r in b]
    rows = [
        row("events printed", "", [float(n) for n, _ in ours], [float(n) for n, _ in theirs], goal="≥ 1.5"),
        row("events reported lost", "", [float(n) for _, n in ours], [float(n) for _, n in theirs]),
        row("printed + lost", "", [float(sum(n)) for n in ours], [float(sum(n)) for n in theirs],
            note=f"{EVENTS:,} were produced"),
        row("events printed per second of wall clock", "1/s", [n / r.wall for (n, _), r in zip(ours, a, strict=True)],
            [n / r.wall for (n, _), r in zip(theirs, b, strict=True)], goal="≥ 1.5"),
        row("CPU of tracer and child", "s", [r.cpu for r in a], [r.cpu for r in b]),
    ]  # fmt: skip
    return Section(
        "Event throughput and loss",
        f"A child makes {EVENTS:,} getppid(2) as fast as it can; each prints two integers and a string. Every line is "
        "read and counted; the whole run is timed, start-up included.",
        rows,
    )
