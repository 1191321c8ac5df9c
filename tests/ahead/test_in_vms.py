"""Sealed files on kernels that require signatures, without any helper running; one kernel of each ABI."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from bpfseal.runtime import vm
from bpfseal.runtime.ahead import place, store
from bpfseal.signer.sealed_file import VERSION, SealedFile
from tests.vm.pool import or_skip

from .conftest import make_pair
from .test_file import unsealed


@pytest.mark.vm
@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["6.18", "7.3"])
def test_sealed_files_load_where_signatures_are_required(
    kernel: str, compiled: Callable[..., Path], tmp_path: Path
) -> None:
    import shutil

    make_pair(tmp_path, "signer")
    shutil.copy(compiled("maps"), tmp_path / "maps.bpf.o")
    here = place.this_kernel()
    foreign = SealedFile(
        version=VERSION, kind="script", made_by="a test", bundle=unsealed().bundle, kernel=here, bound=True
    )
    store.write(str(tmp_path / "foreign.bpfseal"), foreign)
    with or_skip(kernel, lambda: vm.boot(kernel, keep_tmp=True, limit=1500)) as machine:
        vm.enforce(machine)
        done = machine.run(["sh", str(Path(__file__).parent / "guest.sh"), str(tmp_path)], timeout=1200)
    parts = re.split(r"=== (.+)\n", done.stdout.decode(errors="replace"))
    seen = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert "end" in seen, done.stdout

    assert seen["build"].count("sealed for ABI") == 2
    # The certificate counts for nothing until it is allowed; the helper seals the bundle then.
    assert "not trusted on this machine: asking the signing helper" in seen["untrusted"]
    assert "began" in seen["untrusted"]
    assert "is allowed" in seen["allow"]
    assert "of helper" not in seen["status"]
    assert "bpfseal-trust-" in seen["status"]
    # No helper is left: only what was sealed ahead of time loads.
    assert "began" in seen["run"]
    assert re.search(r"@opens: [1-9]", seen["run"])
    assert "/sys/fs/bpf/maps/opens" in seen["object"]
    assert "began" not in seen["text"]
    assert "EPERM" in seen["text"]
    assert f"built for kernel {here.release}" in seen["foreign"]
    abi = {"6.18": 1, "7.3": 2}[kernel]
    assert "as it is: None" in seen["changed"]
    assert re.search(rf"loader abi {abi} refused [1-9]\d* taken 0\n", seen["changed"])
    if abi == 2:  # ABI 1 leaves the metadata to the loader, which refuses when it is run
        assert re.search(r"metadata abi 2 refused [1-9]\d* taken 0\n", seen["changed"])
    # The session keyring is a name for a ring: what counts is which ring it is, not what is in it.
    assert seen["by session"].splitlines() == [
        "an empty session: Required key not available",
        "a session with the same certificate: Operation not permitted",
        "the ring as session: taken",
    ]
    assert "is gone" in seen["disallow"]
    assert "EPERM" in seen["disallow"]
