"""The system's helper: where its socket may be, who is answered what, policy changes, restarts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from bpfseal.errors import BpfsealError
from bpfseal.signer import audit_read
from bpfseal.signer.client import SealRefused, SignerError, connect
from bpfseal.signer.protocol import LoadDecision
from bpfseal.signer.system import SocketError, listen

from .conftest import POLICY, Helper, as_user, needs_root, running, small_bundle

TWO_USERS = """
version = 1

[[rule]]
name = "opens"
uid = 20001
probes = ["tracepoint:syscalls:sys_enter_open*"]
classes = ["basic"]
per_minute = 5

[[rule]]
name = "everything"
uid = [0, 20002]
probes = "*"
classes = ["basic"]
per_minute = 0
"""


@pytest.fixture(scope="module")
def users() -> Iterator[Helper]:
    with running(TWO_USERS) as helper:
        yield helper


def ask(helper: Helper, action: Callable[[object], object]) -> Callable[[], str]:
    def act() -> str:
        with connect(path=helper.socket) as client:
            return str(action(client))

    return act


# Who is answered what -----------------------------------------------------------------------------------------------


@needs_root
def test_two_users_two_answers(users: Helper) -> None:
    """Group 0 lets these users reach the socket; what they get is up to the policy."""

    def seal(target: str) -> Callable[[object], object]:
        return lambda client: client.seal_reply(small_bundle(target)).rule  # type: ignore[attr-defined]

    both = {uid: [as_user(uid, 0, ask(users, seal(f"syscalls:{t}"))) for t in ("sys_enter_openat", "sys_enter_kill")]
            for uid in (20001, 20002, 20003)}  # fmt: skip
    assert both[20001][0] == "opens"
    assert both[20001][1].startswith("SealRefused: rule opens:")
    assert "sys_enter_kill" in both[20001][1]
    assert both[20002] == ["everything", "everything"]
    assert all(answer.startswith("SealRefused: no rule is for uid 20003") for answer in both[20003])


@needs_root
def test_without_the_group_there_is_no_way_in(users: Helper) -> None:
    assert as_user(20001, 20001, ask(users, lambda client: client.status())).startswith("SignerError: no signing")  # type: ignore[attr-defined]


@needs_root
@pytest.mark.parametrize("verb", ["rotate", "revoke"])
def test_keys_are_the_administrators(users: Helper, verb: str) -> None:
    answer = as_user(20002, 0, ask(users, lambda client: getattr(client, verb)()))
    assert answer == "SignerError: only an administrator of the signing helper may ask this"


def _decision(comm: str = "bpftool") -> LoadDecision:
    return LoadDecision(
        wall_ms=1,
        uid=0,
        pid=7,
        comm=comm,
        verdict="refused",
        reason="not signed",
        keyring="",
        type="kprobe",
        program="p",
    )


@needs_root
def test_decisions_of_enforcement_are_kept_for_administrators(users: Helper) -> None:
    answer = as_user(20002, 0, ask(users, lambda client: client.keep([_decision()])))  # type: ignore[attr-defined]
    assert answer == "SignerError: only an administrator of the signing helper may ask this"
    with users.client() as client:
        client.keep([_decision()] * 300)
        state = client.status()
    records = [json.loads(line) for line in Path(state.audit).read_text().splitlines()]
    kept = [record for record in records if record["event"] == "decisions"]
    assert [len(record["decisions"]) for record in kept] == [256, 44]
    assert kept[0]["decisions"][0] == msgspec.to_builtins(_decision())
    assert (kept[0]["uid"], kept[0]["pid"]) == (0, os.getpid())
    with users.client() as client, pytest.raises(SignerError):
        client.keep([_decision("x" * 97)])
    assert audit_read.verify(state.audit).good


@needs_root
def test_asking_for_others_is_the_administrators(users: Helper) -> None:
    def check(client: object) -> object:
        return client.check(small_bundle(), user=(20001, 0, ()))  # type: ignore[attr-defined]

    assert "only an administrator" in as_user(20002, 0, ask(users, check))
    with users.client() as client:
        refused = client.check(small_bundle("syscalls:sys_enter_kill"), user=(20001, 0, ()))
        assert (refused.allowed, refused.rule) == (False, "opens")
        assert client.check(small_bundle(), user=(20001, 0, ())).allowed


@needs_root
def test_status_tells_users_about_themselves_only(users: Helper) -> None:
    def look(client: object) -> object:
        state = client.status()  # type: ignore[attr-defined]
        return (state.totals, state.head, state.head_hash, state.audit, state.policy, state.policy_trouble)

    assert as_user(20002, 0, ask(users, look)) == "((), 0, '', '', '', '')"
    with users.client() as client:
        assert client.status().head > 0


@needs_root
def test_rate_of_a_rule() -> None:
    with running(TWO_USERS) as helper:

        def many(client: object) -> object:
            done = 0
            try:
                while done < 20:
                    client.seal(small_bundle())  # type: ignore[attr-defined]
                    done += 1
            except SealRefused as error:
                return f"{done} {error.message}"
            return done

        assert as_user(20001, 0, ask(helper, many)) == "5 rule opens allows 5 seals a minute"
        assert as_user(20002, 0, ask(helper, many)) == "20"


@needs_root
def test_rules_about_executables() -> None:
    """Off by default; with --executables path and digest are the running file's."""
    real = os.path.realpath("/proc/self/exe")
    digest = hashlib.sha256(Path(real).read_bytes()).hexdigest()
    policy = POLICY.replace("uid = 0", f'uid = 0\nexe = "{real}"\nexe_sha256 = "{digest}"')
    with running(policy) as helper, helper.client() as client, pytest.raises(SealRefused, match="no rule"):
        client.seal(small_bundle())
    with running(policy, "--executables") as helper, helper.client() as client:
        assert client.seal(small_bundle()).record
        assert any("CAP_SYS_PTRACE" in word for word in client.status().hardening)
    policy = policy.replace(digest, "0" * 64)
    with running(policy, "--executables") as helper, helper.client() as client:
        assert not client.check(small_bundle()).allowed


