"""A cached index over kernel BTF: name → type id, and where each type's record is.

Reading vmlinux BTF front to back costs about 55 ms, ten times what a short trace may cost in all. The index is built
once per kernel and kept in a file that is mapped, not read. What is in it:

    header      magic, version, digest of the kernel's identity, counts, checksums
    positions   u32 per type: word position of its record (as `signer.btf` wants them)
    hashes      u32, sorted: crc32 of KIND + ":" + name; kinds are s u e t f i v and c (enumerator)
    ids         u32 beside each hash: the type, or the enum that an enumerator belongs to
    functions   names of all functions, sorted, each between newlines, for wildcards

A hash only proposes: whoever looks up compares the name. A file that is not ours, too short, of another kernel or
with a wrong checksum counts as absent.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from array import array as packed
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from bpfseal.compiler.folders import cache_folder
from bpfseal.signer import btf as raw

_MAGIC: Final = b"bpfsBTF\2"
_HEADER: Final = struct.Struct("=8s16sIIIIII")  # magic, identity, types, names, bytes, crc tables, crc text, crc header
_LETTERS: Final = {  # one letter per kind, as look-ups name it
    raw.STRUCT: "s",
    raw.UNION: "u",
    raw.ENUM: "e",
    raw.ENUM64: "e",
    raw.TYPEDEF: "t",
    raw.FUNC: "f",
    raw.INT: "i",
    raw.FLOAT: "i",
    raw.VAR: "v",
}

KINDS: Final = tuple(_LETTERS)


def letter(kind: int) -> str:
    """The kind letter of a BTF kind, empty for kinds that have no names worth finding."""
    return _LETTERS.get(kind, "")


class Index(NamedTuple):
    """The tables; memory views into the mapped file, or arrays when there is no file."""

    positions: memoryview[int]
    hashes: memoryview[int]
    ids: memoryview[int]
    text: bytes | memoryview[int]
    text_crc: int

    def candidates(self, letter: str, name: str) -> Iterator[int]:
        """Ids whose hash is that of (kind letter, name), lowest first. The caller compares names."""
        wanted = _hash(letter, name)
        at = bisect_left(self.hashes, wanted)
        while at < len(self.hashes) and self.hashes[at] == wanted:
            yield self.ids[at]
            at += 1

    def functions(self) -> bytes | None:
        """Names of all functions, sorted, as b"\\nname\\nname\\n"; None when the file's text is damaged."""
        text = bytes(self.text)
        return text if zlib.crc32(text) == self.text_crc else None


def cache_directory() -> Path:
    """See `folders.cache_folder`."""
    return Path(cache_folder())


def identity(data: bytes | mmap.mmap) -> bytes:
    """16 bytes that differ between kernels: build id and BTF size, header and samples of its contents."""
    try:
        build = Path("/sys/kernel/notes").read_bytes()
    except OSError:
        build = os.uname().version.encode()
    step = max(len(data) // 32, 1)
    samples = b"".join(data[at : at + 64] for at in range(0, len(data), step)) + data[-64:]
    # Checksums do: nobody but this user can put a file where the index is read from.
    return struct.pack("=IIII", zlib.crc32(build), zlib.adler32(build), zlib.crc32(samples), len(data))


def load(data: bytes | mmap.mmap, directory: Path | None = None) -> Index:
    """The index for vmlinux BTF `data`: from the cache, else built and stored there (silently not, if that fails).

    Raises BtfError when the BTF itself is malformed.
    """
    directory = directory if directory is not None else cache_directory()
    who = identity(data)
    path = directory / f"btf-{who.hex()}"
    found = _open(path, who)
    if found is not None:
        return found
    blob = _build(data, who)
    _store(path, blob)
    built = _parse(memoryview(blob), who)
    assert built is not None
    return built


def _open(path: Path, who: bytes) -> Index | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or status.st_mode & 0o170022 != 0o100000 or not status.st_size:
            return None
        return _parse(memoryview(mmap.mmap(fd, status.st_size, prot=mmap.PROT_READ)), who)
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)


def _parse(view: memoryview[int], who: bytes) -> Index | None:
    if len(view) < _HEADER.size:
        return None
    magic, owner, types, names, size, tables, text_crc, header_crc = _HEADER.unpack_from(view)
    if magic != _MAGIC or owner != who or zlib.crc32(view[: _HEADER.size - 4]) != header_crc:
        return None
    first, second = _HEADER.size + 4 * types, _HEADER.size + 4 * (types + names)
    third = second + 4 * names
    if len(view) != third + size or zlib.crc32(view[_HEADER.size : third]) != tables:
        return None
    words = [view[a:b].cast("I") for a, b in ((_HEADER.size, first), (first, second), (second, third))]
    return Index(words[0], words[1], words[2], view[third:], text_crc)


def _build(data: bytes | mmap.mmap, who: bytes) -> bytes:
    """The file's bytes: one pass over all types (0.3 s)."""
    btf = raw.Btf(bytes(data))
    pairs: list[int] = []  # hash << 32 | id
    functions: set[str] = set()
    for id in range(1, len(btf)):
        kind = btf.kind(id)
        tag = letter(kind)
        if not tag:
            continue
        if tag == "e":
            pairs += (_hash("c", name) << 32 | id for name, _ in btf.enumerators(id))
        name = btf.name(id)
        if name:
            pairs.append(_hash(tag, name) << 32 | id)
            if tag == "f":
                functions.add(name)
    pairs.sort()
    positions = packed("I", btf.positions())
    hashes, ids = packed("I", (p >> 32 for p in pairs)), packed("I", (p & 0xFFFFFFFF for p in pairs))
    text = "\n".join(["", *sorted(functions), ""]).encode()
    tables = positions.tobytes() + hashes.tobytes() + ids.tobytes()
    header = _HEADER.pack(_MAGIC, who, len(positions), len(pairs), len(text), zlib.crc32(tables), zlib.crc32(text), 0)
    header = header[:-4] + struct.pack("=I", zlib.crc32(header[:-4]))
    return header + tables + text


def _store(path: Path, blob: bytes) -> None:
    """Atomically, so that a reader sees all or nothing; only into a directory that nobody else can write."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.parent.lstat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o170022 != 0o040000:
            return
        import tempfile

        fd, temporary = tempfile.mkstemp(prefix=".btf-", dir=path.parent)
        try:
            with open(fd, "wb") as file:
                file.write(blob)
            os.rename(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
    except OSError:
        return  # a read-only system traces too, it only starts more slowly


def _hash(letter: str, name: str) -> int:
    return zlib.crc32(f"{letter}:{name}".encode())
