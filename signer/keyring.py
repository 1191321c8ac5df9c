"""Kernel keyrings of the helper: a ring of roots, and beside it a ring that takes only leaves those roots issued.

    process keyring ─┬─ bpfseal-root-…   the root certificate; nothing can be added any more
                     └─ bpfseal-leaf-…   at most two leaf certificates, each with a timeout; `keyring_id` of a load

The two are apart because a root in the verifying ring would vouch for any leaf embedded in a signature, unlisted,
expired or revoked ones included. The leaf ring's restriction has no `:chain`, so that a leaf cannot issue leaves.
Both hang on the *process* keyring only: when the helper ends they go with it, however it ends.
Operations: include/uapi/linux/keyctl.h; permissions: include/linux/key.h.
"""

from __future__ import annotations

import ctypes
import os

from msgspec import Struct

from bpfseal.signer.syscall import syscall

_PROCESS_KEYRING = -2
_REVOKE, _SETPERM, _DESCRIBE, _UNLINK, _SET_TIMEOUT, _RESTRICT = 3, 5, 6, 9, 15, 29

# Four groups of six bits: possessor, user, group, other; view 1, read 2, write 4, search 8, link 0x10, setattr 0x20.
# A possessor who gave up setattr cannot extend a timeout or give rights back. Nobody else gets search: that would be
# the right to invalidate the ring, and the kernel does not ask it of those who load (bpf_lookup_user_key defers the
# check and then searches as possessor).
_OTHERS = 0x030303
RING_PERMISSIONS = 0x1F << 24 | _OTHERS
ROOT_RING_PERMISSIONS = 0x1B << 24 | _OTHERS
KEY_PERMISSIONS = 0x1F << 24 | _OTHERS


def keyctl(operation: int, *args: int | bytes | None) -> int:
    return syscall("keyctl", operation, *args)


def add_key(kind: str, description: str, payload: bytes, ring: int) -> int:
    """Serial of the new key. An existing key of the same kind and description in `ring` would be replaced."""
    body = payload or None
    return syscall("add_key", kind.encode() + b"\0", description.encode() + b"\0", body, len(payload), ring)


def describe(serial: int) -> str:
    """ "type;uid;gid;permissions;description" as keyctl_describe(3) has it."""
    buffer = ctypes.create_string_buffer(4096)
    keyctl(_DESCRIBE, serial, ctypes.addressof(buffer), len(buffer))
    return buffer.value.decode(errors="replace")


class Rings(Struct):
    """The helper's two keyrings, by serial."""

    root: int
    leaf: int

    @classmethod
    def create(cls, root_certificate: bytes) -> Rings:
        """New rings around one root.

        Raises OSError: ENOSYS or ENODEV where the kernel has no keyrings or asymmetric keys, ENOPKG or EBADMSG where
        it does not know the root's algorithm, EDQUOT when the user's key quota is used up.
        """
        tag = os.urandom(8).hex()
        root = add_key("keyring", f"bpfseal-root-{tag}", b"", _PROCESS_KEYRING)
        leaf = 0
        try:
            add_key("asymmetric", f"bpfseal-root-key-{tag}", root_certificate, root)
            keyctl(_RESTRICT, root, None, None)
            leaf = add_key("keyring", f"bpfseal-leaf-{tag}", b"", _PROCESS_KEYRING)
            keyctl(_RESTRICT, leaf, b"asymmetric\0", f"key_or_keyring:{root}".encode() + b"\0")
            keyctl(_SETPERM, root, ROOT_RING_PERMISSIONS)
            keyctl(_SETPERM, leaf, RING_PERMISSIONS)
        except OSError:
            for ring in filter(None, (root, leaf)):
                keyctl(_UNLINK, ring, _PROCESS_KEYRING)
            raise
        return cls(root, leaf)

    def add(self, certificate: bytes, seconds: int) -> int:
        """Put a leaf into the ring for `seconds`; its serial. The kernel checks that a root issued it (else ENOKEY)."""
        serial = add_key("asymmetric", f"bpfseal-leaf-key-{os.urandom(8).hex()}", certificate, self.leaf)
        keyctl(_SET_TIMEOUT, serial, seconds)
        keyctl(_SETPERM, serial, KEY_PERMISSIONS)
        return serial

    def remove(self, serial: int) -> None:
        """Revoke a leaf and take it out. A leaf that the kernel dropped already (timeout) is fine."""
        for operation, *args in ((_REVOKE, serial), (_UNLINK, serial, self.leaf)):
            try:
                keyctl(operation, *args)
            except OSError:
                continue

    def close(self) -> None:
        for ring in (self.leaf, self.root):
            try:
                keyctl(_UNLINK, ring, _PROCESS_KEYRING)
            except OSError:
                continue
