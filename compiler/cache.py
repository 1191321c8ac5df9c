"""Compiled bundles by what they were made of.

An entry is a file: a header with the digest of the rest, the files that the script's probes are in with their state,
the canonical bytes of the bundle. Entries that are damaged, foreign or out of date count as none. Writers make a file
of their own and rename it, so that readers see whole entries only, whoever else is writing. What comes out is not
trusted by anyone: the signing helper analyses it like a bundle that was just compiled.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Final

from bpfseal.compiler.folders import cache_folder

_VERSION: Final = b"bpfseal-cache-2"
_MAX_ENTRIES: Final = 512
_MAX_BYTES: Final = 64 << 20
_DIGEST: Final = 32
_COUNT: Final = struct.Struct("<I")

# What a script may depend on beside its text, in files or objects that no key can name beforehand.
# (Interfaces and BPF programs come and go.)
_UNKNOWABLE: Final = re.compile(r"\b(import|include|cgroupid)\b|\b(xdp|tc):|:\s*bpf\s*:")
_ENVIRONMENT: Final = "BPFTRACE_"  # our own variables say where things are, which no bundle depends on


def directory() -> str:
    """Where entries are: a folder of this user's."""
    return os.path.join(cache_folder(), "programs")


def key(
    text: str, params: Sequence[str] = (), config: Mapping[str, object] | None = None, *, extra: Sequence[str] = ()
) -> str:
    """Name of the entry for a script, "" when its compilation must not be kept.

    Everything that a compilation looks at goes in: text, parameters, settings, this boot of the kernel with its
    modules, our own code.
    """
    if _UNKNOWABLE.search(text):
        return ""
    digest = hashlib.sha256()
    environment = sorted((n, v) for n, v in os.environ.items() if n.startswith(_ENVIRONMENT))
    for part in (
        _VERSION,
        *_machine(),
        _code(),
        *(f"{name}={value}".encode() for name, value in sorted((config or {}).items())),
        *(f"{name}={value}".encode("utf-8", "surrogateescape") for name, value in environment),
        *(part.encode("utf-8", "surrogateescape") for part in (*extra, *params)),
        text.encode("utf-8", "surrogateescape"),
    ):
        digest.update(_COUNT.pack(len(part)))
        digest.update(part)
    return digest.hexdigest()


def _machine() -> list[bytes]:
    """This kernel, this boot, these modules, this pid namespace."""
    found = [os.uname().release.encode(), os.uname().version.encode()]
    for path in ("/proc/sys/kernel/random/boot_id", "/sys/devices/system/cpu/possible"):
        try:
            with open(path, "rb") as file:
                found.append(file.read())
        except OSError:
            found.append(b"")
    try:
        found.append("\n".join(sorted(os.listdir("/sys/module"))).encode())
        found.append(str(os.stat("/proc/self/ns/pid").st_ino).encode())
    except OSError:
        found.append(b"")
    return found


def _code() -> bytes:
    """State of our own source: an entry does not outlive the compiler that made it."""
    newest = 0
    for package in ("compiler", "dsl", "dsl/check", "dsl/stdlib", "runtime", "runtime/probes"):
        folder = os.path.join(os.path.dirname(os.path.dirname(__file__)), package)
        try:
            with os.scandir(folder) as entries:
                newest = max(
                    newest, *(e.stat().st_mtime_ns for e in entries if e.name.endswith((".py", ".lark", ".bt")))
                )
        except (OSError, ValueError, TypeError):
            continue
    return str(newest).encode()


def load(name: str) -> bytes | None:
    """Bytes of a bundle, None when there is no good entry. Never raises."""
    if not name:
        return None
    path = os.path.join(directory(), name)
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                return None
            data = file.read(_MAX_BYTES)
    except OSError:
        return None
    found = _unpack(data)
    if found is None:
        _remove(path)
        return None
    return found


def _unpack(data: bytes) -> bytes | None:
    head = len(_VERSION) + _DIGEST
    body = data[head:]
    if not data.startswith(_VERSION) or hashlib.sha256(body).digest() != data[len(_VERSION) : head]:
        return None
    try:
        (size,) = _COUNT.unpack_from(body)
        files = body[_COUNT.size : _COUNT.size + size].decode("utf-8", "surrogateescape")
    except (struct.error, UnicodeError):
        return None
    for line in files.split("\n") if files else ():
        path, _, state = line.rpartition("\t")
        if _state(path) != state:
            return None
    return body[_COUNT.size + size :]


def _state(path: str) -> str:
    """What changes when a file does."""
    try:
        s = os.stat(path)
    except OSError:
        return "-"
    return f"{s.st_dev}:{s.st_ino}:{s.st_size}:{s.st_mtime_ns}:{s.st_ctime_ns}"


def store(name: str, data: bytes) -> None:
    """Keep a bundle. A cache that cannot be written is no error."""
    if not name:
        return
    import tempfile

    folder = directory()
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        files = "\n".join(f"{path}\t{_state(path)}" for path in _files(data)).encode("utf-8", "surrogateescape")
        body = _COUNT.pack(len(files)) + files + data
        if len(body) > _MAX_BYTES // 8:
            return
        import tempfile  # brings half the library along, and is needed only here

        descriptor, temporary = tempfile.mkstemp(prefix=".", dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_VERSION + hashlib.sha256(body).digest() + body)
            os.rename(temporary, os.path.join(folder, name))
        except OSError:
            _remove(temporary)
            return
        _prune(folder)
    except OSError:
        return


def _files(data: bytes) -> list[str]:
    """Files that the bundle's programs attach to."""
    from bpfseal.signer.bundle import decode

    attaches = (attach for program in decode(data).programs for attach in program.attach)
    return sorted({a.target for a in attaches if a.target.startswith("/") and "\n" not in a.target})


def _prune(folder: str) -> None:
    """Drop the oldest entries over the bounds, and what interrupted writers left."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            found.append((status.st_mtime_ns, status.st_size, entry.path))
    found.sort(reverse=True)
    total = 0
    for number, (_, size, path) in enumerate(found):
        total += size
        if number >= _MAX_ENTRIES or total > _MAX_BYTES:
            _remove(path)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
