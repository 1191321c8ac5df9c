"""Syncs of files that the kernel works on while this thread goes on: Linux AIO's IOCB_CMD_FDSYNC (fs/aio.c, 4.18).

A sync of a log takes a fraction of a millisecond as a rule and ten now and then. Waiting for it, a helper of one thread
keeps everybody waiting; a second thread would have to be let through its confinement. Here the kernel's workers wait.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from bpfseal.signer.syscall import address_of, syscall

MOST = 16  # at the same time

# include/uapi/linux/aio_abi.h
_FDSYNC = 3
_RESFD = 1
# data, key, rw_flags, opcode, priority, fd, buf, nbytes, offset, -, flags, resfd
_IOCB = struct.Struct("=QIIHhIQQqQII")
_EVENT = struct.Struct("=QQqq")  # data, iocb, result, -


class _Sync(Struct, eq=False):
    done: Callable[[int], None]
    result: int | None = None


class Syncs:
    """Syncs in flight, told of in the order in which they were started. `fileno()` is readable when some are done.

    Made before the process is confined, which leaves io_submit and io_getevents.
    """

    def __init__(self) -> None:
        """Raises OSError where the kernel has no AIO or no room for more of it."""
        context = ctypes.create_string_buffer(8)
        syscall("io_setup", MOST, context)
        self._context = int.from_bytes(context.raw, "little")
        self._ready = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._running: deque[_Sync] = deque()
        self._numbers: dict[int, _Sync] = {}
        self._number = 0
        self._events = ctypes.create_string_buffer(MOST * _EVENT.size)

    def __len__(self) -> int:
        return len(self._running)

    def fileno(self) -> int:
        return self._ready

    def start(self, fd: int, done: Callable[[int], None]) -> None:
        """Begin to sync the data of `fd`; `done` gets 0 or an errno, from `collect`. Raises OSError, e.g. EAGAIN."""
        number = self._number = self._number + 1
        iocb = _IOCB.pack(number, 0, 0, _FDSYNC, 0, fd, 0, 0, 0, 0, _RESFD, self._ready)
        # The kernel writes the key into it.
        block = ctypes.create_string_buffer(iocb, len(iocb))
        syscall("io_submit", self._context, 1, struct.pack("=Q", address_of(block)))
        self._numbers[number] = sync = _Sync(done)
        self._running.append(sync)

    def collect(self, *, wait: bool = False) -> None:
        """Tell of those that are done; with `wait`, of all, when they are."""
        try:
            os.eventfd_read(self._ready)
        except BlockingIOError:
            pass
        while self._numbers:
            try:
                count = syscall("io_getevents", self._context, int(wait), MOST, self._events, None if wait else _NOW)
            except InterruptedError:
                continue
            for number, _, result, _ in _EVENT.iter_unpack(self._events.raw[: count * _EVENT.size]):
                self._numbers.pop(number).result = -result
            if not wait:
                break
        while self._running and self._running[0].result is not None:
            sync = self._running.popleft()
            assert sync.result is not None
            sync.done(sync.result)

    def close(self) -> None:
        """Wait for what is in flight, and tell of it. The context goes with the process."""
        self.collect(wait=True)
        os.close(self._ready)


_NOW = bytes(16)  # struct timespec


def background_syncs() -> Syncs | None:
    """None where the kernel has none."""
    try:
        return Syncs()
    except OSError:
        return None
