"""Copies of a private key in memory: some while it lives, none after rotation.

OpenSSL's derivation of deterministic nonces leaves one or two stale copies on the heap in about one run of six; what
counts is that the next key's work has written over them by the time the old key is said to be gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import needs_root

# The process under test makes a leaf. Its fork exports the scalar, which leaves copies in the fork only.
SUBJECT = """
import gc, os, sys
from bpfseal.signer.keys import Keys, SoftKey
keys = Keys(SoftKey.generate("ec"), "ec", 600, ring=False)
keys.leaf().sign(b"x" * 1000)
read, write = os.pipe()
if os.fork() == 0:
    numbers = keys.leaf().key._private.private_numbers()
    os.write(write, numbers.private_value.to_bytes(32, "big").hex().encode())
    os._exit(0)
os.wait()
print(os.read(read, 64).decode(), flush=True)
for _ in range(200):
    keys.leaf().sign(os.urandom(2000))
sys.stdin.readline()
keys.rotate()
gc.collect()
keys.leaf().sign(b"y" * 1000)
print("rotated", flush=True)
sys.stdin.readline()
"""


def copies(pid: int, needles: list[bytes]) -> int:
    """How often any of `needles` is in the writable memory of a process."""
    found = 0
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights = line.split()[:2]
            if not rights.startswith("rw") or "[vvar" in line:
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            memory.seek(start)
            try:
                data = memory.read(end - start)
            except OSError:
                continue
            found += sum(data.count(needle) for needle in needles)
    return found


@needs_root
def test_a_dropped_key_is_gone_from_memory() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SUBJECT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        # The subject knows its key's hexadecimal form from the pipe; the bytes themselves only as the key.
        scalar = bytes.fromhex(process.stdout.readline().strip())
        needles = [scalar, scalar[::-1]]
        alive = copies(process.pid, needles)
        if not alive:
            pytest.skip("this build of the library keeps keys in another form")
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "rotated\n"
        assert copies(process.pid, needles) == 0
    finally:
        process.kill()
        process.communicate()
