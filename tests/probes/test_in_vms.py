"""Everything that attaches, on every test kernel: the files beside this one, run inside."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from bpfseal.runtime import vm
from tests.vm.pool import vm72, vm73, vm618

# Whole test files under emulation take minutes: part of the long campaign.
pytestmark = [pytest.mark.vm, pytest.mark.slow]

FIXTURES = (vm618, vm72, vm73)
HERE = Path(__file__).parent


@pytest.mark.parametrize("fixture", ["vm618", "vm72", "vm73"])
@pytest.mark.parametrize("file", ["test_kernel_probes.py", "test_attach.py"])
def test_counts(fixture: str, file: str, request: pytest.FixtureRequest) -> None:
    machine: vm.Machine = request.getfixturevalue(fixture)
    result = machine.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / file)],
        cwd=HERE.parents[1],
        env={"BPFSEAL_GUEST": "1"},
        timeout=900,
    )
    report = result.stdout.decode()
    assert result.status == 0, report + result.stderr.decode()
    passed = re.search(r"(\d+) passed", report)
    assert passed is not None, report
    assert int(passed[1]) >= 15, report
