"""The pinned state of enforcement, by which every later command finds it.

/sys/fs/bpf/bpfseal/   link_require, link_forget, …   the attachments: unlinking them ends enforcement
                       config, allowed, helpers, …   the maps of `enforce_layout`
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType

from bpfseal.errors import BpfsealError
from bpfseal.runtime import bpf, bpf_info
from bpfseal.runtime import enforce_layout as layout
from bpfseal.runtime.enforce_bundle import LINKS, links
from bpfseal.runtime.load import Loaded

BPFFS = "/sys/fs/bpf"
PINS = f"{BPFFS}/bpfseal"
_READ_ONLY = 8  # BPF_F_RDONLY
_BPF_FS_MAGIC = 0xCAFE4A11


def _key(number: int) -> bytes:
    return struct.pack("<I", number)


def mount_bpffs() -> None:
    """Make sure that /sys/fs/bpf is a BPF file system. Raises BpfsealError."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(256)  # struct statfs; f_type is its first word
    if libc.statfs(BPFFS.encode(), buffer) == 0 and struct.unpack_from("<q", buffer)[0] == _BPF_FS_MAGIC:
        return
    if libc.mount(b"bpf", BPFFS.encode(), b"bpf", ctypes.c_ulong(0), b"mode=0700") != 0:
        reason = os.strerror(ctypes.get_errno())
        raise BpfsealError(f"{BPFFS} is no BPF file system and cannot be made one: {reason}")


class Guarded(BpfsealError):
    """The guard refuses write access to this process, which has not loaded anything signed lately."""


@dataclass(frozen=True)
class Config:
    """mode: OFF, AUDIT, ENFORCE; until_ns: boot time when it ends, 0 for never; counters since it was turned on;
    flags: BY_TAG, BY_CGROUP, GUARD."""

    mode: int
    until_ns: int
    allowed: int
    refused: int
    would: int
    lost: int
    excepted: int
    guarded: int
    flags: int

    @property
    def seconds_left(self) -> float | None:
        if not self.until_ns:
            return None
        return max(0.0, (self.until_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) / 1e9)

    @property
    def active(self) -> int:
        """The mode that is in force now."""
        return layout.OFF if self.seconds_left == 0 else self.mode


