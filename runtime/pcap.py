"""Packets to a pcap file that tcpdump and Wireshark read.

Format: draft-ietf-opsawg-pcap; this is the variant with nanoseconds.
"""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Final

from bpfseal.errors import BpfsealError

if TYPE_CHECKING:
    from bpfseal.compiler.layout import Reader

_MAGIC_NS: Final = 0xA1B23C4D
_SNAPLEN: Final = 1 << 18
_FILE: Final = struct.Struct("<IHHiIII")
_RECORD: Final = struct.Struct("<IIII")
_SECOND: Final = 1_000_000_000

ETHERNET: Final = 1  # LINKTYPE_ETHERNET


class PacketFile:
    """Writes packets as they come; after `flush` the file is whole.

    `link` is the LINKTYPE of all packets of the file; None: that of the first `of_type`. `packets`: how many were
    written. Raises BpfsealError when the file cannot be written.
    """

    def __init__(self, path: str, link: int | None = ETHERNET) -> None:
        self.path = path
        self.packets = 0
        self._link: int | None = None
        self._offset, self._sampled = 0, 0
        try:
            self._file = open(path, "wb", buffering=1 << 18)  # noqa: SIM115 - lives as long as the trace
        except OSError as error:
            raise self._failed(error) from None
        if link is not None:
            self.of_type(link)

    def of_type(self, link: int) -> None:
        """Say what packets there will be. Raises BpfsealError for a second type: a pcap file has one."""
        if self._link is None:
            self._link = link
            self._file.write(_FILE.pack(_MAGIC_NS, 2, 4, 0, 0, _SNAPLEN, link))
            self.flush()
        elif self._link != link:
            raise BpfsealError(
                "packets with and without an Ethernet header cannot be in one file",
                hint="capture them by two commands",
            )

    def write(self, data: bytes | memoryview, boot_ns: int = 0, length: int = 0) -> None:
        """Append one packet. `boot_ns`: CLOCK_BOOTTIME of the packet, 0 for now; `length`: of the whole packet, of
        which `data` is the beginning, 0 for that of `data`."""
        now = boot_ns or time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if not 0 <= now - self._sampled < _SECOND:
            # The wall clock may be set or slewed while we run.
            self._sampled = now
            self._offset = time.clock_gettime_ns(time.CLOCK_REALTIME) - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        seconds, rest = divmod(now + self._offset, _SECOND)
        try:
            self._file.write(_RECORD.pack(seconds, rest, len(data), max(length, len(data))))
            self._file.write(data)
        except OSError as error:
            raise self._failed(error) from None
        self.packets += 1

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from None

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> BpfsealError:
        return BpfsealError(f"cannot write packets to {self.path!r}: {error.strerror}")


def for_capture(path: str, reader: Reader) -> PacketFile:
    """The file for a program's capture(). Raises BpfsealError when it has none, or the file cannot be written."""
    if not any(event.action == "capture" for event in reader.events):
        raise BpfsealError("--pcap: the program has no capture()", hint="for example xdp:eth0 { capture() }")
    return PacketFile(path, None)
