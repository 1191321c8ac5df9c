"""The executable behind a peer: path, sha256, fs-verity digest. Hints for policy, no border: after connecting, a
process can execute something else.

Off by default, because looking costs the helper what it is better with: it keeps CAP_SYS_PTRACE to follow /proc/PID/exe
of other users, and does without Landlock, which hides all processes outside of its domain.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct

from msgspec import Struct

# Larger ones are not hashed.
MAX_BYTES = 256 << 20
_CACHED = 256
# include/uapi/linux/fsverity.h: struct fsverity_digest is two u16 and the digest; algorithm 1 is sha256.
FS_IOC_MEASURE_VERITY = 3 << 30 | 4 << 16 | ord("f") << 8 | 134
_SHA256 = 1


class Executable(Struct, frozen=True):
    """None where it cannot be read, or where the file has no fs-verity digest."""

    path: str | None = None
    sha256: str | None = None
    verity: str | None = None


class Executables:
    """Looks at executables; the digest of a file that did not change is computed once."""

    def __init__(self) -> None:
        self._digests: dict[tuple[int, ...], str] = {}

    def of(self, pid: int) -> Executable:
        """By number: the caller makes sure that the process is still there afterwards."""
        try:
            # Through the link itself, so that it is the file that runs, whatever is at its path now or in which
            # mount namespace.
            fd = os.open(f"/proc/{pid}/exe", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return Executable()
        try:
            return Executable(os.readlink(f"/proc/{pid}/exe"), self._sha256(fd), verity(fd))
        except OSError:
            return Executable()
        finally:
            os.close(fd)

    def _sha256(self, fd: int) -> str | None:
        status = os.fstat(fd)
        if status.st_size > MAX_BYTES:
            return None
        mark = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        known = self._digests.get(mark)
        if known is None:
            digest = hashlib.sha256()
            while piece := os.read(fd, 1 << 20):
                digest.update(piece)
            if len(self._digests) >= _CACHED:
                self._digests.clear()
            known = self._digests[mark] = digest.hexdigest()
        return known


def verity(fd: int) -> str | None:
    """ "sha256:HEX" of a file with fs-verity."""
    buffer = bytearray(struct.pack("HH", 0, 64) + bytes(64))
    try:
        fcntl.ioctl(fd, FS_IOC_MEASURE_VERITY, buffer)
    except OSError:
        return None
    algorithm, size = struct.unpack_from("HH", buffer)
    return f"sha256:{bytes(buffer[4 : 4 + size]).hex()}" if algorithm == _SHA256 else None
