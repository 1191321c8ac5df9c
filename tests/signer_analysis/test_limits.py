"""The limits of a bundle are one truth, and generous: a thousand attach points of programs of their own pass."""

from __future__ import annotations

import importlib.resources

from bpfseal.runtime import build
from bpfseal.signer import limits, loader
from bpfseal.signer.bundle import SealRequest, encode
from bpfseal.signer.check import check
from bpfseal.signer.identity import Identity
from bpfseal.signer.policy import Policy, decide
from tests.signer_analysis.kit import COUNT, COUNTED, bundle, program
from tests.signer_analysis.test_check import FAKE, at

ROOT = Identity(0, 0)
MANY = bundle(
    *[
        program(COUNT, COUNTED, name=f"p{n}", attach=at("perf_tracepoint", f"sched:t{n}", f"tracepoint:sched:t{n}"))
        for n in range(1000)
    ],
    source="x" * limits.MAX_SOURCE_BYTES,
)


def test_a_thousand_attach_points_are_sealed() -> None:
    findings = check(MANY, kernel=FAKE)
    default = Policy.parse(importlib.resources.files("bpfseal.signer").joinpath("default-policy.toml").read_bytes())
    for policy in (default, Policy.default_private(0)):
        decision = decide(policy, ROOT, findings, SealRequest(bundle=encode(MANY)))
        assert decision.allowed, decision.reasons
    assert loader.emit(MANY, loader.Terms(abi=2)).ctx_size <= loader.MAX_CONTEXT


def test_what_the_command_line_reads_the_helper_takes() -> None:
    assert build.MAX_SOURCE_BYTES == limits.MAX_SOURCE_BYTES
    assert len(encode(MANY)) < limits.MAX_BUNDLE_BYTES
