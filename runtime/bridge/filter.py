"""The seccomp filter of `bpfseal exec`, and starting a command under it.

The command waits for whatever this module imports, so that is little.

Only bpf(BPF_PROG_LOAD) is stopped; every other call, other bpf() commands included, is decided by the filter alone.
The 32-bit and x32 numbers of the call are stopped too: `union bpf_attr` is the same for them. Offsets of `struct
seccomp_data` from include/uapi/linux/seccomp.h, numbers from the kernel's system call tables.
"""

from __future__ import annotations

import errno
import os

from bpfseal.errors import BpfsealError
from bpfseal.runtime.bridge.libc import Memory, call

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Collection, Mapping
    from typing import Final
else:
    import _signal as signal  # without the enums of numbers, which take longer than everything else here

_SET_MODE_FILTER: Final = 1
_NEW_LISTENER: Final = 1 << 3
# Once we have taken a call only deadly signals end it: Go's runtime interrupts its threads all the time, and a call
# that is made again would be loaded twice.
_WAIT_KILLABLE: Final = 1 << 5
_NOTIFY, _ALLOW, _KILL = 0x7FC00000, 0x7FFF0000, 0x80000000
_LD, _JEQ, _RET = 0x20, 0x15, 0x06
_NR, _ARCH, _ARG0 = 0, 4, 16
_PROG_LOAD: Final = 5
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38

# AUDIT_ARCH_* → numbers of bpf(2)
_X86_64: Final[Mapping[int, tuple[int, ...]]] = {0xC000003E: (321, 0x40000000 | 321), 0x40000003: (357,)}
_ARM64: Final[Mapping[int, tuple[int, ...]]] = {0xC00000B7: (280,), 0x40000028: (386,)}


def _op(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return code.to_bytes(2, "little") + bytes((jt, jf)) + k.to_bytes(4, "little")


def program(machine: str = "") -> bytes:
    """The filter. An architecture that is not in the table cannot make system calls."""
    table = _ARM64 if (machine or os.uname().machine) == "aarch64" else _X86_64
    code = [_op(_LD, _ARCH)]
    for arch, numbers in table.items():
        block = [_op(_LD, _NR)]
        block += [_op(_JEQ, nr, len(numbers) - at, 0) for at, nr in enumerate(numbers)]  # to the look at the command
        block += [
            _op(_RET, _ALLOW),
            _op(_LD, _ARG0),  # the kernel takes an int: the low word
            _op(_JEQ, _PROG_LOAD, 0, 1),
            _op(_RET, _NOTIFY),
            _op(_RET, _ALLOW),
        ]
        code += [_op(_JEQ, arch, 0, len(block)), *block]
    code.append(_op(_RET, _KILL))
    return b"".join(code)


def install() -> int:
    """Put this process and all that come from it under the filter; the listener's descriptor.

    Without CAP_SYS_ADMIN that takes no_new_privs, which turns off set-uid bits and file capabilities below. Raises
    OSError: EBUSY, a filter with a listener is there already.
    """
    code = program()
    filter = Memory(code)
    # struct sock_fprog: how many operations, where they are
    description = (len(code) // 8).to_bytes(8, "little") + filter.address.to_bytes(8, "little")
    try:
        return call("seccomp", _SET_MODE_FILTER, _NEW_LISTENER | _WAIT_KILLABLE, description)
    except PermissionError:
        call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return call("seccomp", _SET_MODE_FILTER, _NEW_LISTENER | _WAIT_KILLABLE, description)


class Command:
    """A command under the filter: `pid`, a `pidfd` that is readable once it ended, and the `listener`."""

    def __init__(self, argv: list[str], mask: Collection[int]) -> None:
        """Starts `argv`, found as a shell would, with the signals of `mask` blocked. It is killed when this process
        is. Raises BpfsealError, with a shell's status, if it cannot be started."""
        words, told = os.pipe()
        held, go = os.pipe()
        parent = os.getpid()
        self.listener = -1
        self.pid = os.fork()
        if not self.pid:
            os.close(go)
            _become(argv, mask, told, held, parent)
        os.close(told)
        os.close(held)
        try:
            self.pidfd = os.pidfd_open(self.pid)
            self._meet(argv[0], words, go)
        finally:
            os.close(words)
            os.close(go)

    def _meet(self, name: str, words: int, go: int) -> None:
        what, number = _word(words)
        if what == b"listener":
            self.listener = call("pidfd_getfd", self.pidfd, number, 0)
            os.write(go, b"1")
            what, number = _word(words)  # nothing comes if the exec closed the other end
        if what == b"filter":
            why = "it runs under a filter of that kind already" if number == errno.EBUSY else os.strerror(number)
            self.close()
            raise BpfsealError(f"cannot watch the system calls of {name}: {why}")
        if what == b"exec":
            self.close()
            raise _CannotRun(f"cannot run {name}: {os.strerror(number)}", 127 if number == errno.ENOENT else 126)

    def signal(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            pass

    def status(self) -> int:
        """Waits for it: exit status, or as shells say it 128 and the signal's number."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.pid = 0
        return code if code >= 0 else 128 - code

    def close(self) -> None:
        """Kills it if it has not ended: without an answer its loads could only fail."""
        if self.pid:
            self.signal(signal.SIGKILL)
            self.status()
        for fd in (self.listener, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.listener = self.pidfd = -1


class _CannotRun(BpfsealError):
    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def _word(pipe: int) -> tuple[bytes, int]:
    """A word of the child's and a number, fixed in length so that words cannot run together."""
    word, _, number = os.read(pipe, 32).strip().partition(b" ")
    return word, int(number or 0)


def _become(argv: list[str], mask: Collection[int], told: int, held: int, parent: int) -> None:
    """In the child; never returns."""
    try:
        call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them for itself
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            listener = install()
        except OSError as error:
            os.write(told, (b"filter %d" % (error.errno or 1)).ljust(32))
            os._exit(1)
        os.write(told, (b"listener %d" % listener).ljust(32))
        if os.read(held, 1):  # until the supervisor has its copy
            os.execvp(argv[0], argv)
    except OSError as error:
        os.write(told, (b"exec %d" % (error.errno or 1)).ljust(32))
    finally:
        os._exit(127)
