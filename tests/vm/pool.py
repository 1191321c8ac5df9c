"""Test kernels for the whole test run: each is booted when first asked for and shared from then on.

Outside this directory: `from tests.vm.pool import vm618, vm72, vm73` makes the fixtures known.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from bpfseal.runtime import vm

T = TypeVar("T")

REQUIRED = os.environ.get("BPFSEAL_REQUIRE_VM", "") not in ("", "0")


def or_skip(kernel: str, make: Callable[[], T]) -> T:
    """What `make` gives, or a skipped test where there can be no machine; a failure with BPFSEAL_REQUIRE_VM=1.

    Only "cannot be had here" skips; a kernel that does not come up is a failure anywhere.
    """
    try:
        return make()
    except vm.VmUnavailable as error:
        reason = f"no test kernel {kernel}: {error.message}" + (f" ({error.hint})" if error.hint else "")
        if REQUIRED:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def _shared(kernel: str) -> Iterator[vm.Machine]:
    # keep_tmp: what a test has put below tmp_path is there in the guest too
    with or_skip(kernel, lambda: vm.boot(kernel, keep_tmp=True)) as machine:
        yield machine


@pytest.fixture(scope="session")
def vm618() -> Iterator[vm.Machine]:
    """Linux 6.18: signatures cover the instructions only (the first ABI)."""
    yield from _shared("6.18")


@pytest.fixture(scope="session")
def vm72() -> Iterator[vm.Machine]:
    """Linux 7.2: the first ABI, with the verdict in `prog->aux->sig`."""
    yield from _shared("7.2")


@pytest.fixture(scope="session")
def vm73() -> Iterator[vm.Machine]:
    """Linux 7.3: signatures cover instructions and metadata (the second ABI)."""
    yield from _shared("7.3")
