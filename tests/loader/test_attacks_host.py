"""The loader's own defences on the running kernel, which need no signature: the v1 rules of hash and exclusivity."""

from __future__ import annotations

import errno
import os

import pytest

from bpfseal.runtime import bpf
from bpfseal.signer.abi import excl_field
from bpfseal.signer.loader import Terms, emit
from tests.loader import attacks, samples
from tests.loader.attacks import Kernel

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def kernel(bpf_permitted: None) -> Kernel:
    try:
        fd = bpf.map_create(bpf.MAP_ARRAY, 4, 8, 1, excl_prog_hash=bytes(32))
    except OSError as error:
        if error.errno in (errno.E2BIG, errno.EINVAL):
            pytest.skip("this kernel has no exclusive maps (Linux 6.18)")
        raise
    os.close(fd)
    return Kernel(Terms(abi=1, excl=excl_field()))


def test_a_shared_map_is_refused(kernel: Kernel) -> None:
    assert attacks.rewrite_a_shared_map(kernel, attacks.without_exclusivity) == "evil"
    assert attacks.rewrite_a_shared_map(kernel, emit) == "run EINVAL"


def test_nobody_else_writes_to_the_metadata(kernel: Kernel) -> None:
    assert attacks.write_to_an_exclusive_map(kernel) == "EACCES"


def test_no_hash_before_the_freeze() -> None:
    assert attacks.hash_before_freeze() == "EPERM"


def test_swapped_slot(kernel: Kernel) -> None:
    beaten = attacks.swap_the_slot(kernel, attacks.with_two_references, trials=1_000_000, seconds=120, enough=3)
    assert beaten["evil"] >= 3, f"the attack did not work on the naive loader: {beaten}"
    counts = attacks.swap_the_slot(kernel, emit, trials=3000, seconds=10)
    assert counts["evil"] == 0
    assert counts["good"] >= 50
    assert counts["refused"] >= 50


@pytest.mark.slow
def test_swapped_slot_at_length(kernel: Kernel) -> None:
    counts = attacks.swap_the_slot(kernel, emit, trials=1_000_000, seconds=600)
    assert counts["evil"] == 0
    assert counts.total() >= 50_000


def test_every_metadata_bit_counts(kernel: Kernel) -> None:
    loader = emit(samples.tiny(), kernel.terms)
    args = (samples.tiny(), loader.ctx_size)
    for bit in range(0, 8 * len(loader.metadata), 7):
        changed = attacks.flip(loader.metadata, bit)
        assert attacks.outcome(kernel, loader.insns, changed, b"", *args) == "run EINVAL"


def test_without_asking_for_the_hash_first(kernel: Kernel) -> None:
    loader = emit(samples.tiny(), kernel.terms)
    with (
        attacks.metadata_map(loader.metadata, loader.insns, ask_hash=False) as meta,
        bpf.Fd(attacks.load_loader(kernel, loader.insns, meta, b"")) as program,
    ):
        assert attacks.run(program.number, samples.tiny(), loader.ctx_size)[0] == -errno.EINVAL


def test_a_held_loader_runs_once(kernel: Kernel) -> None:
    assert attacks.run_once_more(kernel, attacks.without_terms, lambda: None) == ("good", "good")
    assert attacks.run_once_more(kernel, emit, lambda: None) == ("good", "EALREADY")


def test_another_process_is_refused(kernel: Kernel) -> None:
    bound = attacks.with_terms(kernel, tgid=os.getpid())
    assert attacks.run_elsewhere(bound, attacks.without_terms, lambda: None) == "ran"
    assert attacks.run_elsewhere(bound, emit, lambda: None) == "ESRCH"


def test_another_user_is_refused(kernel: Kernel) -> None:
    """Another uid that kept its capabilities."""
    if os.getuid() != 0:
        pytest.skip("needs root to become another user")
    bound = attacks.with_terms(kernel, uid=0)
    assert attacks.run_elsewhere(bound, attacks.without_terms, lambda: os.setresuid(1000, 0, 0)) == "ran"
    assert attacks.run_elsewhere(bound, emit, lambda: os.setresuid(1000, 0, 0)) == "EPERM"