class State:
    """Open maps of an enforcement that is pinned. A context manager."""

    def __init__(self, fds: tuple[int, ...]) -> None:
        self._fds = fds

    @classmethod
    def open(cls, *, write: bool = True) -> State | None:
        """None when nothing is pinned. The log is always open for writing: readers move its position. Raises Guarded
        when `write` is refused by the guard, BpfsealError when it cannot be looked at."""
        fds: list[int] = []
        try:
            for name in layout.MAP_NAMES:
                fds.append(bpf.obj_get(f"{PINS}/{name}", 0 if write or name == "log" else _READ_ONLY))
        except OSError as error:
            for fd in fds:
                os.close(fd)
            if isinstance(error, FileNotFoundError):
                return None
            if error.errno == errno.EPERM and write and os.geteuid() == 0:
                raise Guarded("enforcement is guarded: it is changed through the signing helper only") from None
            raise BpfsealError(f"cannot look at enforcement: {error.strerror}", hint="run as root") from None
        return cls(tuple(fds))

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = ()

    def __enter__(self) -> State:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def log_fd(self) -> int:
        return self._fds[layout.LOG]

    @property
    def attached(self) -> bool:
        """Whether the programs that judge are attached; those of the guard may be missing."""
        return all(os.path.exists(f"{PINS}/{name}") for name in links(guarded=False))

    @property
    def guardable(self) -> bool:
        """Whether it was set up with the guard."""
        return all(os.path.exists(f"{PINS}/{name}") for name in LINKS)

    def config(self) -> Config:
        raw = bpf.map_lookup(self._fds[layout.CONFIG], _key(0), layout.CONFIG_SIZE) or bytes(layout.CONFIG_SIZE)
        return Config(*struct.unpack_from("<IxxxxQQQQQQQI", raw))

    def configure(self, mode: int, until_ns: int, flags: int = 0) -> None:
        """Set mode and flags; counters start again. Events that are counted at this very moment may be missed."""
        value = bytearray(layout.CONFIG_SIZE)
        struct.pack_into("<IxxxxQ", value, layout.C_MODE, mode, until_ns)
        struct.pack_into("<I", value, layout.C_FLAGS, flags)
        pins = os.stat(PINS)
        device = os.major(pins.st_dev) << 20 | os.minor(pins.st_dev)  # MKDEV of include/linux/kdev_t.h
        struct.pack_into("<QI", value, layout.C_PIN_INODE, pins.st_ino, device)
        bpf.map_update(self._fds[layout.CONFIG], _key(0), bytes(value))

    def rings(self) -> dict[int, int]:
        """Serial (or number of `SYSTEM_RINGS`) of every allowed keyring, and the process it ends with (0: none)."""
        items = bpf.map_items(self._fds[layout.ALLOWED], 4, 4, 64)
        return {int.from_bytes(k, "little"): int.from_bytes(v, "little") for k, v in items}

    def allow(self, serial: int, tgid: int) -> None:
        """Take programs verified with keyring `serial`, until process `tgid` (0: whatever ends) ends."""
        if tgid:
            bpf.map_update(self._fds[layout.HELPERS], _key(tgid), _key(serial))
        bpf.map_update(self._fds[layout.ALLOWED], _key(serial), _key(tgid))

    def disallow(self, serial: int) -> bool:
        tgid = self.rings().get(serial, 0)
        if tgid:
            bpf.map_delete(self._fds[layout.HELPERS], _key(tgid))
        return bpf.map_delete(self._fds[layout.ALLOWED], _key(serial))

    def exceptions(self) -> tuple[list[str], list[int]]:
        """Tags of programs as hexadecimal digits, ids of cgroups, that need no signature."""
        tags, groups = (
            sorted(key for key, _ in bpf.map_items(self._fds[index], 8, 4, layout.MAX_EXCEPTIONS))
            for index in (layout.TAGS, layout.CGROUPS)
        )
        return [tag.hex() for tag in tags], [int.from_bytes(group, "little") for group in groups]

    def set_exceptions(self, tags: Iterable[str], groups: Iterable[int]) -> None:
        """Exactly these from now on."""
        wanted = {bytes.fromhex(tag) for tag in tags}, {group.to_bytes(8, "little") for group in groups}
        for index, keys in zip((layout.TAGS, layout.CGROUPS), wanted, strict=True):
            there = {key for key, _ in bpf.map_items(self._fds[index], 8, 4, layout.MAX_EXCEPTIONS)}
            for key in there - keys:
                bpf.map_delete(self._fds[index], key)
            for key in keys - there:
                bpf.map_update(self._fds[index], key, _key(1))

    def guard_maps(self) -> None:
        """Let the guard know the maps; it watches over them once GUARD is among the flags. Not the log: readers write
        to it."""
        for index, fd in enumerate(self._fds):
            if index != layout.LOG:
                bpf.map_update(self._fds[layout.GUARDED], _key(bpf_info.map_info(fd).id), _key(1))


def pin(loaded: Loaded) -> State:
    """Pin everything, the links that the loader has made among it; enforcement is off until `configure`. Raises
    BpfsealError, with nothing left."""
    try:
        os.mkdir(PINS, 0o700)
        for fd, name in zip(loaded.map_fds, layout.MAP_NAMES, strict=True):
            bpf.obj_pin(fd, f"{PINS}/{name}")
        for program, name in enumerate(LINKS[: len(loaded.prog_fds)]):  # without the guard there are fewer
            bpf.obj_pin(loaded.links[program], f"{PINS}/{name}")
        state = State(tuple(os.dup(fd) for fd in loaded.map_fds))
        state.guard_maps()
        return state
    except OSError as error:
        unpin()
        raise BpfsealError(
            f"the enforcement programs cannot be pinned: {error.strerror}", hint=f"is {PINS} on a BPF file system?"
        ) from None


def unpin() -> bool:
    """End enforcement: take the pins away, the hook first. Whether there were any."""
    found = False
    for name in (*LINKS, *layout.MAP_NAMES):
        try:
            os.unlink(f"{PINS}/{name}")
            found = True
        except FileNotFoundError:
            continue
    try:
        os.rmdir(PINS)
    except FileNotFoundError:
        pass
    return found
