"""Private helpers: life and death with their client, isolation from its environment, start without set-up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import pytest

from bpfseal.signer import audit_read
from bpfseal.signer.client import SealRefused, SignerClient, SignerError, start_private

from .conftest import as_user, needs_root, small_bundle


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def ends(pid: int, seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not alive(pid):
            return True
        time.sleep(0.01)
    return False


def test_every_verb_after_confinement(private: SignerClient) -> None:
    """Nothing is imported or opened late: all of it has to work without files."""
    assert private.hello().mode == "private"
    sealed = private.seal(small_bundle())
    assert sealed.loader
    assert sealed.record == 2
    assert private.check(small_bundle()).allowed
    state = private.status()
    assert state.sealed == 1
    assert dict(state.totals)["internal_errors"] == 0
    certificate = private.certificate()
    assert certificate.leaf != certificate.root
    assert private.keys().keys[0].signing
    old = sealed.certificate
    assert private.rotate().certificate != old
    assert private.seal(small_bundle()).certificate != old
    private.revoke()
    with pytest.raises(SignerError, match="revoked"):
        private.seal(small_bundle())
    with pytest.raises(SealRefused):
        private.seal(b"nonsense")
    private.rotate()
    assert private.seal(small_bundle(), lifetime=30).record
    assert dict(private.status().totals)["internal_errors"] == 0


def test_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "audit" / "audit.jsonl"
    with start_private(audit=str(path)) as client:
        sealed = client.seal(small_bundle(source="BEGIN { }\x1b".replace("\x1b", "")))
    records = {record["event"]: record for record in audit_read.records(str(path))}
    assert list(records) == ["start", "seal", "stop", "checkpoint"]
    seal = records["seal"]
    assert (seal["uid"], seal["pid"], seal["rule"]) == (os.getuid(), os.getpid(), "private")
    assert seal["source"] == "BEGIN { }"
    assert seal["seq"] == sealed.record
    assert seal["key"] == sealed.certificate.hex()
    assert seal["deadline_ns"] == sealed.deadline_ns
    assert seal["programs"][0]["targets"] == ["tracepoint:syscalls:sys_enter_openat"]
    assert audit_read.verify(str(path)).good


def test_the_deadline_is_what_was_asked_for(private: SignerClient) -> None:
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    for asked, expected in ((30, 30), (0, 60), (3600, 600)):
        seconds = (private.seal(small_bundle(), lifetime=asked).deadline_ns - now) / 1e9
        assert expected - 5 < seconds < expected + 5


def test_closing_ends_it(tmp_path: Path) -> None:
    client = start_private(audit=str(tmp_path / "a" / "a.jsonl"))
    pid = client.hello().pid
    client.close()
    assert not alive(pid)
    with pytest.raises(SignerError, match="closed"):
        client.status()


CLIENT = """
import os, sys, time
from bpfseal.signer.client import start_private
client = start_private(audit=sys.argv[1])
pid = client.hello().pid
if sys.argv[2] == "fork":
    if os.fork() == 0:
        time.sleep(30)
print(pid, flush=True)
time.sleep(30)
"""


@pytest.mark.parametrize("how", ["plain", "fork"])
def test_it_dies_with_its_client(tmp_path: Path, how: str) -> None:
    """Killed with no chance to clean up; a forked child that still holds the socket makes no difference."""
    command = [sys.executable, "-c", CLIENT, str(tmp_path / "a" / "a.jsonl"), how]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert alive(pid)
    process.kill()
    process.wait()
    try:
        assert ends(pid)
    finally:
        if how == "fork":
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
    assert audit_read.verify(str(tmp_path / "a" / "a.jsonl")).good


def test_it_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    made: list[SignerClient] = []
    thread = threading.Thread(target=lambda: made.append(start_private(audit=str(tmp_path / "a" / "a.jsonl"))))
    thread.start()
    thread.join()
    time.sleep(0.3)
    with made[0] as client:
        assert client.seal(small_bundle()).record


def test_interrupts_are_for_the_client(tmp_path: Path) -> None:
    with start_private(audit=str(tmp_path / "a" / "a.jsonl")) as client:
        pid = client.hello().pid
        assert os.getpgid(pid) != os.getpgid(0)
        assert client.seal(small_bundle()).record


def keep_sealing(client: SignerClient) -> None:
    while True:
        client.seal(small_bundle())


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_a_dead_or_wedged_helper_is_told_within_two_seconds(tmp_path: Path, sign: signal.Signals) -> None:
    with start_private(audit=str(tmp_path / "a" / "a.jsonl")) as client:
        pid = client.hello().pid
        os.kill(pid, sign)
        begin = time.monotonic()
        with pytest.raises(SignerError, match=r"lost the signing helper|does not answer"):
            keep_sealing(client)
        assert time.monotonic() - begin < 2.5
        assert not alive(pid)


def test_planted_modules_have_no_effect(tmp_path: Path) -> None:
    """Environment and working directory of the client are not the helper's."""
    marker = tmp_path / "planted"
    code = f"open({str(marker)!r}, 'a').write(__name__)\n"
    for name in ("json", "socket", "selectors", "sitecustomize", "usercustomize", "fcntl", "base64"):
        (tmp_path / f"{name}.py").write_text(code)
    script = textwrap.dedent(f"""
        import os, sys
        from bpfseal.signer.client import start_private
        os.chdir({str(tmp_path)!r})
        os.environ["PYTHONPATH"] = {str(tmp_path)!r}
        os.environ["PYTHONSTARTUP"] = os.path.join({str(tmp_path)!r}, "json.py")
        os.environ["LD_PRELOAD"] = {str(tmp_path / "evil.so")!r}
        os.environ["LD_LIBRARY_PATH"] = {str(tmp_path)!r}
        os.environ["OPENSSL_CONF"] = {str(tmp_path / "openssl.cnf")!r}
        with start_private(audit={str(tmp_path / "a" / "a.jsonl")!r}) as client:
            pid = client.hello().pid
            print(client.seal(bytes.fromhex({small_bundle().hex()!r})).record)
            print(repr(open(f"/proc/{{pid}}/environ", "rb").read()) if os.geteuid() == 0 else "b''")
    """)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:2] == ["2", "b''"]
    assert not marker.exists()


