"""Stacks that a session's maps hold by number."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from bpfseal.runtime import bpf

if TYPE_CHECKING:
    from bpfseal.runtime.session import Session
    from bpfseal.runtime.values import StackValue


def frames(session: Session, value: StackValue) -> list[int]:
    """Return addresses of a stack, innermost first; empty when the kernel could not store it."""
    if value.mode == "build_id":
        return [offset for _, offset in build_ids(session, value)]
    raw = _stored(session, value, f"{value.space}_{value.depth}")
    # Not up to the first zero: code without frame pointers leads the kernel to anything, and bpftrace shows it.
    return list(struct.unpack(f"<{len(raw) // 8}Q", raw)[: min(value.frames, value.depth)])


def build_ids(session: Session, value: StackValue) -> list[tuple[str, int]]:
    """A stack in the mode build_id: (build id in hexadecimal, offset in that file), or ("", address) where the kernel
    found no build id.

    struct bpf_stack_build_id (include/uapi/linux/bpf.h): s32 status, 20 bytes, u64 offset or address. Status 0 ends
    the stack, 1 has a build id."""
    found = []
    raw = _stored(session, value, f"{value.space}_{value.depth}_build_id")
    for status, identity, offset in struct.iter_unpack("<i20sQ", raw):
        if status == 0:
            break
        found.append((identity.hex() if status == 1 else "", offset))
    return found[: value.depth]


def _stored(session: Session, value: StackValue, name: str) -> bytes:
    index = session.reader.stacks.get(name)
    if value.id < 0 or index is None:
        return b""
    size = session.bundle.maps[index].value_size
    return bpf.map_lookup(session.map_fd(index), struct.pack("<q", value.id), size) or b""
