"""Machines of their own: how they end, what they leave, what they may write, the command line."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bpfseal.runtime import vm
from bpfseal.runtime.vm import kernels, qemu
from tests.vm.pool import or_skip

pytestmark = pytest.mark.vm

KERNEL = "7.3"
ROOT = Path(vm.__file__).resolve().parents[2]


def family(pid: int) -> set[int]:
    """`pid` and all its descendants."""
    found = {pid}
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                found |= family(int(child))
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def running(pids: set[int]) -> dict[int, str]:
    """Those of `pids` that still run (a zombie does not), with their names."""
    left = {}
    for pid in pids:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if stat.rpartition(")")[2].split()[0] not in "ZX":
            left[pid] = stat[stat.index("(") + 1 : stat.rindex(")")]
    return left


def wait_until_gone(pids: set[int], seconds: float = 10) -> dict[int, str]:
    deadline = time.monotonic() + seconds
    while running(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return running(pids)


def names(pids: set[int]) -> set[str]:
    return {name[:4] for name in running(pids).values()}


def command_line(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-m", "bpfseal", "vm", "--kernel", KERNEL, *arguments],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options},
    )


@pytest.fixture(scope="module", autouse=True)
def _available() -> None:
    """Skip this file where there can be no machine."""
    or_skip(KERNEL, lambda: (qemu.find_qemu(), qemu.find_virtiofsd(), kernels.obtain(KERNEL)))


def test_command_line(tmp_path: Path) -> None:
    (tmp_path / "input").write_text("from stdin\n")
    with open(tmp_path / "input") as stdin:
        script = f"cat; echo err >&2; uname -r > {tmp_path}/shared/release; exit 9"
        (tmp_path / "shared").mkdir()
        log = str(tmp_path / "console")
        process = command_line(
            *("--share", str(tmp_path / "shared"), "--keep-log", log, "--mem", "512M", "--append", "bpfseal.test=1"),
            *("--", "sh", "-c", script + "; "),
            stdin=stdin,
        )
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (9, b"from stdin\n", b"err\n")
    assert (tmp_path / "shared" / "release").read_text().startswith(KERNEL)
    assert "bpfseal.test=1" in Path(log).read_text()


@pytest.mark.slow
def test_interrupt_goes_to_the_command() -> None:
    process = command_line("--", "sh", "-c", "trap 'echo bye; exit 5' INT; echo ready; while :; do sleep 0.1; done")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    everybody = family(process.pid)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (5, b"bye\n", b"")
    assert wait_until_gone(everybody) == {}


@pytest.mark.parametrize(
    "victim", ["caller", pytest.param("keeper", marks=pytest.mark.slow), pytest.param("both", marks=pytest.mark.slow)]
)
def test_kill_9_leaves_no_process(victim: str) -> None:
    process = command_line("--", "sh", "-c", "echo ready; sleep 1000")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    everybody = family(process.pid)
    assert names(everybody) >= {"pyth", "qemu", "virt"}
    keeper = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    if victim in ("caller", "both"):
        os.kill(process.pid, signal.SIGKILL)
    if victim in ("keeper", "both"):
        os.kill(keeper, signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert wait_until_gone(everybody) == {}
    if victim == "keeper":
        assert process.returncode == 1
        assert err.startswith(b"ERROR: the guest died")


def test_time_limit() -> None:
    started = time.monotonic()
    process = command_line("--timeout", "1.5", "--", "true")
    everybody: set[int] = set()
    while process.poll() is None and time.monotonic() < started + 30:
        everybody |= family(process.pid)
        time.sleep(0.05)
    _, err = process.communicate(timeout=1)
    assert process.returncode == 1
    assert err.startswith(b"ERROR: the guest did not come up in time")
    assert len(everybody) >= 3
    assert wait_until_gone(everybody) == {}


def test_keeper_ends_a_machine_whose_time_is_up() -> None:
    """Whatever its owner does or does not do."""
    started = time.monotonic()
    with pytest.raises(vm.VmTimeout, match="2 s are over"):
        vm.boot(KERNEL, limit=2)
    assert 2 <= time.monotonic() - started < 20


def test_panic_is_told_by_its_last_words(tmp_path: Path) -> None:
    with vm.boot(KERNEL, console_file=tmp_path / "log") as machine:
        with pytest.raises(vm.VmError, match="the guest died") as caught:
            machine.run(["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 60"])
        assert caught.value.hint is not None
        assert "Kernel panic - not syncing: sysrq triggered crash" in caught.value.hint
        assert str(tmp_path / "log") in caught.value.hint
        assert not machine.alive
        with pytest.raises(vm.VmError, match="shut down"):
            machine.run(["true"])
    assert "Kernel panic" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_console_is_kept_when_there_is_no_init() -> None:
    with pytest.raises(vm.VmError) as caught:
        vm.boot(KERNEL, parameters="init=/no/such/init")
    log = next(kernels.cache_directory().glob(f"console-{KERNEL}*.log"))
    assert caught.value.hint is not None
    assert str(log) in caught.value.hint
    assert "Requested init /no/such/init failed" in log.read_text()
    log.unlink()


@pytest.mark.slow
def test_exception_in_a_sink_ends_the_machine() -> None:
    """The command is still talking: what it says must not become the answer to the next request."""

    def sink(data: bytes) -> None:
        raise RuntimeError(data.decode())

    with vm.boot(KERNEL) as machine:
        with pytest.raises(RuntimeError, match="hello"):
            machine.run(["sh", "-c", "echo hello; sleep 5"], on_stdout=sink)
        assert not machine.alive


@pytest.mark.slow
def test_writable_root(tmp_path: Path) -> None:
    with vm.boot(KERNEL, writable=True) as machine:
        result = machine.run(["sh", "-c", f"echo written > {tmp_path}/file; id -u"])
        assert (result.status, result.stdout) == (0, b"0\n"), result.stderr
    assert (tmp_path / "file").read_text() == "written\n"


@pytest.mark.slow
def test_run_boots_and_ends() -> None:
    result = vm.run(KERNEL, command=["sh", "-c", "echo $X; uname -r; exit 3"], env={"X": "y"}, timeout=300)
    assert result.status == 3
    assert result.stdout.startswith(f"y\n{KERNEL}".encode())
    assert "Linux version" in result.console


@pytest.mark.slow
def test_kvm_that_cannot_run_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A /dev/kvm that opens but does not work must not cost the machine, only a moment."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK) or qemu.accelerator() == "kvm":
        pytest.skip("needs a /dev/kvm that cannot run a stock kernel")
    monkeypatch.setattr(qemu, "accelerator", lambda: "kvm")
    said: list[str] = []
    with vm.boot(KERNEL, say=said.append) as machine:
        assert machine.run(["true"]).status == 0
    assert [text for text in said if "KVM does not work here" in text]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["6.18", "7.3"])
def test_enforcement_before_the_command(kernel: str) -> None:
    process = command_line("--kernel", kernel, "--enforce", "--", "bpfseal", "enforce", "status")
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert b"enforcement is on" in out


@pytest.mark.slow
def test_enforcement_that_cannot_be_turned_on_is_one_line() -> None:
    with vm.boot(KERNEL) as machine:
        machine.run(["mount", "-t", "tmpfs", "none", str(ROOT)])  # no bpfseal to be found
        with pytest.raises(vm.VmError, match=r"enforcement could not be turned on in the guest: .*bpfseal"):
            vm.enforce(machine)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
@pytest.mark.parametrize("groups", ["", "20"], ids=["no-groups", "groups"])
def test_without_privileges(groups: str) -> None:
    """As a user with nothing but their own rights; with supplementary groups, which they cannot give up."""
    python = shutil.which("python3", path="/usr/bin")
    if python is None:
        pytest.skip("needs /usr/bin/python3: the user may not be allowed to read this interpreter")
    uid = 54321
    # not tmp_path, which is closed to other users, as the checkout may be
    home = Path("/var/tmp") / f"bpfseal-vm-test-{os.getpid()}"
    try:
        for package in ("src", "dsl", "compiler", "signer", "runtime"):
            shutil.copytree(ROOT / package, home / package, symlinks=True)
        cache = home / ".cache/bpfseal/kernels"
        kernel = kernels.obtain(KERNEL)
        directory = kernels.cache_directory() / kernel.release
        shutil.copytree(directory, cache / directory.name, symlinks=True)
        for path in [home, *home.rglob("*")]:
            os.chown(path, uid, uid, follow_symlinks=False)
        script = (
            f"id -u; echo x > /etc/new && cat /etc/new; echo x > {home}/file; modprobe veth; echo $?;"
            "touch /run/bpfseal-vm/host/var/tmp/escaped; exit 4"
        )
        result = subprocess.run(
            [
                python,
                "-c",
                "from bpfseal.runtime.vm.cli import main; import sys; sys.exit(main(sys.argv[1:]))",
                *("--kernel", KERNEL, "--", "sh", "-c", script),
            ],
            env={"HOME": str(home), "PYTHONPATH": str(home / "src"), "PATH": "/usr/bin:/bin"},
            cwd=home,
            user=uid,
            group=uid,
            extra_groups=[int(groups)] if groups else [],
            capture_output=True,
            timeout=300,
            check=False,
        )
        assert (result.returncode, result.stdout) == (4, b"0\nx\n0\n"), result.stderr
        assert b"Read-only file system" in result.stderr
        assert not (home / "file").exists()
    finally:
        shutil.rmtree(home)
