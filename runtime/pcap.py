"""Packets to a pcap file that tcpdump and Wireshark read."""

from __future__ import annotations

import struct
import time

from bpfseal.errors import BpfsealError

_MAGIC_NS = 0xA1B23C4D  # nanosecond time stamps
_LINKTYPE_ETHERNET = 1
_SNAPLEN = 65535


class PacketFile:
    """Writes packets as they come; the file is whole after every one."""

    def __init__(self, path: str) -> None:
        try:
            self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - lives as long as the trace
        except OSError as error:
            raise BpfsealError(f"cannot write packets to {path!r}: {error.strerror}") from None
        self._file.write(struct.pack("<IHHiIII", _MAGIC_NS, 2, 4, 0, 0, _SNAPLEN, _LINKTYPE_ETHERNET))

    def write(self, data: bytes | memoryview, boot_ns: int = 0) -> None:
        """Append one packet. `boot_ns`: CLOCK_BOOTTIME of the packet, 0 for now."""
        wall = time.clock_gettime_ns(time.CLOCK_REALTIME)
        if boot_ns:
            wall += boot_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        seconds, rest = divmod(wall, 1_000_000_000)
        captured = min(len(data), _SNAPLEN)
        self._file.write(struct.pack("<IIII", seconds, rest, captured, len(data)) + bytes(data[:captured]))

    def close(self) -> None:
        self._file.close()
