"""The audit log: JSON lines, each with the sha256 of the line before, synced to disk before a signature leaves.

    {"seq":7,"prev":"<sha256 of line 6>","boot_ns":…,"wall":…,"boot":"<boot id>","event":"seal",…}

The chain alone cannot show that its end was cut off. For that there are checkpoints, signed by the root key, and
anchors outside the file: the head that `status` reports and the lines the helper prints (and appends to an anchor
file, if it has one) at every checkpoint. `signer.audit_read` verifies.

Several private helpers may share one log. Everything between reading the tail and the end of the sync happens under a
lock on the file, so that the chain is one. The system's helper, which has its log to itself, does not wait for the end:
it goes on, and what its records vouch for leaves when they are on disk.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import json
import os
import stat
import struct
import time
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from bpfseal.signer.audit_tail import GENESIS, AuditError, last_record
from bpfseal.signer.sync import Syncs

SEGMENT_BYTES = 64 << 20
CHECKPOINT_RECORDS = 512
_F_OFD_SETLK = 37  # include/uapi/asm-generic/fcntl.h
_IN_USE = 1  # the byte every user of a log holds a shared lock on; whoever rotates needs it alone


class Checkpointer(Struct, frozen=True):
    """How checkpoints are signed: the root's certificate (DER) and its signature function."""

    certificate: bytes
    sign: Callable[[bytes], bytes]


def checkpoint_text(seq: int, prev: str, log: str) -> bytes:
    """What the root signs at a checkpoint: position, head and identity of the log."""
    return json.dumps({"bpfseal": "audit checkpoint", "log": log, "prev": prev, "seq": seq}, sort_keys=True).encode()


def _lock_byte(fd: int, kind: int) -> bool:
    """Take or change the lock on the in-use byte; whether it was granted. Belongs to the open file, not the process."""
    request = struct.pack("hhqqi4x", kind, os.SEEK_SET, (1 << 62) + _IN_USE, 1, 0)
    try:
        fcntl.fcntl(fd, _F_OFD_SETLK, request)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _sync(fd: int) -> int:
    """0 or an errno."""
    try:
        os.fdatasync(fd)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


