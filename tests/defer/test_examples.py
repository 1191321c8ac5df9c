"""The tools in examples/ that need deferred blocks, on real programs."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from tests.defer import kit

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("task_work")]


def run(script: str, program: str) -> list[str]:
    """Lines of a tool while a program runs."""
    done = subprocess.run(
        kit.command("-q", str(EXAMPLES / script), "-c", program),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def build_id(data: bytes) -> str:
    """As `%rh` shows it; empty for files without."""
    offset, size, count = struct.unpack_from("<Q", data, 32)[0], 56, struct.unpack_from("<H", data, 56)[0]
    for at in range(offset, offset + size * count, size):
        kind, _, start = struct.unpack_from("<IIQ", data, at)
        if kind == 4 and data[start + 8 : start + 16] == struct.pack("<I", 3) + b"GNU\0":
            return data[start + 16 : start + 36].hex(" ")
    return ""


def loaded(program: str) -> list[Path]:
    """Libraries that a program has mapped once it runs."""
    out = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return [Path(line.split("=> ")[1].split(" ")[0]) for line in out.splitlines() if "=> /" in line]


def test_builds() -> None:
    """The ids are those that are in the files, page cache or not."""
    libraries = loaded("/bin/ls")
    assert libraries
    for path in libraries:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
    seen = [line.split(None, 2) for line in run("builds.bt", "/bin/ls /") if line[:1].isdigit()]
    mine = [rest for _, comm, rest in seen if comm == "ls"]
    for path in libraries:
        wanted = build_id(path.read_bytes())
        assert any(rest == f"{wanted} {path.resolve()}" for rest in mine if wanted), (path, wanted, mine)


def test_getenvs() -> None:
    lines = [line.split() for line in run("getenvs.bt", "/bin/ls /")]
    names = [words[3] for words in lines if words[1:2] == ["ls"] and len(words) == 4]
    assert "QUOTING_STYLE" in names or "TABSIZE" in names or "COLUMNS" in names, lines
    ((reads,),) = [words[1:] for words in lines if words[:1] == ["@reads:"]]
    everybody = [words for words in lines if len(words) == 4 and words[2] in ("yes", "no")]
    assert len(everybody) == int(reads), "every read has its line, and every line a name"
