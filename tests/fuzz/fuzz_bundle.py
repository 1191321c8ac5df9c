"""Fuzzes what the helper does with a bundle before it signs: decode, check, decide. Only BpfsealError may come out.

A fifth of the inputs are changed as bytes, the others as values (instructions, numbers, names, BTF) and encoded again.
What policy allows is looked at once more by a naive decoder. Options: see tests/fuzz/loop.py.
"""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bpfseal.errors import BpfsealError
from bpfseal.signer.bundle import (
    UNDECLARED,
    Attributes,
    Bundle,
    BundleError,
    SealRequest,
    decode,
    encode,
)
from bpfseal.signer.check import check
from bpfseal.signer.helpers import HELPER_BY_NAME
from bpfseal.signer.identity import Identity
from bpfseal.signer.kernel_ids import Kernel
from bpfseal.signer.policy import decide
from bpfseal.signer.refusal import Refusal
from tests.fuzz.fuzz_insn import seen
from tests.fuzz.loop import impossible, mutate, run
from tests.fuzz.values import changed
from tests.hostile import instructions, maps, metadata, programs
from tests.hostile.case import KERNEL, POLICY
from tests.signer_analysis.generate import MAPS, generate
from tests.signer_analysis.kit import bundle, program

FAKE = Kernel(lambda: KERNEL)
WHO = Identity(1000, 1000)
GRANTED = POLICY.rules[0].classes


def target(data: bytes) -> str:
    try:
        found = decode(data)
        findings = check(found, kernel=FAKE, max_insns=POLICY.max_insns(WHO))
        decision = decide(POLICY, WHO, findings, SealRequest(bundle=data))
    except Refusal as error:
        return error.rule if "\n" not in str(error) else impossible(error)
    except BundleError:
        return "decode"
    except BpfsealError as error:
        return impossible(error)
    assert decision.rule == "observers"
    if not decision.allowed:
        assert decision.reasons
        return "policy"
    for spec in found.programs:
        helpers, subprograms = seen(spec.insns)
        assert all(GRANTED.issuperset(HELPER_BY_NAME[name].classes) for name in helpers)
        if spec.declared != UNDECLARED:  # other tools' programs declare nothing; policy has what was found
            assert helpers <= set(spec.declared.helpers)
            assert subprograms <= spec.declared.subprograms
    assert sum(m.size for m in findings.maps) <= 64 << 20
    return "allowed"


def _seeds() -> list[bytes]:
    found = []
    for seed in range(60):
        made = generate(random.Random(seed))
        insns = made.insns()
        declared = Attributes(
            insns=len(insns) // 8,
            subprograms=len(made.subprograms),
            helpers=tuple(sorted(made.helpers)),
            maps=made.maps(),
        )
        found.append(encode(bundle(program(insns, declared), maps=MAPS, btf=metadata.GOOD, source="begin { }")))
    for module in (instructions, maps, metadata, programs):
        for case in module.CASES:
            built = case.build()
            data = built if isinstance(built, bytes) else encode(built)
            if len(data) < 4096:
                found.append(data)
    return found


@functools.lru_cache(maxsize=8192)
def _decoded(data: bytes) -> Bundle | None:
    try:
        return decode(data)
    except BundleError:
        return None


def change(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """One in five changed as bytes, which rarely decode; the others as values."""
    found = _decoded(data) if rng.random() < 0.8 else None
    if found is None:
        return mutate(rng, data, others)
    try:
        for _ in range(1 if rng.random() < 0.7 else 3):
            found = changed(rng, found, others)
        return encode(found)
    except (OverflowError, UnicodeEncodeError):
        return data


if __name__ == "__main__":
    raise SystemExit(run("bundle", target, _seeds(), change))
