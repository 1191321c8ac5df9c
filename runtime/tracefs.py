"""tracefs, mounted or not: names, ids and formats of tracepoints.

Where nobody has mounted it, it is mounted detached (fsopen(2), fsmount(2)): reachable through one descriptor, visible
to nobody, gone with the descriptor. Nothing is ever written to it.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Final

from bpfseal.errors import BpfsealError

_PLACES: Final = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
_MAGIC_FILE: Final = "available_events"
_LARGEST: Final = 16 << 20  # bytes of one file; the largest known, a list of all functions, has 3 MB

# include/uapi/linux/mount.h
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC, _FSCONFIG_CMD_CREATE = 1, 1, 6
_READ_ONLY_NOSUID_NODEV_NOEXEC = 1 | 2 | 4 | 8


class TracefsError(BpfsealError):
    """tracefs is not there, may not be read, or lacks the thing asked for."""


class Tracefs:
    """One descriptor of tracefs' root; `path` is where it is mounted, empty when only we see it."""

    def __init__(self) -> None:
        """Raises TracefsError when the kernel has none or we may not look."""
        refused = False
        for place in _PLACES:
            try:
                fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                refused = refused or error.errno in (1, 13)
                continue
            try:
                os.stat(_MAGIC_FILE, dir_fd=fd)
            except OSError as error:
                refused = refused or error.errno in (1, 13)
                os.close(fd)
                continue
            self.path, self._fd = place, fd
            return
        try:
            self.path, self._fd = "", _mount_detached()
        except OSError as error:
            if refused or error.errno in (1, 13):
                raise TracefsError("may not read tracefs", hint="tracing needs root") from None
            raise TracefsError(f"no tracefs: {error.strerror}", hint="needs a kernel with CONFIG_TRACING") from None

    def read(self, name: str) -> bytes:
        """Contents of a file by its path below the root. Raises FileNotFoundError and other OSErrors."""
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._fd)
        try:
            chunks, total = [], 0
            while total < _LARGEST and (chunk := os.read(fd, 1 << 20)):
                chunks.append(chunk)
                total += len(chunk)
            return b"".join(chunks)
        finally:
            os.close(fd)

    def events(self) -> list[tuple[str, str]]:
        """(category, event) of every tracepoint, sorted by "category:event". Raises TracefsError."""
        try:
            text = self.read(_MAGIC_FILE).decode("utf-8", "replace")
        except OSError as error:
            raise TracefsError(f"cannot list tracepoints: {error.strerror}") from None
        found = []
        for line in sorted(text.split()):
            category, colon, event = line.partition(":")
            if colon and category and event:
                found.append((category, event))
        return found

    def event_format(self, category: str, event: str) -> str | None:
        """Text of an event's format file; None when there is no such event."""
        return self._event_file(category, event, "format")

    def event_id(self, category: str, event: str) -> int | None:
        """Number that perf_event_open(2) knows the event by; None when there is no such event."""
        text = self._event_file(category, event, "id")
        return int(text) if text is not None and text.strip().isdecimal() else None

    def traceable_functions(self) -> str | None:
        """Text of the list of what ftrace can attach to, "FUNCTION [MODULE]" by line; None where it is not there or
        not for us (a locked down kernel refuses it even to root)."""
        try:
            return self.read("available_filter_functions").decode("utf-8", "replace")
        except OSError:
            return None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _event_file(self, category: str, event: str, name: str) -> str | None:
        if any("/" in part or part in ("", ".", "..") or "\0" in part for part in (category, event)):
            return None
        try:
            return self.read(f"events/{category}/{event}/{name}").decode("utf-8", "replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TracefsError(f"cannot read the {name} of {category}:{event}: {error.strerror}") from None


@lru_cache(maxsize=1)
def tracefs() -> Tracefs:
    """The process' own; opened once. Raises TracefsError."""
    return Tracefs()


def _mount_detached() -> int:
    from bpfseal.signer.syscall import syscall

    context = syscall("fsopen", b"tracefs\0", _FSOPEN_CLOEXEC)
    try:
        syscall("fsconfig", context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return syscall("fsmount", context, _FSMOUNT_CLOEXEC, _READ_ONLY_NOSUID_NODEV_NOEXEC)
    finally:
        os.close(context)
