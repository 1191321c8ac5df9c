"""Which files the traced process has mapped where, as the kernel tells it while that happens (PERF_RECORD_MMAP2 of
include/uapi/linux/perf_event.h): when maps of stacks are printed the process has often ended, and its /proc with it.
"""

from __future__ import annotations

import mmap
import os
import struct
from bisect import bisect_right
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from bpfseal.errors import BpfsealError
from bpfseal.runtime.attach.perf import online_cpus
from bpfseal.signer.syscall import syscall

if TYPE_CHECKING:
    from bpfseal.compiler.layout import Reader, Shape
    from bpfseal.runtime.elf import Elf

_SOFTWARE, _DUMMY = 1, 9
_INHERIT, _MMAP, _WATERMARK, _MMAP2 = 1 << 1, 1 << 8, 1 << 14, 1 << 23
_CLOEXEC: Final = 8
_ATTR = struct.Struct("<IIQQQQQII64x")  # as far as the watermark; the rest is zero
_RECORD_MMAP2 = 10
_HEADER = struct.Struct("<IHH")
_MMAP2_BODY = struct.Struct("<IIQQQIIQQII")
_HEAD, _TAIL = 1024, 1032  # in struct perf_event_mmap_page
_POSITION = struct.Struct("Q")
_PAGES = 16


class Mapping(NamedTuple):
    """`path` from `offset` on, at `start` up to `end`; `inode` tells whether it is still the same file."""

    start: int
    end: int
    offset: int
    inode: int
    path: str


class Mappings:
    """Executable mappings of a process and of those that it starts. Raises OSError when the kernel does not tell."""

    def __init__(self, pid: int) -> None:
        self._by_pid: dict[int, list[Mapping]] = {}
        # Root directories of processes in containers, while they are there: (device, inode), descriptor.
        self._roots: dict[int, tuple[tuple[int, int], int]] = {}
        self._own = _identity("/")
        self._rings: list[tuple[int, mmap.mmap]] = []
        size = (1 + _PAGES) * mmap.PAGESIZE
        attr = _ATTR.pack(_SOFTWARE, _ATTR.size, _DUMMY, 1, 0, 0, _INHERIT | _MMAP | _WATERMARK | _MMAP2, size, 0)
        try:
            for cpu in online_cpus():
                fd = syscall("perf_event_open", attr, pid, cpu, -1, _CLOEXEC)
                try:
                    ring = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
                except BaseException:
                    os.close(fd)
                    raise
                self._rings.append((fd, ring))
        except BaseException:
            self.close()
            raise
        self._known(pid)

    def _known(self, pid: int) -> None:
        """What it has mapped already."""
        try:
            with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
                lines = file.read().splitlines()
        except OSError:
            return
        for line in lines:
            fields = line.split(None, 5)
            if len(fields) == 6 and "x" in fields[1] and fields[5].startswith("/"):
                start, end = (int(part, 16) for part in fields[0].split("-"))
                self._add(pid, Mapping(start, end, int(fields[2], 16), int(fields[4]), fields[5]))

    def _root(self, pid: int) -> None:
        """Hold on to the root directory of a process that has another one than we."""
        root = _identity(f"/proc/{pid}/root/")
        held = self._roots.get(pid)
        if root is None or root == self._own or (held is not None and held[0] == root):
            return
        try:
            fd = os.open(f"/proc/{pid}/root/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return  # it has just ended
        if held is not None:
            os.close(held[1])
        self._roots[pid] = (root, fd)

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
        for _, ring in self._rings:
            head: int = _POSITION.unpack_from(ring, _HEAD)[0]
            tail: int = _POSITION.unpack_from(ring, _TAIL)[0]
            size = _PAGES * mmap.PAGESIZE
            while tail < head:
                at = tail % size
                kind, _, length = _HEADER.unpack(self._bytes(ring, at, _HEADER.size))
                if length < _HEADER.size:
                    break
                if kind == _RECORD_MMAP2:
                    told.add(self._mapped(self._bytes(ring, at, length)))
                tail += length
            _POSITION.pack_into(ring, _TAIL, head)
        for pid in told:
            self._root(pid)

    @staticmethod
    def _bytes(ring: mmap.mmap, at: int, length: int) -> bytes:
        """Records go around the end of the ring."""
        first, size = mmap.PAGESIZE, _PAGES * mmap.PAGESIZE
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
            return "", 0, ""
        one = found[at]
        elf = _elf(one.path, one.inode)
        if elf is None and pid in self._roots:
            elf = _elf(f"/proc/self/fd/{self._roots[pid][1]}{one.path}", one.inode)
        place = elf.to_address(address - one.start + one.offset) if elf is not None else None
        symbol = elf.function_at(place) if elf is not None and place is not None else None
        if symbol is None or place is None:
            return "", 0, one.path
        return symbol.name, place - symbol.address, one.path

    def close(self) -> None:
        """Give the kernel its buffers back; what was read stays."""
        if self._rings:
            self.read()
        for fd, ring in self._rings:
            ring.close()
            os.close(fd)
        self._rings.clear()
        for _, fd in self._roots.values():
            os.close(fd)
        self._roots.clear()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


@lru_cache(maxsize=256)
def _elf(path: str, inode: int) -> Elf | None:
    """None when it cannot be read, or is another file by now."""
    from bpfseal.runtime.elf import Elf

    try:
        return Elf(path) if os.stat(path).st_ino == inode else None
    except (OSError, BpfsealError):
        return None


def wanted(reader: Reader) -> bool:
    """Whether a script shows addresses of processes by name."""
    shapes = [field.shape for event in reader.events for field in event.fields]
    shapes += [shape for layout in reader.maps for shape in (layout.key, layout.value) if shape is not None]
    return any(map(_user, shapes))


def _user(shape: Shape) -> bool:
    if shape.kind in ("ustack", "usym"):
        return True
    return any(_user(member.shape) for member in shape.members) or (shape.element is not None and _user(shape.element))
