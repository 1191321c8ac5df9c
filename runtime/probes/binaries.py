"""Which files a probe's path means: patterns, commands on PATH, libraries by short name, the files of a process.

A process may see another file system: its files are then named below /proc/PID/root, through which the kernel finds
the right inode.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from bpfseal.errors import BpfsealError
from bpfseal.runtime.elf import DYN, EXEC, Elf, ElfError

_LD_CACHE: Final = "/etc/ld.so.cache"
_LD_MAGIC: Final = b"glibc-ld.so.cache1.1"


@lru_cache(maxsize=64)
def open_elf(path: str) -> Elf:
    """The parsed file, kept. Raises ElfError."""
    return Elf(path)


def resolve(text: str, pid: int = 0, *, unsafe: bool = False) -> list[str]:
    """Paths of traceable binaries that `text` means, best first; empty when there is none.

    "" is the program of process `pid`; "*" every mapped file of that process or of all; a name with other wildcards
    is a pattern for paths; one without a slash is looked for as a library (lib…), here and on PATH. `unsafe` takes any
    file that exists.
    """
    if text == "*":
        return mapped_files(pid)
    candidates: list[str] = []
    if not text:
        candidates.append(_program(pid))
    else:
        if text.startswith("lib") and "/" not in text and "*" not in text:
            candidates += find_library(text, pid)
        candidates.append(text)
        if "/" not in text:
            candidates += [f"{folder}/{text}" for folder in _search_path(pid) if folder]
    found: dict[str, None] = {}
    for candidate in candidates:
        for path in _patterns(seen_by(pid, candidate)):
            if path and path not in found and (_is_binary(path) or (unsafe and os.path.isfile(path))):
                found[path] = None
    return list(found)


def seen_by(pid: int, path: str) -> str:
    """`path` of process `pid` as this process can open it."""
    if not pid or not path.startswith("/") or path.startswith(f"/proc/{pid}/root/") or not in_other_root(pid):
        return path
    return f"/proc/{pid}/root{path}"


@lru_cache(maxsize=256)
def in_other_root(pid: int) -> bool:
    """Whether a process has another mount namespace or root directory. False when it cannot be told."""
    try:
        if os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"):
            return True
        return not os.path.samefile(f"/proc/{pid}/root/", "/proc/self/root/")
    except OSError:
        return False


def mapped_files(pid: int = 0) -> list[str]:
    """Files that a process, or any process, has mapped to execute, as this process can open them; each file once."""
    pids = [pid] if pid else sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())
    found: dict[tuple[int, int], str] = {}
    for number in pids:
        try:
            with open(f"/proc/{number}/maps", errors="surrogateescape") as file:
                lines = file.read().split("\n")
        except OSError:
            if pid:
                raise BpfsealError(f"there is no process {pid}, or it may not be looked at") from None
            continue
        for name in dict.fromkeys(_mapped_name(line) for line in lines):
            if not name:
                continue
            path = seen_by(number, name)
            try:
                status = os.stat(path)
            except OSError:
                continue
            found.setdefault((status.st_dev, status.st_ino), path)
    return [path for path in found.values() if _is_binary(path)]


def _mapped_name(line: str) -> str:
    """The file of an executable mapping: ADDRESS PERMISSIONS OFFSET DEVICE INODE PATH."""
    parts = line.split(None, 5)
    if len(parts) < 6 or "x" not in parts[1] or not parts[5].startswith("/") or parts[5].endswith(" (deleted)"):
        return ""
    return parts[5]


def find_library(name: str, pid: int = 0) -> list[str]:
    """Paths of a shared library by short name: "libc", "libssl.so.3". Those of the process first."""

    def fits(file: str) -> bool:
        if ".so" in name:
            return file == name or file.startswith(f"{name}.")
        return file.startswith(f"{name}.so") or (file.startswith(f"{name}-") and ".so" in file)

    found = []
    if pid:
        found = [path for path in mapped_files(pid) if fits(os.path.basename(path))]
    found += [path for soname, path in _linker_cache() if fits(soname) and _is_native(path)]
    return list(dict.fromkeys(found))


@lru_cache(maxsize=1)
def _linker_cache() -> tuple[tuple[str, str], ...]:
    """(soname, path) of /etc/ld.so.cache in its order (glibc, sysdeps/generic/dl-cache.h)."""
    try:
        with open(_LD_CACHE, "rb") as file:
            data = file.read()
    except OSError:
        return ()
    start = data.find(_LD_MAGIC)
    if start < 0 or len(data) < start + 48:
        return ()
    (count,) = struct.unpack_from("<I", data, start + len(_LD_MAGIC))
    found = []
    for at in range(min(count, (len(data) - start - 48) // 24)):
        _, key, value = struct.unpack_from("<iII", data, start + 48 + 24 * at)
        words = [data[start + p : data.find(b"\0", start + p)] for p in (key, value)]
        found.append((os.fsdecode(words[0]), os.fsdecode(words[1])))
    return tuple(found)


def _is_native(path: str) -> bool:
    """Of this machine's architecture: the cache lists foreign ones too."""
    try:
        return open_elf(path).machine == open_elf("/proc/self/exe").machine
    except ElfError:
        return False


def _is_binary(path: str) -> bool:
    try:
        elf = open_elf(path)
    except ElfError:
        return False
    return elf.type == DYN or (elf.type == EXEC and os.access(path, os.X_OK))


def _program(pid: int) -> str:
    """Where the program of a process is; if it was deleted, the link by which the kernel still finds it."""
    try:
        path = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""
    return f"/proc/{pid}/exe" if path.endswith(" (deleted)") else path


def _search_path(pid: int) -> list[str]:
    path = os.environ.get("PATH", os.defpath)
    if pid and in_other_root(pid):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                for entry in file.read().split(b"\0"):
                    if entry.startswith(b"PATH="):
                        path = os.fsdecode(entry[5:])
        except OSError:
            pass
    return path.split(":")


def _patterns(path: str) -> Iterable[str]:
    if "*" not in path:
        return (path,)
    import glob

    # Only `*` is a wildcard here; what else glob knows is a part of names.
    return sorted(glob.glob(path.replace("[", "[[]").replace("?", "[?]")))
