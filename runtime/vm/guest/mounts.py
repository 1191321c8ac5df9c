"""File systems of the guest: from the host's root over virtiofs to something a test can live in.

With an overlay: the host's root is the lower layer, a tmpfs takes every write. Directories that are to be
shared are bound from the virtiofs root itself, past the overlay, so that writes reach the host.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from typing import Any

__all__ = ["MountError", "early", "leave", "loopback_up", "mount", "prepare"]

MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MS_BIND, MS_MOVE, MS_REC = 0x1000, 0x2000, 0x4000
# finit_module(2): kernel decompresses the file itself (CONFIG_MODULE_DECOMPRESS)
SYS_FINIT_MODULE, MODULE_INIT_COMPRESSED_FILE = 313, 4
SYS_PIVOT_ROOT = 155

_libc = ctypes.CDLL(None, use_errno=True)

SIOCSIFFLAGS, IFF_UP = 0x8914, 1
RB_AUTOBOOT = 0x01234567
HOST = "/run/bpfseal-vm/host"  # the virtiofs root, seen from below the overlay

# (source, target, type, flags, options)
_API_MOUNTS = (
    ("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, ""),
    ("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, ""),
    ("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=620,ptmxmode=666"),
    ("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"),
    ("securityfs", "/sys/kernel/security", "securityfs", 0, ""),
    ("debugfs", "/sys/kernel/debug", "debugfs", 0, "mode=700"),
    ("tracefs", "/sys/kernel/tracing", "tracefs", 0, "mode=700"),
    ("bpf", "/sys/fs/bpf", "bpf", 0, "mode=700"),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, ""),
)


class MountError(OSError):
    """A mount that the guest cannot do without."""


def mount(source: str, target: str, fstype: str | None, flags: int = 0, options: str = "") -> None:
    """mount(2). Raises MountError naming source and target."""
    if _libc.mount(
        source.encode(), target.encode(), fstype.encode() if fstype else None, flags, options.encode() or None
    ):
        number = ctypes.get_errno()
        raise MountError(number, f"mount {source} ({fstype or 'bind'}) on {target}: {os.strerror(number)}")


def early() -> None:
    """What the agent itself needs on the bare root: /dev for its port, /proc and /sys to look around."""
    for source, target, fstype in (
        ("proc", "/proc", "proc"),
        ("sysfs", "/sys", "sysfs"),
        ("dev", "/dev", "devtmpfs"),
    ):
        if not os.path.ismount(target):  # CONFIG_DEVTMPFS_MOUNT may have been quicker
            mount(source, target, fstype)


def _insert_module(path: str) -> None:
    """Load one module file without modprobe (there is no modules tree to look in yet)."""
    flags = 0 if path.endswith(".ko") else MODULE_INIT_COMPRESSED_FILE
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syscall(SYS_FINIT_MODULE, fd, b"", flags):
            number = ctypes.get_errno()
            raise MountError(number, f"loading {path}: {os.strerror(number)}")
    finally:
        os.close(fd)


def _find_module(modules: str, name: str) -> str | None:
    for suffix in (".ko.xz", ".ko.zst", ".ko.gz", ".ko"):
        path = os.path.join(modules, "kernel", name + suffix)
        if os.path.exists(path):
            return path
    return None


def _need_overlay(modules: str) -> None:
    with open("/proc/filesystems") as file:
        if "\toverlay\n" in file.read():
            return
    path = _find_module(modules, "fs/overlayfs/overlay")
    if path is None:
        raise MountError(2, f"no overlay file system: not built in, and no module below {modules}")
    _insert_module(path)


@contextlib.contextmanager
def _without_fowner() -> Iterator[None]:
    """Without CAP_FOWNER for a while: overlayfs keeps the credentials of whoever mounts it.

    With that capability it opens lower files with O_NOATIME (fs/overlayfs/file.c, ovl_open_realfile), the
    flag travels to virtiofsd, and open(2) on the host refuses it to a user who does not own the file.
    """
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, ourselves
    before = ctypes.create_string_buffer(24)  # two of struct __user_cap_data_struct
    if _libc.capget(header, before):
        raise MountError(ctypes.get_errno(), "capget")
    low = list(struct.unpack("=6I", before.raw))
    low[0] &= ~(1 << 3)  # effective set, CAP_FOWNER
    if _libc.capset(header, struct.pack("=6I", *low)):
        raise MountError(ctypes.get_errno(), "capset")
    try:
        yield
    finally:
        _libc.capset(header, before)


def _overlay_root(modules: str, size: str, owner: bool) -> str:
    """Make an overlay the root. Returns where the virtiofs root is to be found from now on.

    /run is the one directory that every root has and whose contents a guest replaces anyway, so the layers
    live below it and nothing of the host's tree is covered.
    """
    _need_overlay(modules)
    mount("tmpfs", "/run", "tmpfs", 0, f"mode=700,size={size}")
    for name in ("upper", "work", "root"):
        os.mkdir(f"/run/{name}", 0o755)
    new = "/run/root"
    # volatile: nothing outlives the guest, so syncing the upper layer is wasted time
    options = "lowerdir=/,upperdir=/run/upper,workdir=/run/work,volatile"
    if owner:
        mount("overlay", new, "overlay", 0, options)
    else:
        with _without_fowner():
            mount("overlay", new, "overlay", 0, options)
    for name in ("dev", "proc", "sys"):
        mount(f"/{name}", f"{new}/{name}", None, MS_MOVE)
    _fresh_run(new)
    os.makedirs(f"{new}{HOST}", 0o700)
    os.chdir(new)
    if _libc.syscall(SYS_PIVOT_ROOT, b".", f".{HOST}".encode()):
        number = ctypes.get_errno()
        raise MountError(number, f"pivot_root: {os.strerror(number)}")
    os.chdir("/")
    return HOST


def _fresh_run(root: str) -> None:
    mount("tmpfs", f"{root}/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    os.mkdir(f"{root}/run/lock", 0o755)


def _bind(source: str, target: str, *, create: bool = True) -> None:
    if not os.path.isdir(target) and create:
        os.makedirs(target, exist_ok=True)
    mount(source, target, None, MS_BIND | MS_REC)


def _modules(source: str, release: str, overlay: bool) -> str | None:
    """Put the kernel's modules where modprobe looks. Gives a warning when that is not possible."""
    base = "/usr/lib/modules" if os.path.isdir("/usr/lib") else "/lib/modules"
    if not overlay:
        if not os.path.isdir(base):
            return f"{base} does not exist on the host: modprobe will not work with a writable root"
        mount("tmpfs", base, "tmpfs", 0, "mode=755,size=1M")
    _bind(source, f"{base}/{release}")
    return None


