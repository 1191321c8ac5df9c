"""What the kernel tells about its BPF objects: ids, names, counters. Raises OSError with the kernel's errno.

Layouts: struct bpf_prog_info, bpf_map_info, bpf_link_info, bpf_btf_info in include/uapi/linux/bpf.h. Older kernels fill
less; what they leave out reads as zero.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Iterator

import msgspec

from bpfseal.signer.bpf import OBJ_GET_INFO_BY_FD, bpf, bpf_buffer

# enum bpf_cmd
PROG_GET_NEXT_ID, MAP_GET_NEXT_ID, PROG_GET_FD_BY_ID, MAP_GET_FD_BY_ID = 11, 12, 13, 14
BTF_GET_FD_BY_ID, BTF_GET_NEXT_ID, LINK_GET_FD_BY_ID, LINK_GET_NEXT_ID = 19, 23, 30, 31

_NEXT = {"prog": PROG_GET_NEXT_ID, "map": MAP_GET_NEXT_ID, "btf": BTF_GET_NEXT_ID, "link": LINK_GET_NEXT_ID}
_BY_ID = {"prog": PROG_GET_FD_BY_ID, "map": MAP_GET_FD_BY_ID, "btf": BTF_GET_FD_BY_ID, "link": LINK_GET_FD_BY_ID}


def _string(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")


def ids(kind: str) -> Iterator[int]:
    """Ids of all objects of `kind` ("prog", "map", "link", "btf") on this machine. Needs CAP_SYS_ADMIN."""
    current = 0
    while True:
        attr = ctypes.create_string_buffer(struct.pack("<III", current, 0, 0), 12)
        try:
            bpf_buffer(_NEXT[kind], attr)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        current = struct.unpack_from("<I", attr, 4)[0]
        yield current


def fd_by_id(kind: str, id: int) -> int:
    """ENOENT: no such object (any more). EAGAIN: it is being freed."""
    return bpf(_BY_ID[kind], struct.pack("<III", id, 0, 0))


def raw_info(fd: int, size: int, prefill: bytes = b"") -> bytes:
    """The info structure of an object, `size` bytes at most. `prefill` holds pointers and sizes the caller offers."""
    info = ctypes.create_string_buffer(prefill, size)
    bpf(OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", fd, size, ctypes.addressof(info)))
    return info.raw


class ProgInfo(msgspec.Struct, frozen=True):
    """A program. `tag` is the hex digest of its instructions; `run_time_ns` and `run_count` count while
    statistics are on; `recursion_misses` counts runs that were skipped because the program ran on that CPU."""

    id: int
    type: int
    tag: str
    name: str
    uid: int
    loaded_ns: int
    xlated_bytes: int
    jited_bytes: int
    maps: int
    run_time_ns: int
    run_count: int
    recursion_misses: int


def prog_info(fd: int) -> ProgInfo:
    raw = raw_info(fd, 232)
    kind, id, tag, jited, xlated = struct.unpack_from("<II8sII", raw)
    loaded, uid, maps = struct.unpack_from("<QII", raw, 40)
    run_time, run_count, misses = struct.unpack_from("<QQQ", raw, 192)
    name = _string(raw[64:80])
    return ProgInfo(id, kind, tag.hex(), name, uid, loaded, xlated, jited, maps, run_time, run_count, misses)


class MapInfo(msgspec.Struct, frozen=True):
    id: int
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


def map_info(fd: int) -> MapInfo:
    raw = raw_info(fd, 80)
    kind, id, key_size, value_size, max_entries, flags = struct.unpack_from("<6I", raw)
    return MapInfo(id, kind, key_size, value_size, max_entries, flags, _string(raw[24:40]))


class LinkInfo(msgspec.Struct, frozen=True):
    """A link. `missed`: runs that a kprobe_multi link or a kprobe/kretprobe perf event had to skip, 0 elsewhere."""

    id: int
    type: int
    prog_id: int
    missed: int


LINK_KPROBE_MULTI, LINK_PERF_EVENT = 8, 7
_PERF_EVENT_KPROBES = (3, 4)  # enum bpf_perf_event_type: KPROBE, KRETPROBE


def link_info(fd: int) -> LinkInfo:
    raw = raw_info(fd, 64)
    kind, id, prog = struct.unpack_from("<III", raw)
    missed = 0
    if kind == LINK_KPROBE_MULTI:
        missed = struct.unpack_from("<Q", raw, 32)[0]
    elif kind == LINK_PERF_EVENT and struct.unpack_from("<I", raw, 16)[0] in _PERF_EVENT_KPROBES:
        missed = struct.unpack_from("<Q", raw, 48)[0]
    return LinkInfo(id, kind, prog, missed)


class BtfInfo(msgspec.Struct, frozen=True):
    id: int
    size: int
    name: str
    kernel: bool


def btf_info(fd: int) -> BtfInfo:
    name = ctypes.create_string_buffer(64)
    raw = raw_info(fd, 32, struct.pack("<QIIQII", 0, 0, 0, ctypes.addressof(name), len(name), 0))
    _, size, id = struct.unpack_from("<QII", raw)
    return BtfInfo(id, size, name.value.decode(errors="replace"), bool(struct.unpack_from("<I", raw, 28)[0]))


def btf_data(fd: int, size: int) -> bytes:
    """The type information itself, `size` bytes as `btf_info` says."""
    out = ctypes.create_string_buffer(size)
    raw_info(fd, 32, struct.pack("<QIIQII", ctypes.addressof(out), size, 0, 0, 0, 0))
    return out.raw
