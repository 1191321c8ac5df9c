"""bpf(2) for maps and programs. Links are in `bpf_link`, what the kernel tells about objects in `bpf_info`.

Thin on purpose: attributes are packed by the layout of `union bpf_attr` (include/uapi/linux/bpf.h), everything raises
OSError with the kernel's errno unless said otherwise, every descriptor is close-on-exec and the caller's to close.
Keys and values are bytes as the kernel has them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from functools import cache
from types import TracebackType

from bpfseal.signer.bpf import (
    bpf,
    bpf_buffer,
    map_create,
    map_freeze,
    map_hash,
    map_update,
    prog_load,
    prog_run,
)
from bpfseal.signer.syscall import address_of

# enum bpf_cmd, beyond those of signer.bpf
MAP_LOOKUP_ELEM = 1
MAP_DELETE_ELEM = 3
MAP_GET_NEXT_KEY = 4
OBJ_PIN = 6
OBJ_GET = 7
BTF_LOAD = 18
MAP_LOOKUP_AND_DELETE_ELEM = 21
MAP_LOOKUP_BATCH = 24
MAP_LOOKUP_AND_DELETE_BATCH = 25
MAP_UPDATE_BATCH = 26
MAP_DELETE_BATCH = 27
ENABLE_STATS = 32

# enum bpf_map_type
MAP_HASH, MAP_ARRAY, MAP_PROG_ARRAY, MAP_PERF_EVENT_ARRAY, MAP_PERCPU_HASH, MAP_PERCPU_ARRAY = 1, 2, 3, 4, 5, 6
MAP_STACK_TRACE, MAP_LRU_HASH, MAP_LRU_PERCPU_HASH, MAP_RINGBUF = 7, 9, 10, 27
PER_CPU_MAPS = frozenset((MAP_PERCPU_HASH, MAP_PERCPU_ARRAY, MAP_LRU_PERCPU_HASH))

# flags of map updates
ANY, NOEXIST, EXIST = 0, 1, 2


class Fd:
    """Owner of a descriptor: closes it once, at the end of a `with` block or with the object."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def fileno(self) -> int:
        return self.number

    def close(self) -> None:
        number, self.number = self.number, -1
        if number >= 0:
            os.close(number)

    def detach(self) -> int:
        """The number; closing it is somebody else's job from now on."""
        number, self.number = self.number, -1
        return number

    def __enter__(self) -> Fd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


@cache
def possible_cpus() -> int:
    """How many values a per-CPU map has: CPUs that may ever come up, not those that are there."""
    with open("/sys/devices/system/cpu/possible") as file:
        ranges = file.read().strip().split(",")
    return int(ranges[-1].split("-")[-1]) + 1


def per_cpu_stride(value_size: int) -> int:
    """Bytes per CPU in a per-CPU value: each is rounded up to 8."""
    return (value_size + 7) & ~7


# One element


def map_lookup(fd: int, key: bytes, size: int, flags: int = 0) -> bytes | None:
    """`size` bytes of the value at `key`, None when there is none. For per-CPU maps see map_lookup_percpu."""
    return _lookup(MAP_LOOKUP_ELEM, fd, key, size, flags)


def map_lookup_and_delete(fd: int, key: bytes, size: int) -> bytes | None:
    return _lookup(MAP_LOOKUP_AND_DELETE_ELEM, fd, key, size, 0)


def map_lookup_percpu(fd: int, key: bytes, value_size: int) -> list[bytes]:
    """One value per possible CPU, each `value_size` bytes; empty when there is no such key."""
    stride = per_cpu_stride(value_size)
    raw = _lookup(MAP_LOOKUP_ELEM, fd, key, stride * possible_cpus(), 0)
    if raw is None:
        return []
    return [raw[at : at + value_size] for at in range(0, len(raw), stride)]


def map_update_percpu(fd: int, key: bytes, values: list[bytes], flags: int = 0) -> None:
    """`values`: one for every possible CPU."""
    if len(values) != possible_cpus():
        raise ValueError(f"{len(values)} values for {possible_cpus()} CPUs")
    map_update(fd, key, b"".join(v.ljust(per_cpu_stride(len(v)), b"\0") for v in values), flags)


def map_delete(fd: int, key: bytes) -> bool:
    """Whether there was such a key."""
    try:
        bpf(MAP_DELETE_ELEM, struct.pack("<IxxxxQ", fd, address_of(key)))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def _lookup(command: int, fd: int, key: bytes, size: int, flags: int) -> bytes | None:
    value = ctypes.create_string_buffer(size)
    try:
        bpf(command, struct.pack("<IxxxxQQQ", fd, address_of(key), ctypes.addressof(value), flags))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return value.raw


# All elements


def map_keys(fd: int, key_size: int) -> Iterator[bytes]:
    """Keys one by one. A key that goes away meanwhile makes the kernel start over, so keys may come twice; the walk
    ends after a bounded number of steps only if the map does not keep changing: prefer map_items."""
    current: bytes | None = None
    following = ctypes.create_string_buffer(max(key_size, 1))
    while True:
        key = address_of(current) if current is not None else 0
        try:
            bpf(MAP_GET_NEXT_KEY, struct.pack("<IxxxxQQ", fd, key, ctypes.addressof(following)))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        current = following.raw[:key_size]
        yield current


