"""Functions of the BPF programs that run on this machine: targets of fentry:bpf and fexit:bpf.

Names are in the programs' own BTF, one for each entry of func_info (struct bpf_prog_info and bpf_func_info in
include/uapi/linux/bpf.h).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from functools import lru_cache

from bpfseal.runtime.bpf_info import fd_by_id, ids, raw_info
from bpfseal.signer.btf import Btf, BtfError

_BTF_ID, _FUNC_INFO = 128, 132  # offsets in bpf_prog_info
_INFO_SIZE = 152


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
    fd = fd_by_id("btf", id)
    try:
        (_, size) = struct.unpack_from("<QI", raw_info(fd, 32))
        data = ctypes.create_string_buffer(size)
        raw_info(fd, 32, struct.pack("<QI", ctypes.addressof(data), size))
        return Btf(data.raw)
    finally:
        os.close(fd)
