"""Nothing is lost without a word: printed + reported lost = produced, always."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import command, trace, wait_until

pytestmark = pytest.mark.host

EVENTS = 300_000
CHILD = f"{sys.executable} -c 'import os\nfor _ in range({EVENTS}): os.getppid()'"
PROGRAM = (
    "tracepoint:syscalls:sys_enter_getppid /pid == cpid/ { %s @ = count(); } "
    "tracepoint:sched:sched_process_exit /pid == cpid/ { clear(@unused); } BEGIN { @unused[1] = 1; }"
)


def account(out: str, err: str, line: str) -> tuple[int, int, int]:
    """(printed, reported lost, produced); the reports along the way add up to the last one."""
    printed = len(re.findall(line, out, re.M))
    total = re.findall(r"^WARNING: Total lost event count: (\d+)$", err, re.M)
    lost = int(total[0]) if total else 0
    assert sum(map(int, re.findall(r"^Lost (\d+) events$", err, re.M))) == lost
    produced = re.search(r"^@: (\d+)$", out, re.M)
    assert produced is not None, err
    return printed, lost, int(produced[1])


def child_of(tracer: int) -> int:
    """Its child that makes the calls, having been let go; 0 if it does not run. (The kernel's list of children may miss
    one while another ends.)"""
    for child in Path(f"/proc/{tracer}/task/{tracer}/children").read_text().split():
        if calls(int(child)):
            return int(child)
    return 0


def calls(child: int) -> bool:
    """Whether it is what makes the calls: not the tracer's fork before its exec, which has the tracer's words."""
    try:
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
    except OSError:
        return False
    return words[:-1] == shlex.split(CHILD)


def ended(child: int) -> bool:
    try:
        return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.mark.parametrize(
    "statement",
    [
        'printf("%d %d %s\\n", pid, tid, comm);',
        'printf("%s %d\\n", strftime("%Y", nsecs), pid);',
        "print((pid, comm));",
    ],
    ids=["machine code", "python", "print"],
)
def test_stalled_reader(statement: str) -> None:
    """The output is not read for a while: the rings overflow, and the account is exact all the same."""
    process = subprocess.Popen(
        command("-q", "-c", CHILD, "-e", PROGRAM % statement), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    # Until the child has made all its calls, however long that takes here.
    child = 0

    def begun() -> bool:
        nonlocal child
        child = child_of(process.pid)
        return child != 0

    assert wait_until(begun, 120)
    assert wait_until(lambda: ended(child), 120)
    out, err = (data.decode() for data in process.communicate(timeout=200))
    assert process.returncode == 0
    printed, lost, produced = account(out, err, r"^\(?\d+[ ,].*$")
    assert printed + lost == produced == EVENTS
    assert lost > 0
    # clear() is not lost, however full the ring is.
    assert "@unused" not in out


def test_exit_is_not_lost_in_a_flood() -> None:
    program = (
        'tracepoint:syscalls:sys_enter_getppid /pid == cpid/ { printf("%d %s\\n", pid, strftime("%Y", nsecs)); @n++; '
        "if (@n == 50000) { exit(9); } }"
    )
    start = time.monotonic()
    done = trace(program, "-c", CHILD)
    assert done.status == 9
    assert time.monotonic() - start < 60


def test_full_map_is_reported_once_with_its_name() -> None:
    done = trace(
        "config = { max_map_keys = 10 } tracepoint:syscalls:sys_enter_getppid /pid == cpid/ { @n++; @keys[@n] = 1; }",
        "-c",
        f"{sys.executable} -c 'import os\nfor _ in range(35): os.getppid()'",
    )
    told = re.findall(
        r"^WARNING: Map full; can't update element. (\d+) updates? of @keys failed, which has room for 10 keys.*$",
        done.err,
        re.M,
    )
    assert sum(map(int, told)) == 25
    assert len(told) <= 2
    assert len(re.findall(r"^@keys\[\d+\]: 1$", done.out, re.M)) == 10
