"""What the compiler has to know of the machine and of the user's wishes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property

from msgspec import Struct, field

from bpfseal.dsl.typed import TypedScript

_RING_SHARE = 2048  # of the memory, at most, as in: total / share
_RING_LEAST, _RING_MOST = 1 << 18, 1 << 23
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h


class Options(Struct, frozen=True, dict=True):
    """cpus           possible processors of the machine, 0: ask it
    pid_namespace     (device, inode) of the namespace whose pids are meant; None: the tracer's own
    helper_errors     0 none, 1 failures that the user did not expect, 2 also failed reads
    ring_pages        pages of the event ring, 0: choose by the memory
    """

    cpus: int = 0
    pid_namespace: tuple[int, int] | None = None
    helper_errors: int = 1
    ring_pages: int = 0
    addresses: Mapping[str, int] | None = None
    clock_map: str = field(default_factory=lambda: os.environ.get("BPFTRACE_DUMMY_TS_MAP", ""))

    @cached_property
    def cpu_count(self) -> int:
        """Possible processors: one more than the highest number, as the kernel sizes per-CPU values."""
        if self.cpus:
            return self.cpus
        with open("/sys/devices/system/cpu/possible") as file:
            return int(file.read().strip().replace(",", "-").rpartition("-")[2]) + 1

    @property
    def cpu_slots(self) -> int:
        """Number of processors rounded up to a power of two, for masks."""
        return 1 << (self.cpu_count - 1).bit_length()

    @cached_property
    def namespace(self) -> tuple[int, int] | None:
        """None when pids are those of the initial namespace."""
        found = self.pid_namespace
        if found is None:
            try:
                status = os.stat("/proc/self/ns/pid")
            except OSError:
                return None
            found = status.st_dev, status.st_ino
        return None if found[1] == _INITIAL_PID_NAMESPACE else found

    def ring_bytes(self, script: TypedScript) -> int:
        """Size of the event ring: a power of two of pages."""
        page = os.sysconf("SC_PAGE_SIZE")
        pages = self.ring_pages or int(script.config.get("perf_rb_pages", 0))
        if pages:
            return page << (pages - 1).bit_length()
        share = page * os.sysconf("SC_PHYS_PAGES") // _RING_SHARE
        return min(max(1 << share.bit_length() - 1, _RING_LEAST), _RING_MOST)
