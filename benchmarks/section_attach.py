"""Attaching and detaching: all system calls' tracepoints, and one to a thousand functions of a program."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from measure import OURS, Section, in_turn, reference, rounds, run, times

PROBES = "tracepoint:syscalls:sys_enter_*"
COUNTS = (1, 10, 100, 1000)


def functions(folder: str) -> str:
    """A program with functions f1_1; f10_1 … f10_10; f100_… and so on."""
    names = [f"f{count}_{n}" for count in COUNTS for n in range(1, count + 1)]
    source = "\n".join(
        f"__attribute__((noinline)) int {name}(int x) {{ return x + {n}; }}" for n, name in enumerate(names)
    )
    path = Path(folder, "functions")
    path.with_suffix(".c").write_text(source + "\nint main(void) { return 0; }\n")
    subprocess.run(["gcc", "-O0", "-o", str(path), str(path.with_suffix(".c"))], check=True)
    return str(path)


def section() -> Section:
    other = reference()
    rows = []
    # A chroot shares /proc with the host, and so the program of a process that holds it open.
    with tempfile.TemporaryDirectory() as folder:
        path = functions(folder)
        with open(path, "rb") as held:
            reached = f"/proc/{_pid()}/fd/{held.fileno()}" if other and other[0] == "chroot" else path
            for count in COUNTS:
                ours, theirs = (
                    f"uprobe:{name}:f{count}_* {{ @[func] = count(); }} interval:ms:1 {{ exit(); }}"
                    for name in (path, reached)
                )
                run([*OURS, "-q", "-e", ours])
                a, b = in_turn(
                    lambda ours=ours: run([*OURS, "-q", "-e", ours]),
                    (lambda theirs=theirs: run([*other, "-q", "-e", theirs])) if other else None,
                    rounds(5),
                )
                assert not any(r.status for r in a), a[0].err
                failed = next((r for r in b if r.status), None)
                rows += times(
                    f"{count} functions" + (" (the reference failed)" if failed else ""), a, [] if failed else b
                )
    program = PROBES + " { @[probe] = count(); } interval:ms:1 { exit(); }"
    run([*OURS, "-q", "-e", program])
    a, b = in_turn(
        lambda: run([*OURS, "-q", "-e", program]),
        (lambda: run([*other, "-q", "-e", program])) if other else None,
        rounds(1),
    )
    rows += times(PROBES, a, b, "0.05", "0.3")
    return Section(
        "Attach and detach",
        f"Counting calls by function or probe for one millisecond, from exec to exit: functions of a program, and "
        f"`{PROBES}`; ours with the compilation in the cache.",
        rows,
    )


def _pid() -> int:
    import os

    return os.getpid()
