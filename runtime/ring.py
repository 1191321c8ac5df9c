"""Consumer of a BPF_MAP_TYPE_RINGBUF (kernel/bpf/ringbuf.c).

The map's fd maps as: one page with the consumer position (writable), one page with the producer position, then the
data area twice in a row, so that no record is ever split. A record is a u32 length with two flag bits, a u32 page
offset, then the data padded to 8 bytes.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from types import TracebackType

_BUSY = 1 << 31
_DISCARD = 1 << 30
_HEADER = 8
# Native formats on purpose: they read and write in one access, where "<Q" goes byte by byte and could be seen torn by
# a CPU that is producing at that moment.
_U32 = struct.Struct("I")
_U64 = struct.Struct("Q")


class RingReader:
    """Reads one ring. `fd` stays the caller's; `size` is the map's max_entries (bytes, a power of two).

    `position` is where reading goes on, in bytes since the ring was made; `consumer` is the page that holds what the
    kernel knows of it. Both are there for other readers of the same ring (see `runtime.native`).
    """

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        page = mmap.PAGESIZE
        self.consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._producer = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._view = memoryview(self._producer)
        self._data = self._view[page:]
        self.position: int = _U64.unpack_from(self.consumer, 0)[0]

    def pending(self) -> int:
        """Bytes that the kernel has produced and nobody consumed, headers included."""
        produced: int = _U64.unpack_from(self._producer, 0)[0]
        return produced - self.position

    def read(self, limit: int = 4096) -> Iterator[memoryview]:
        """Up to `limit` records, each a view that is valid until the next record is asked for.

        Space is given back to the kernel in steps of a quarter of the ring and when the iteration ends, so that a
        long batch does not starve producers. Stops at a record that a CPU is still writing.
        """
        position = self.position
        released = position
        step = self.size >> 2
        mask = self.size - 1
        data = self._data
        header = _U32.unpack_from
        count = 0
        try:
            produced = _U64.unpack_from(self._producer, 0)[0]
            while position < produced:
                at = position & mask
                length = header(data, at)[0]
                if length & _BUSY:
                    break
                size = length & 0x3FFFFFFF
                if not length & _DISCARD:
                    start = at + _HEADER
                    yield data[start : start + size]
                    count += 1
                position += (size + 15) & ~7
                self.position = position
                if position - released >= step:
                    _U64.pack_into(self.consumer, 0, position)
                    released = position
                if count >= limit:
                    break
                if position >= produced:
                    produced = _U64.unpack_from(self._producer, 0)[0]
        finally:
            self.position = position
            if position != released:
                _U64.pack_into(self.consumer, 0, position)

    def close(self) -> None:
        self._data.release()
        self._view.release()
        self.consumer.close()
        self._producer.close()

    def __enter__(self) -> RingReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
