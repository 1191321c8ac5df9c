"""Keyrings of certificates that this machine trusts: one ring for each, locked, owned by root.

A ring hangs on root's user keyring, so that it outlives whoever made it; it holds one certificate and nothing can be
added. It is found again by its description, `bpfseal-trust-` and the beginning of the certificate's sha256, in
/proc/keys; only rings that belong to root count. Whether programs signed for a ring load is the enforcement list's to
say (`runtime.enforce_state`).
"""

from __future__ import annotations

import re

from bpfseal.errors import BpfsealError
from bpfseal.signer.keyring import add_key, keyctl

_PREFIX = "bpfseal-trust-"
_PROCESS_KEYRING, _USER_KEYRING = -2, -4
_SETPERM, _UNLINK, _RESTRICT = 5, 9, 29
# View, read and search for possessor and owner (search: `keyctl session NAME` joins it), view for the others.
_PERMISSIONS = 0x0B0B0101
# serial, flags, usage, timeout, permissions, uid, gid, type, description: Documentation/security/keys/core.rst
_LINE = re.compile(rf"([0-9a-f]{{8}}) \S+ +\d+ \S+ [0-9a-f]{{8}} +(\d+) +-?\d+ keyring +({_PREFIX}[0-9a-f]{{32}}):")


def name_of(digest: bytes) -> str:
    """Description of the ring of the certificate with that sha256."""
    return _PREFIX + digest.hex()[:32]


def rings() -> dict[str, int]:
    """Serials of the rings there are, by description."""
    try:
        with open("/proc/keys", encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return {}
    found = (_LINE.match(line) for line in lines)
    return {m[3]: int(m[1], 16) for m in found if m and m[2] == "0"}


def add(der: bytes, digest: bytes) -> int:
    """The serial of a ring for a certificate, made if it is not there. Raises BpfsealError."""
    known = rings().get(name_of(digest))
    if known is not None:
        return known
    return _make(der, digest, _USER_KEYRING)


def own(der: bytes, digest: bytes) -> int:
    """A ring that ends with this process, where nothing enforces what rings count. Raises BpfsealError."""
    return _make(der, digest, _PROCESS_KEYRING)


def _make(der: bytes, digest: bytes, where: int) -> int:
    ring = 0
    try:
        ring = add_key("keyring", name_of(digest), b"", where)
        add_key("asymmetric", f"{_PREFIX}key-{digest.hex()[:32]}", der, ring)
        keyctl(_RESTRICT, ring, None, None)
        keyctl(_SETPERM, ring, _PERMISSIONS)
    except OSError as error:
        if ring:
            keyctl(_UNLINK, ring, where)
        raise BpfsealError(
            f"the kernel's keyring does not take the certificate: {error.strerror}",
            hint="`bpfseal doctor` says whether this kernel verifies signatures",
        ) from None
    return ring


def remove(digest: bytes) -> int:
    """Take a ring away: its serial, 0 if there was none. Raises BpfsealError."""
    serial = rings().get(name_of(digest), 0)
    if serial:
        try:
            keyctl(_UNLINK, serial, _USER_KEYRING)
        except OSError as error:
            raise BpfsealError(f"the ring cannot be removed: {error.strerror}") from None
    return serial
