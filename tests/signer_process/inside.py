"""Runs as a private helper whose event loop, once everything is given up, attacks instead of serving.

Started like the real one (`client.start_private` with another first line), so that what is tested is the real order of
confinement. Sends one line per action: name, then "ok" or the error.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import socket
import sys
from collections.abc import Callable

from bpfseal.signer import start
from bpfseal.signer.keyring import keyctl
from bpfseal.signer.syscall import NUMBERS

_libc = ctypes.CDLL(None, use_errno=True)


def raw(name: str, *args: int) -> None:
    numbers = NUMBERS | {
        "ptrace": 101, "unshare": 272, "mount": 165, "chroot": 161, "io_uring_setup": 425, "userfaultfd": 323,
        "memfd_create": 319, "personality": 135, "capset": 126, "init_module": 175, "kexec_load": 246, "reboot": 169,
        "swapon": 167, "setns": 308, "clone3": 435, "vfork": 58, "tgkill": 234, "symlink": 88, "link": 86, "mkdir": 83,
        "chmod": 90, "chown": 92, "truncate": 76, "socketpair": 53, "bind": 49, "listen": 50, "prctl": 157,
        "prlimit64": 302, "sched_setaffinity": 203, "setpriority": 141, "settimeofday": 164, "acct": 163,
        "mlockall": 151, "munlockall": 152, "process_vm_writev": 311, "open_by_handle_at": 304, "execveat": 322,
    }  # fmt: skip
    padded = [ctypes.c_long(a) for a in (*args, 0, 0, 0, 0, 0, 0)[:6]]
    if _libc.syscall(ctypes.c_long(numbers[name]), *padded) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def executable_memory() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


def make_executable() -> None:
    area = mmap.mmap(-1, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    if _libc.mprotect(ctypes.c_void_p(address), 4096, 4 | 1) < 0:
        raise OSError(ctypes.get_errno(), "mprotect")


def write_elsewhere() -> None:
    with open("/tmp/bpfseal-escaped", "w") as file:
        file.write("x")


def fork() -> None:
    if os.fork() == 0:
        os._exit(0)


ACTIONS: dict[str, Callable[[], object]] = {
    "fork": fork,
    "vfork": lambda: raw("vfork"),
    "clone3": lambda: raw("clone3", 0, 0),
    "thread": lambda: __import__("_thread").start_new_thread(lambda: None, ()),
    "exec": lambda: os.execve("/bin/true", ["true"], {}),
    "execveat": lambda: raw("execveat", -1, 0, 0, 0, 0),
    "socket": lambda: socket.socket(socket.AF_INET),
    "unix socket": lambda: socket.socket(socket.AF_UNIX),
    "socketpair": lambda: raw("socketpair", 1, 1, 0, 0),
    "bind": lambda: raw("bind", 3, 0, 0),
    "listen": lambda: raw("listen", 3, 5),
    "read a file": lambda: open("/etc/passwd").close(),
    "read the interpreter's files": lambda: open(os.__file__).close(),
    "write a file": write_elsewhere,
    "mkdir": lambda: raw("mkdir", 0, 0o700),
    "symlink": lambda: raw("symlink", 0, 0),
    "hard link": lambda: raw("link", 0, 0),
    "chmod": lambda: raw("chmod", 0, 0),
    "chown": lambda: raw("chown", 0, 0, 0),
    "open by handle": lambda: raw("open_by_handle_at", -100, 0, 0),
    "ptrace": lambda: raw("ptrace", 16, os.getpid()),
    "read other memory": lambda: raw("process_vm_readv", 1, 0, 0, 0, 0, 0),
    "write other memory": lambda: raw("process_vm_writev", 1, 0, 0, 0, 0, 0),
    "kill": lambda: os.kill(1, 0),
    "kill itself": lambda: os.kill(os.getpid(), signal.SIGUSR1),
    "bpf": lambda: raw("bpf", 0, 0, 0),
    "perf_event_open": lambda: raw("perf_event_open", 0, 0, 0, 0, 0),
    "io_uring": lambda: raw("io_uring_setup", 1, 0),
    "userfaultfd": lambda: raw("userfaultfd", 0),
    "memfd": lambda: raw("memfd_create", 0, 0),
    "unshare": lambda: raw("unshare", 0x10000000),
    "setns": lambda: raw("setns", -1, 0),
    "mount": lambda: raw("mount", 0, 0, 0, 0, 0),
    "chroot": lambda: raw("chroot", 0),
    "personality": lambda: raw("personality", 0x0004000),
    "capset": lambda: raw("capset", 0, 0),
    "setuid": lambda: os.setresuid(0, 0, 0),
    "setgroups": lambda: os.setgroups([0]),
    "prctl": lambda: raw("prctl", 4, 1),
    "raise a limit": lambda: raw("prlimit64", 0, 4, 0, 0),
    "executable memory": executable_memory,
    "make memory executable": make_executable,
    "unlock memory": lambda: raw("munlockall"),
    "new keyring": lambda: keyctl(1, b"x\0"),
    "link a ring": lambda: keyctl(8, -2, -3),
    "invalidate": lambda: keyctl(21, -2),
    "restrict": lambda: keyctl(29, -2, None, None),
    "init_module": lambda: raw("init_module", 0, 0, 0),
    "kexec": lambda: raw("kexec_load", 0, 0, 0, 0),
    "set the clock": lambda: raw("settimeofday", 0, 0),
}
# The controls: these have to go on working, or the test would prove nothing.
ALLOWED: dict[str, Callable[[], object]] = {
    "control: random": lambda: os.urandom(8),
    "control: own status": lambda: open("/proc/self/status").close(),
    "control: time": lambda: __import__("time").sleep(0.001),
}


def attack(server: object) -> None:
    out = []
    for name, action in {**ACTIONS, **ALLOWED}.items():
        try:
            action()
            out.append(f"{name}\tok")
        except OSError as error:
            out.append(f"{name}\t{error.errno}")
        except BaseException as error:
            out.append(f"{name}\t{type(error).__name__}")
    os.write(2, ("\n".join(out) + "\n").encode())


def main() -> None:
    start.Server.run = attack  # type: ignore[method-assign,assignment]
    start.private(sys.argv[2:])
