"""The one error base every layer shares.

A `BpfsealError` is something a user can act on. The command line turns it into one line on stderr
(`bpfseal: error: MESSAGE`, with `hint` on a second line where there is one) and its `status`.
Anything else that escapes is a bug.
"""

from __future__ import annotations


class BpfsealError(Exception):
    """A failure with a cause the user can act on.

    `status` is the exit status of the command line: 1 for failures, 2 for wrong usage.
    `hint` says what to do about it, in one line, where the message does not already.
    """

    status = 1

    def __init__(self, message: str, *, hint: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if status is not None:
            self.status = status


class UsageError(BpfsealError):
    """Wrong command line."""

    status = 2
