"""Fuzzes the reader of policies and what it decides with. Only PolicyError, with a line, may come out.

Options: see tests/fuzz/loop.py.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import bpfseal.signer
from bpfseal.signer.bundle import SealRequest
from bpfseal.signer.check import check
from bpfseal.signer.identity import Identity
from bpfseal.signer.kernel_ids import Kernel
from bpfseal.signer.policy import Policy, PolicyError, decide, explain
from bpfseal.signer.policy_read import _KEYS
from tests.fuzz.loop import impossible, mutate, run
from tests.hostile.case import KERNEL
from tests.signer_analysis.kit import bundle
from tests.signer_analysis.test_policy import GOOD, MISTAKES

FINDINGS = check(bundle(), kernel=Kernel(lambda: KERNEL))
WHO = Identity(1000, 1000, (27,), exe="/usr/bin/x", cgroup_path="/user.slice")
DEFAULT = Path(bpfseal.signer.__file__).parent / "default-policy.toml"
WORDS = (*_KEYS, "*", "map", "'''", '"""', "[[rule]]", "[defaults]", "{a=1}", "1979-05-27", "nan", "1e9", "0x10", "\n")


def target(data: bytes) -> str:
    try:
        policy = Policy.parse(data, "p")
    except PolicyError as error:
        return "refused" if re.match(r"p:[1-9]\d*: ", str(error)) else impossible(error)
    request = SealRequest(bundle=b"")
    decision = decide(policy, WHO, FINDINGS, request)
    assert decision.allowed != explain(policy, WHO, FINDINGS, request)[-1].startswith("refused")
    assert decision.allowed <= any(not rule.matches(WHO) for rule in policy.rules)
    return "allowed" if decision.allowed else "denied"


def change(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    if rng.random() < 0.4:
        at = rng.randrange(len(data) + 1)
        return data[:at] + rng.choice(WORDS).encode() + data[at + rng.choice((0, 0, 3, 8)) :]
    return mutate(rng, data, others)


SEEDS = [GOOD.encode(), DEFAULT.read_bytes(), *(text.encode() for text, *_ in MISTAKES)]

if __name__ == "__main__":
    raise SystemExit(run("policy", target, SEEDS, change))
