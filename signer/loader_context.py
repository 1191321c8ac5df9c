"""Running a trusted loader (`signer.loader`): the context that it is given, and what it writes into it.

Nothing in here is trusted: a loader reads the address, size and level of the verifier's log from its context, no more.
"""

from __future__ import annotations

import struct
from enum import IntEnum

import msgspec

from bpfseal.errors import BpfsealError

PROG_TYPE_SYSCALL = 31
BPF_F_SLEEPABLE = 1 << 4

# The context: in
CTX_LOG_BUF = 0  # u64, user address of the verifier log, 0 for none
CTX_LOG_SIZE = 8  # u32
CTX_LOG_LEVEL = 12  # u32
# ... and out
CTX_STAGE = 16  # u32, a Stage: what was being done when it failed, or DONE
CTX_INDEX = 20  # u32, index of the map, initial value, frozen map, program or link
CTX_ERRNO = 24  # s32, negative errno, 0
CTX_FDS = 32  # s32 each: maps, then programs, then links; valid at DONE only
MAX_CONTEXT = 0xFFFF  # U16_MAX, bpf_prog_test_run_syscall


class Stage(IntEnum):
    """How far a loader came."""

    CHECK = 0
    BTF = 1
    MAP = 2
    INITIAL = 3
    FREEZE = 4
    TARGET = 5
    PROGRAM = 6
    LINK = 7
    DONE = 8


class LoadResult(msgspec.Struct, frozen=True):
    """What a run wrote into its context. `errno` is positive, 0 for success; the tuples are empty unless DONE."""

    map_fds: tuple[int, ...]
    prog_fds: tuple[int, ...]
    stage: Stage
    index: int
    errno: int
    link_fds: tuple[int, ...] = ()


def context_size(objects: int) -> int:
    """Bytes of context for so many descriptors."""
    return CTX_FDS + 8 * ((objects + 1) // 2)


def make_context(size: int, log_buf: int = 0, log_size: int = 0, log_level: int = 0) -> bytes:
    """A context to run a loader with. The kernel wants buffer, size and level all zero or all set."""
    return struct.pack("<QII", log_buf, log_size, log_level) + bytes(16) + b"\xff" * (size - CTX_FDS)


def parse_context(context: bytes, maps: int, programs: int, links: int = 0) -> LoadResult:
    """Reads a context after a run. Raises BpfsealError if it cannot be one of such a loader."""
    objects = maps + programs + links
    if len(context) < context_size(objects):
        raise BpfsealError(f"context of {len(context)} bytes is too short for {maps} maps and {programs} programs")
    stage, index, code = struct.unpack_from("<IIi", context, CTX_STAGE)
    if stage > Stage.DONE or code > 0:
        raise BpfsealError(f"the loader's context makes no sense (stage {stage}, errno {code})")
    if stage != Stage.DONE:
        return LoadResult((), (), Stage(stage), index, -code)
    fds = struct.unpack_from(f"<{objects}i", context, CTX_FDS)
    return LoadResult(fds[:maps], fds[maps : maps + programs], Stage.DONE, 0, 0, fds[maps + programs :])
