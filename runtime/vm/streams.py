"""The standard streams of a command in the guest, seen from the host."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable, Iterator

from bpfseal.runtime.vm.guest.frames import Frame, pack

__all__ = ["Feeder", "Output", "Sink"]

_CHUNK = 1 << 16

Sink = Callable[[bytes], object]


class Output:
    """Standard output and error of one command: collected, and handed on as they come."""

    def __init__(self, on_stdout: Sink | None, on_stderr: Sink | None) -> None:
        self._data = {Frame.OUT: bytearray(), Frame.ERR: bytearray()}
        self._sinks = {Frame.OUT: on_stdout, Frame.ERR: on_stderr}

    def take(self, kind: Frame, payload: bytes) -> None:
        if kind in self._data:
            self._data[kind] += payload
            if sink := self._sinks[kind]:
                sink(payload)

    @property
    def collected(self) -> tuple[bytes, bytes]:
        return bytes(self._data[Frame.OUT]), bytes(self._data[Frame.ERR])


class Feeder:
    """Sends a command's standard input from a thread of its own.

    Input longer than the pipes on the way would otherwise block us while the guest waits for us to read.
    """

    def __init__(self, source: bytes | int, send: Callable[[bytes], None]) -> None:
        self._source = source
        self._send = send
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _chunks(self) -> Iterator[bytes]:
        if isinstance(self._source, bytes):
            yield from (self._source[i : i + _CHUNK] for i in range(0, len(self._source), _CHUNK))
            return
        while True:
            readable, _, _ = select.select([self._source, self._stop_read], [], [])
            if self._stop_read in readable:
                return
            data = os.read(self._source, _CHUNK)
            if not data:
                return
            yield data

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            for chunk in self._chunks():
                self._send(pack(Frame.STDIN, chunk))
            self._send(pack(Frame.STDIN))

    def stop(self) -> None:
        os.close(self._stop_write)
        self._thread.join()
        os.close(self._stop_read)
