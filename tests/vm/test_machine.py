"""What a command in the guest sees, and what its caller gets: checked on every test kernel's own boot."""

from __future__ import annotations

import hashlib
import os
import sys
import time
import uuid
from pathlib import Path

import pytest

from bpfseal.runtime import vm

pytestmark = pytest.mark.vm

PYTHON = sys.executable


def sh(machine: vm.Machine, script: str, **options: object) -> vm.VmResult:
    return machine.run(["sh", "-c", script], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("fixture", "series"), [("vm618", "6.18."), ("vm72", "7.2."), ("vm73", "7.3.")])
def test_kernel(fixture: str, series: str, request: pytest.FixtureRequest) -> None:
    machine: vm.Machine = request.getfixturevalue(fixture)
    assert machine.release.startswith(series)
    assert machine.run(["uname", "-r"]).stdout.decode().strip() == machine.release
    assert "bpf" in machine.lsm
    assert "bpf" in sh(machine, "cat /sys/kernel/security/lsm").stdout.decode().split(",")
    assert machine.warnings == ()
    assert "Run " in machine.console
    result = sh(machine, "modprobe veth && ip link add v0 type veth peer name v1 && ls /sys/class/net && rmmod veth")
    assert (result.status, result.stdout.split()) == (0, [b"lo", b"v0", b"v1"]), result.stderr
    mounts = sh(machine, "cut -d' ' -f2,3 /proc/mounts").stdout.decode().splitlines()
    for mount in (
        "/ overlay",
        "/proc proc",
        "/sys sysfs",
        "/dev devtmpfs",
        "/sys/kernel/tracing tracefs",
        "/sys/kernel/debug debugfs",
        "/sys/fs/bpf bpf",
        "/sys/kernel/security securityfs",
        "/sys/fs/cgroup cgroup2",
        "/run tmpfs",
    ):
        assert mount in mounts
    result = machine.run([PYTHON, "-c", "import bpfseal, os; print(bpfseal.__file__); print(os.getcwd())"])
    import bpfseal

    assert result.stdout.decode().splitlines() == [bpfseal.__file__, os.getcwd()], result.stderr


def test_status_and_streams(vm73: vm.Machine) -> None:
    result = sh(vm73, "echo out; echo err >&2; exit 7")
    assert (result.status, result.stdout, result.stderr) == (7, b"out\n", b"err\n")
    assert 0 < result.seconds < 60


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["sh", "-c", "kill -9 $$"], 128 + 9),
        (["/no/such/program"], 127),
        (["/etc/passwd"], 126),
        (["true"], 0),
    ],
)
def test_status_is_that_of_a_shell(vm73: vm.Machine, command: list[str], status: int) -> None:
    assert vm73.run(command).status == status


def test_output_comes_while_the_command_runs(vm73: vm.Machine) -> None:
    seen: list[tuple[float, bytes]] = []
    result = sh(
        vm73,
        "echo first; sleep 1; echo last",
        on_stdout=lambda data: seen.append((time.monotonic(), data)),
    )
    assert result.stdout == b"".join(data for _, data in seen) == b"first\nlast\n"
    assert seen[-1][0] - seen[0][0] > 0.5


def test_much_in_and_much_out(vm73: vm.Machine) -> None:
    data = os.urandom(3_000_000)
    result = vm73.run(["cat"], input=data, timeout=120)
    assert (result.status, hashlib.sha256(result.stdout).digest()) == (0, hashlib.sha256(data).digest())


def test_input_that_nobody_reads(vm73: vm.Machine) -> None:
    assert vm73.run(["true"], input=bytes(1_000_000)).status == 0
    assert vm73.run(["cat"]).stdout == b""


def test_input_from_a_descriptor_that_stays_open(vm73: vm.Machine) -> None:
    read, write = os.pipe()
    try:
        os.write(write, b"line\n")
        assert vm73.run(["head", "-n1"], input=read).stdout == b"line\n"
    finally:
        os.close(read)
        os.close(write)


