"""Constants that C programs know as macros and BTF therefore does not: address families, errors, signals, modes.

Values come from Python's own modules, which have them from the headers of the C library, so that they are those of
this machine; only what no module carries is written down here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from bpfseal.dsl.types import Int, Type

# fmt: off
_WRITTEN: Final = {
    # include/uapi/asm-generic/fcntl.h has these beyond what `os` knows
    "O_LARGEFILE": 0o100000, "FMODE_READ": 1, "FMODE_WRITE": 2,
    # include/uapi/linux/sched.h
    "CLONE_VM": 0x100, "CLONE_FS": 0x200, "CLONE_FILES": 0x400, "CLONE_SIGHAND": 0x800, "CLONE_PIDFD": 0x1000,
    "CLONE_PTRACE": 0x2000, "CLONE_VFORK": 0x4000, "CLONE_PARENT": 0x8000, "CLONE_THREAD": 0x10000,
    "CLONE_NEWNS": 0x20000, "CLONE_SYSVSEM": 0x40000, "CLONE_SETTLS": 0x80000, "CLONE_NEWCGROUP": 0x2000000,
    "CLONE_NEWUTS": 0x4000000, "CLONE_NEWIPC": 0x8000000, "CLONE_NEWUSER": 0x10000000, "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWNET": 0x40000000, "CLONE_IO": 0x80000000,
    # include/uapi/asm-generic/mman-common.h
    "PROT_NONE": 0, "PROT_READ": 1, "PROT_WRITE": 2, "PROT_EXEC": 4, "MAP_SHARED": 1, "MAP_PRIVATE": 2,
    "MAP_FIXED": 0x10, "MAP_ANONYMOUS": 0x20,
    # include/uapi/linux/if_ether.h
    "ETH_ALEN": 6, "ETH_HLEN": 14, "ETH_P_IP": 0x0800, "ETH_P_ARP": 0x0806, "ETH_P_8021Q": 0x8100,
    "ETH_P_IPV6": 0x86DD, "ETH_P_ALL": 3,
    # include/linux/sched.h
    "TASK_RUNNING": 0, "TASK_INTERRUPTIBLE": 1, "TASK_UNINTERRUPTIBLE": 2, "TASK_COMM_LEN": 16,
    "PF_KTHREAD": 0x200000, "PF_EXITING": 4,
    # include/linux/kdev_t.h
    "MINORBITS": 20, "MINORMASK": (1 << 20) - 1,
    "S_IFMT": 0o170000, "PATH_MAX": 4096, "NAME_MAX": 255, "INET_ADDRSTRLEN": 16, "INET6_ADDRSTRLEN": 46,
    "BPF_ANY": 0, "BPF_NOEXIST": 1, "BPF_EXIST": 2,
    "TRUE": 1, "FALSE": 0, "NULL": 0,
}
# fmt: on


def macro(name: str) -> tuple[int, Type] | None:
    """Value and C type (int, or unsigned long past its range) of a well-known macro constant."""
    value = _WRITTEN.get(name)
    if value is None:
        value = _from_python().get(name)
    if value is None:
        return None
    return value, Int(32) if -(1 << 31) <= value < 1 << 31 else Int(64, False)


def names() -> list[str]:
    """Every name `macro` knows, for suggestions."""
    return sorted({*_WRITTEN, *_from_python()})


@lru_cache(maxsize=1)
def _from_python() -> dict[str, int]:
    import errno
    import os
    import signal
    import socket
    import stat

    found: dict[str, int] = {}
    for module, prefixes in (
        (socket, ("AF_", "PF_", "SOCK_", "IPPROTO_", "SO_", "SOL_", "MSG_", "TCP_", "IPV6_", "SHUT_", "INADDR_")),
        (errno, ("E",)),
        (signal, ("SIG",)),
        (stat, ("S_I",)),
        (os, ("O_", "F_", "SEEK_", "W", "SCHED_", "CLONE_", "EX_", "R_OK", "X_OK")),
    ):
        for word in dir(module):
            value = getattr(module, word)
            if word.startswith(prefixes) and word.isupper() and isinstance(value, int):
                found[word] = int(value)
    found |= {f"PF_{word[3:]}": value for word, value in found.items() if word.startswith("AF_")}
    return found