def prepare(config: dict[str, Any]) -> list[str]:
    """Mount everything that `config` (see `machine.guest_config`) asks for; returns warnings."""
    overlay: bool = config["overlay"]
    host = ""
    if overlay:
        host = _overlay_root(config["modules"], config["volatile_size"], config["owner"])
    else:
        _fresh_run("")
    for source, target, fstype, flags, options in _API_MOUNTS:
        if not os.path.ismount(target):
            if target.startswith("/dev/"):
                os.makedirs(target, exist_ok=True)
            mount(source, target, fstype, flags, options)
    if not config["keep_tmp"]:
        mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    warnings: list[str] = []
    if warning := _modules(f"{host}{config['modules']}", config["release"], overlay):
        warnings.append(warning)
    for share in config["shares"]:
        _bind(f"{host}{share}", share)
    return warnings


def loopback_up() -> None:
    """ip link set lo up, without the socket module: it takes a tenth of a second to import here."""
    sock = _libc.socket(2, 2 | os.O_CLOEXEC, 0)  # AF_INET, SOCK_DGRAM
    request = ctypes.create_string_buffer(struct.pack("16sH14x", b"lo", IFF_UP), 40)  # struct ifreq
    if _libc.ioctl(sock, SIOCSIFFLAGS, request):
        number = ctypes.get_errno()
        raise OSError(number, f"bringing up the loopback device: {os.strerror(number)}")
    os.close(sock)


def leave() -> None:
    """sync(2) and reboot(2); QEMU runs with -no-reboot, so that ends it."""
    os.sync()
    _libc.reboot(RB_AUTOBOOT)
