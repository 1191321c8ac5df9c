"""Addresses of kernel functions by name, for comparing a program's guard with the functions that it names.

/proc/kallsyms shows addresses to those who had the right when they *opened* it (kallsyms_show_value takes the file's
credentials), so it is opened at start and read when it is first needed, long after the right was given up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection

_FRESH_SECONDS = 10.0
# Distinct names per reading: each costs two searches through 10 MB.
_LIMIT = 4096


class KernelSymbols:
    """Callable: the addresses of a function, empty for unknown ones and where the kernel shows none."""

    def __init__(self, path: str = "/proc/kallsyms") -> None:
        """Raises OSError."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._text = b""
        self._read_at = 0.0
        self._known: dict[str, tuple[frozenset[int], bool]] = {}

    def __call__(self, name: str) -> Collection[int]:
        found, in_module = self._look_up(name)
        if (in_module or not found) and time.monotonic() - self._read_at > _FRESH_SECONDS:
            # Modules come and go; the kernel itself stays where it is.
            self._read()
            found, _ = self._look_up(name)
        return found

    def _read(self) -> None:
        pieces, offset = [], 0
        while piece := os.pread(self._fd, 1 << 20, offset):
            pieces.append(piece)
            offset += len(piece)
        self._text = b"".join(pieces)
        self._read_at = time.monotonic()
        self._known = {}

    def _look_up(self, name: str) -> tuple[frozenset[int], bool]:
        if not self._text:
            self._read()
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= _LIMIT:
                return frozenset(), False
            known = self._known[name] = self._search(name.encode())
        return known

    def _search(self, name: bytes) -> tuple[frozenset[int], bool]:
        """Lines are "ADDRESS TYPE NAME", in modules followed by a tab and "[MODULE]"."""
        addresses: set[int] = set()
        in_module = False
        for end in (b"\n", b"\t"):
            at = self._text.find(b" " + name + end)
            while at >= 0:
                start = self._text.rfind(b"\n", 0, at) + 1
                address, _, kind = self._text[start:at].partition(b" ")
                if kind in (b"t", b"T", b"w", b"W") and (value := int(address, 16)):
                    addresses.add(value)
                    in_module |= end == b"\t"
                at = self._text.find(b" " + name + end, at + 1)
        return frozenset(addresses), in_module
