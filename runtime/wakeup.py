"""Signals that come at the wrong moment: after the interpreter has looked for them for the last time, before the thread
sleeps in epoll_wait(2). They interrupt nothing, and their handlers would run when the next event comes, which may be
never. So the C handler also writes to a pipe that the session waits for (`signal.set_wakeup_fd`).

One pipe for all sessions of this process; only the main thread runs handlers, so only its sessions need it.
"""

from __future__ import annotations

import os
import signal
import threading

_pipe: tuple[int, int] | None = None  # ours, while it is the one that handlers write to
_users = 0


def acquire() -> int:
    """A descriptor that is readable when a signal has come; -1 in other threads, and where an event loop has such a
    pipe already (asyncio's). `release` when a number was given."""
    global _pipe, _users
    if threading.current_thread() is not threading.main_thread():
        return -1
    if _pipe is None:
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        if (before := signal.set_wakeup_fd(write, warn_on_full_buffer=False)) != -1:
            signal.set_wakeup_fd(before)
            os.close(read)
            os.close(write)
            return -1
        _pipe = read, write
    _users += 1
    return _pipe[0]


def drain(fd: int) -> None:
    """Empty the pipe: the handlers run anyway."""
    try:
        os.read(fd, 512)
    except BlockingIOError:
        pass


def release() -> None:
    """In another thread than the main one the pipe stays, for the next session or the end of the process: the handler's
    descriptor can only be changed there, and must not be closed under it."""
    global _pipe, _users
    _users -= 1
    if _users or _pipe is None or threading.current_thread() is not threading.main_thread():
        return
    (read, write), _pipe = _pipe, None
    if (now := signal.set_wakeup_fd(-1)) not in (write, -1):
        signal.set_wakeup_fd(now)  # a loop that came later
    os.close(read)
    os.close(write)
