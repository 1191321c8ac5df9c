"""Sockets and a selector without a kernel: the helper's event loop runs on them unchanged, ten times as fast.

Only the calls that `signer.server` and `signer.peer` make are here. Credentials are those of this process, with a real
pidfd, so that everything that is asked about a peer is answered by the kernel as ever.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
from collections import deque
from typing import Any

from bpfseal.signer.peer import SCM_PIDFD, SO_PEERGROUPS, SO_PEERPIDFD

_CREDENTIALS = struct.pack("iII", os.getpid(), os.getuid(), os.getgid())


class MemorySocket:
    """The helper's end of a connection: `pieces` are what its reads give, b"" the end; `sent` is what it wrote."""

    def __init__(self, pidfd: int, number: int) -> None:
        self.pieces: deque[bytes] = deque()
        self.sent = bytearray()
        self.closed = False
        self._pidfd = pidfd
        self._number = number

    def fileno(self) -> int:
        return self._number

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert level == socket.SOL_SOCKET
        if option == socket.SO_PEERCRED:
            return _CREDENTIALS
        if option == SO_PEERPIDFD:
            return struct.pack("i", os.dup(self._pidfd))
        assert option == SO_PEERGROUPS
        return b""

    def recvmsg(self, size: int, ancillary: int, flags: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        if not self.pieces:
            raise BlockingIOError
        data = self.pieces.popleft()
        if len(data) > size:
            self.pieces.appendleft(data[size:])
            data = data[:size]
        if not data:
            return data, [], 0, None
        credentials = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, _CREDENTIALS)
        return data, [credentials, (socket.SOL_SOCKET, SCM_PIDFD, struct.pack("i", os.dup(self._pidfd)))], 0, None

    def send(self, data: memoryview) -> int:
        self.sent += data
        return len(data)

    def close(self) -> None:
        self.closed = True


class MemorySelector:
    """Readiness of memory sockets: readable with pieces to read, always writable. Others are never ready."""

    def __init__(self, former: selectors.BaseSelector) -> None:
        """Takes over from `former`, which is closed."""
        self._keys: dict[Any, selectors.SelectorKey] = {key.fileobj: key for key in former.get_map().values()}
        former.close()

    def register(self, sock: Any, events: int, data: Any = None) -> None:
        assert sock not in self._keys
        self._keys[sock] = selectors.SelectorKey(sock, 0, events, data)

    def unregister(self, sock: Any) -> None:
        del self._keys[sock]

    def modify(self, sock: Any, events: int, data: Any = None) -> None:
        assert sock in self._keys
        self._keys[sock] = selectors.SelectorKey(sock, 0, events, data)

    def select(self, timeout: float) -> list[tuple[selectors.SelectorKey, int]]:
        found = []
        for key in self._keys.values():
            if isinstance(key.fileobj, MemorySocket):
                ready = (selectors.EVENT_READ if key.fileobj.pieces else 0) | selectors.EVENT_WRITE
                if mask := key.events & ready:
                    found.append((key, mask))
        return found

    def close(self) -> None:
        self._keys.clear()