def test_trouble_at_start_is_one_clear_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    script = f"""
from bpfseal.signer.client import start_private
try:
    start_private(audit={str(blocked / "audit.jsonl")!r}).hello()
except Exception as error:
    print(type(error).__name__, error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout == "SignerError the private signing helper did not start\n"
    assert "audit log" in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


def test_a_forked_process_does_not_share_the_helper(private: SignerClient) -> None:
    private.hello()
    child = os.fork()
    if child == 0:
        try:
            private.status()
        except SignerError as error:
            os._exit(0 if "forked" in error.message else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert private.status().pid


def test_two_helpers_share_one_log(tmp_path: Path) -> None:
    path = tmp_path / "a" / "a.jsonl"
    with start_private(audit=str(path)) as one, start_private(audit=str(path)) as two:
        numbers = [client.seal(small_bundle()).record for _ in range(10) for client in (one, two)]
    assert len(set(numbers)) == 20
    assert sorted(numbers) == numbers
    assert audit_read.verify(str(path)).good


def test_importing_the_client_is_cheap() -> None:
    """No cryptography, no parsers, nothing of the helper itself on the way of a cached one-liner."""
    code = "import sys, bpfseal.signer.client; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    for name in (
        "cryptography",
        "tomllib",
        "json",
        "argparse",
        "subprocess",
        "bpfseal.signer.keys",
        "llvmlite",
        "lark",
    ):
        assert name not in loaded


def test_only_known_folders_are_imported_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bpfseal.signer.client import import_folders

    (tmp_path / "cryptography").mkdir()
    monkeypatch.setattr(sys, "path", ["", ".", str(tmp_path), *sys.path])
    folders = import_folders()
    assert "" not in folders
    assert str(tmp_path) not in folders
    assert all(os.path.isabs(folder) for folder in folders)


USER = """
import sys
sys.path[:0] = sys.argv[2:]
from bpfseal.signer.client import start_private
with start_private(audit=sys.argv[1]) as client:
    state = client.status()
    print(client.hello().mode, *state.hardening, sep=", ")
"""


@needs_root
def test_an_ordinary_user_has_one_too() -> None:
    """No root anywhere: the same confinement, but for what takes rights to set up."""
    from bpfseal.signer.client import import_folders

    python = f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    if not os.path.exists(python):
        pytest.skip(f"{python} is not there: this interpreter may be out of other users' reach")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chown(folder, 20004, 20004)

        def act() -> str:
            command = [python, "-I", "-c", USER, f"{folder}/state/audit.jsonl", *import_folders()]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            return done.stdout + done.stderr

        answer = as_user(20004, 20004, act)
        assert answer.startswith("private, no capabilities, not dumpable"), answer
        assert "seccomp filter" in answer
        assert "uid 20004" in answer


def test_an_interpreter_that_cannot_be_started_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where it is in the home of another user."""
    missing = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(missing))
    with pytest.raises(SignerError, match=f"cannot start a private signing helper \\({missing}\\): No such file"):
        start_private(audit=str(tmp_path / "log" / "audit.jsonl"))
