"""What becomes of deferred blocks: threads that end, traces that end, blocks that are pending already, kernel threads;
and that nothing stays behind."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import bpfseal
from bpfseal.runtime import bpf, bpf_info
from bpfseal.runtime.deferred import Account
from tests.defer import kit

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("task_work")]


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that a test starts and that must not outlive it."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for one in processes:
        if one.poll() is None:
            one.kill()
        one.wait()
        for pipe in (one.stdin, one.stdout):
            if pipe is not None:
                pipe.close()


def until(trace: bpfseal.Trace, true: object, seconds: float = 30) -> None:
    """Let the trace go on until a callable says so."""
    assert callable(true)
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it does not happen"
        for _ in trace.events(timeout=0.05):
            pass


def scheduled(trace: bpfseal.Trace, most: int) -> int:
    """How many blocks are scheduled when no more come: `most`, but that Linux 7 skips a program which another task of
    the processor is in the middle of."""
    if int(os.uname().release.split(".", 1)[0]) < 7:
        until(trace, lambda: account(trace).scheduled == most)
        return most
    seen = [0]

    def settled() -> bool:
        for _ in trace.events(timeout=2):
            pass
        seen.append(account(trace).scheduled)
        return seen[-1] == seen[-2] > 0

    until(trace, settled, 60)
    assert most // 2 < seen[-1] <= most
    return seen[-1]


def account(trace: bpfseal.Trace) -> Account:
    """The account so far."""
    found = trace.deferred
    assert found is not None
    return found


def sleepers(started: list[subprocess.Popen[bytes]], pageout: str, count: int, page: str) -> subprocess.Popen[bytes]:
    """A process with threads that wait in a system call for ever."""
    process = subprocess.Popen([pageout, "sleep", str(count), page], stdout=subprocess.PIPE)
    started.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == b"gone 0\n"
    return process


SLEEPING = 'tracepoint:syscalls:sys_enter_pause /comm == "pageout"/ { $t = tid; defer { @ran = count(); } }'


def test_the_trace_ends_first(started: list[subprocess.Popen[bytes]], pageout: str, tmp_path: Path) -> None:
    """Threads that do not return to user space: their blocks are cancelled, and it is said so."""
    with bpfseal.trace(SLEEPING) as trace:
        sleepers(started, pageout, 50, kit.page(tmp_path))
        count = scheduled(trace, 51)
        assert account(trace).pending == count
        trace.stop()
        events = [e for e in trace.events(timeout=5) if e.action == "deferred"]
        (found,) = events[0].values
        assert found == Account(scheduled=count, run=0, dropped=0, cancelled=count, kernel=0)
        told = (
            f"{count} of {count} deferred blocks did not run: {count} cancelled (the thread or the trace ended first)"
        )
        assert told in events[0].text


@pytest.mark.slow
def test_more_threads_than_there_is_room_for(
    started: list[subprocess.Popen[bytes]], pageout: str, tmp_path: Path
) -> None:
    """The 4097th thread's block is dropped, and room that becomes free is used again."""
    with bpfseal.trace(SLEEPING) as trace:
        process = sleepers(started, pageout, 4200, kit.page(tmp_path))
        until(trace, lambda: account(trace).scheduled == 4201)
        assert account(trace) == Account(4201, 0, 105, 0, 0)
        process.kill()
        process.wait()
        until(trace, lambda: account(trace).run == 4096)
        sleepers(started, pageout, 30, kit.page(tmp_path))
        until(trace, lambda: account(trace).scheduled == 4232)
        trace.stop()
        (found,) = [e.values[0] for e in trace.events(timeout=5) if e.action == "deferred"]
        assert found == Account(4232, 4096, 105, 31, 0)


def test_threads_are_killed_with_blocks_pending(
    started: list[subprocess.Popen[bytes]], pageout: str, tmp_path: Path
) -> None:
    """The kernel runs them on the thread's way out; its memory is gone by then, which reads as nothing."""
    script = SLEEPING.replace("@ran = count();", f"@ran[str(uptr((char *){kit.BASE}), 32)] = count();")
    with bpfseal.trace(script) as trace:
        process = sleepers(started, pageout, 50, kit.page(tmp_path))
        count = scheduled(trace, 51)
        process.kill()
        process.wait()
        until(trace, lambda: account(trace).run == count)
        trace.stop()
        list(trace.events(timeout=5))
        assert account(trace) == Account(count, count, 0, 0, 0)
        assert sum(trace.maps["@ran"].values()) == count