def test_environment_and_directory(vm73: vm.Machine) -> None:
    result = sh(vm73, 'echo "$COLOUR"; pwd; echo "${PATH%%:*}"', env={"COLOUR": "grün"}, cwd="/usr")
    assert result.stdout.decode().splitlines() == ["grün", "/usr", os.path.dirname(PYTHON)]
    result = vm73.run(["true"], cwd="/no/such/directory")
    assert result.status == 127
    assert b"/no/such/directory" in result.stderr


def test_timeout_ends_the_command_not_the_machine(vm73: vm.Machine) -> None:
    with pytest.raises(vm.VmTimeout) as caught:
        sh(vm73, "echo begun; sleep 987 & sleep 986", timeout=3)
    assert caught.value.stdout == b"begun\n"
    assert vm73.alive
    assert sh(vm73, "pgrep -fx 'sleep 98[67]'").status == 1


def test_background_process_does_not_hold_up_the_result(vm73: vm.Machine) -> None:
    assert sh(vm73, "echo done; sleep 985 &", timeout=30).stdout == b"done\n"
    assert sh(vm73, "yes & echo $! >/run/yes.pid", timeout=30).status == 0
    assert sh(vm73, "pgrep -fx 'sleep 985' && pkill -fx 'sleep 985'; ps -p $(cat /run/yes.pid)").status == 1


def test_orphans_are_reaped(vm73: vm.Machine) -> None:
    sh(vm73, "(sleep 0.2 & ) ; (true &)")
    time.sleep(1)
    assert b"Z" not in sh(vm73, "ps -eo stat=").stdout


def test_root_is_writable_in_the_guest_only(vm73: vm.Machine) -> None:
    name = f"vm-test-{uuid.uuid4()}"
    result = sh(vm73, f"for d in /etc /usr $HOME; do echo x > $d/{name} && cat $d/{name}; done")
    assert (result.status, result.stdout) == (0, b"x\nx\nx\n"), result.stderr
    for directory in ("/etc", "/usr", os.path.expanduser("~")):
        assert not os.path.lexists(f"{directory}/{name}")


def test_host_refuses_writes_of_guest_root(vm73: vm.Machine) -> None:
    """Past the overlay, and after a remount: the export itself is read-only."""
    host = "/run/bpfseal-vm/host"
    name = f"vm-test-{uuid.uuid4()}"
    assert sh(vm73, f"test -e {host}/etc/passwd").status == 0
    result = sh(vm73, f"mount -o remount,rw {host}; touch {host}/etc/{name} {host}{os.getcwd()}/{name}")
    assert result.status != 0
    assert result.stderr.count(b"Read-only file system") == 2
    assert not os.path.lexists(f"/etc/{name}")
    assert not os.path.lexists(name)


def test_files_made_and_changed_on_the_host_after_the_boot(vm73: vm.Machine, tmp_path: Path) -> None:
    file = tmp_path / "late"
    file.write_bytes(b"first")
    assert sh(vm73, f"cat {file}").stdout == b"first"
    file.write_bytes(b"second, longer")
    time.sleep(1.2)  # attributes are cached for a second
    assert sh(vm73, f"cat {file}").stdout == b"second, longer"


def test_files_looked_for_in_vain_before(vm73: vm.Machine, tmp_path: Path) -> None:
    """overlayfs remembers what was not there; docs/vm.md says how to make it forget."""
    file = tmp_path / "later"
    assert sh(vm73, f"cat {file}").status == 1
    file.write_bytes(b"here")
    assert sh(vm73, f"echo 2 > /proc/sys/vm/drop_caches; cat {file}").stdout == b"here"


def test_loopback(vm73: vm.Machine) -> None:
    code = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); "
        "c = socket.create_connection(s.getsockname()); c.send(b'x'); print(s.accept()[0].recv(1))"
    )
    assert vm73.run([PYTHON, "-c", code]).stdout == b"b'x'\n"


def test_no_command(vm73: vm.Machine) -> None:
    with pytest.raises(vm.VmError, match="no command"):
        vm73.run([])
