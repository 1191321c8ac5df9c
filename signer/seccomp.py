"""The helper's system call filter: what serving needs, and nothing that makes processes, sockets, programs or code.

A refused call fails with EPERM rather than killing the helper: for an attacker inside there is no difference, and an
unforeseen call of the interpreter becomes an error that is reported instead of an outage.
Classic BPF over `struct seccomp_data` (include/uapi/linux/seccomp.h, linux/audit.h).
"""

from __future__ import annotations

import ctypes
import os
import struct

from bpfseal.signer.executable import FS_IOC_MEASURE_VERITY
from bpfseal.signer.peer import PIDFD_GET_INFO
from bpfseal.signer.syscall import address_of, syscall

_ALLOW, _EPERM, _KILL = 0x7FFF0000, 0x00050001, 0x80000000
_SET_MODE_FILTER = 1
_LD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_NR, _ARCH, _ARGS = 0, 4, 16
_PROT_EXEC = 4
_FIONBIO = 0x5421

# Numbers: arch/x86/entry/syscalls/syscall_64.tbl; include/uapi/asm-generic/unistd.h (arm64). None: not there.
_CALLS: dict[str, tuple[int | None, int | None]] = {
    # files: the log, the policy, /proc
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "lseek": (8, 62), "pread64": (17, 67),
    "fstat": (5, 80), "newfstatat": (262, 79), "statx": (332, 291), "openat": (257, 56), "getdents64": (217, 61),
    "fdatasync": (75, 83), "fsync": (74, 82), "ftruncate": (77, 46), "flock": (73, 32), "fcntl": (72, 25),
    "rename": (82, None), "renameat": (264, 38), "readlink": (89, None), "readlinkat": (267, 78),
    # clients
    "recvmsg": (47, 212), "sendto": (44, 206), "recvfrom": (45, 207), "shutdown": (48, 210),
    "getsockopt": (55, 209), "epoll_wait": (232, None), "epoll_pwait": (281, 22), "epoll_ctl": (233, 21),
    "poll": (7, None), "ppoll": (271, 73),
    # memory
    "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233), "brk": (12, 214),
    # time, signals, self
    "clock_gettime": (228, 113), "gettimeofday": (96, 169), "clock_nanosleep": (230, 115), "getrandom": (318, 278),
    "futex": (202, 98), "rt_sigreturn": (15, 139), "rt_sigprocmask": (14, 135), "rt_sigaction": (13, 134),
    "sigaltstack": (131, 132), "restart_syscall": (219, 128), "sched_yield": (24, 124),
    "getpid": (39, 172), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175), "getrusage": (98, 165),
    "exit": (60, 93), "exit_group": (231, 94),
    # new leaves
    "add_key": (248, 217),
}  # fmt: skip
# Many clients: their connections, and syncs of the log that do not hold them up (signer.sync).
_LISTENING = {"accept4": (288, 242), "io_submit": (209, 2), "io_getevents": (208, 4)}
# A PKCS#11 library opens, locks and looks at its token's files its own way.
_TOKEN = {"access": (21, None), "faccessat": (269, 48), "stat": (4, None), "open": (2, None), "unlink": (87, None)}
_MMAP, _MPROTECT, _IOCTL, _KEYCTL = (9, 222), (10, 226), (16, 29), (250, 219)
# keyctl: revoke, setperm, describe, unlink, set_timeout
_KEYCTL_OPERATIONS = (3, 5, 6, 9, 15)

_Insn = tuple[int, int, int, int]


def _instruction(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return struct.pack("HBBI", code, jt, jf, k)


def _unless_flag(number: int, argument: int, flag: int) -> list[bytes]:
    """Allow the call `number` unless `flag` is set in the low word of an argument."""
    return [
        _instruction(_JEQ, number, 0, 4),
        _instruction(_LD, _ARGS + 8 * argument),
        _instruction(_JSET, flag, 0, 1),
        _instruction(_RET, _EPERM),
        _instruction(_RET, _ALLOW),
    ]


def _if_one_of(number: int, argument: int, values: tuple[int, ...]) -> list[bytes]:
    """Allow the call `number` if the low word of an argument is one of `values`."""
    count = len(values)
    tests = [_instruction(_JEQ, value, count - index, 0) for index, value in enumerate(values)]
    return [
        _instruction(_JEQ, number, 0, count + 3),
        _instruction(_LD, _ARGS + 8 * argument),
        *tests,
        _instruction(_RET, _EPERM),
        _instruction(_RET, _ALLOW),
    ]


def build(*, listening: bool, token: bool) -> bytes:
    """The filter program for this machine."""
    arm = os.uname().machine == "aarch64"
    column = 1 if arm else 0
    calls = _CALLS | (_LISTENING if listening else {}) | (_TOKEN if token else {})
    numbers = sorted(number for number in (row[column] for row in calls.values()) if number is not None)
    out = [
        _instruction(_LD, _ARCH),
        _instruction(_JEQ, 0xC00000B7 if arm else 0xC000003E, 1, 0),
        _instruction(_RET, _KILL),
        _instruction(_LD, _NR),
        _instruction(_JGE, 0x40000000, 0, 1),  # the x32 numbering of the same calls
        _instruction(_RET, _KILL),
    ]
    for number in numbers:
        out += [_instruction(_JEQ, number, 0, 1), _instruction(_RET, _ALLOW)]
    out += _unless_flag(_MMAP[column], 2, _PROT_EXEC)
    out += _unless_flag(_MPROTECT[column], 2, _PROT_EXEC)
    out += _if_one_of(_IOCTL[column], 1, (PIDFD_GET_INFO, _FIONBIO, FS_IOC_MEASURE_VERITY))
    out += _if_one_of(_KEYCTL[column], 0, _KEYCTL_OPERATIONS)
    out.append(_instruction(_RET, _EPERM))
    return b"".join(out)


def restrict(*, listening: bool, token: bool) -> None:
    """Install the filter for good. Needs no_new_privs. Raises OSError."""
    program = ctypes.create_string_buffer(build(listening=listening, token=token))
    count = (len(program) - 1) // 8
    description = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", count, address_of(program)))
    syscall("seccomp", _SET_MODE_FILTER, 0, description)
