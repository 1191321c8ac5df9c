"""Type information of an object, as the kernel takes it, and what `.BTF.ext` says about its code.

clang leaves sizes and offsets of variables open, for a linker that BPF objects do not have. Nothing here needs types of
variables, so what describes them is replaced by plain integers: ids stay what they are.
`struct btf_ext_header` and its records: tools/lib/bpf/libbpf_internal.h, include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from bpfseal.errors import BpfsealError
from bpfseal.signer import btf as kinds
from bpfseal.signer.btf import Btf

_EXTERN: Final = 2
_STATIC: Final = 0
_MAX_RECORDS: Final = 1 << 20
_INT_WORDS: Final = (kinds.INT << 24, 4, 32)  # info, size, bits


@dataclass
class Extra:
    """By section name: function starts (byte offset, type id), lines (byte offset, file, line, column), relocations
    (byte offset, type id, access, kind)."""

    functions: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    lines: dict[str, list[tuple[int, int, int, int]]] = field(default_factory=dict)
    core: dict[str, list[tuple[int, int, int, int]]] = field(default_factory=dict)


def extra(data: bytes, types: Btf) -> Extra:
    """`.BTF.ext`. Raises BpfsealError."""
    try:
        magic, version, _flags, header = struct.unpack_from("<HBBI", data)
        if magic != 0xEB9F or version != 1 or not 24 <= header <= len(data):
            raise BpfsealError("damaged object: .BTF.ext")
        words = struct.unpack_from(f"<{(min(header, 32) - 8) // 4}I", data, 8)
        parts = [data[header + at :][:size] for at, size in zip(words[0::2], words[1::2], strict=True)]
        found = Extra()
        for section, records in _records(parts[0], 8, types):
            found.functions[section] = [struct.unpack_from("<II", r) for r in records]
        for section, records in _records(parts[1], 16, types):
            rows = [struct.unpack_from("<IIII", r) for r in records]
            found.lines[section] = [(at, file, line, column) for at, file, line, column in rows]
        if len(parts) > 2 and parts[2]:
            for section, records in _records(parts[2], 16, types):
                found.core[section] = [struct.unpack_from("<IIII", r) for r in records]
    except (struct.error, IndexError, ValueError) as error:
        raise BpfsealError(f"damaged object: .BTF.ext: {error}") from None
    return found


def _records(data: bytes, known: int, types: Btf) -> list[tuple[str, list[bytes]]]:
    if not data:
        return []
    (size,) = struct.unpack_from("<I", data)
    if not known <= size <= 256:
        raise BpfsealError(f"damaged object: records of {size} bytes in .BTF.ext")
    at, found, total = 4, [], 0
    while at < len(data):
        name, count = struct.unpack_from("<II", data, at)
        at += 8
        total += count
        if total > _MAX_RECORDS or at + size * count > len(data):
            raise BpfsealError("damaged object: .BTF.ext goes on past its end")
        found.append((types.string(name), [data[at + size * n : at + size * n + size] for n in range(count)]))
        at += size * count
    return found


def for_kernel(types: Btf, static: frozenset[str]) -> bytes:
    """The object's types for BPF_BTF_LOAD. Functions in `static` (hidden ones) lose their global linkage, as libbpf has
    it: the kernel then verifies them together with their callers."""
    words = types.words()
    positions = types.positions()
    out: list[int] = []
    replaced: set[int] = set()
    for id, at in enumerate(positions, 1):
        end = positions[id] if id < len(positions) else len(words)
        record = words[at:end]
        kind = types.kind(id)
        if (
            kind in (kinds.VAR, kinds.DATASEC)
            or (kind == kinds.FUNC and types.linkage(id) == _EXTERN)
            or (kind == kinds.DECL_TAG and record[2] in replaced)
        ):
            replaced.add(id)
            record = [record[0], *_INT_WORDS]
        elif kind == kinds.FUNC and types.name(id) in static:
            record = [record[0], record[1] & ~0xFFFF | _STATIC, record[2]]
        out += record
    type_bytes = struct.pack(f"<{len(out)}I", *out)
    raw = types.raw[types._strings : types._strings_end]
    head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(type_bytes), len(type_bytes), len(raw))
    return head + type_bytes + bytes(raw)
