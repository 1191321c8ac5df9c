"""Fuzzes what reads files of strangers: sealed files (with a checksum that is right) and objects of clang's.

A file is decoded, its bundle analysed, its seals judged, everything described; an object becomes a bundle and is
analysed. Only BpfsealError may come out. `python tests/ahead/fuzz_file.py`, options as in tests/fuzz/loop.py.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bpfseal.errors import BpfsealError
from bpfseal.runtime.ahead import inspect, object
from bpfseal.runtime.ahead.seal import seal
from bpfseal.signer import check, sealed_file
from bpfseal.signer.btf import Btf
from bpfseal.signer.bundle import decode
from tests.ahead.conftest import compile_object, make_pair
from tests.ahead.test_file import unsealed
from tests.fuzz.loop import run

_HEAD = len(sealed_file.MAGIC) + 32


def target(data: bytes) -> str:
    try:
        return _object(data) if data[1:4] == b"ELF" else _file(data)
    except BpfsealError as error:
        return f"refused: {type(error).__name__}"


def _file(data: bytes) -> str:
    file = sealed_file.decode(sealed_file.MAGIC + hashlib.sha256(data).digest() + data)
    facts = inspect.describe(file, decode(file.bundle))
    text = inspect.text(facts, insns=True)
    assert all(c.isprintable() or c in "\n\t" for c in text)
    return "described"


def _object(data: bytes) -> str:
    bundle, _ = object.bundle_of(data, Btf.vmlinux(), "fuzzed")
    check.check(bundle)
    return "analysed"


def _seeds() -> list[bytes]:
    """Bodies of a file with and without seals; objects."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pair = make_pair(folder, "fuzz")
        file, _ = seal(unsealed(), key=str(pair.key), certificate=str(pair.cert), audit=str(folder / "audit.jsonl"))
        objects = [compile_object(each, folder).read_bytes() for each in ("maps", "core")]
    return [sealed_file.encode(one)[_HEAD:] for one in (file, unsealed())] + objects


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # certificates with odd numbers
    raise SystemExit(run("sealed files and objects", target, _seeds()))
