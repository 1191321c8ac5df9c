"""What the machine hands back, and how it fails."""

from __future__ import annotations

import dataclasses

from bpfseal.errors import BpfsealError

__all__ = ["VmError", "VmResult", "VmTimeout", "VmUnavailable"]


@dataclasses.dataclass(frozen=True, slots=True)
class VmResult:
    """One command, run in the guest."""

    status: int
    """Exit status as a shell gives it: 128 + n when killed by signal n."""
    stdout: bytes
    stderr: bytes
    console: str
    """Everything the guest's kernel has printed since the boot."""
    seconds: float
    """Wall time of the command, without the boot."""


class VmError(BpfsealError):
    """The machine failed, not the command in it."""


class VmUnavailable(VmError):
    """A test machine cannot be had here: no QEMU, no virtiofsd, no kernel, not allowed."""


class VmTimeout(VmError):
    """Time is up. `stdout` and `stderr` hold what the command had printed."""

    def __init__(self, message: str, stdout: bytes = b"", stderr: bytes = b"", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.stdout = stdout
        self.stderr = stderr
