"""Seccomp user notification: calls that the filter stopped, and answers to them.

`struct seccomp_notif`, `seccomp_notif_resp`, `seccomp_notif_addfd` and the ioctls of include/uapi/linux/seccomp.h.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from typing import Final, NamedTuple

_NOTIF: Final = struct.Struct("=QIIiIQ6Q")  # id, pid, flags, then seccomp_data: nr, arch, ip, args
_RESPONSE: Final = struct.Struct("=QqiI")  # id, val, error, flags
_ADDFD: Final = struct.Struct("=QIIII")  # id, flags, srcfd, newfd, newfd_flags
_RECV, _SEND, _ID_VALID, _ADDFD_CALL, _SET_FLAGS = 0xC0502100, 0xC0182101, 0x40082102, 0x40182103, 0x40082104
_CONTINUE: Final = 1 << 0
_SYNC_WAKE_UP: Final = 1 << 0  # since Linux 6.6: who waits for an answer is waited for
_ADDFD_SEND: Final = 1 << 1  # the descriptor's number becomes the call's result, in one step


class Call(NamedTuple):
    """A stopped bpf(2): `thread` as seen by this process, address and size of the attributes."""

    id: int
    thread: int
    attr: int
    size: int


class Listener:
    """Does not own the descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, _SET_FLAGS, _SYNC_WAKE_UP)

    def receive(self) -> Call | None:
        """The next stopped call; waits for it. None if there was one but its thread is gone."""
        buffer = bytearray(_NOTIF.size)
        try:
            fcntl.ioctl(self.fd, _RECV, buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        id, thread, _flags, _nr, _arch, _ip, _command, attr, size, *_ = _NOTIF.unpack(buffer)
        return Call(id, thread, attr, size & 0xFFFFFFFF)

    def alive(self, call: Call) -> bool:
        """Whether the thread still waits: only then is its number still its own."""
        try:
            fcntl.ioctl(self.fd, _ID_VALID, struct.pack("=Q", call.id))
        except OSError:
            return False
        return True

    def fail(self, call: Call, code: int) -> None:
        """The call fails with errno `code`."""
        try:
            fcntl.ioctl(self.fd, _SEND, _RESPONSE.pack(call.id, 0, -code, 0))
        except OSError as error:
            if error.errno != errno.ENOENT:  # the thread was killed
                raise

    def proceed(self, call: Call) -> None:
        """The kernel makes the call itself, with whatever is in the tool's memory then: only where the kernel judges
        it too."""
        try:
            fcntl.ioctl(self.fd, _SEND, _RESPONSE.pack(call.id, 0, 0, _CONTINUE))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def give(self, call: Call, fd: int) -> None:
        """The call succeeds with a copy of `fd`, close-on-exec as all BPF descriptors are. Fails the call when the
        tool can have no more descriptors."""
        try:
            fcntl.ioctl(self.fd, _ADDFD_CALL, _ADDFD.pack(call.id, _ADDFD_SEND, fd, 0, os.O_CLOEXEC))
        except OSError as error:
            if error.errno != errno.ENOENT:
                self.fail(call, error.errno or errno.EMFILE)
