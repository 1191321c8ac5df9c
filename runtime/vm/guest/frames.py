"""The conversation between host and guest agent: frames on one byte stream.

A frame is `type: u8, length: u32 little-endian, payload`. Payloads are JSON objects for requests and
reports, raw bytes for the standard streams. The stream is a virtio-serial port in the guest and a
socket on the host; both are reliable and ordered, so there are no sequence numbers.

Imported by the host as part of `bpfseal.runtime.vm` and by the agent under the name `guest`, so
nothing but the standard library may be used here.
"""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Iterator
from typing import Any

__all__ = ["HEADER", "MAX_PAYLOAD", "Frame", "FrameError", "Parser", "pack", "pack_json"]

HEADER = struct.Struct("<BI")
# Longer payloads are sent as several frames: a limit makes a corrupted header an error, not a hang.
MAX_PAYLOAD = 1 << 20


class Frame(enum.IntEnum):
    """Frame types, named after what the payload is. Host to guest below 16, guest to host from 16."""

    CONFIG = 1  # JSON: what to mount, sent once
    RUN = 2  # JSON: command, env, cwd
    STDIN = 3  # bytes; an empty payload closes the command's standard input
    SIGNAL = 4  # JSON: number, for the whole process group of the command
    OFF = 5  # sync and leave

    HELLO = 16  # JSON: the agent is up, nothing is mounted yet
    READY = 17  # JSON: release, lsm, uptime, warnings
    FAILED = 18  # JSON: message; the guest cannot be used
    OUT = 19  # bytes of the command's standard output
    ERR = 20  # bytes of the command's standard error
    EXIT = 21  # JSON: status (shell convention: 128 + n when killed by signal n)


class FrameError(ValueError):
    """The byte stream does not consist of frames."""


def pack(kind: Frame, payload: bytes = b"") -> bytes:
    """One frame, or several when `payload` is longer than MAX_PAYLOAD."""
    if len(payload) <= MAX_PAYLOAD:
        return HEADER.pack(kind, len(payload)) + payload
    return b"".join(pack(kind, payload[i : i + MAX_PAYLOAD]) for i in range(0, len(payload), MAX_PAYLOAD))


def pack_json(kind: Frame, **fields: Any) -> bytes:
    """A frame whose payload is a JSON object. It must fit one frame."""
    payload = json.dumps(fields).encode()
    if len(payload) > MAX_PAYLOAD:
        raise FrameError(f"request of {len(payload)} bytes is longer than {MAX_PAYLOAD}")
    return pack(kind, payload)


class Parser:
    """Collects bytes, gives whole frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Frame, bytes]]:
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            kind, length = HEADER.unpack_from(self._buffer)
            if length > MAX_PAYLOAD or kind not in Frame.__members__.values():
                raise FrameError(f"not a frame: type {kind}, length {length}")
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            yield Frame(kind), payload