@pytest.mark.parametrize("threads", [100, pytest.param(4500, marks=pytest.mark.slow)])
def test_threads_that_are_over(pageout: str, tmp_path: Path, threads: int) -> None:
    """Scheduled in the very last moment of a task: the kernel would take it and never run it. More of them than there
    are elements do not fill the map."""
    script = (
        # zombies, and those that have been waited for already
        'tracepoint:sched:sched_switch /comm == "pageout" && args.prev_state & 0x30/ { defer { @ran = count(); } } '
        'tracepoint:syscalls:sys_enter_exit_group /comm == "pageout"/ { defer { @leaving = count(); } }'
    )
    found = kit.trace(script, f"{pageout} exit {threads} {kit.page(tmp_path)}")
    assert "@ran" not in found.maps
    assert found.maps["@leaving"] >= threads
    assert found.account["cancelled"] >= threads
    assert found.account["dropped"] == 0
    assert found.account["run"] == found.maps["@leaving"]
    assert kit.whole(found.account)


def test_pending_already(pageout: str, tmp_path: Path) -> None:
    """A block that the same thread has scheduled and not run yet is dropped; another block is not."""
    script = f"""
        {kit.CALL} {{
            for ($i : 0..5) {{ defer {{ @first = sum($i + 100); }} }}
            defer {{ @second = count(); }}
        }}"""
    found = kit.trace(script, f"{pageout} open2 40 {kit.page(tmp_path)}")
    assert found.account == {"scheduled": 240, "run": 80, "dropped": 160, "cancelled": 0, "kernel_threads": 0}
    assert found.maps == {"@first": 40 * 100, "@second": 40}


def test_text_tells_what_did_not_run(pageout: str, tmp_path: Path) -> None:
    done = subprocess.run(
        kit.command(
            "-q",
            "-e",
            f"{kit.CALL} {{ for ($i : 0..5) {{ defer {{ @n = count(); }} }} }}",
            "-c",
            f"{pageout} open2 10 {kit.page(tmp_path)}",
        ),
        capture_output=True,
        text=True,
        check=True,
    )
    last = (
        "WARNING: 40 of 50 deferred blocks did not run: 40 dropped (pending in the same thread already, or no memory)"
    )
    assert last in done.stderr
    assert "@n: 10" in done.stdout


@pytest.mark.slow
def test_drops_are_told_while_the_trace_runs(pageout: str, tmp_path: Path) -> None:
    """Like lost events, each block once; the last line has them all."""
    script = (
        f"{kit.CALL} {{ for ($i : 0..5) {{ defer {{ @n = count(); }} }} }} "
        'interval:ms:100 { printf("still there\\n"); }'
    )
    command = kit.command("-q", "-e", script, "-c", f"{pageout} open2 400000 {kit.page(tmp_path)}")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = [int(number) for number in re.findall(r"^Dropped (\d+) deferred blocks$", done.stderr, re.M)]
    assert told
    assert sum(told) <= 1_600_000
    assert "WARNING: 1600000 of 2000000 deferred blocks did not run: 1600000 dropped" in done.stderr


def test_kernel_threads_are_passed_over() -> None:
    found = kit.trace(
        "tracepoint:sched:sched_switch /curtask.flags & 0x00200000/ { defer { @ran = count(); } } "
        "interval:s:1 { exit(); }"
    )
    assert found.account["kernel_threads"] > 0
    assert [found.account[name] for name in ("scheduled", "run", "dropped", "cancelled")] == [0, 0, 0, 0]


