"""Functions of the BPF programs that run on this machine: targets of fentry:bpf and fexit:bpf, and how they are held
until they are attached to.

Names are in the programs' own BTF, one for each entry of func_info (struct bpf_prog_info and bpf_func_info in
include/uapi/linux/bpf.h).
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Iterator
from functools import lru_cache

from bpfseal.runtime.bpf_info import fd_by_id, ids, raw_info
from bpfseal.signer.btf import Btf, BtfError
from bpfseal.signer.bundle import Bundle
from bpfseal.signer.program_target import program_target

_BTF_ID, _FUNC_INFO = 128, 132  # offsets in bpf_prog_info
_INFO_SIZE = 152


class _Held(threading.local):
    """Descriptors of programs that scripts of this thread will be attached to, by id."""

    def __init__(self) -> None:
        self.fds: dict[int, int] = {}


_held = _Held()


def hold(id: int) -> str:
    """What `ProgramSpec.attach_module` says of the program: the kernel wants a descriptor when another is loaded, and
    has it from here until `release`. Raises OSError."""
    if id not in _held.fds:
        _held.fds[id] = fd_by_id("prog", id)
    return f"prog-{id}@{_held.fds[id]}"


def release(bundle: Bundle | None = None) -> None:
    """Close the descriptors that a bundle names, by default all: it is loaded, or will not be."""
    targets = [program_target(p.attach_module) for p in bundle.programs] if bundle is not None else None
    for id in list(_held.fds) if targets is None else [t.id for t in targets if t is not None]:
        if (fd := _held.fds.pop(id, -1)) >= 0:
            os.close(fd)


def btf_of(module: str) -> bytes:
    """BTF of a program that is held, by its `attach_module`. Raises OSError."""
    target = program_target(module)
    assert target is not None
    (btf_id,) = struct.unpack_from("<I", raw_info(target.fd, _INFO_SIZE), _BTF_ID)
    return _data(btf_id)


def functions() -> Iterator[tuple[int, str]]:
    """(program id, name of the program or of a subprogram) of every program that has BTF. Raises OSError."""
    for id in ids("prog"):
        try:
            fd = fd_by_id("prog", id)
        except FileNotFoundError:
            continue
        try:
            for name in _names(fd):
                yield id, name
        except (BtfError, FileNotFoundError):
            continue
        finally:
            os.close(fd)


def _names(fd: int) -> list[str]:
    info = raw_info(fd, _INFO_SIZE)
    (btf_id,) = struct.unpack_from("<I", info, _BTF_ID)
    size, _, count = struct.unpack_from("<IQI", info, _FUNC_INFO)
    if not btf_id or not count or not 8 <= size <= 64 or count > 4096:
        return []
    records = ctypes.create_string_buffer(size * count)
    request = struct.pack("<132xIQI", size, ctypes.addressof(records), count)
    raw_info(fd, _INFO_SIZE, request)
    btf = _btf(btf_id)
    ids = (struct.unpack_from("<I", records.raw, at * size + 4)[0] for at in range(count))
    return [btf.name(id) for id in ids]


@lru_cache(maxsize=64)
def _btf(id: int) -> Btf:
    return Btf(_data(id))


def _data(id: int) -> bytes:
    fd = fd_by_id("btf", id)
    try:
        (_, size) = struct.unpack_from("<QI", raw_info(fd, 32))
        data = ctypes.create_string_buffer(size)
        raw_info(fd, 32, struct.pack("<QI", ctypes.addressof(data), size))
        return data.raw
    finally:
        os.close(fd)
