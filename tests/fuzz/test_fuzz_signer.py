"""A short, repeatable run of each byte fuzzer of the helper; `make fuzz` runs them for longer."""

from __future__ import annotations

import random

import pytest

from tests.fuzz import fuzz_bundle, fuzz_insn, fuzz_message, fuzz_policy
from tests.fuzz.fuzz_bundle import _seeds as bundle_seeds
from tests.fuzz.loop import mutate

FUZZERS = {
    "insn": (fuzz_insn.target, mutate, fuzz_insn.SEEDS),
    "bundle": (fuzz_bundle.target, fuzz_bundle.change, bundle_seeds()),
    "message": (fuzz_message.target, fuzz_message.change, fuzz_message.SEEDS),
    "policy": (fuzz_policy.target, fuzz_policy.change, fuzz_policy.SEEDS),
}


@pytest.mark.parametrize("name", FUZZERS)
def test_a_thousand_inputs(name: str) -> None:
    target, change, seeds = FUZZERS[name]
    rng = random.Random(1)
    results = {target(change(rng, rng.choice(seeds), seeds)) for _ in range(1000)}
    assert len(results) >= (2 if name == "policy" else 10)


@pytest.mark.parametrize("name", FUZZERS)
def test_seeds_themselves(name: str) -> None:
    target, _change, seeds = FUZZERS[name]
    results = [target(seed) for seed in seeds]
    assert {"allowed", "taken", "sealed"}.intersection(results)


def test_findings_stay_fixed() -> None:
    """Inputs that once raised something else than a refusal."""
    nul_in_module = next(c for c in fuzz_bundle.programs.CASES if c.name == "btf-module-with-nul")
    assert fuzz_bundle.target(fuzz_bundle.encode(nul_in_module.build())) == "attach-btf"


def test_the_log_of_fuzzed_messages_verifies() -> None:
    """Every signature of the run so far has its record."""
    results = [fuzz_message.target(seed) for seed in fuzz_message.SEEDS]
    assert fuzz_message.HELPER.sealed >= results.count("sealed") >= 1
    fuzz_message.HELPER.finish()
    fuzz_message.HELPER.count = 0
