"""Everything that attaches, on every test kernel: files beside this one, run inside."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfseal.runtime import vm
from tests.probes import kit
from tests.probes.table import SOURCE
from tests.vm.pool import or_skip, vm72, vm73, vm618

# Whole test files under emulation take minutes: part of the long campaign.
pytestmark = [pytest.mark.vm, pytest.mark.slow]

FIXTURES = (vm618, vm72, vm73)
HERE = Path(__file__).parent
# What root may do in the machines that enforce: look at everything, and decide.
POLICY = """\
version = 1
[[rule]]
name = "table"
uid = 0
probes = "*"
classes = ["basic", "time", "identity", "map", "output", "stack", "perf", "read-kernel", "read-user", "read-packet", "override"]
kfuncs = ["bpf_*"]
map_types = "*"
sleepable = true
require_source = true
max_targets = 10000
max_map_bytes = "2GiB"
per_minute = 0
"""  # noqa: E501


@pytest.mark.parametrize("fixture", ["vm618", "vm72", "vm73"])
@pytest.mark.parametrize("file", ["test_kernel_probes.py", "test_attach.py"])
def test_counts(fixture: str, file: str, request: pytest.FixtureRequest) -> None:
    run_inside(request.getfixturevalue(fixture), file, 15)


@pytest.fixture(scope="module", params=["6.18", "7.3"])
def enforcing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[vm.Machine]:
    """A kernel of each ABI on which only signed programs load. The traced program is made out here: a compiler is
    slow in there."""
    exe = kit.compile_c(tmp_path_factory.mktemp("events") / "events", SOURCE, "-no-pie")
    with or_skip(request.param, lambda: vm.boot(request.param, keep_tmp=True)) as machine:
        machine.exe = exe  # type: ignore[attr-defined]
        script = f"mkdir -p /etc/bpfseal && cat > /etc/bpfseal/policy.toml <<'END'\n{POLICY}END\nip link set lo up"
        assert machine.run(["sh", "-c", script]).status == 0
        vm.enforce(machine)
        yield machine


@pytest.mark.parametrize(("file", "least"), [("test_table.py", 30), ("test_packets.py", 30)])
def test_signed_under_enforcement(enforcing: vm.Machine, file: str, least: int) -> None:
    exe = str(enforcing.exe)  # type: ignore[attr-defined]
    run_inside(enforcing, file, least, BPFSEAL_TEST_SIGNING="require", BPFSEAL_TEST_EVENTS=exe)


def run_inside(machine: vm.Machine, file: str, least: int, **environment: str) -> None:
    """A file of tests in the machine; at least so many have to pass, and none may fail."""
    result = machine.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", str(HERE / file)],
        cwd=HERE.parents[1],
        env={"BPFSEAL_GUEST": "1", **environment},
        timeout=1800,
    )
    report = result.stdout.decode()
    assert result.status == 0, report + result.stderr.decode()
    passed = re.search(r"(\d+) passed", report)
    assert passed is not None, report
    assert int(passed[1]) >= least, report
