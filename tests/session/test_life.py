"""The life of a trace: what ends it, with which status, and that nothing is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bpfseal.runtime import bpf_info

from .conftest import Running, command, trace, wait_until
from .kill_campaign import campaign
from .test_loss import account

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


def test_probes_see_the_named_process_only() -> None:
    """Also those that the kernel cannot attach to a process; its children are not it, and interval is nobody's."""
    program = "tracepoint:syscalls:sys_enter_* { @[pid] = count(); } rawtracepoint:sys_exit { @exits[pid] = count(); }"
    with subprocess.Popen(["sh", "-c", "while sleep 0.05; do :; done"]) as target:
        done = trace(program + " interval:s:1 { exit(); }", "-p", str(target.pid))
        target.kill()
    assert done.status == 0, done.err
    names = {line.split(":")[0] for line in done.out.splitlines() if line.startswith("@")}
    assert names == {f"@[{target.pid}]", f"@exits[{target.pid}]"}


WATCH = "watchpoint:{}:8:w {{ @ = count(); }} "


@pytest.mark.parametrize(("policy", "words"), [("warn", True), ("ignore", False), ("error", None)])
def test_probes_that_the_kernel_does_not_take(policy: str, words: bool | None) -> None:
    """More watchpoints than the processor has registers for: they are skipped as config missing_probes says."""
    with subprocess.Popen(["sleep", "60"]) as target:
        with open(f"/proc/{target.pid}/maps") as file:
            start = int(next(line for line in file if "[stack]" in line).split("-")[0], 16)
        text = f'config = {{ missing_probes = "{policy}" }} interval:ms:50 {{ exit(); }} '
        text += "".join(WATCH.format(hex(start + 8 * n)) for n in range(40))
        done = trace(text, "-p", str(target.pid))
        target.kill()
    if "cannot watch that address" in done.err or "does not have" in done.err:
        pytest.skip("no hardware watchpoints")
    if words is None:
        assert (done.status, done.out) == (1, "")
        assert "ERROR: Unable to attach probe: watchpoint:" in done.err
        return
    assert done.status == 0, done.err
    skipped = re.findall(r"WARNING: Unable to attach probe: watchpoint:.*\. Skipping\.", done.err)
    assert (30 < len(skipped) < 40) if words else not skipped


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
            wait_until(lambda one=one: len(owned_by(one.process.pid)) > 2, 90)
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


def test_the_child_does_not_outlive_the_tracer(running: list[Running]) -> None:
    one = Running('BEGIN { printf("up\\n"); } interval:s:60 { @ = 1; }', "-c", "/bin/sleep 77")
    running.append(one)
    one.begin()

    def sleeping() -> list[str]:
        with open(f"/proc/{one.process.pid}/task/{one.process.pid}/children") as file:
            children = file.read().split()
        return [child for child in children if b"sleep" in read(f"/proc/{child}/cmdline")]

    assert wait_until(sleeping, 60)
    (child,) = sleeping()
    one.process.kill()
    one.process.wait()
    assert wait_until(lambda: b"sleep" not in read(f"/proc/{child}/cmdline"), 60)


def test_the_helper_does_not_outlive_the_tracer(running: list[Running]) -> None:
    one = Running('BEGIN { printf("up\\n"); } interval:s:60 { @ = 1; }')
    running.append(one)
    one.begin()
    with open(f"/proc/{one.process.pid}/task/{one.process.pid}/children") as file:
        children = file.read().split()
    assert children  # the private helper
    one.process.kill()
    one.process.wait()
    assert wait_until(lambda: not any(read(f"/proc/{child}/cmdline") for child in children), 60)