def map_items(fd: int, key_size: int, value_size: int, max_entries: int, *, delete: bool = False) -> Iterator[
    tuple[bytes, bytes]
]:  # fmt: skip
    """All (key, value) of a hash or array map in batches, which see each key once however the map changes meanwhile.

    `value_size` is what one element takes here: for per-CPU maps per_cpu_stride(size) * possible_cpus(). `delete`
    takes the elements out in the same step (hash maps only). Falls back to one call per key where the map type or
    the kernel has no batches (before 5.6).
    """
    try:
        yield from _batches(fd, key_size, value_size, max_entries, delete)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, 524):  # 524: ENOTSUPP, kernel internal but let out
            raise
        for key in list(map_keys(fd, key_size)):
            value = map_lookup(fd, key, value_size)
            if delete:
                map_delete(fd, key)
            if value is not None:
                yield key, value


def map_batches(
    fd: int, key_size: int, value_size: int, max_entries: int, *, delete: bool = False
) -> Iterator[tuple[int, memoryview, memoryview]]:
    """As map_items, batch by batch: (number of elements, their keys side by side, their values), valid until the next
    one is asked for. Raises OSError where there are no batches."""
    command = MAP_LOOKUP_AND_DELETE_BATCH if delete else MAP_LOOKUP_BATCH
    room = min(max(max_entries, 1), max(1024, (1 << 20) // max(key_size + value_size, 1)))
    # The position is a u32 for hash maps and a key for array maps.
    position = ctypes.create_string_buffer(max(key_size, 8))
    first = True
    keys, values = ctypes.create_string_buffer(key_size * room), ctypes.create_string_buffer(value_size * room)
    while True:
        attr = ctypes.create_string_buffer(
            struct.pack(
                "<QQQQIIQQ", 0 if first else ctypes.addressof(position), ctypes.addressof(position),
                ctypes.addressof(keys), ctypes.addressof(values), room, fd, 0, 0,
            ),
            56,
        )  # fmt: skip
        done = False
        try:
            bpf_buffer(command, attr)
        except OSError as error:
            if error.errno == errno.ENOSPC:  # one bucket holds more than there is room for: nothing was taken
                room *= 4
                keys = ctypes.create_string_buffer(key_size * room)
                values = ctypes.create_string_buffer(value_size * room)
                continue
            if error.errno != errno.ENOENT:
                raise
            done = True
        first = False
        count: int = struct.unpack_from("<I", attr, 32)[0]
        yield count, memoryview(keys).cast("B")[: count * key_size], memoryview(values).cast("B")[: count * value_size]
        if done:
            return


def _batches(fd: int, key_size: int, value_size: int, max_entries: int, delete: bool) -> Iterator[tuple[bytes, bytes]]:
    for count, keys, values in map_batches(fd, key_size, value_size, max_entries, delete=delete):
        raw_keys, raw_values = bytes(keys), bytes(values)
        for i in range(count):
            yield raw_keys[i * key_size : (i + 1) * key_size], raw_values[i * value_size : (i + 1) * value_size]


def map_clear(fd: int, key_size: int, value_size: int, max_entries: int) -> None:
    """Delete every element of a hash map; elements added meanwhile may stay."""
    for _ in map_items(fd, key_size, value_size, max_entries, delete=True):
        pass


# Objects by path, BTF, statistics


def obj_pin(fd: int, path: str) -> None:
    """Give a map, program or link a name in a BPF file system."""
    name = os.fsencode(path) + b"\0"
    bpf(OBJ_PIN, struct.pack("<QII", address_of(name), fd, 0))


def obj_get(path: str, flags: int = 0) -> int:
    """The fd of a pinned object. `flags`: BPF_F_RDONLY 8, BPF_F_WRONLY 16."""
    name = os.fsencode(path) + b"\0"
    return bpf(OBJ_GET, struct.pack("<QII", address_of(name), 0, flags))


def btf_load(data: bytes, log: ctypes.Array[ctypes.c_char] | None = None) -> int:
    size, buffer = (len(log), ctypes.addressof(log)) if log is not None else (0, 0)
    return bpf(
        BTF_LOAD, struct.pack("<QQIII4x", address_of(data), buffer, len(data), size, 1 if log is not None else 0)
    )


def enable_stats() -> int:
    """Let the kernel measure run time and count of every program while the returned fd is open."""
    return bpf(ENABLE_STATS, struct.pack("<I", 0))


__all__ = [
    "ANY",
    "EXIST",
    "NOEXIST",
    "PER_CPU_MAPS",
    "Fd",
    "bpf",
    "bpf_buffer",
    "btf_load",
    "enable_stats",
    "map_batches",
    "map_clear",
    "map_create",
    "map_delete",
    "map_freeze",
    "map_hash",
    "map_items",
    "map_keys",
    "map_lookup",
    "map_lookup_and_delete",
    "map_lookup_percpu",
    "map_update",
    "map_update_percpu",
    "obj_get",
    "obj_pin",
    "per_cpu_stride",
    "possible_cpus",
    "prog_load",
    "prog_run",
]
