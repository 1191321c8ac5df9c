"""Who is at the other end, as the kernel says: credentials of the connection and of each single message.

The credentials of a connection name who connected, and a connected socket can be handed on. So every piece of a request
carries its own (SCM_CREDENTIALS, and SCM_PIDFD where the kernel has it), each must name the process that connected,
and a request without them is refused. Both socket options have to be set before a client can send anything: on the
listening socket (inherited by accept) or on the socket pair before the helper starts.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct

from msgspec import Struct

from bpfseal.errors import BpfsealError
from bpfseal.signer.executable import Executable, Executables
from bpfseal.signer.identity import Identity

# include/uapi/asm-generic/socket.h, include/linux/socket.h, include/uapi/linux/pidfd.h
SO_PEERGROUPS, SO_PASSPIDFD, SO_PEERPIDFD = 59, 76, 77
SCM_PIDFD = 4
_UCRED = struct.Struct("iII")
_PIDFD_INFO = struct.Struct("QQ12I")  # PIDFD_INFO_SIZE_VER0
PIDFD_GET_INFO = 3 << 30 | _PIDFD_INFO.size << 16 | 0xFF << 8 | 11
_INFO_CREDS, _INFO_CGROUP = 1 << 1, 1 << 2
# Room for the credentials and one file descriptor: whoever sends descriptors of their own shows up as MSG_CTRUNC or
# SCM_RIGHTS, and at most one of them lands here, to be closed.
ANCILLARY = socket.CMSG_SPACE(_UCRED.size) + socket.CMSG_SPACE(4)
_PID_INIT_NAMESPACE = 0xEFFFFFFC  # include/linux/proc_ns.h, PROC_PID_INIT_INO


class PeerError(BpfsealError):
    """The sender of a message is not whom the connection belongs to, or cannot be told."""


def want_credentials(sock: socket.socket) -> None:
    """Ask the kernel for credentials with every message received on (or accepted from) `sock`."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSPIDFD, 1)
    except OSError:
        pass  # before 6.5: judged by credentials alone


def in_initial_pid_namespace() -> bool:
    """Whether pids seen here are those a BPF program sees."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino == _PID_INIT_NAMESPACE
    except OSError:
        return False


def _groups(sock: socket.socket) -> tuple[int, ...]:
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4096)
    except OSError:
        return ()
    return tuple(sorted(struct.unpack(f"{len(raw) // 4}I", raw)))


def _cgroup_path(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="backslashreplace") as file:
            for line in file:
                if line.startswith("0::"):
                    return line[3:].rstrip("\n")
    except OSError:
        pass
    return ""


class Piece(Struct):
    """One read from a socket: the bytes and the sender (pid, uid, gid, pidfd or -1)."""

    data: bytes
    pid: int = 0
    uid: int = 65534
    gid: int = 65534
    pidfd: int = -1
    foreign: bool = False

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def receive(sock: socket.socket, size: int) -> Piece:
    """Read up to `size` bytes. `foreign` is set when the sender attached anything; such descriptors are closed here.

    The kernel never joins bytes of different senders in one read (unix_stream_read_generic).
    """
    data, ancillary, flags, _ = sock.recvmsg(size, ANCILLARY, socket.MSG_CMSG_CLOEXEC)
    piece = Piece(data, foreign=bool(flags & socket.MSG_CTRUNC))
    for level, kind, payload in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_CREDENTIALS:
            piece.pid, piece.uid, piece.gid = _UCRED.unpack_from(payload)
        elif kind == SCM_PIDFD:
            piece.pidfd = struct.unpack_from("i", payload)[0]
        elif kind == socket.SCM_RIGHTS:
            piece.foreign = True
            for descriptor in struct.unpack(f"{len(payload) // 4}i", payload[: len(payload) // 4 * 4]):
                os.close(descriptor)
    return piece


class Peer:
    """The process that connected."""

    def __init__(self, sock: socket.socket) -> None:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        self.pid, self.uid, self.gid = _UCRED.unpack(raw)
        self.groups = _groups(sock)
        self._inode = -1
        try:
            pidfd = struct.unpack("i", sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4))[0]
        except OSError:
            pidfd = -1
        if pidfd >= 0:
            self._inode = os.fstat(pidfd).st_ino
            os.close(pidfd)
        self._cgroup = (0, "")

    def accept(self, piece: Piece) -> None:
        """Raise PeerError unless `piece` was sent by this very process with the ids it connected with."""
        if piece.foreign:
            raise PeerError("file descriptors are not accepted here")
        if piece.pid == 0:
            raise PeerError("message without credentials")
        if (piece.pid, piece.uid, piece.gid) != (self.pid, self.uid, self.gid):
            raise PeerError(
                f"message of process {piece.pid} (uid {piece.uid}, gid {piece.gid}) on a connection of process "
                f"{self.pid} (uid {self.uid}, gid {self.gid})"
            )
        if piece.pidfd >= 0 and self._inode >= 0 and os.fstat(piece.pidfd).st_ino != self._inode:
            raise PeerError(f"process {piece.pid} is not the one that connected under that number")

    def identity(self, pidfd: int, executables: Executables | None = None) -> Identity:
        """The sender's identity now, through the pidfd of its message. Raises PeerError when it is gone or changed."""
        cgroup_id = 0
        if pidfd >= 0:
            buffer = bytearray(_PIDFD_INFO.size)
            _PIDFD_INFO.pack_into(buffer, 0, _INFO_CREDS | _INFO_CGROUP, *[0] * 13)
            try:
                fcntl.ioctl(pidfd, PIDFD_GET_INFO, buffer)
            except ProcessLookupError:
                raise PeerError(f"process {self.pid} is gone") from None
            except OSError:
                pass  # before 6.13
            else:
                mask, cgroup, _pid, _tgid, _ppid, _ruid, _rgid, euid, egid, *_ = _PIDFD_INFO.unpack(buffer)
                if mask & _INFO_CREDS and (euid, egid) != (self.uid, self.gid):
                    raise PeerError(f"process {self.pid} changed its ids since it connected")
                cgroup_id = cgroup if mask & _INFO_CGROUP else 0
        if not cgroup_id or cgroup_id != self._cgroup[0]:
            # Read by number, so the process has to be alive afterwards for the answer to be about it.
            path = _cgroup_path(self.pid)
            if pidfd >= 0:
                self._still_there(pidfd)
            self._cgroup = (cgroup_id, path)
        exe = executables.of(self.pid) if executables else Executable()
        if executables and pidfd >= 0:
            self._still_there(pidfd)
        return Identity(
            uid=self.uid,
            gid=self.gid,
            groups=self.groups,
            pid=self.pid,
            cgroup_id=cgroup_id,
            cgroup_path=self._cgroup[1],
            exe=exe.path,
            exe_sha256=exe.sha256,
            exe_verity=exe.verity,
        )

    def _still_there(self, pidfd: int) -> None:
        # A pidfd becomes readable when its process has ended.
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if poll.poll(0):
            raise PeerError(f"process {self.pid} is gone")