@needs_root
def test_a_flood_of_refusals_stays_small_in_the_log() -> None:
    with running(TWO_USERS) as helper:

        def flood(client: object) -> object:
            for _ in range(2000):
                with contextlib.suppress(SealRefused):
                    client.seal(b"nonsense")  # type: ignore[attr-defined]
            return "done"

        assert as_user(20003, 0, ask(helper, flood)) == "done"
        with helper.client() as client:
            assert client.seal(small_bundle()).record
            assert dict(client.status().totals)["suppressed"] == 2000 - 60
        assert helper.audit.stat().st_size < 200_000


# Policy -------------------------------------------------------------------------------------------------------------


def test_policy_is_read_again_and_a_bad_one_is_not() -> None:
    with running() as helper, helper.client() as client:
        assert client.seal(small_bundle()).record
        good = client.status().policy

        def replace(text: str) -> None:
            fresh = helper.policy.with_suffix(".new")
            fresh.write_text(text)
            # A file that was written this second is left alone: it might not be complete.
            os.utime(fresh, (time.time() - 60, time.time() - 60))
            fresh.rename(helper.policy)

        replace(POLICY.replace('probes = "*"', 'probes = "kprobe:*"'))
        with pytest.raises(SealRefused, match="openat"):
            client.seal(small_bundle())
        assert client.status().policy != good
        replace(POLICY)
        assert client.seal(small_bundle()).record
        replace("this is not toml [")
        assert client.seal(small_bundle()).record
        state = client.status()
        assert state.policy == good
        assert "policy" in state.policy_trouble
        helper.policy.unlink()
        assert client.seal(small_bundle()).record
        assert "No such file" in client.status().policy_trouble
        replace(POLICY)
        assert client.status().policy_trouble == ""
        changes = [r["policy"] for r in audit_read.records(str(helper.audit)) if r["event"] in ("start", "policy")]
        assert len(changes) == 3
        assert changes[0] == changes[2] == good


def test_no_start_without_a_good_policy() -> None:
    with running() as helper:
        helper.stop()
        helper.policy.write_text("nonsense = 1")
        helper.start()
        assert helper.process.wait(10) == 1
        assert helper.process.stderr is not None
        error = helper.process.stderr.read().decode()
        assert "policy.toml" in error
        assert "Traceback" not in error


# Restart ------------------------------------------------------------------------------------------------------------


def test_restart_after_kill_goes_on_in_the_log() -> None:
    with running() as helper:
        for _ in range(3):
            with helper.client() as client:
                client.seal(small_bundle())
            helper.process.kill()
            helper.process.wait()
            helper.start()
        report = audit_read.verify(str(helper.audit))
        assert report.good, report.findings
        events = [record["event"] for record in audit_read.records(str(helper.audit))]
        assert events == ["start", "seal"] * 3 + ["start"]


def test_the_log_stays_behind_the_anchor_file() -> None:
    with running(POLICY, "--anchor", "/tmp/bpfseal-anchor-test") as helper:
        try:
            with helper.client() as client:
                client.seal(small_bundle())
            assert "audit checkpoint: record" in helper.stop()
            lines = helper.audit.read_bytes().splitlines(keepends=True)
            helper.audit.write_bytes(b"".join(lines[:-2]))
            helper.start()
            assert helper.process.wait(10) == 1
            assert helper.process.stderr is not None
            assert "cut or replaced" in helper.process.stderr.read().decode()
        finally:
            os.unlink("/tmp/bpfseal-anchor-test")


def test_second_helper_on_the_same_socket() -> None:
    with running() as helper:
        second = spawn_without_wait(helper.folder)
        assert second.wait(10) == 1
        assert second.stderr is not None
        assert "already answering" in second.stderr.read().decode()
        with helper.client() as client:
            assert client.hello().pid == helper.pid


