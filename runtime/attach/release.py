"""Closing many descriptors that the kernel makes one wait for.

Two waits, measured at 36 to 40 ms each. A link on a tracepoint, kprobe or uprobe event takes its program off at once,
then waits for a grace period before it lets the program go (perf_event_detach_bpf_prog, kernel/trace/bpf_trace.c):
closers that wait at the same time share one, so those are closed by many threads. The event itself waits under a mutex
(perf_trace_event_unreg, kernel/trace/trace_event_perf.c), 13 s for all system calls whatever one does: those go to a
detached process, which closes them in its own time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from typing import Final

from bpfseal.signer.syscall import syscall

_THREADS: Final = 64
_FEW: Final = 2  # up to here waiting costs less than a fork


def together(fds: Iterable[int]) -> None:
    """Close `fds` and wait until they are."""
    left = list(fds)
    if len(left) <= 1:
        _close_all(left)
        return
    import threading

    threads = [threading.Thread(target=_close_all, args=(left,)) for _ in range(min(_THREADS, len(left)) - 1)]
    for thread in threads:
        thread.start()
    _close_all(left)
    for thread in threads:
        thread.join()


def later(fds: list[int]) -> None:
    """Close `fds` without waiting. They are closed in this process when it returns."""
    if len(fds) > _FEW:
        try:
            _hand_over(fds)
        except OSError:
            pass  # then it takes its time here
    _close_all(list(fds))


def _close_all(left: list[int]) -> None:
    while left:
        try:
            fd = left.pop()
        except IndexError:  # another thread was faster
            return
        try:
            os.close(fd)
        except OSError:
            continue


def _hand_over(fds: list[int]) -> None:
    """A grandchild keeps only `fds`; it belongs to init, so that nobody has to wait for it."""
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    code = 1
    try:
        if os.fork() == 0:
            _linger(sorted(set(fds)))
        code = 0
    finally:
        os._exit(code)


def _linger(fds: list[int]) -> None:
    """Close everything but `fds`, drop this process' memory (it maps ring buffers) by exec, which closes them."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    last = -1
    for fd in (*fds, 1 << 31):
        if fd - last > 1:
            syscall("close_range", last + 1, min(fd - 1, (1 << 31) - 1), 0)
        last = fd
    for path in ("/bin/true", "/usr/bin/true"):
        try:
            os.execv(path, ["true"])  # close-on-exec takes effect after the old memory is gone
        except OSError:
            continue
    _close_all(fds)
