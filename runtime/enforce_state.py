"""The pinned state of enforcement, by which every later command finds it.

/sys/fs/bpf/bpfseal/   link_require, link_forget   the attachments: unlinking them ends enforcement
                       config, allowed, helpers, log   the maps of `enforce_program`
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from dataclasses import dataclass
from types import TracebackType

from bpfseal.errors import BpfsealError
from bpfseal.runtime import bpf
from bpfseal.runtime import enforce_program as program
from bpfseal.runtime.bpf_link import raw_tracepoint_open
from bpfseal.runtime.load import Loaded

BPFFS = "/sys/fs/bpf"
PINS = f"{BPFFS}/bpfseal"
LINKS = ("link_require", "link_forget")
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


@dataclass(frozen=True)
class Config:
    """mode: OFF, AUDIT, ENFORCE; until_ns: boot time when it ends, 0 for never; counters since it was turned on."""

    mode: int
    until_ns: int
    allowed: int
    refused: int
    would: int
    lost: int

    @property
    def seconds_left(self) -> float | None:
        if not self.until_ns:
            return None
        return max(0.0, (self.until_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) / 1e9)

    @property
    def active(self) -> int:
        """The mode that is in force now."""
        return program.OFF if self.seconds_left == 0 else self.mode


class State:
    """Open maps of an enforcement that is pinned. A context manager."""

    def __init__(self, fds: tuple[int, ...]) -> None:
        self._fds = fds

    @classmethod
    def open(cls) -> State | None:
        """None when nothing is pinned. Raises BpfsealError when it cannot be looked at."""
        fds: list[int] = []
        try:
            for name in program.MAP_NAMES:
                fds.append(bpf.obj_get(f"{PINS}/{name}"))
        except OSError as error:
            for fd in fds:
                os.close(fd)
            if isinstance(error, FileNotFoundError):
                return None
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
        return self._fds[program.LOG]

    @property
    def attached(self) -> bool:
        return all(os.path.exists(f"{PINS}/{name}") for name in LINKS)

    def config(self) -> Config:
        raw = bpf.map_lookup(self._fds[program.CONFIG], _key(0), program.CONFIG_SIZE) or bytes(program.CONFIG_SIZE)
        return Config(*struct.unpack("<IxxxxQQQQQ", raw))

    def configure(self, mode: int, until_ns: int) -> None:
        """Set the mode; counters start again. Events that are counted at this very moment may be missed."""
        value = struct.pack("<IxxxxQ", mode, until_ns).ljust(program.CONFIG_SIZE, b"\0")
        bpf.map_update(self._fds[program.CONFIG], _key(0), value)

    def rings(self) -> dict[int, int]:
        """Serial of every allowed keyring, and the process it ends with (0: none)."""
        items = bpf.map_items(self._fds[program.ALLOWED], 4, 4, 64)
        return {int.from_bytes(k, "little"): int.from_bytes(v, "little") for k, v in items}

    def allow(self, serial: int, tgid: int) -> None:
        """Take programs verified with keyring `serial`, until process `tgid` (0: whatever ends) ends."""
        if tgid:
            bpf.map_update(self._fds[program.HELPERS], _key(tgid), _key(serial))
        bpf.map_update(self._fds[program.ALLOWED], _key(serial), _key(tgid))

    def disallow(self, serial: int) -> bool:
        tgid = self.rings().get(serial, 0)
        if tgid:
            bpf.map_delete(self._fds[program.HELPERS], _key(tgid))
        return bpf.map_delete(self._fds[program.ALLOWED], _key(serial))


def pin(loaded: Loaded) -> State:
    """Attach the loaded programs and pin everything; enforcement is off until `configure`. Raises BpfsealError, with
    nothing left."""
    links: list[int] = []
    try:
        os.mkdir(PINS, 0o700)
        for fd, name in zip(loaded.map_fds, program.MAP_NAMES, strict=True):
            bpf.obj_pin(fd, f"{PINS}/{name}")
        for fd, name in zip(loaded.prog_fds, LINKS, strict=True):
            links.append(raw_tracepoint_open(fd, None))
            bpf.obj_pin(links[-1], f"{PINS}/{name}")
        return State(tuple(os.dup(fd) for fd in loaded.map_fds))
    except OSError as error:
        unpin()
        raise BpfsealError(
            f"the enforcement programs cannot be attached: {error.strerror}",
            hint="is bpf among the active LSMs? cat /sys/kernel/security/lsm",
        ) from None
    finally:
        for link in links:
            os.close(link)


def unpin() -> bool:
    """End enforcement: take the pins away, the hook first. Whether there were any."""
    found = False
    for name in (*LINKS, *program.MAP_NAMES):
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
