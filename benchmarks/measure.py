"""Running two tools in turn and comparing them: A B A B …, medians, ratios, everything kept.

The reference is `bpftrace` on PATH, or what BPFSEAL_BENCH_BPFTRACE says ("chroot /some/root bpftrace"). Without one the
figures are ours alone.
"""

from __future__ import annotations

import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

# Everything that the benchmarks trace, and no limit of seals a minute.
POLICY = """
version = 1
[defaults]
max_insns = 1000000
[[rule]]
name = "root"
uid = 0
probes = "*"
classes = ["basic", "time", "identity", "map", "output", "stack", "perf", "read-kernel", "read-user"]
kfuncs = "*"
map_types = "*"
existing_maps = true
max_targets = 10000
max_map_bytes = "2GiB"
per_minute = 0
"""

OURS = [sys.executable, "-c", "import sys; from bpfseal.runtime.cli import console; console()"]


def reference() -> list[str] | None:
    """Command of the reference, None where there is none."""
    given = os.environ.get("BPFSEAL_BENCH_BPFTRACE")
    if given:
        return shlex.split(given)
    return ["bpftrace"] if shutil.which("bpftrace") else None


def rounds(default: int) -> int:
    """How often each side runs: BPFSEAL_BENCH_ROUNDS, or the section's own number."""
    return int(os.environ.get("BPFSEAL_BENCH_ROUNDS", default))


@dataclass
class Run:
    """One run: seconds of wall clock, seconds of CPU with all children, peak memory of the largest process in KiB."""

    wall: float
    cpu: float
    rss_kib: int
    status: int
    out: str = ""
    err: str = ""


@dataclass
class Row:
    """One line of a table. `ours` and `reference` are medians; `raw` what they are medians of."""

    what: str
    unit: str
    ours: float
    reference: float | None = None
    goal: str = ""
    note: str = ""
    raw: dict[str, list[float]] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        return self.ours / self.reference if self.reference else None


@dataclass
class Section:
    title: str
    text: str
    rows: list[Row]

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def run(command: Sequence[str], *, env: Mapping[str, str] | None = None, keep: int = 1 << 20) -> Run:
    """Run to the end. CPU and memory are the process's and its children's, from wait4(2)."""
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    # Two pipes: one is read by a thread of communicate(), so wait4 comes behind it.
    assert process.stdout is not None
    assert process.stderr is not None
    import threading

    errors: list[bytes] = []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))  # type: ignore[union-attr]
    reader.start()
    out = process.stdout.read()
    reader.join()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Run(
        time.monotonic() - start,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss,
        process.returncode,
        out[-keep:].decode("utf-8", "replace"),
        errors[0].decode("utf-8", "replace"),
    )


def in_turn(ours: Callable[[], Run], other: Callable[[], Run] | None, times: int) -> tuple[list[Run], list[Run]]:
    """A B A B …"""
    a: list[Run] = []
    b: list[Run] = []
    for _ in range(times):
        a.append(ours())
        if other is not None:
            b.append(other())
    return a, b


def row(what: str, unit: str, ours: list[float], other: list[float], **more: Any) -> Row:
    return Row(
        what,
        unit,
        statistics.median(ours),
        statistics.median(other) if other else None,
        raw={"ours": ours, "reference": other},
        **more,
    )


def times(what: str, a: list[Run], b: list[Run], goal: str = "", memory: str = "") -> list[Row]:
    """Wall clock, CPU and memory of runs side by side, with the goals for the first and the last."""
    return [
        row(f"{what}: wall clock", "s", [r.wall for r in a], [r.wall for r in b], goal=goal),
        row(f"{what}: CPU", "s", [r.cpu for r in a], [r.cpu for r in b]),
        row(f"{what}: peak memory", "MiB", [r.rss_kib / 1024 for r in a], [r.rss_kib / 1024 for r in b], goal=memory),
    ]


@contextmanager
def system_helper(policy: str = POLICY) -> Iterator[str]:
    """The socket of a signing helper that runs as the system's does: confined, with policy and audit log."""
    folder = tempfile.mkdtemp(prefix="bpfseal-bench-")
    os.chmod(folder, 0o755)
    os.mkdir(f"{folder}/run")
    with open(f"{folder}/policy.toml", "w") as file:
        file.write(policy)
    path = f"{folder}/run/signer.sock"
    command = [sys.executable, "-m", "bpfseal.signer", "run", "--socket", path, "--policy", f"{folder}/policy.toml"]
    child = subprocess.Popen([*command, "--audit", f"{folder}/log"], stderr=subprocess.DEVNULL)
    try:
        from bpfseal.errors import BpfsealError
        from bpfseal.signer.client import connect

        for _ in range(500):
            try:
                with connect(path=path) as client:
                    client.hello()
                break
            except BpfsealError:
                time.sleep(0.02)
        yield path
    finally:
        child.terminate()
        child.wait()
        shutil.rmtree(folder)
