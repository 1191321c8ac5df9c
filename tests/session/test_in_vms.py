"""What this machine's kernel may lack: probes that are missed, and kills of traces whose programs the kernel has
verified, with helpers and keys of their own and under enforcement. One machine for each kernel."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from bpfseal.runtime import vm
from tests.vm.pool import or_skip

# A hundred traces, under emulation, with two kinds of helper on two kernels: part of the long campaign.
pytestmark = [pytest.mark.vm, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
CALLS, KILLS = 200, 25


@pytest.mark.parametrize("kernel", ["6.18", "7.3"])
def test_sealed_and_enforced(kernel: str) -> None:
    with or_skip(kernel, lambda: vm.boot(kernel, keep_tmp=True, limit=2400)) as machine:
        kills(machine, "--signing=require")
        vm.enforce(machine)
        kills(machine, "--signing=require", "--system")
        for seen in missed(machine):
            # Every run of the outer program reaches the inner probe, which cannot run there.
            assert seen["status"] == 0, seen
            assert seen["ran"] >= CALLS, seen
            (times,) = seen["skipped"].values()
            assert times + seen.get("inside", 0) >= seen["ran"], seen
            assert times >= CALLS / 2, seen


def kills(machine: vm.Machine, *options: str) -> None:
    done = run(machine, "tests.session.kill_campaign", "--fork", *options, str(KILLS))
    found = re.fullmatch(r"(\d+) killed, (\d+) of them before they had a map; left: nothing", done.strip())
    assert found is not None, done
    assert int(found[1]) == KILLS
    assert KILLS // 8 <= int(found[2]) <= KILLS - KILLS // 8


def missed(machine: vm.Machine) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(machine, "tests.session.guest").splitlines() if line.startswith("{")]


def run(machine: vm.Machine, module: str, *words: str) -> str:
    """What a module of this folder writes in the machine, where the tracer is the one of this folder."""
    environment = {"PYTHONPATH": str(ROOT / "src"), "BPFSEAL_TEST_SIGNING": "require", "BPFSEAL_GUEST": "1"}
    result = machine.run([sys.executable, "-m", module, *words], cwd=ROOT, env=environment, timeout=1200)
    assert result.status == 0, result.stdout + result.stderr
    return result.stdout.decode()
