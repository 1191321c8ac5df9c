"""The guard of enforcement: programs that refuse changes to its own maps and pins.

What they refuse: descriptors with write access to the maps (lsm/bpf_map), unlinking and renaming the pins
(lsm/inode_unlink, lsm/inode_rename), unmounting the file system they are in (lsm/sb_umount). The links themselves have
no detach operation (kernel/bpf/syscall.c, bpf_tracing_link_lops), so that without their pins they cannot be reached.

Who is let pass: a process that loaded a signed program within the last ten seconds, so that each change needs the
signing helper, its policy and a record in its log; and everybody once the helper has ended, since nothing could be put
right otherwise. docs/enforcement.md says what that is worth against root.
"""

from __future__ import annotations

import errno

from bpfseal.runtime.enforce_layout import (
    C_FLAGS,
    C_GUARDED,
    C_ORPHAN,
    C_PIN_DEVICE,
    C_PIN_INODE,
    C_TICKET_TGID,
    C_TICKET_UNTIL,
    GUARD,
    GUARDED,
    Offsets,
)
from bpfseal.runtime.enforce_program import config_or, lookup
from bpfseal.signer.asm import Asm, R

_BOOT_NS, _PID_TGID = 125, 14
_FMODE_WRITE = 2
_KEY = -8


def _guarded(a: Asm) -> None:
    """r9 = the config; to "pass" when nothing is guarded."""
    config_or(a, "pass")
    a.ldx(4, R.R1, R.R9, C_FLAGS)
    a.alu("and", R.R1, GUARD)
    a.jump_if(R.R1, "==", 0, "pass")
    a.ldx(4, R.R1, R.R9, C_ORPHAN)
    a.jump_if(R.R1, "!=", 0, "pass")


def _unless_permitted(a: Asm) -> None:
    """The end of every hook: -EPERM but for the process with the ticket."""
    a.label("judge")
    a.call(_PID_TGID)
    a.alu("rsh", R.R0, 32)
    a.ldx(4, R.R1, R.R9, C_TICKET_TGID)
    a.jump_if(R.R0, "!=", R.R1, "refuse")
    a.call(_BOOT_NS)
    a.ldx(8, R.R1, R.R9, C_TICKET_UNTIL)
    a.jump_if(R.R0, "<=", R.R1, "pass")
    a.label("refuse")
    a.mov(R.R1, 1)
    a.atomic_add(8, R.R9, C_GUARDED, R.R1)
    a.ret(-errno.EPERM)
    a.label("pass")
    a.ret(0)


def map_code(at: Offsets) -> bytes:
    """int bpf_map(map, fmode), when a descriptor of a map is made."""
    a = Asm()
    a.ldx(8, R.R6, R.R1, 0)
    a.ldx(4, R.R7, R.R1, 8)
    a.alu("and", R.R7, _FMODE_WRITE)
    a.jump_if(R.R7, "==", 0, "pass")
    _guarded(a)
    a.ldx(4, R.R1, R.R6, at.map_id)
    a.stx(4, R.R10, _KEY, R.R1)
    lookup(a, GUARDED)
    a.jump_if(R.R0, "==", 0, "pass")
    _unless_permitted(a)
    return a.code()


def _is_ours(a: Asm, at: Offsets, inode: R, otherwise: str) -> None:
    """To "judge" if the directory is that of the pins."""
    a.ldx(8, R.R1, inode, at.inode_number)
    a.ldx(8, R.R2, R.R9, C_PIN_INODE)
    a.jump_if(R.R1, "!=", R.R2, otherwise)
    a.ldx(8, R.R1, inode, at.inode_super)
    a.ldx(4, R.R1, R.R1, at.super_device)
    a.ldx(4, R.R2, R.R9, C_PIN_DEVICE)
    a.jump_if(R.R1, "==", R.R2, "judge")


def unlink_code(at: Offsets) -> bytes:
    """int inode_unlink(dir, dentry)."""
    a = Asm()
    a.ldx(8, R.R6, R.R1, 0)
    _guarded(a)
    _is_ours(a, at, R.R6, "pass")
    a.jump("pass")
    _unless_permitted(a)
    return a.code()


def rename_code(at: Offsets) -> bytes:
    """int inode_rename(old_dir, old_dentry, new_dir, new_dentry): out of the directory, or over what is in it."""
    a = Asm()
    a.ldx(8, R.R6, R.R1, 0)
    a.ldx(8, R.R7, R.R1, 16)
    _guarded(a)
    _is_ours(a, at, R.R6, "target")
    a.label("target")
    _is_ours(a, at, R.R7, "pass")
    a.jump("pass")
    _unless_permitted(a)
    return a.code()


def umount_code(at: Offsets) -> bytes:
    """int sb_umount(mnt, flags): the last mount of a BPF file system takes its pins along."""
    a = Asm()
    a.ldx(8, R.R6, R.R1, 0)
    _guarded(a)
    a.ldx(8, R.R1, R.R6, at.mount_super)
    a.ldx(4, R.R1, R.R1, at.super_device)
    a.ldx(4, R.R2, R.R9, C_PIN_DEVICE)
    a.jump_if(R.R1, "!=", R.R2, "pass")
    _unless_permitted(a)
    return a.code()
