"""Which files processes have mapped where, as the kernel tells it while that happens (PERF_RECORD_MMAP2 and _FORK of
include/uapi/linux/perf_event.h): when maps of stacks are printed a process has often ended, and its /proc with it.

Either a target and what it starts, or every process of the machine; of those that have ended the last ones are kept.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
import time
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from bpfseal.errors import BpfsealError
from bpfseal.runtime.attach.perf import online_cpus
from bpfseal.signer.syscall import syscall

if TYPE_CHECKING:
    from bpfseal.runtime.elf import Elf

_SOFTWARE, _DUMMY = 1, 9
_INHERIT, _MMAP, _TASK, _WATERMARK, _ID_ALL, _MMAP2 = 1 << 1, 1 << 8, 1 << 13, 1 << 14, 1 << 18, 1 << 23
_SAMPLE_TIME: Final = 1 << 2  # with _ID_ALL: the last eight bytes of each record
_CLOEXEC: Final = 8
_ATTR = struct.Struct("<IIQQQQQII64x")  # as far as the watermark; the rest is zero
_RECORD_EXIT, _RECORD_FORK, _RECORD_MMAP2 = 4, 7, 10
_HEADER = struct.Struct("<IHH")
_TASK_BODY = struct.Struct("<IIII")  # pid, ppid, tid, ptid
_MMAP2_BODY = struct.Struct("<IIQQQIIQQII")
_TIME = struct.Struct("<Q")
_HEAD, _TAIL = 1024, 1032  # in struct perf_event_mmap_page
_POSITION = struct.Struct("Q")
_EVERYBODY: Final = -1
_PAGES, _PAGES_OF_ALL, _MANY_CPUS = 16, 64, 32  # of each CPU's ring, which has less to hold where there are many
# Ended processes whose mappings are kept; a process has ten or twenty, of some 250 bytes.
_ENDED: Final = 4096
# At first, and of each `read`, for processes that were there before: the machine may have thousands.
_FIRST_SECONDS, _SLICE_SECONDS = 0.2, 0.02
_EXECUTABLE = re.compile(rb"^(\w+)-(\w+) ..x. (\w+) \S+ (\d+) +(/.*)$", re.M)  # lines of /proc/PID/maps


class Mapping(NamedTuple):
    """`path` from `offset` on, at `start` up to `end`; `inode` tells whether it is still the same file."""

    start: int
    end: int
    offset: int
    inode: int
    path: str


class Mappings:
    """Executable mappings of a process and of those that it starts, or of all processes. Raises OSError when the
    kernel does not tell."""

    def __init__(self, pid: int = _EVERYBODY) -> None:
        self._by_pid: dict[int, list[Mapping]] = {}
        self._ended: dict[int, None] = {}
        self._own = _identity("/")
        # Root directories of processes in containers: (device, inode). Those of a target are held open, since it may be
        # the last one in there; doing so with everybody's would keep file systems from being unmounted.
        self._roots: dict[int, tuple[int, int]] = {}
        self._held: dict[tuple[int, int], int] = {}
        self._all = pid == _EVERYBODY
        # An event of a process is one of a thread and those that it starts: where there are others already all of the
        # machine is listened to, for the sake of the ones in here.
        wide = self._all or _threads(pid) > 1
        self._wanted = {pid} if wide and not self._all else None
        self._rings: list[tuple[int, mmap.mmap]] = []
        cpus = online_cpus()
        self._pages = _PAGES_OF_ALL if wide and len(cpus) < _MANY_CPUS else _PAGES
        size = self._pages * mmap.PAGESIZE
        flags = (0 if wide else _INHERIT) | _MMAP | _TASK | _WATERMARK | _ID_ALL | _MMAP2
        attr = _ATTR.pack(_SOFTWARE, _ATTR.size, _DUMMY, 1, _SAMPLE_TIME, 0, flags, size // 2, 0)
        try:
            for cpu in cpus:
                fd = syscall("perf_event_open", attr, _EVERYBODY if wide else pid, cpu, -1, _CLOEXEC)
                try:
                    ring = mmap.mmap(fd, mmap.PAGESIZE + size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
                except BaseException:
                    os.close(fd)
                    raise
                self._rings.append((fd, ring))
        except BaseException:
            self.close()
            raise
        self._before: Iterator[int] = iter(())
        if self._all:
            own = os.getpid()
            self._before = (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != own)
            self._look_back(_FIRST_SECONDS)
        else:
            self._known(pid)

    @property
    def descriptors(self) -> list[int]:
        """Readable when the kernel has told much: time to `read`."""
        return [fd for fd, _ in self._rings]

    def _known(self, pid: int) -> None:
        """What it has mapped already."""
        try:
            with open(f"/proc/{pid}/maps", "rb") as file:
                lines = _EXECUTABLE.findall(file.read())
        except OSError:
            return
        if lines:
            self._by_pid[pid] = [
                Mapping(int(start, 16), int(end, 16), int(offset, 16), int(inode), os.fsdecode(path))
                for start, end, offset, inode, path in lines
            ]
            self._root(pid)

    def _root(self, pid: int) -> None:
        """Take note of the root directory of a process that has another one than we."""
        root = _identity(f"/proc/{pid}/root/")
        if root is None or root == self._own:
            return
        self._roots[pid] = root
        if self._all or root in self._held:
            return
        try:
            self._held[root] = os.open(f"/proc/{pid}/root/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return  # it has just ended

    def _add(self, pid: int, new: Mapping) -> None:
        """What it covers is gone: an exec() or munmap() came between."""
        kept = [one for one in self._by_pid.get(pid, []) if one.end <= new.start or one.start >= new.end]
        kept.append(new)
        kept.sort()
        self._by_pid[pid] = kept

    def read(self) -> None:
        """Take what the kernel has told since. Now and then while processes live, so that files of containers can be
        found afterwards."""
        told: set[int] = set()
        # A process is started on one CPU and maps its files on another: the order is that of the clock.
        for _, kind, record in sorted(self._records(), key=lambda one: one[0]):
            pid, parent, thread, _ = _TASK_BODY.unpack_from(record, _HEADER.size)
            if self._wanted is not None:
                if kind == _RECORD_FORK and parent in self._wanted:
                    self._wanted.add(pid)
                if pid not in self._wanted:
                    continue
            if kind == _RECORD_MMAP2:
                told.add(self._mapped(record))
            elif kind == _RECORD_FORK and pid != parent:
                self._forked(pid, parent)
            elif kind == _RECORD_EXIT and pid == thread:
                self._exited(pid)
        for pid in told:
            self._root(pid)
        self._look_back(_SLICE_SECONDS)

    def _look_back(self, seconds: float) -> None:
        """At processes that were there before, for so long at most."""
        deadline = time.monotonic() + seconds
        for pid in self._before:
            self._known(pid)
            if time.monotonic() > deadline:
                break

    def _forked(self, pid: int, parent: int) -> None:
        self._forget(pid)
        if parent in self._by_pid:
            self._by_pid[pid] = self._by_pid[parent]
        if parent in self._roots:
            self._roots[pid] = self._roots[parent]

    def _exited(self, pid: int) -> None:
        self._ended[pid] = None
        while len(self._ended) > _ENDED:
            self._forget(next(iter(self._ended)))

    def _forget(self, pid: int) -> None:
        self._ended.pop(pid, None)
        self._by_pid.pop(pid, None)
        self._roots.pop(pid, None)

    def _records(self) -> Iterator[tuple[int, int, bytes]]:
        """(time, kind, record) of what is in the rings."""
        size = self._pages * mmap.PAGESIZE
        for _, ring in self._rings:
            head: int = _POSITION.unpack_from(ring, _HEAD)[0]
            tail: int = _POSITION.unpack_from(ring, _TAIL)[0]
            while tail < head:
                at = tail % size
                kind, _, length = _HEADER.unpack(self._bytes(ring, at, _HEADER.size))
                if length < _HEADER.size + _TIME.size:
                    break
                if kind in (_RECORD_MMAP2, _RECORD_FORK, _RECORD_EXIT):
                    record = self._bytes(ring, at, length)
                    yield _TIME.unpack_from(record, length - _TIME.size)[0], kind, record
                tail += length
            _POSITION.pack_into(ring, _TAIL, head)

    def _bytes(self, ring: mmap.mmap, at: int, length: int) -> bytes:
        """Records go around the end of the ring."""
        first, size = mmap.PAGESIZE, self._pages * mmap.PAGESIZE
        data = ring[first + at : first + min(at + length, size)]
        return data + ring[first : first + length - len(data)]

    def _mapped(self, record: bytes) -> int:
        """Of which process."""
        pid: int
        pid, _, start, length, offset, _, _, inode, _, _, _ = _MMAP2_BODY.unpack_from(record, _HEADER.size)
        path = record[_HEADER.size + _MMAP2_BODY.size :].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        if path.startswith("/"):
            self._add(pid, Mapping(start, start + length, offset, inode, path))
        return pid

    def resolve(self, pid: int, address: int) -> tuple[str, int, str]:
        """(name as in the file, offset into it, file) of an address; the name is "" when it is unknown."""
        self.read()
        found = self._by_pid.get(pid, [])
        at = bisect_right(found, address, key=lambda one: one.start) - 1
        if at < 0 or address >= found[at].end:
            return _made_at_run_time(pid, address)
        one = found[at]
        elf = _elf(one.path, one.inode)
        if elf is None and pid in self._roots:
            elf = _elf(f"{self._folder(self._roots[pid])}{one.path}", one.inode)
        place = elf.to_address(address - one.start + one.offset) if elf is not None else None
        symbol = elf.function_at(place) if elf is not None and place is not None else None
        if symbol is None or place is None:
            return "", 0, one.path
        return symbol.name, place - symbol.address, one.path

    def _folder(self, root: tuple[int, int]) -> str:
        """Where a root directory can be reached: held open, or that of a process which has it still."""
        if root in self._held:
            return f"/proc/self/fd/{self._held[root]}"
        for name in os.listdir("/proc"):
            if name.isdigit() and _identity(f"/proc/{name}/root/") == root:
                return f"/proc/{name}/root"
        return ""

    def close(self) -> None:
        """Give the kernel its buffers back; what was read stays."""
        if self._rings:
            self.read()
        for fd, ring in self._rings:
            ring.close()
            os.close(fd)
        self._rings.clear()
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()


def _threads(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _made_at_run_time(pid: int, address: int) -> tuple[str, int, str]:
    """As `Mappings.resolve`, from the map that runtimes with a JIT compiler leave for perf."""
    path = f"/tmp/perf-{pid}.map"
    functions = _perf_map(pid)
    at = bisect_right(functions, address, key=lambda one: one[0]) - 1
    if at < 0 or address >= functions[at][1]:
        return "", 0, ""
    return functions[at][2], address - functions[at][0], path


@lru_cache(maxsize=64)
def _perf_map(pid: int) -> list[tuple[int, int, str]]:
    """(start, end, name) of functions by their addresses: lines with address and size in hexadecimal, and the name."""
    functions = []
    try:
        with open(f"/tmp/perf-{pid}.map", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                try:
                    start, size, name = line.rstrip("\n").split(" ", 2)
                    functions.append((int(start, 16), int(start, 16) + int(size, 16), name))
                except ValueError:
                    continue
    except OSError:
        return []
    return sorted(functions)


@lru_cache(maxsize=256)
def _elf(path: str, inode: int) -> Elf | None:
    """None when it cannot be read, or is another file by now."""
    from bpfseal.runtime.elf import Elf

    try:
        return Elf(path) if os.stat(path).st_ino == inode else None
    except (OSError, BpfsealError):
        return None
