"""What became of a trace's deferred blocks: read from the programs' counters, settled when the trace ends."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from bpfseal.compiler import layout
from bpfseal.runtime import bpf

if TYPE_CHECKING:
    from bpfseal.compiler.layout import Reader

# Blocks whose tasks are about to return to user space get this long to run before they are cancelled.
_GRACE_SECONDS = 0.1
_LOOK_SECONDS = 0.001


class Account(NamedTuple):
    """How often deferred blocks were reached (`scheduled`), and what became of that.

    dropped    not scheduled: the same block was pending in the same thread, or the kernel had no memory
    cancelled  the thread or the trace ended first; while the trace runs, of threads that had ended already
    kernel     reached in kernel threads, which never return to user space: not part of the others
    """

    scheduled: int
    run: int
    dropped: int
    cancelled: int
    kernel: int

    @property
    def pending(self) -> int:
        return self.scheduled - self.run - self.dropped - self.cancelled

    def text(self) -> str:
        """What a person has to know at the end, a line; empty if all blocks ran."""
        reasons = []
        if self.dropped:
            reasons.append(f"{self.dropped} dropped (pending in the same thread already, or no memory)")
        if self.cancelled:
            reasons.append(f"{self.cancelled} cancelled (the thread or the trace ended first)")
        if not reasons:
            return ""
        missed = self.dropped + self.cancelled
        return f"WARNING: {missed} of {self.scheduled} deferred blocks did not run: {', '.join(reasons)}\n"


class Deferred:
    """The deferred work of one session; fds stay the session's."""

    def __init__(self, reader: Reader, map_fd: Callable[[int], int]) -> None:
        self._counters = map_fd(reader.deferred)
        self._work = tuple(map_fd(index) for index in reader.work)

    def read(self) -> Account:
        """As it is now, over all CPUs."""
        size = bpf.per_cpu_stride(8) * bpf.possible_cpus()
        items = bpf.map_items(self._counters, 4, size, layout.DEFERRED_SLOTS)
        slots = dict.fromkeys(range(layout.DEFERRED_SLOTS), 0)
        for key, value in items:
            slots[int.from_bytes(key, "little")] = sum(struct.unpack(f"<{len(value) // 8}Q", value))
        return Account(
            slots[layout.DEFERRED_SCHEDULED],
            slots[layout.DEFERRED_RUN],
            slots[layout.DEFERRED_DROPPED],
            slots[layout.DEFERRED_CANCELLED],
            slots[layout.DEFERRED_KERNEL],
        )

    def wait(self, meanwhile: Callable[[], object]) -> Account:
        """Give what is pending a moment to run. Nothing schedules any more."""
        deadline = time.monotonic() + _GRACE_SECONDS
        while (account := self.read()).pending > 0 and time.monotonic() < deadline:
            meanwhile()
            time.sleep(_LOOK_SECONDS)
        return account

    def end(self, meanwhile: Callable[[], object]) -> Account:
        """Cancel what still has not run: the final account, in which nothing is pending.

        Deleting an element cancels its work, unless it runs at this moment (bpf_task_work_cancel_and_free() in
        kernel/bpf/helpers.c); such a block may end, and counts if it does so in time.
        """
        account = self.wait(meanwhile)
        if account.pending > 0:
            for fd in self._work:
                self._cancel(fd, bpf.map_keys(fd, 8))
            time.sleep(_LOOK_SECONDS)
            account = self.read()
        return account._replace(cancelled=account.cancelled + max(account.pending, 0))

    def _cancel(self, fd: int, keys: Iterable[bytes]) -> None:
        for key in list(keys):
            bpf.map_delete(fd, key)
