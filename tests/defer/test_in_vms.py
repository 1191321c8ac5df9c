"""Deferred blocks on kernels that verify signatures, sealed and under enforcement: the first ABI and the second."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bpfseal.runtime import vm
from bpfseal.runtime.vm.boot import enforce
from tests.defer import kit
from tests.defer.test_reads import judge
from tests.vm.pool import or_skip

# Compiling under emulation takes its time: part of the long campaign.
pytestmark = [pytest.mark.vm, pytest.mark.slow]

ROOT = Path(__file__).parent.parent.parent
ROUNDS = 10_000


@pytest.mark.parametrize("kernel", ["6.18", "7.3"])
def test_sealed_and_enforced(kernel: str, tmp_path: Path) -> None:
    if not kit.build(tmp_path):
        pytest.skip("no C compiler")
    kit.page(tmp_path)
    with or_skip(kernel, lambda: vm.boot(kernel, keep_tmp=True, limit=1800)) as machine:
        enforce(machine)
        judge(run(machine, "measure", tmp_path, ROUNDS), ROUNDS)
        (nmi,) = run(machine, "nmi", tmp_path, 300)
        ran = nmi["account"]["run"]
        assert nmi["later"] == {kit.TEXT: ran}, nmi
        assert ran > 100, nmi
        assert kit.whole(nmi["account"]), nmi
        # Whoever sends them, the system's helper seals what these tests load.
        # (Files that are written in the guest stay in its memory: nothing of test_reads.py but what needs none.)
        files = ["tests/defer/test_life.py", "tests/defer/test_reads.py::test_paths"]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfE", "-m", "not slow", *files]
        result = machine.run(command, timeout=1200, cwd=ROOT)
        assert result.status == 0, (result.stdout + result.stderr).decode(errors="replace")
        assert b" passed" in result.stdout


def run(machine: vm.Machine, module: str, folder: Path, count: int) -> list[dict[str, Any]]:
    """Lines of JSON that a module of this directory writes in the guest, where nothing unsigned loads."""
    command = [sys.executable, "-m", f"tests.defer.{module}", str(folder), str(count), "--signing=require"]
    result = machine.run(command, timeout=900, cwd=ROOT)
    assert result.status == 0, (result.stdout + result.stderr).decode(errors="replace")
    return [json.loads(line) for line in result.stdout.decode().splitlines() if line.startswith("{")]
