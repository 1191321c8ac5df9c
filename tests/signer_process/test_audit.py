"""The audit log: chain, crashes, rotation, several writers, a full disk, and what verification finds."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bpfseal.errors import BpfsealError
from bpfseal.signer import audit, audit_cli, audit_read
from bpfseal.signer.audit import AuditError, AuditLog, Checkpointer
from bpfseal.signer.keys import Keys, SoftKey


def checkpointer() -> Checkpointer:
    keys = Keys(SoftKey.generate("ec"), "ec", 600, ring=False)
    return Checkpointer(keys.root_certificate, keys.root_sign)


def fill(log: AuditLog, turns: int, each: int = 1) -> None:
    for turn in range(turns):
        with log:
            for number in range(each):
                log.add("seal", {"uid": 7, "turn": turn, "n": number, "source": "BEGIN { exit(); }"})


def start(log: AuditLog, root: Checkpointer) -> None:
    import base64

    with log:
        log.add("start", {"root": base64.b64encode(root.certificate).decode()})


def kinds(report: audit_read.Report) -> set[str]:
    return {finding.kind for finding in report.findings}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log" / "audit.jsonl"


def test_chain(path: Path) -> None:
    log = AuditLog(str(path))
    fill(log, 5, 3)
    report = audit_read.verify(str(path), anchors={15: log.head})
    assert report.good
    assert (report.records, report.head, report.anchored_to) == (15, 15, 15)
    assert path.stat().st_mode & 0o777 == 0o600


def test_nothing_is_written_when_the_turn_fails(path: Path) -> None:
    log = AuditLog(str(path))
    fill(log, 1)

    def broken_turn() -> None:
        with log:
            log.add("seal", {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken_turn()
    fill(log, 1)
    assert audit_read.verify(str(path)).records == 2
    assert audit_read.verify(str(path)).good


def test_reopened_log_goes_on(path: Path) -> None:
    for _ in range(4):
        log = AuditLog(str(path))
        fill(log, 2)
        log.close()
    report = audit_read.verify(str(path))
    assert report.good
    assert report.records == 8


@pytest.mark.parametrize("cut", [1, 2, 20, 100])
def test_half_a_record_is_accounted_for(path: Path, cut: int) -> None:
    log = AuditLog(str(path))
    fill(log, 3)
    log.close()
    os.truncate(path, path.stat().st_size - cut)
    log = AuditLog(str(path))
    fill(log, 2)
    report = audit_read.verify(str(path))
    assert report.good
    if cut > 1:
        assert any("unfinished record" in note for note in report.notes)
        torn = path.read_bytes().split(b"\n")
        del torn[2]
        path.write_bytes(b"\n".join(torn))
        assert "missing" in kinds(audit_read.verify(str(path)))


def test_half_of_the_very_first_record(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_bytes(b'{"seq":1,"pre')
    path.chmod(0o600)
    log = AuditLog(str(path))
    fill(log, 1)
    assert audit_read.verify(str(path)).good


def test_a_file_that_is_no_log_is_left_alone(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_text("something else\n" * 5)
    path.chmod(0o600)
    with pytest.raises(AuditError, match="unreadable"):
        AuditLog(str(path))
    assert path.read_text() == "something else\n" * 5


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda p: p.symlink_to("/dev/null"), "audit log"),
        (lambda p: p.mkdir(), "audit log"),
        (lambda p: os.mkfifo(p), "not a plain file"),
        (lambda p: (p.touch(), p.chmod(0o666)), "somebody else"),
        (lambda p: p.parent.chmod(0o777), "can be changed by others"),
    ],
)
def test_bad_places(path: Path, prepare: Callable[[Path], object], message: str) -> None:
    path.parent.mkdir(mode=0o700)
    prepare(path)
    with pytest.raises(AuditError, match=message):
        AuditLog(str(path))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_somebody_elses(path: Path, what: str) -> None:
    path.parent.mkdir(mode=0o700)
    path.touch(0o600)
    os.chown(path if what == "file" else path.parent, 12345, 12345)
    with pytest.raises(AuditError):
        AuditLog(str(path))


def test_rotation_keeps_the_chain(path: Path) -> None:
    log = AuditLog(str(path), segment_bytes=2000)
    fill(log, 40)
    files = sorted(path.parent.iterdir())
    assert len(files) > 3
    report = audit_read.verify(str(path))
    assert report.good
    assert report.records == log.next - 1
    files[1].unlink()
    assert kinds(audit_read.verify(str(path))) == {"missing"}


def test_a_shared_log_is_not_rotated_away_under_others(path: Path) -> None:
    one, two = AuditLog(str(path), segment_bytes=1000), AuditLog(str(path), segment_bytes=1000)
    for _ in range(20):
        fill(one, 1)
        fill(two, 1)
    assert [p.name for p in path.parent.iterdir()] == ["audit.jsonl"]
    assert audit_read.verify(str(path)).good
    two.close()
    fill(one, 2)
    assert len(list(path.parent.iterdir())) == 2
    assert audit_read.verify(str(path)).good


def test_crash_in_the_middle_of_a_rotation(path: Path) -> None:
    log = AuditLog(str(path))
    fill(log, 3)
    log.close()
    path.rename(path.with_name("audit-000000000003.jsonl"))
    log = AuditLog(str(path))
    fill(log, 1)
    report = audit_read.verify(str(path))
    assert report.good
    assert report.records == 4


WRITER = """
import sys
from bpfseal.signer.audit import AuditLog
log = AuditLog(sys.argv[1], segment_bytes=20000)
for turn in range(50):
    with log:
        for n in range(3):
            log.add("seal", {"who": sys.argv[2], "turn": turn})