def test_a_block_that_waits_holds_up_nobody(
    started: list[subprocess.Popen[bytes]], pageout: str, tmp_path: Path
) -> None:
    """While one block waits for its page the events of others come through; the trace may end meanwhile."""
    text = f'{kit.CALL} {{ $f = args.filename; defer {{ printf("%s %d", str($f, 32), tid == pid); }} }}'
    program = subprocess.Popen([pageout, "nothing", "0", kit.page(tmp_path)], stdout=subprocess.PIPE)
    assert program.wait() == 0
    assert program.stdout is not None
    program.stdout.close()
    with bpfseal.trace(text) as trace:
        process = subprocess.Popen(
            [pageout, "wait", "5", kit.page(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        started.append(process)
        assert process.stdout is not None
        if process.stdout.readline() != b"others done\n":
            pytest.skip("no userfaultfd here")
        seen: list[str] = []

        def collect() -> None:
            seen.extend(e.text for e in trace.events(timeout=0.05) if e.action == "printf")

        deadline = time.monotonic() + 20
        while len(seen) < 5 and time.monotonic() < deadline:
            collect()
        assert seen == [f"{kit.TEXT} 1"] * 5
        assert account(trace) == Account(6, 5, 0, 0, 0)
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        while len(seen) < 6 and time.monotonic() < deadline:
            collect()
        assert seen[5:] == [f"{kit.TEXT} 0"]


def test_the_trace_ends_while_a_block_waits(
    started: list[subprocess.Popen[bytes]], pageout: str, tmp_path: Path
) -> None:
    """It is cancelled; when its page comes at last it ends, and the kernel gives the program back."""
    with bpfseal.trace(f"{kit.CALL} {{ $f = args.filename; defer {{ @[str($f, 32)] = count(); }} }}") as trace:
        process = subprocess.Popen(
            [pageout, "wait", "0", kit.page(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        started.append(process)
        assert process.stdout is not None
        if process.stdout.readline() != b"others done\n":
            pytest.skip("no userfaultfd here")
        until(trace, lambda: account(trace).scheduled == 1)
        programs, maps = objects(trace)
        trace.stop()
        found = [e.values[0] for e in trace.events(timeout=5) if e.action == "deferred"]
        assert found == [Account(1, 0, 0, 1, 0)]
    process.communicate(b"\n", timeout=20)
    assert process.returncode == 0
    gone("prog", programs)
    gone("map", maps)


def objects(trace: bpfseal.Trace) -> tuple[set[int], set[int]]:
    """Kernel ids of a trace's programs and maps."""
    session = trace._session
    assert session is not None
    programs = {bpf_info.prog_info(session.program_fd(n)).id for n in range(len(session.bundle.programs))}
    maps = {bpf_info.map_info(session.map_fd(n)).id for n in range(len(session.bundle.maps))}
    return programs, maps


def gone(kind: str, ids: set[int], seconds: float = 20) -> None:
    """Fail unless the kernel has given these objects back."""
    assert ids
    deadline = time.monotonic() + seconds
    while left := ids & set(bpf_info.ids(kind)):
        assert time.monotonic() < deadline, f"{kind} {left} still there"
        time.sleep(0.05)


def memory(fd: int) -> int:
    """Bytes that the kernel says a map takes."""
    match = re.search(r"memlock:\s*(\d+)", Path(f"/proc/self/fdinfo/{fd}").read_text())
    assert match
    return int(match[1])


def unreclaimable() -> int:
    """Bytes of the kernel's own objects, of all of the machine."""
    match = re.search(r"SUnreclaim:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    assert match
    return int(match[1]) << 10


@pytest.mark.parametrize("rounds", [2_000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_nothing_stays(started: list[subprocess.Popen[bytes]], pageout: str, tmp_path: Path, rounds: int) -> None:
    """Two processes at once, each with its own text: exact accounts, and maps that take what they took at first."""
    page = kit.page(tmp_path)
    script = (
        f"config = {{ max_strlen = 4096 }} {kit.CALL} {{ $f = args.filename; defer {{ @[str($f)] = count(); }} "
        "defer(signal) { @signal = count(); } }"
    )
    with bpfseal.trace(script) as trace:
        session = trace._session
        assert session is not None
        work = [session.map_fd(index) for index in session.reader.work]
        assert len(work) == 2
        programs, maps = objects(trace)
        before = [memory(fd) for fd in work]
        machine = unreclaimable()
        running = [subprocess.Popen([pageout, "open2", str(rounds), page], stdout=subprocess.PIPE) for _ in range(2)]
        started += running
        until(trace, lambda: all(one.poll() is not None for one in running), 300)
        assert [one.returncode for one in running] == [0, 0]
        until(trace, lambda: account(trace).pending == 0)
        found = account(trace)
        assert found.scheduled == 4 * rounds
        assert found.scheduled == found.run + found.dropped + found.cancelled
        assert (found.dropped, found.cancelled) == (0, 0)
        assert trace.maps["@"] == {kit.TEXT: 2 * rounds}
        assert trace.maps["@signal"][None] == 2 * rounds
        assert [memory(fd) for fd in work] == before
        assert [list(bpf.map_keys(fd, 8)) for fd in work] == [[], []]
        # An element has 4 KiB and more: leaked, they would be 400 MB in the long run. Others use the machine, too.
        if rounds > 10_000:
            assert unreclaimable() - machine < 200 << 20
    gone("prog", programs)
    gone("map", maps)


@pytest.mark.slow
def test_accounts_under_load(pageout: str, tmp_path: Path) -> None:
    """Interrupts, tracepoints and system calls schedule at the same time, more often than tasks return."""
    script = (
        "profile:hz:997 { defer { @sampled = count(); } } "
        "tracepoint:sched:sched_switch { defer { @switched = count(); } } "
        "tracepoint:raw_syscalls:sys_enter { defer { @called = count(); } }"
    )
    load = f"{pageout} open2 3000 {kit.page(tmp_path)}"
    found = kit.trace(f"{script} interval:s:2 {{ exit(); }}", f"/bin/sh -c 'while :; do {load} > {os.devnull}; done'")
    assert kit.whole(found.account), found.account
    assert found.account["run"] > 0
    counted = sum(found.maps.get(name, 0) for name in ("@sampled", "@switched", "@called"))
    assert counted == found.account["run"]
