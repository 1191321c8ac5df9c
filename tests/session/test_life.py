"""The life of a trace: what ends it, with which status, and that nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from bpfseal.runtime import bpf_info

from .conftest import Running, trace, wait_until

pytestmark = pytest.mark.host


def objects() -> dict[tuple[str, int], str]:
    """Programs, maps and links of this machine by (kind, id)."""
    found = {}
    for kind in ("prog", "map", "link"):
        for number in bpf_info.ids(kind):
            found[kind, number] = kind
    return found


def owned_by(pid: int) -> set[tuple[str, int]]:
    """(kind, id) of the BPF objects that a process has open, from its fdinfo."""
    owned = set()
    for fd in os.listdir(f"/proc/{pid}/fdinfo"):
        try:
            with open(f"/proc/{pid}/fdinfo/{fd}") as file:
                fields = dict(line.split(":", 1) for line in file.read().splitlines() if ":" in line)
        except OSError:
            continue
        for kind in ("prog", "map", "link"):
            if f"{kind}_id" in fields and (kind != "prog" or "link_id" not in fields):
                owned.add((kind, int(fields[f"{kind}_id"])))
    return owned


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_trace_and_print_maps(number: int, running: list[Running]) -> None:
    one = Running('BEGIN { printf("up\\n"); @ = 4; } interval:s:60 { @ = 5; } END { printf("end\\n"); }')
    running.append(one)
    one.begin()
    done = one.end(number)
    assert (done.status, done.out) == (0, "end\n\n\n@: 4\n")
    assert "Traceback" not in done.err


def test_exit_status() -> None:
    assert trace("BEGIN { exit(7); }").status == 7
    assert trace("BEGIN { exit(); } END { exit(3); }").status in (0, 3)
    assert trace("BEGIN { exit( }").status == 1


def test_child_runs_once_probes_are_on() -> None:
    """Its very first system call after exec is seen; its status is not ours, as in bpftrace."""
    done = trace("tracepoint:syscalls:sys_enter_execve /pid == cpid/ { @ = count(); }", "-c", "/bin/sh -c 'exit 3'")
    assert (done.status, done.out) == (0, "\n\n@: 1\n")


def test_child_that_does_not_exist() -> None:
    done = trace("tracepoint:syscalls:sys_enter_execve { @ = count(); }", "-c", "/nowhere/tool")
    assert done.status == 1
    assert "/nowhere/tool" in done.err


def test_end_of_the_target_ends_the_trace(running: list[Running]) -> None:
    with subprocess.Popen(["sleep", "60"]) as target:
        one = Running('BEGIN { printf("up\\n"); } interval:s:60 { @ = 1; }', "-p", str(target.pid))
        running.append(one)
        assert one.begin() == "up\n"
        target.terminate()
    assert one.end(None).status == 0


def test_second_ctrl_c_quits_at_once(running: list[Running]) -> None:
    """Where the first one's END takes its time: the output pipe is full and nobody reads."""
    one = Running('BEGIN { printf("up\\n"); } interval:ms:1 { printf("%s\\n", strftime("%H:%M:%S:%f %Y %Z", nsecs)); }')
    running.append(one)
    one.begin()
    time.sleep(1.5)  # until the pipe is full and the trace blocks in write(2)
    one.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    if one.process.poll() is None:
        one.process.send_signal(signal.SIGINT)
    assert wait_until(lambda: one.process.poll() is not None, 5)


def test_kill_leaves_nothing(running: list[Running]) -> None:
    """SIGKILL at different moments of a trace's life: programs, maps and links go with the process."""
    for delay in (0.0, 0.01, 0.1):
        one = Running('BEGIN { printf("up\\n"); } tracepoint:syscalls:sys_enter_* { @[probe] = count(); }')
        running.append(one)
        if delay:
            one.begin()
            time.sleep(delay)
        else:
            wait_until(lambda one=one: len(owned_by(one.process.pid)) > 2, 20)
        mine = owned_by(one.process.pid)
        assert mine
        one.process.kill()
        one.process.wait()
        assert wait_until(lambda mine=mine: not mine & objects().keys(), 10), mine & objects().keys()


def test_iterator_runs_to_its_end() -> None:
    done = trace("iter:task { @[ctx.task.comm] = count(); }")
    assert done.status == 0
    with open("/proc/self/comm") as file:
        assert f"@[{file.read().strip()}]: " in done.out


def test_signal_probe(running: list[Running]) -> None:
    one = Running('BEGIN { printf("up\\n"); } self:signal:SIGUSR1 { printf("got it\\n"); exit(4); }')
    running.append(one)
    one.begin()
    done = one.end(signal.SIGUSR1)
    assert (done.status, done.out) == (4, "got it\n\n\n")
