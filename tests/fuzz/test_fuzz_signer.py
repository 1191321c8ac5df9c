"""A short, repeatable run of each byte fuzzer of the helper; `make fuzz` runs them for longer."""

from __future__ import annotations

import random

import pytest

from tests.fuzz import fuzz_bundle, fuzz_insn, fuzz_policy
from tests.fuzz.fuzz_bundle import _seeds as bundle_seeds
from tests.fuzz.loop import mutate

FUZZERS = {
    "insn": (fuzz_insn.target, mutate, fuzz_insn.SEEDS),
    "bundle": (fuzz_bundle.target, fuzz_bundle.change, bundle_seeds()),
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
    assert results.count("allowed") + results.count("taken") >= 1


def test_findings_stay_fixed() -> None:
    """Inputs that once raised something else than a refusal."""
    nul_in_module = next(c for c in fuzz_bundle.programs.CASES if c.name == "btf-module-with-nul")
    assert fuzz_bundle.target(fuzz_bundle.encode(nul_in_module.build())) == "attach-btf"
