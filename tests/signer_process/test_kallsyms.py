"""Function addresses for guards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bpfseal.signer import bundle as wire
from bpfseal.signer.client import SealRefused
from bpfseal.signer.kallsyms import KernelSymbols
from tests.hostile.instructions import _BODY, KPROBE, guarded
from tests.signer_analysis.kit import RETURN, call, jne, ld64

from .conftest import as_user, needs_root, running

TEXT = """\
ffffffff81000000 T _stext
ffffffff81000010 t twice
ffffffff81000020 D data_not_code
ffffffff81000030 t twice
ffffffff81000040 W weak
0000000000000000 T hidden
ffffffff81000050 T prefix_twice
ffffffff81000060 T twice.part.0
ffffffffc0000010 t in_module\t[mod]
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "kallsyms"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("twice", {0xFFFFFFFF81000010, 0xFFFFFFFF81000030}),
        ("weak", {0xFFFFFFFF81000040}),
        ("data_not_code", set()),
        ("hidden", set()),
        ("missing", set()),
        ("", set()),
        ("T _stext", set()),
        ("in_module", {0xFFFFFFFFC0000010}),
    ],
)
def test_look_up(table: Path, name: str, addresses: set[int]) -> None:
    assert set(KernelSymbols(str(table))(name)) == addresses


def test_modules_are_looked_at_again(table: Path) -> None:
    symbols = KernelSymbols(str(table))
    assert set(symbols("in_module")) == {0xFFFFFFFFC0000010}
    table.write_text(TEXT.replace("ffffffffc0000010", "ffffffffc0000099"))
    symbols._read_at -= 60
    assert set(symbols("in_module")) == {0xFFFFFFFFC0000099}


@needs_root
def test_addresses_stay_readable_after_rights_are_gone() -> None:
    """The rights of whoever opened the file count, not those of the reader."""
    symbols = KernelSymbols()
    if not symbols("vfs_read"):
        pytest.skip("this kernel shows no addresses, not even to root")
    fresh = KernelSymbols()
    kept = as_user(65534, 65534, lambda: str(sorted(fresh("vfs_read"))))
    assert kept == str(sorted(symbols("vfs_read")))
    assert os.geteuid() == 0


GUARDED = """
version = 1
[[rule]]
uid = 0
probes = "kprobe:*"
classes = ["basic", "map", "identity", "read-kernel", "stack"]
map_types = "*"
enforceable = true
"""


@needs_root
def test_the_helper_holds_guards_against_the_functions_they_name() -> None:
    """A bundle for kprobe:vfs_read whose guard lets another function pass is refused by the running helper."""
    symbols = KernelSymbols()
    if not symbols("vfs_read"):
        pytest.skip("this kernel shows no addresses, not even to root")

    def kprobe(name: str) -> bytes:
        guard = call("get_func_ip") + ld64(1, min(symbols(name))) + jne(0, 1, 10)
        return wire.encode(guarded(guard + _BODY + RETURN, KPROBE))

    with running(GUARDED) as helper, helper.client() as client:
        assert client.seal(kprobe("vfs_read")).record
        with pytest.raises(SealRefused, match="which is no function that it names"):
            client.seal(kprobe("vfs_write"))
        with pytest.raises(SealRefused, match="not enforceable"):
            client.seal(wire.encode(guarded(_BODY + RETURN, KPROBE)))
