"""The example scripts compile on this kernel and say what their first lines claim."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.bt"))


def bpfseal(*words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bpfseal", *words], capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_compiles(script: Path) -> None:
    if not os.path.exists("/sys/kernel/btf/vmlinux"):
        pytest.skip("this kernel has no BTF")
    done = bpfseal("check", str(script))
    assert done.returncode == 0, done.stderr
    assert "ok:" in done.stdout


@pytest.mark.host
def test_deferred_names_are_complete(tmp_path: Path) -> None:
    """A file name in a page that is dropped before the call is read all the same."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    name = tmp_path / "the-name-in-a-dropped-page"
    name.write_text("")
    # The name lies in a private file mapping whose page is dropped, so that the kernel faults it in during the call.
    code = (
        "import ctypes, mmap, os, sys\n"
        "path = sys.argv[1].encode()\n"
        "with open(sys.argv[2], 'wb') as f: f.write(path + bytes(4096))\n"
        "fd = os.open(sys.argv[2], os.O_RDONLY)\n"
        "m = mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "at = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
        "for _ in range(20):\n"
        "    m.madvise(mmap.MADV_DONTNEED)\n"
        "    got = libc.syscall(257, -100, ctypes.c_void_p(at), os.O_RDONLY, 0)\n"
        "    assert got >= 0\n"
        "    os.close(got)\n"
    )
    program = tmp_path / "opener.py"
    program.write_text(code)
    command = f"{sys.executable} -I -S {program} {name} {tmp_path / 'page'}"
    done = bpfseal("-q", "-c", command, str(EXAMPLES / "opens.bt"))
    assert done.returncode == 0, done.stderr
    assert sum(str(name) in line for line in done.stdout.splitlines()) >= 20
