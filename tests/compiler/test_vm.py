"""The tests of this directory on kernels that have kprobes and fentry."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bpfseal.runtime import vm
from tests.vm.pool import vm73, vm618

__all__ = ["vm73", "vm618"]

# A compiler under emulation takes minutes: part of the long campaign.
pytestmark = [pytest.mark.vm, pytest.mark.slow]

ROOT = Path(__file__).parent.parent.parent


def run_tests(machine: vm.Machine) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-rfE"]
    files = ["tests/compiler/test_kernel_functions.py", "tests/compiler/test_deferred.py"]
    result = machine.run(["sh", "-c", f"cd {ROOT} && {' '.join(command + files)}"], timeout=400)
    assert result.status == 0, result.stdout + result.stderr
    assert b"passed" in result.stdout if isinstance(result.stdout, bytes) else "passed" in result.stdout


def test_618(vm618: vm.Machine) -> None:
    run_tests(vm618)


def test_73(vm73: vm.Machine) -> None:
    run_tests(vm73)