def spawn_without_wait(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bpfseal.signer", "run", "--socket", str(folder / "run" / "signer.sock")]
    command += ["--policy", str(folder / "policy.toml"), "--audit", str(folder / "log")]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def test_supervisor_is_told(tmp_path: Path) -> None:
    where = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(where))
        sock.settimeout(10)
        with running(POLICY, env={"NOTIFY_SOCKET": str(where), "WATCHDOG_USEC": "1000000"}) as helper:
            assert sock.recv(100) == b"READY=1"
            assert sock.recv(100) == b"WATCHDOG=1"
            begin = time.monotonic()
            assert sock.recv(100) == b"WATCHDOG=1"
            assert 0.3 < time.monotonic() - begin < 2
            helper.process.send_signal(signal.SIGTERM)
            seen = sock.recv(100)
            assert seen in (b"STOPPING=1", b"WATCHDOG=1")


# Where the socket may be --------------------------------------------------------------------------------------------


def test_a_good_place(tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir(mode=0o750)
    with listen(str(place / "s")):
        assert (place / "s").stat().st_mode & 0o777 == 0o660


def test_what_a_dead_helper_left_is_replaced(tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir(mode=0o750)
    listen(str(place / "s")).close()
    with listen(str(place / "s")):
        assert (place / "s").is_socket()


def bad_link(place: Path) -> None:
    place.rename(place.with_name("real"))
    place.symlink_to(place.with_name("real"))


BAD_PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "directory is a link": (bad_link, "Not a directory"),
    "directory is missing": (lambda place: place.rmdir(), "No such file"),
    "directory is a file": (lambda place: (place.rmdir(), place.touch()), "Not a directory"),
    "others may write": (lambda place: place.chmod(0o777), "can be written by others"),
    "the group may write": (lambda place: place.chmod(0o770), "can be written by others"),
    "sticky like /tmp": (lambda place: place.chmod(0o1777), "can be written by others"),
    "a file is in the way": (lambda place: (place / "s").touch(), "not a socket"),
    "a link is in the way": (lambda place: (place / "s").symlink_to("/etc/passwd"), "not a socket"),
    "a directory is in the way": (lambda place: (place / "s").mkdir(), "not a socket"),
}


@pytest.mark.parametrize("name", sorted(BAD_PLACES))
def test_a_bad_place(tmp_path: Path, name: str) -> None:
    place = tmp_path / "run"
    place.mkdir(mode=0o750)
    prepare, message = BAD_PLACES[name]
    prepare(place)
    with pytest.raises(SocketError, match=message):
        listen(str(place / "s"))


@needs_root
def test_a_foreign_directory(tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir(mode=0o750)
    os.chown(place, 12345, 12345)
    with pytest.raises(SocketError, match="belongs to uid 12345"):
        listen(str(place / "s"))


# The client's side --------------------------------------------------------------------------------------------------


@needs_root
def test_a_fake_helper_is_not_believed(tmp_path: Path) -> None:
    """Another user answers at a socket that root made."""
    place = tmp_path / "run"
    place.mkdir(mode=0o755)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(place / "s"))
    child = os.fork()
    if child == 0:
        os.setresuid(12345, 12345, 12345)
        sock.listen(5)  # who listens is who the kernel says answers
        time.sleep(30)
        os._exit(0)
    try:
        error = ""
        for _ in range(100):
            try:
                connect(path=str(place / "s")).close()
            except SignerError as caught:
                error = caught.message
            if "trusted" in error:
                break
            time.sleep(0.02)
        assert "not to be trusted" in error
        assert "uid 12345 answers" in error
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        sock.close()


@needs_root
def test_a_socket_in_somebody_elses_directory(tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir(mode=0o755)
    with listen(str(place / "s")):
        os.chown(place, 12345, 12345)
        with pytest.raises(SignerError, match="not to be trusted"):
            connect(path=str(place / "s"))


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(SignerError, match="no signing helper answers"):
        connect(path=str(tmp_path / "s"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(tmp_path / "s"))
    with pytest.raises(SignerError, match="no signing helper answers"):
        connect(path=str(tmp_path / "s"))


def test_without_a_system_helper_there_is_a_private_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPFSEAL_SOCKET", str(tmp_path / "nothing"))
    monkeypatch.setenv("BPFSEAL_AUDIT", str(tmp_path / "a" / "audit.jsonl"))
    with connect() as client:
        assert client.hello().mode == "private"
    assert issubclass(SignerError, BpfsealError)


def test_the_system_helper_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as helper:
        monkeypatch.setenv("BPFSEAL_SOCKET", helper.socket)
        with connect() as client:
            assert client.hello().mode == "system"


def test_helper_gone_between_requests() -> None:
    with running() as helper, helper.client() as client:
        client.seal(small_bundle())
        helper.process.kill()
        helper.process.wait()
        begin = time.monotonic()
        with pytest.raises(SignerError, match="lost the signing helper"):
            client.seal(small_bundle())
        assert time.monotonic() - begin < 2
