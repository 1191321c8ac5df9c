"""The one process that owns QEMU and virtiofsd: `python -I -S keeper.py`, plan as JSON on fd `plan`.

Why a process of its own: the parent may be killed with SIGKILL, may run the machine from a thread, may be a
test runner with children of its own. The keeper's lifeline is a pipe whose other end only the parent holds:
end of file means the parent is gone or wants to be rid of the machine. Should the keeper itself be killed,
PR_SET_PDEATHSIG takes QEMU with it, and virtiofsd leaves when QEMU's connection closes.

virtiofsd is started in a mount namespace that contains a read-only copy of the whole mount tree, so that
not even root in the guest can write to the host. Shared directories are attached to that copy writable.

Stdlib only, no package imports: it starts in a few milliseconds and does nothing but what is below.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

# include/uapi/linux/mount.h, include/uapi/linux/prctl.h, include/uapi/linux/sched.h; x86-64 numbers
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_RDONLY = 1
MS_REC, MS_PRIVATE = 0x4000, 1 << 18
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
PR_SET_PDEATHSIG = 1

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
SYS_SETGROUPS, AUDIT_ARCH_X86_64 = 116, 0xC000003E
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO = 0x7FFF0000, 0x00050000

STATUS_LIMIT = 3  # exit status: the machine was ended because its time was up

# Where the copy is attached in virtiofsd's namespace. Every root has /run, and virtiofsd needs nothing there.
EXPORT = "/run"
_GRACE = 2.0  # seconds between SIGTERM and SIGKILL for virtiofsd

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    """struct mount_attr"""

    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _clone_tree(path: str, *, writable: bool) -> int:
    """A detached recursive copy of the mounts at `path`."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE
    tree = _check(_libc.syscall(SYS_OPEN_TREE, AT_FDCWD, path.encode(), flags), f"open_tree({path})")
    if not writable:
        attr = _MountAttr(attr_set=MOUNT_ATTR_RDONLY)
        result = _libc.syscall(
            SYS_MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH | AT_RECURSIVE, ctypes.byref(attr), ctypes.sizeof(attr)
        )
        _check(result, f"mount_setattr({path})")
    return tree


def _attach(tree: int, target: str) -> None:
    result = _libc.syscall(SYS_MOVE_MOUNT, tree, b"", AT_FDCWD, target.encode(), MOVE_MOUNT_F_EMPTY_PATH)
    _check(result, f"move_mount({target})")
    os.close(tree)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _export(plan: dict[str, Any]) -> None:
    """In the child that becomes virtiofsd: make the tree it is to serve, at EXPORT."""
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWNS
    if plan["user_namespace"]:
        flags |= CLONE_NEWUSER
    _check(_libc.unshare(flags), "unshare")
    if plan["user_namespace"]:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"0 {uid} 1")
        _write("/proc/self/gid_map", f"0 {gid} 1")
        _ignore_setgroups()
    _check(_libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "making the mounts private")
    root = _clone_tree("/", writable=plan["writable"])
    shares = [(path, _clone_tree(path, writable=True)) for path in plan["shares"]]
    _attach(root, EXPORT)
    for path, tree in shares:
        _attach(tree, EXPORT + path)


def _ignore_setgroups() -> None:
    """Let setgroups(2) report success without doing anything, in this process and what it executes.

    virtiofsd insists on dropping supplementary groups. In a user namespace made without privilege nobody can
    (user_namespaces(7)), and nothing is gained by it: the caller has the rights of these groups anyway.
    """
    load, jump_equal, give = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    code = (
        (load, 0, 0, 4),  # seccomp_data.arch
        (jump_equal, 0, 3, AUDIT_ARCH_X86_64),
        (load, 0, 0, 0),  # seccomp_data.nr
        (jump_equal, 0, 1, SYS_SETGROUPS),
        (give, 0, 0, SECCOMP_RET_ERRNO),
        (give, 0, 0, SECCOMP_RET_ALLOW),
    )
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
    program = struct.pack("@HP", len(code), ctypes.addressof(instructions))  # struct sock_fprog
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    _check(_libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0), "prctl(PR_SET_SECCOMP)")


def _start(argv: list[str], keep: list[int], before: Callable[[], None] = lambda: None) -> int:
    """fork and exec; the child dies with this process. `keep`: descriptors the program inherits."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        before()
        # After `before`: entering a user namespace clears the setting.
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        for fd in keep:
            os.set_inheritable(fd, True)
        os.execv(argv[0], argv)
    except BaseException as error:
        os.write(2, f"keeper: {os.path.basename(argv[0])}: {error}\n".encode())
    os._exit(127)


def _connected_listener(directory: str) -> tuple[socket.socket, socket.socket]:
    """A listening socket with one connection already waiting: nobody has to poll for a path to appear."""
    path = os.path.join(directory, f"fs.{os.getpid()}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    try:
        listener.listen(1)
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(path)
    finally:
        os.unlink(path)
    return listener, client


def _reap(pid: int, deadline: float) -> bool:
    while time.monotonic() < deadline:
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return True
        except ChildProcessError:
            return True
        time.sleep(0.01)
    return False


def _stop(qemu: int, virtiofsd: int) -> None:
    """QEMU has nothing to save: kill. virtiofsd then sees its connection close, and leaves by itself."""
    for pid, number in ((qemu, signal.SIGKILL), (virtiofsd, signal.SIGTERM)):
        if not pid:
            continue
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
        if not _reap(pid, time.monotonic() + _GRACE):
            os.kill(pid, signal.SIGKILL)
            _reap(pid, time.monotonic() + _GRACE)


def _watch(lifeline: int, deadline: float | None, qemu: int, virtiofsd: int, wake: int) -> int:
    """Until the parent lets go, a child ends, or time is up. Returns the keeper's exit status."""
    while True:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        readable, _, _ = select.select([lifeline, wake], [], [], timeout)
        if not readable:
            return STATUS_LIMIT
        if lifeline in readable:
            return 0
        os.read(wake, 64)
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            continue
        if pid == virtiofsd:
            # Both end when either does; the news is in the one that was first, and that is told by its status.
            if status or not _reap(qemu, time.monotonic() + 0.5):
                _report("virtiofsd", status)
        elif pid == qemu:
            _report("QEMU", status)
        return 0


def _report(name: str, wait_status: int) -> None:
    code = os.waitstatus_to_exitcode(wait_status)
    if code:
        how = f"ended with status {code}" if code > 0 else f"was killed by signal {-code}"
        os.write(2, f"keeper: {name} {how}\n".encode())


def main() -> NoReturn:
    plan: dict[str, Any] = json.loads(os.read(int(sys.argv[1]), 1 << 20))
    # Ctrl-C is for the command in the guest; the parent decides what becomes of the machine.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))
    wake, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    qemu = virtiofsd = 0
    try:
        listener, client = _connected_listener(plan["directory"])
        virtiofsd = _start(
            [*plan["virtiofsd"], f"--fd={listener.fileno()}"],
            [listener.fileno()],
            lambda: _export(plan),
        )
        chardev = f"socket,id=fs,fd={client.fileno()}"
        qemu = _start([*plan["qemu"], "-chardev", chardev], [client.fileno(), *plan["qemu_fds"]])
        listener.close()
        client.close()
        for fd in plan["qemu_fds"]:
            os.close(fd)
        limit = plan["limit"]
        status = _watch(plan["lifeline"], limit and time.monotonic() + limit, qemu, virtiofsd, wake)
    finally:
        _stop(qemu, virtiofsd)
    sys.exit(status)


if __name__ == "__main__":
    main()
