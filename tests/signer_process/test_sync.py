"""Syncs in the background: nothing leaves before its record is on disk, whatever becomes of the disk."""

from __future__ import annotations

import errno
import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread

import pytest

from bpfseal.signer import audit_read
from bpfseal.signer.audit import AuditLog
from bpfseal.signer.audit_tail import AuditError
from bpfseal.signer.sync import Syncs, background_syncs

from .conftest import running, small_bundle


@pytest.fixture
def syncs() -> Syncs:
    found = background_syncs()
    if found is None:
        pytest.skip("this kernel has no AIO")
    return found


def log_with(path: Path, syncs: Syncs | None) -> AuditLog:
    return AuditLog(str(path / "log" / "audit.jsonl"), syncs=syncs)


def test_told_in_the_order_of_their_beginning(tmp_path: Path, syncs: Syncs) -> None:
    told: list[tuple[int, int]] = []
    files = [os.open(tmp_path / str(number), os.O_WRONLY | os.O_CREAT) for number in range(8)]
    for number, fd in enumerate(files):
        os.write(fd, bytes(1 << (20 if number == 0 else 3)))  # the first takes longest
        syncs.start(fd, lambda code, number=number: told.append((number, code)))  # type: ignore[misc]
    assert len(syncs) == 8
    while syncs:
        assert select.select([syncs], [], [], 30)[0]
        syncs.collect()
    assert told == [(number, 0) for number in range(8)]
    syncs.collect(wait=True)  # nothing to wait for


def test_what_cannot_be_synced(syncs: Syncs) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        syncs.start(1 << 20, lambda code: None)
    read, _ = os.pipe()
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        syncs.start(read, lambda code: None)
    assert not syncs


def test_turns_overlap_and_are_one_chain(tmp_path: Path, syncs: Syncs) -> None:
    log, told = log_with(tmp_path, syncs), []
    for number in range(5):
        with log:
            log.add("seal", {"uid": number})
            log.then(lambda error, number=number: told.append((number, error)))  # type: ignore[misc]
    assert len(syncs) == 5
    assert told == []  # not from inside a turn
    with log:
        log.add("rotate", {})  # one that waits, in between
    syncs.collect(wait=True)
    assert told == [(number, None) for number in range(5)]
    report = audit_read.verify(log.path)
    assert report.good
    assert report.records == 6


def test_others_have_their_turn_when_all_is_on_disk(tmp_path: Path, syncs: Syncs) -> None:
    import fcntl

    log, other = log_with(tmp_path, syncs), log_with(tmp_path, None)
    with log:
        log.add("seal", {})
        log.then(lambda error: None)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    syncs.collect(wait=True)
    with other:
        other.add("seal", {})
    assert audit_read.verify(log.path).good


def test_a_turn_without_records_has_nothing_to_wait_for(tmp_path: Path, syncs: Syncs) -> None:
    log = log_with(tmp_path, syncs)
    told: list[AuditError | None] = []
    with log:
        log.then(told.append)
    assert told == [None]
    assert not syncs


def test_a_turn_that_fails_is_not_told_twice(tmp_path: Path, syncs: Syncs) -> None:
    log = log_with(tmp_path, syncs)
    told: list[AuditError | None] = []
    with suppress(ZeroDivisionError), log:
        log.add("seal", {})
        log.then(told.append)
        raise ZeroDivisionError
    assert told == []
    with log:
        log.add("seal", {})
        log.then(told.append)
    syncs.collect(wait=True)
    assert told == [None]
    assert audit_read.verify(log.path).records == 1


def test_files_change_when_the_old_one_is_whole(tmp_path: Path, syncs: Syncs) -> None:
    log = AuditLog(str(tmp_path / "log" / "audit.jsonl"), segment_bytes=2000, syncs=syncs)
    told: list[AuditError | None] = []
    for _ in range(60):
        with log:
            log.add("seal", {"filler": "x" * 100})
            log.then(told.append)
        if len(syncs) == 4:
            syncs.collect(wait=True)
    syncs.collect(wait=True)
    assert told == [None] * 60
    assert len(list((tmp_path / "log").iterdir())) > 3
    assert audit_read.verify(log.path).good


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[Path]:
    """A file system that takes writes and cannot bring them to its disk: the disk's own is full."""
    disk, place = tmp_path / "disk", tmp_path / "place"
    disk.mkdir()
    place.mkdir()
    with ExitStack() as stack:

        def run(*words: str | Path) -> None:
            done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"{words[0]}: {done.stderr.strip()}")

        try:
            run("mount", "-t", "tmpfs", "-o", "size=700k", "disk", disk)
            stack.callback(run, "umount", "--lazy", disk)  # the loop device lets go of it a little later
            with open(disk / "image", "wb") as image:
                image.truncate(64 << 20)
            run("mkfs.ext4", "-q", "-O", "^has_journal", "-E", "nodiscard,lazy_itable_init=1", disk / "image")
            run("mount", "-o", "loop", disk / "image", place)
            stack.callback(run, "umount", place)
        except FileNotFoundError as error:
            pytest.skip(f"no {error.filename} here")
        yield place


@pytest.mark.host
def test_a_disk_that_fails(failing: Path, syncs: Syncs) -> None:
    """All turns that are under way fail, also the later ones whose own sync says nothing, and the log is closed."""
    log = log_with(failing, syncs)
    told: list[AuditError | None] = []
    with log:
        log.add("start", {})
    for _ in range(4):
        with log:
            log.add("seal", {"filler": "x" * 400_000})
            log.then(told.append)
    syncs.collect(wait=True)
    assert len(told) == 4
    first = told.index(next(error for error in told if error is not None))
    for error in told[first:]:
        assert error is not None
        assert "could not be synced (" in error.message
    with pytest.raises(AuditError, match="restart the helper"), log:
        pytest.fail("a turn began")
    log.close()


def test_many_clients_get_what_is_recorded() -> None:
    """Turns overlap in a real helper: each reply has its own record, and the chain is one."""
    seen: list[int] = []

    def work() -> None:
        with helper.client() as client:
            seen.extend(client.seal(small_bundle()).record for _ in range(25))

    with running() as helper:
        threads = [Thread(target=work) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        report = audit_read.verify(str(helper.audit))
        seals = {record["seq"] for record in audit_read.records(str(helper.audit)) if record["event"] == "seal"}
    assert report.good
    assert len(seen) == len(set(seen)) == 300
    assert set(seen) == seals
