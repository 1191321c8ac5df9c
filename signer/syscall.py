"""Raw system calls through libc's syscall(2), with OSError on failure. Numbers are x86-64's and arm64's.

ctypes rather than an extension module: a call costs about a microsecond, and neither the helper nor a client makes
more than a few hundred of them outside the batched map operations.
"""

from __future__ import annotations

import ctypes
import os

_X86_64 = {
    "bpf": 321,
    "perf_event_open": 298,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "seccomp": 317,
    "memfd_secret": 447,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
    "pidfd_open": 434,
    "pidfd_getfd": 438,
    "pidfd_send_signal": 424,
    "process_vm_readv": 310,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "close_range": 436,
    "io_setup": 206,
    "io_submit": 209,
    "io_getevents": 208,
}
_ARM64 = {
    "bpf": 280,
    "perf_event_open": 241,
    "add_key": 217,
    "request_key": 218,
    "keyctl": 219,
    "seccomp": 277,
    "memfd_secret": 447,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
    "pidfd_open": 434,
    "pidfd_getfd": 438,
    "pidfd_send_signal": 424,
    "process_vm_readv": 270,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "close_range": 436,
    "io_setup": 0,
    "io_submit": 2,
    "io_getevents": 4,
}
NUMBERS = _ARM64 if os.uname().machine == "aarch64" else _X86_64

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def syscall(name: str, *args: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """The system call `name`. Integers are passed as 64-bit values, bytes and buffers by address, None as NULL.

    Raises OSError with the errno; a buffer given as `bytes` must only be read by the kernel.
    """
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result: int = _syscall(ctypes.c_long(NUMBERS[name]), *converted)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
    return result


def address_of(buffer: bytes | ctypes.Array[ctypes.c_char]) -> int:
    """Address of a buffer's first byte, valid while the caller keeps the buffer alive."""
    if isinstance(buffer, bytes):
        return ctypes.cast(ctypes.c_char_p(buffer), ctypes.c_void_p).value or 0
    return ctypes.addressof(buffer)