"""


def test_several_processes_write_one_chain(path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(n)]) for n in range(4)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0, 0]
    report = audit_read.verify(str(path))
    assert report.good, report.findings
    seals = [r for r in audit_read.records(str(path)) if r["event"] == "seal"]
    assert len(seals) == 600


def test_killed_writers_leave_a_readable_log(path: Path) -> None:
    chance = random.Random(4)
    for _ in range(8):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), "x"])
        try:
            writer.wait(0.15 + chance.random() / 5)
        except subprocess.TimeoutExpired:
            writer.kill()
            writer.wait()
    log = AuditLog(str(path))
    fill(log, 1)
    assert audit_read.verify(str(path)).good


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_full_disk(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", place], check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted")
    try:
        log = AuditLog(str(place / "audit.jsonl"))
        with pytest.raises(AuditError, match="No space left") as caught:
            fill(log, 1000, 3)
        assert "make room" in (caught.value.hint or "")
        with pytest.raises(AuditError, match="No space left"):
            fill(log, 1, 50)
        assert audit_read.verify(str(place / "audit.jsonl")).good
        subprocess.run(["mount", "-o", "remount,size=1m", place], check=True)
        fill(log, 5, 3)
        report = audit_read.verify(str(place / "audit.jsonl"))
        assert report.good
        assert report.head == log.next - 1
        log.close()
    finally:
        subprocess.run(["umount", "-l", place], check=True)


# Checkpoints and anchors --------------------------------------------------------------------------------------------


def checkpoint(log: AuditLog, root: Checkpointer) -> tuple[int, str]:
    """The head after a checkpoint that is on disk."""
    heads: list[tuple[AuditError | None, int, str]] = []
    log.checkpoint(root, lambda *told: heads.append(told))
    ((error, seq, head),) = heads
    assert error is None
    return seq, head


def test_checkpoints_are_signed_by_the_root(path: Path, tmp_path: Path) -> None:
    root = checkpointer()
    log = AuditLog(str(path))
    start(log, root)
    fill(log, 3)
    seq, _ = checkpoint(log, root)
    fill(log, 2)
    report = audit_read.verify(str(path))
    assert report.good
    assert report.anchored_to == 0
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    pem = tmp_path / "root.pem"
    pem.write_bytes(x509.load_der_x509_certificate(root.certificate).public_bytes(Encoding.PEM))
    report = audit_read.verify(str(path), root_key=audit_read.read_root_key(str(pem)))
    assert report.anchored_to == seq
    assert any("after 5" in note for note in report.notes)


def test_a_forged_checkpoint(path: Path) -> None:
    root, other = checkpointer(), checkpointer()
    log = AuditLog(str(path))
    start(log, root)
    checkpoint(log, Checkpointer(root.certificate, other.sign))
    checkpoint(log, other)
    assert kinds(audit_read.verify(str(path))) == {"checkpoint"}
    assert len(audit_read.verify(str(path)).findings) == 2


def test_anchor_file(path: Path, tmp_path: Path) -> None:
    root, anchor = checkpointer(), tmp_path / "anchor"
    log = AuditLog(str(path), anchor=str(anchor))
    start(log, root)
    fill(log, 2)
    checkpoint(log, root)
    fill(log, 3)
    checkpoint(log, root)
    log.close()
    anchors = audit_read.read_anchor_file(str(anchor))
    assert sorted(anchors) == [4, 8]
    assert audit_read.verify(str(path), anchors=anchors).anchored_to == 8
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:6]))
    assert kinds(audit_read.verify(str(path), anchors=anchors)) == {"truncated"}
    with pytest.raises(AuditError, match="cut or replaced"):
        AuditLog(str(path), anchor=str(anchor))


def test_a_log_without_anchor_is_not_called_good_to_its_end(path: Path) -> None:
    log = AuditLog(str(path))
    fill(log, 2)
    report = audit_read.verify(str(path))
    assert report.good
    assert any("not anchored" in note for note in report.notes)


@pytest.mark.parametrize("text", ["", "5", "x:" + "0" * 64, "5:abc"])
def test_bad_anchors(text: str) -> None:
    with pytest.raises(BpfsealError, match="anchor"):
        audit_read.parse_anchor(text)


# Mutations ----------------------------------------------------------------------------------------------------------


def mutations(data: bytes, foreign: bytes, chance: random.Random) -> list[tuple[str, bytes]]:
    """(name, changed log) for every way of tampering that there is, at random places."""
    rows = data.splitlines(keepends=True)
    other = foreign.splitlines(keepends=True)
    out: list[tuple[str, bytes]] = []
    position = chance.randrange(len(data))
    flipped = bytearray(data)
    flipped[position] ^= 1 << chance.randrange(8)
    out.append(("flip", bytes(flipped)))
    out.append(("cut", data[: chance.randrange(len(data) - 1)]))
    out.append(("cut front", data[1 + chance.randrange(len(data) - 1) :]))
    a, b = sorted(chance.sample(range(len(rows)), 2))
    swapped = rows[:]
    swapped[a], swapped[b] = swapped[b], swapped[a]
    out.append(("swap", b"".join(swapped)))
    out.append(("duplicate", b"".join(rows[: a + 1] + rows[a:])))
    out.append(("delete", b"".join(rows[:a] + rows[a + 1 :])))
    out.append(("splice", b"".join(rows[:a] + other[a : b + 1] + rows[b + 1 :])))
    out.append(("insert bytes", data[:position] + chance.randbytes(3) + data[position:]))
    record = json.loads(rows[a])
    record["uid"] = 0
    rewritten = json.dumps(record, separators=(",", ":")).encode() + b"\n"
    out.append(("rewrite", b"".join([*rows[:a], rewritten, *rows[a + 1 :]])))
    return out


@pytest.mark.parametrize("rounds", [120, pytest.param(1150, marks=pytest.mark.slow)])
def test_every_mutation_is_found(tmp_path: Path, rounds: int) -> None:
    """With the head as an anchor outside the log there is no change that goes unnoticed."""
    logs = []
    for name in ("one", "two"):
        folder = tmp_path / name
        log = AuditLog(str(folder / "audit.jsonl"))
        fill(log, 12)
        logs.append(((folder / "audit.jsonl").read_bytes(), {log.next - 1: log.head}))
    (data, anchors), (foreign, _) = logs
    place = tmp_path / "changed" / "audit.jsonl"
    place.parent.mkdir()
    chance = random.Random(20)
    for _ in range(rounds):
        for name, changed in mutations(data, foreign, chance):
            place.write_bytes(changed)
            report = audit_read.verify(str(place), anchors=anchors)
            assert not report.good, (name, changed)
            assert all(finding.where and finding.text for finding in report.findings)


def test_findings_have_the_right_names(path: Path) -> None:
    log = AuditLog(str(path))
    fill(log, 6)
    anchors = {6: log.head}
    rows = path.read_bytes().splitlines(keepends=True)

    def found(changed: list[bytes]) -> set[str]:
        path.write_bytes(b"".join(changed))
        return kinds(audit_read.verify(str(path), anchors=anchors))

    assert found(rows) == set()
    assert found([*rows[:2], *rows[3:]]) == {"missing"}
    assert found([*rows[:2], rows[1], *rows[2:]]) == {"duplicated"}
    assert found([*rows[:2], rows[2].replace(b'"uid":7', b'"uid":0'), *rows[3:]]) == {"edited"}
    assert found(rows[:5]) == {"truncated"}
    assert found(rows[1:]) == {"start"}
    assert found([rows[0], rows[2], rows[1], *rows[3:]]) == {"missing", "reordered", "time"}
    assert found([*rows[:5], rows[5].replace(b'"uid":7', b'"uid":0')]) == {"replaced"}
    assert found([*rows[:2], b"nonsense\n", *rows[2:]]) == {"unreadable"}
    assert found([*rows[:5], rows[5][:-9]]) == {"torn", "truncated"}


# The command line ---------------------------------------------------------------------------------------------------

NASTY = [
    *(chr(code) for code in range(32)),
    *(chr(code) for code in range(0x7F, 0xA1)),
    "\x1b[2J\x1b[1;1Hhello",
    "\x1b]0;title\x07",
    "a\rb",
    '","event":"rotate","x":"',
    "\n{}",
    "\u202emoc.live",
    "\u2028",
    "\u2029",
    "\u200b",
    "\ufeff",
    "\u2066x",
    "\U000e0041",
    "é ü 漢字 🐝",
    "\\u001b[2J",
    "\x00",
    "%s%n",
    "A" * 100_000,
]


@pytest.mark.parametrize("text", NASTY)
def test_nothing_in_a_record_reaches_the_terminal_raw(path: Path, text: str) -> None:
    log = AuditLog(str(path))
    with log:
        log.add("seal", {"uid": 1, "pid": 2, "source": text, "rule": text, "reasons": [text, text]})
    data = path.read_bytes()
    assert data.count(b"\n") == 1
    assert all(0x20 <= byte < 0x7F for byte in data[:-1])
    assert audit_read.verify(str(path)).records == 1
    (record,) = audit_read.records(str(path))
    assert record["source"] == text
    line = audit_cli.line_of(record)
    assert all(c == " " or (c.isprintable() and not c.isspace()) for c in line)
    assert "\u202e" not in line


def test_lock_byte_is_not_the_logs_lock(path: Path) -> None:
    """Two open logs share the in-use mark and still exclude each other in a turn."""
    one, two = AuditLog(str(path)), AuditLog(str(path))
    with one:
        import fcntl

        with pytest.raises(BlockingIOError):
            fcntl.flock(two._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert audit.SEGMENT_BYTES > 1 << 20
