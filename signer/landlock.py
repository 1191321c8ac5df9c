"""Landlock: file access below named directories only, no TCP, no signals or abstract sockets to the outside.

Layouts and rights: include/uapi/linux/landlock.h. Rights a kernel does not know make it refuse the ruleset, so they
are asked for by ABI version.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct

from bpfseal.signer.syscall import syscall

_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH = 1
_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE = 1 << 1, 1 << 2, 1 << 3, 1 << 5
_MAKE_REG, _TRUNCATE = 1 << 8, 1 << 14
# Number of file system rights by ABI: refer came with 2, truncate with 3, ioctl_dev with 5.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_RIGHTS_NOW = 16
_NET = 0b11  # bind and connect TCP, ABI 4
_SCOPES = 0b11  # abstract unix sockets, signals, ABI 6


class Ruleset:
    """Rules made while their paths can still be opened, and enforced later."""

    def __init__(self, writable: tuple[str, ...], readable: tuple[str, ...]) -> None:
        """Paths that do not exist are left out. Raises OSError for others that cannot be opened."""
        self._fd = -1
        try:
            self.abi = syscall("landlock_create_ruleset", None, 0, _VERSION)
        except OSError as error:
            self.abi, self._why = 0, error.strerror
            return
        handled = (1 << _RIGHTS.get(self.abi, _RIGHTS_NOW)) - 1
        attributes = struct.pack("<QQQ", handled, _NET if self.abi >= 4 else 0, _SCOPES if self.abi >= 6 else 0)
        size = 24 if self.abi >= 6 else 16 if self.abi >= 4 else 8
        self._fd = syscall("landlock_create_ruleset", attributes, size, 0)
        write = _WRITE_FILE | _READ_FILE | _READ_DIR | _REMOVE_FILE | _MAKE_REG | _TRUNCATE
        for paths, rights in ((writable, write), (readable, _READ_FILE | _READ_DIR)):
            for path in paths:
                _allow(self._fd, path, rights & handled)

    def enforce(self) -> str:
        """Restrict this process for good; says what holds. Needs no_new_privs."""
        if self._fd < 0:
            return f"no Landlock ({self._why})"
        syscall("landlock_restrict_self", self._fd, 0)
        os.close(self._fd)
        return f"Landlock {self.abi}"


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _READ_FILE | _WRITE_FILE | _TRUNCATE
        rule = ctypes.create_string_buffer(struct.pack("<Qi", rights, fd), 12)
        syscall("landlock_add_rule", ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(fd)
