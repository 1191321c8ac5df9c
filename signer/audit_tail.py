"""The end of an audit log: where the chain goes on, whatever a crash or a full disk left there."""

from __future__ import annotations

import hashlib
import json
import os

from bpfseal.errors import BpfsealError

GENESIS = "0" * 64
LINE_LIMIT = 32 << 20


class AuditError(BpfsealError):
    """The log cannot be written, so nothing can be signed."""


def last_record(fd: int, path: str) -> tuple[int, str, bytes, bool]:
    """(sequence, hash, bytes of an unfinished record after it, whether the file ends inside a line) of an open log.

    Sequence 0 and GENESIS for an empty file or fd -1. Raises AuditError when the end is not a log's.
    """
    size = os.fstat(fd).st_size if fd >= 0 else 0
    window = 65536
    while size:
        start = max(0, size - window)
        lines = os.pread(fd, size - start, start).split(b"\n")
        closed = not lines[-1]
        if closed:
            lines.pop()
        for index in range(len(lines) - 1, -1 if start == 0 else 0, -1):
            seq = _sequence_of(lines[index])
            if seq:
                return seq, hashlib.sha256(lines[index]).hexdigest(), b"\n".join(lines[index + 1 :]), not closed
            if len(lines) - index > 3:
                break
        if start == 0 or window > LINE_LIMIT:
            if start == 0 and len(lines) == 1 and lines[0].startswith(b'{"seq":'[: len(lines[0])]):
                return 0, GENESIS, lines[0], not closed
            raise AuditError(
                f"the end of audit log {path} is unreadable",
                hint="`bpfseal signer audit verify` says where; move the file away to start a new log",
            )
        window *= 4
    return 0, GENESIS, b"", False


def _sequence_of(line: bytes) -> int:
    try:
        return int(json.loads(line)["seq"])
    except (ValueError, KeyError, TypeError):
        return 0