class AuditLog:
    """An open log. Use: `with log: seq = log.next; …; log.add(event, {...})`; leaving the block makes it durable, or,
    after `log.then(done)`, begins to. Without `syncs` there is no difference."""

    def __init__(
        self, path: str, *, segment_bytes: int = SEGMENT_BYTES, anchor: str = "", syncs: Syncs | None = None
    ) -> None:
        """Open or create `path`, its directory included. Raises AuditError."""
        self.path = os.path.abspath(path)
        self.broken = ""
        self.next = 1
        self.head = GENESIS
        self._segment_bytes = segment_bytes
        self._size = -1
        self._torn = ""
        self._open_line = False
        self._pending: list[bytes] = []
        self._since_checkpoint = 0
        self.syncs = syncs
        self._then: Callable[[AuditError | None], None] | None = None
        self._holds = 0
        self._boot_id = open("/proc/sys/kernel/random/boot_id").read().strip()  # noqa: SIM115
        folder = os.path.dirname(self.path)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            status = os.fstat(self._folder)
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
                raise AuditError(
                    f"audit directory {folder} can be changed by others",
                    hint=f"it has to belong to this user or root, mode 0755 or less: chmod go-w {folder}",
                )
            self._fd = self._open()
            self._anchor = os.open(anchor, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600) if anchor else -1
        except OSError as error:
            raise AuditError(
                f"audit log {self.path}: {error.strerror}", hint="BPFSEAL_AUDIT names another place"
            ) from None
        self._lock()
        try:
            self._read_tail()
            self._compare_with_anchor()
        finally:
            self._unlock()

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        name = os.path.basename(self.path)
        while True:
            fd = os.open(name, flags, 0o600, dir_fd=self._folder)
            status = os.fstat(fd)
            plain = stat.S_ISREG(status.st_mode) and not status.st_mode & 0o022
            if not plain or status.st_uid not in (0, os.geteuid()):
                os.close(fd)
                raise AuditError(f"audit log {self.path} belongs to somebody else or is not a plain file")
            # Between open and lock another helper may have rotated the file away.
            if _lock_byte(fd, fcntl.F_RDLCK):
                try:
                    if os.stat(name, dir_fd=self._folder, follow_symlinks=False).st_ino == status.st_ino:
                        return fd
                except FileNotFoundError:
                    pass
            os.close(fd)
            time.sleep(0.002)

    # Locking and the tail ------------------------------------------------------------------------------------------

    def _lock(self) -> None:
        """Every turn holds the lock from its beginning until its records are on disk; turns may overlap."""
        if not self._holds:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._holds += 1

    def _unlock(self) -> None:
        self._holds -= 1
        if not self._holds:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _read_tail(self) -> None:
        """Continue after the last complete record. Half a record (crash, full disk) is closed off and accounted for:
        the next record carries the hash of those bytes as "torn"."""
        size = os.fstat(self._fd).st_size
        if size == self._size:
            return
        fd = self._fd if size else self._newest_segment()
        try:
            self.next, self.head, torn, self._open_line = last_record(fd, self.path)
        finally:
            if fd not in (self._fd, -1):
                os.close(fd)
        self.next += 1
        self._torn = hashlib.sha256(torn).hexdigest() if torn else ""
        self._size = size

    def _newest_segment(self) -> int:
        """The file before an empty one (a crash in the middle of a rotation), -1 for none."""
        stem = os.path.basename(self.path).removesuffix(".jsonl") + "-"
        names = sorted(n for n in os.listdir(self._folder) if n.startswith(stem) and n[len(stem) : -6].isdigit())
        return os.open(names[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder) if names else -1

    def _compare_with_anchor(self) -> None:
        if self._anchor < 0:
            return
        size = os.fstat(self._anchor).st_size
        lines = os.pread(self._anchor, 4096, max(0, size - 4096)).split()
        if len(lines) >= 2 and int(lines[-2]) >= self.next:
            raise AuditError(
                f"audit log {self.path} ends at record {self.next - 1}, the anchor file knows record "
                f"{int(lines[-2])}: it was cut or replaced",
                hint="restore it, or move log and anchor away together",
            )

    # Writing -------------------------------------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            view = view[written:]
            self._size += written

    def __enter__(self) -> AuditLog:
        if self.syncs is not None and self._size > self._segment_bytes:
            self.syncs.collect(wait=True)  # a new file begins when the old one is whole
        if self.broken:
            raise AuditError(self.broken)
        self._lock()
        try:
            self._read_tail()
            if self._size > self._segment_bytes:
                self._rotate()
        except OSError as error:
            self._unlock()
            raise AuditError(f"audit log {self.path}: {error.strerror}") from None
        except BaseException:
            self._unlock()
            raise
        return self

    def add(self, event: str, fields: dict[str, Any]) -> int:
        """Queue one record inside the turn; its sequence number."""
        seq = self.next
        record: dict[str, Any] = {
            "seq": seq,
            "prev": self.head,
            "wall": time.time_ns() // 1_000_000 / 1000,
            "boot_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            "boot": self._boot_id,
            "event": event,
            **fields,
        }
        if self._torn:
            record["torn"], self._torn = self._torn, ""
        line = json.dumps(record, separators=(",", ":")).encode()
        self._pending.append(line)
        self.head = hashlib.sha256(line).hexdigest()
        self.next = seq + 1
        return seq

    def then(self, done: Callable[[AuditError | None], None]) -> None:
        """Do not wait at the end of this turn: `done` is called once its records are on disk, or cannot be brought
        there. Until then nothing that they vouch for may leave."""
        self._then = done

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Append what was queued and sync it, or begin to. Raises AuditError: then none of the turn's replies may
        leave, and `done` of `then` is not called."""
        pending, self._pending = self._pending, []
        then, self._then = self._then, None
        begun = False
        try:
            if kind is None and pending:
                self._append(b"\n" * self._open_line + b"\n".join(pending) + b"\n")
                self._open_line = False
                self._since_checkpoint += len(pending)
                begun = then is not None and self._begin_sync(then)
                if not begun:
                    self._synced(_sync(self._fd))
            elif pending:
                self._size = -1
        finally:
            if not begun:
                self._unlock()
        if kind is None and then is not None and not begun:
            then(None)

    def _append(self, data: bytes) -> None:
        before = self._size
        try:
            self._write(data)
        except OSError as error:
            # What got through is cut off again or, on an append-only file, closed off by the next reader.
            try:
                os.ftruncate(self._fd, before)
            except OSError:
                pass
            self._size = -1
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise AuditError(
                f"audit log {self.path}: {error.strerror}; nothing is signed without a record",
                hint="make room on its file system" if full else None,
            ) from None

    def _begin_sync(self, then: Callable[[AuditError | None], None]) -> bool:
        """Whether the kernel syncs in the background, with the lock held until it is done."""

        def done(code: int) -> None:
            self._unlock()
            try:
                self._synced(code)
            except AuditError as error:
                then(error)
            else:
                then(None)

        if self.syncs is None:
            return False
        try:
            self.syncs.start(self._fd, done)
        except OSError:
            return False  # too many at a time, or not for files of this kind
        return True

    def _synced(self, code: int) -> None:
        if code and not self.broken:
            # After a failed sync the kernel may have dropped the dirty pages: the file's state is unknown for good.
            self.broken = f"audit log {self.path} could not be synced ({os.strerror(code)}); restart the helper"
        if self.broken:
            raise AuditError(self.broken)

    # Checkpoints, anchors, rotation --------------------------------------------------------------------------------

    def checkpoint_due(self) -> bool:
        return self._since_checkpoint >= CHECKPOINT_RECORDS

    def checkpoint(self, root: Checkpointer, done: Callable[[AuditError | None, int, str], None]) -> None:
        """Append a signed checkpoint and tell the anchor file; then `done` gets the head (sequence, hash), or what
        went wrong."""
        try:
            with self:
                text = checkpoint_text(self.next, self.head, self.path)
                self.add(
                    "checkpoint",
                    {
                        "log": self.path,
                        "root": hashlib.sha256(root.certificate).hexdigest(),
                        "signature": base64.b64encode(root.sign(text)).decode(),
                    },
                )
                seq, head = self.next - 1, self.head
                self.then(lambda error: self._anchored(error, seq, head, done))
        except AuditError as error:
            done(error, 0, "")
            return
        self._since_checkpoint = 0

    def _anchored(
        self, error: AuditError | None, seq: int, head: str, done: Callable[[AuditError | None, int, str], None]
    ) -> None:
        if self._anchor >= 0 and error is None:
            try:
                os.write(self._anchor, f"{seq} {head}\n".encode())
                self._sync_anchor()
            except OSError as trouble:
                error = AuditError(f"anchor file of audit log {self.path}: {trouble.strerror}")
        done(error, seq, head)

    def _sync_anchor(self) -> None:
        """Nobody waits for it: an anchor that is late is as good as one that was not due yet."""
        if self.syncs is not None:
            try:
                self.syncs.start(self._anchor, lambda code: None)
                return
            except OSError:
                pass
        os.fdatasync(self._anchor)

    @property
    def records_since_checkpoint(self) -> int:
        return self._since_checkpoint

    def _rotate(self) -> None:
        """Begin a new file; the chain goes on in it. Only when nobody else has the log open."""
        if not _lock_byte(self._fd, fcntl.F_WRLCK):
            return
        name = os.path.basename(self.path)
        segment = f"{name.removesuffix('.jsonl')}-{self.next - 1:012d}.jsonl"
        try:
            os.rename(name, segment, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            fresh = self._open()
        except OSError:
            _lock_byte(self._fd, fcntl.F_RDLCK)
            return
        os.fsync(self._folder)
        os.close(self._fd)
        self._fd, self._size = fresh, -1
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._read_tail()
        if self._size == 0:
            self.add("continued", {"from": segment})

    def close(self) -> None:
        if self.syncs is not None:
            self.syncs.close()
        for fd in (self._fd, self._folder, self._anchor):
            if fd >= 0:
                os.close(fd)