def read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def test_a_hangup_ends_it_and_leaves_nothing(running: list[Running]) -> None:
    """The terminal is gone, and with it who would read the maps."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup a trace ignores it as well
    one = Running('BEGIN { printf("up\\n"); } tracepoint:syscalls:sys_enter_getppid { @ = count(); }')
    signal.signal(signal.SIGHUP, before)
    running.append(one)
    one.begin()
    mine = owned_by(one.process.pid)
    assert mine
    one.process.send_signal(signal.SIGHUP)
    assert wait_until(lambda: one.process.poll() is not None, 60)
    assert wait_until(lambda: not mine & objects().keys(), 60)


def test_suspended_and_continued(running: list[Running]) -> None:
    """Stopped while events come in: when it goes on it has them all, or says how many are lost."""
    calls = "import os,time\nfor _ in range(200): [os.getppid() for _ in range(1000)]; time.sleep(.01)"
    one = Running(
        'BEGIN { printf("up\\n"); } tracepoint:syscalls:sys_enter_getppid /pid == cpid/ '
        '{ printf("%d %d\\n", pid, tid); @ = count(); }',
        "-c",
        f'{sys.executable} -c "{calls}"',
    )
    running.append(one)
    one.begin()
    time.sleep(0.5)
    for _ in range(2):
        one.process.send_signal(signal.SIGSTOP)
        time.sleep(1)
        one.process.send_signal(signal.SIGCONT)
        time.sleep(0.3)
    done = one.end(None, 120)
    assert done.status == 0
    printed, lost, produced = account(done.out, done.err, r"^\d+ \d+$")
    assert printed + lost == produced >= 200_000


def test_ctrl_z_and_fg(running: list[Running]) -> None:
    """As a shell does it: the whole job is stopped, the child too, but not the helper, which keeps time."""
    calls = "import os,time\nfor _ in range(50): [os.getppid() for _ in range(100)]; time.sleep(.02)"
    one = Running(
        'BEGIN { printf("up\\n"); } tracepoint:syscalls:sys_enter_getppid /pid == cpid/ '
        '{ printf("%d %d\\n", pid, tid); @ = count(); }',
        "-c",
        f'{sys.executable} -c "{calls}"',
        group=True,
    )
    running.append(one)
    one.begin()
    pid = one.process.pid
    children = read(f"/proc/{pid}/task/{pid}/children").split()
    for _ in range(2):
        os.killpg(pid, signal.SIGTSTP)
        assert wait_until(lambda: stat(pid)[0] == b"T", 60)
        stopped = [stat(int(child))[0] == b"T" for child in children if stat(int(child))]
        assert stopped.count(True) <= 1  # the command
        time.sleep(0.5)
        os.killpg(pid, signal.SIGCONT)
        assert wait_until(lambda: stat(pid)[0] != b"T", 60)
        time.sleep(0.2)
    done = one.end(None, 120)
    assert done.status == 0
    printed, lost, produced = account(done.out, done.err, r"^\d+ \d+$")
    assert printed + lost == produced >= 5000


def stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the state on."""
    return read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def test_second_ctrl_c_while_the_maps_are_printed(running: list[Running]) -> None:
    """Nobody reads the many keys; the second one does not wait for that, and what it says is that it was a signal."""
    one = Running(
        'config = { max_map_keys = 100000 } BEGIN { printf("up\\n"); } '
        "tracepoint:syscalls:sys_enter_getppid /pid == cpid/ { @n++; @[@n] = nsecs; } "
        "interval:ms:100 /@n > 50000/ { @ready = 1; print(@ready); }",
        "-c",
        f'{sys.executable} -c "import os,time; [os.getppid() for _ in range(60000)]; time.sleep(60)"',
    )
    running.append(one)
    one.begin()
    assert one.process.stdout is not None
    assert one.process.stdout.readline() == b"@ready: 1\n"
    mine = owned_by(one.process.pid)
    one.process.send_signal(signal.SIGINT)
    time.sleep(2)
    assert one.process.poll() is None  # in write(2), with megabytes to go
    one.process.send_signal(signal.SIGINT)
    assert wait_until(lambda: one.process.poll() is not None, 5)
    assert one.process.returncode == 128 + signal.SIGINT
    assert wait_until(lambda: not mine & objects().keys(), 60)


@pytest.mark.slow
def test_idle_session_uses_next_to_no_cpu(running: list[Running]) -> None:
    """Less than 0.5 % of a CPU, measured over five seconds; a busy machine does not make it more."""
    one = Running('BEGIN { printf("up\\n"); } interval:s:60 { @ = count(); }')
    running.append(one)
    one.begin()
    time.sleep(1)
    before = cpu_seconds(one.process.pid)
    time.sleep(5)
    assert cpu_seconds(one.process.pid) - before <= 0.005 * 5 + 0.01  # the clock ticks in hundredths


def cpu_seconds(pid: int) -> float:
    """Of a process and its children that are still there: the client and its helper."""
    total = 0.0
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        family = [str(pid), *file.read().split()]
    for one in family:
        fields = read(f"/proc/{one}/stat").rpartition(b")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


@pytest.mark.slow
def test_a_hundred_kills_leave_nothing() -> None:
    found, early = campaign(100)
    assert not found, found
    assert early < 100  # some were killed while they had maps


def test_a_signal_at_the_very_end_changes_nothing() -> None:
    """`pkill -INT` may find the process when it has said everything already."""
    source = command("-q", "-e", 'end { printf("SUCCESS\\n"); }')
    outcomes = set()
    for delay in (0.0, 0.002, 0.005, 0.01, 0.02, 0.04):
        process = subprocess.Popen(source, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "SUCCESS\n"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        outcomes.add(process.wait(30))
        process.stdout.close()
    assert outcomes == {0}


def test_the_process_has_the_commands_name() -> None:
    """`pidof bpfseal` finds a script's process by the name in front of its arguments."""
    script = Path(sys.executable).with_name("bpfseal")
    if not script.exists():
        pytest.skip("the command is not installed beside the interpreter")
    process = subprocess.Popen(
        [script, "-q", "-e", 'begin { printf("x\\n"); } interval:s:60 { }'], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        assert shown[0] == bytes(script)
        assert shown[1:3] == [b"-q", b"-e"]
    finally:
        process.kill()
        process.communicate()
