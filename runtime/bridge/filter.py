"""The seccomp filter of `bpfseal exec`, and starting a command under it.

Only bpf(BPF_PROG_LOAD) is stopped; every other call, other bpf() commands included, is decided by the filter alone.
The 32-bit and x32 numbers of the call are stopped too: `union bpf_attr` is the same for them. Offsets of `struct
seccomp_data` from include/uapi/linux/seccomp.h, numbers from the kernel's system call tables.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
from collections.abc import Collection, Mapping
from typing import Final

from bpfseal.errors import BpfsealError
from bpfseal.signer.syscall import address_of, syscall

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
    return struct.pack("HBBI", code, jt, jf, k)


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
    buffer = ctypes.create_string_buffer(code, len(code))
    description = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code) // 8, address_of(buffer)), 16)
    try:
        return syscall("seccomp", _SET_MODE_FILTER, _NEW_LISTENER | _WAIT_KILLABLE, description)
    except PermissionError:
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return syscall("seccomp", _SET_MODE_FILTER, _NEW_LISTENER | _WAIT_KILLABLE, description)


class Command:
    """A command under the filter: `pid`, a `pidfd` that is readable once it ended, and the `listener`."""

    def __init__(self, argv: list[str], mask: Collection[int]) -> None:
        """Starts `argv`, found as a shell would, with the signals of `mask` blocked. It is killed when this process
        is. Raises BpfsealError, with a shell's status, if it cannot be started."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            ours.close()
            _become(argv, mask, theirs, parent)
        theirs.close()
        self.listener = -1
        self.pidfd = os.pidfd_open(self.pid)
        with ours:
            self._meet(argv[0], ours)

    def _meet(self, name: str, sock: socket.socket) -> None:
        what, code = _receive(sock, self)
        if what == b"filter":
            why = "it runs under a filter of that kind already" if code == 16 else os.strerror(code)
            self._give_up()
            raise BpfsealError(f"cannot watch the system calls of {name}: {why}")
        what, code = _receive(sock, self)  # nothing comes if the exec closed the other end
        if what == b"exec":
            self._give_up()
            raise _CannotRun(f"cannot run {name}: {os.strerror(code)}", 127 if code == 2 else 126)

    def _give_up(self) -> None:
        self.status()
        self.close()

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


def _receive(sock: socket.socket, command: Command) -> tuple[bytes, int]:
    """A word of the child's and a number; keeps the listener that comes with "ready"."""
    data, fds, _flags, _address = socket.recv_fds(sock, 64, 1)
    if fds:
        command.listener = fds[0]
        os.set_inheritable(command.listener, False)
    word, _, number = data.partition(b" ")
    return word, int(number or 0)


def _become(argv: list[str], mask: Collection[int], sock: socket.socket, parent: int) -> None:
    """In the child; never returns."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
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
            sock.send(b"filter %d" % (error.errno or 1))
            os._exit(1)
        socket.send_fds(sock, [b"ready"], [listener])
        os.close(listener)
        os.execvp(argv[0], argv)
    except OSError as error:
        sock.send(b"exec %d" % (error.errno or 1))
    finally:
        os._exit(127)
