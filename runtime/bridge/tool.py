"""The process that made a call: its memory, its descriptors, its name.

Everything is opened before the caller asks the kernel whether the call still waits, and used only afterwards: then it
belongs to the thread that made the call, whatever happens to its number later. /proc/PID/mem stays with the address
space it was opened for, the pidfd with the thread.
"""

from __future__ import annotations

import errno
import os
from types import TracebackType
from typing import Final

from bpfseal.signer.syscall import syscall

_PIDFD_THREAD: Final = os.O_EXCL
_PAGE: Final = 4096


class ToolError(Exception):
    """The kernel would have failed the call with `code`, saying `log` where it has a log for it."""

    def __init__(self, code: int, log: str = "") -> None:
        super().__init__(os.strerror(code))
        self.code = code
        self.log = log


class Tool:
    """Raises ProcessLookupError or FileNotFoundError when the thread is gone, PermissionError when this process may
    not look into it."""

    def __init__(self, thread: int) -> None:
        self.thread = thread
        self.pidfd = syscall("pidfd_open", thread, _PIDFD_THREAD)
        try:
            self._memory = os.open(f"/proc/{thread}/mem", os.O_RDWR | os.O_CLOEXEC)
        except BaseException:
            os.close(self.pidfd)
            raise

    def close(self) -> None:
        os.close(self._memory)
        os.close(self.pidfd)

    def __enter__(self) -> Tool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, address: int, size: int) -> bytes:
        """Raises ToolError (EFAULT)."""
        data = b""
        while len(data) < size:
            try:
                piece = os.pread(self._memory, size - len(data), address + len(data))
            except (OSError, OverflowError):
                raise ToolError(errno.EFAULT) from None
            if not piece:
                raise ToolError(errno.EFAULT)
            data += piece
        return data

    def string(self, address: int, limit: int) -> bytes:
        """Up to a NUL, `limit` bytes at most; reads no further than the page that the NUL is in."""
        data = b""
        while len(data) < limit:
            at = address + len(data)
            data += self.read(at, min(limit - len(data), _PAGE - at % _PAGE))
            if (end := data.find(b"\0")) >= 0:
                return data[:end]
        return data

    def write(self, address: int, data: bytes) -> None:
        """Raises ToolError (EFAULT)."""
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(self._memory, data[done:], address + done)
            except (OSError, OverflowError):
                raise ToolError(errno.EFAULT) from None

    def descriptor(self, number: int) -> int:
        """A copy of the tool's descriptor. Raises ToolError (EBADF)."""
        if not 0 <= number < 1 << 31:
            raise ToolError(errno.EBADF)
        try:
            return syscall("pidfd_getfd", self.pidfd, number, 0)
        except OSError as error:
            raise ToolError(error.errno or errno.EBADF) from None

    def name(self) -> str:
        """ "bpftrace[123]"."""
        return f"{_text(self._proc('comm')).strip() or '?'}[{self.thread}]"

    def command_line(self) -> str:
        return _text(self._proc("cmdline").rstrip(b"\0").replace(b"\0", b" "))

    def _proc(self, name: str) -> bytes:
        try:
            with open(f"/proc/{self.thread}/{name}", "rb") as file:
                return file.read(4096)
        except OSError:
            return b""


def _text(raw: bytes) -> str:
    """For people: nothing that a terminal or a log could be steered with."""
    return "".join(c if c.isprintable() else " " for c in raw.decode(errors="replace"))
