"""Fuzzes what the helper does with a bundle before it signs: decode, check, decide. Only BpfsealError may come out.

Half of the inputs are changed as bytes, half as values (instructions, numbers, names, BTF) and encoded again. What
policy allows is looked at once more by a naive decoder. Options: see tests/fuzz/loop.py.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec

from bpfseal.errors import BpfsealError
from bpfseal.signer.analyse import Kernel
from bpfseal.signer.bundle import Attributes, Bundle, BundleError, SealRequest, decode, encode
from bpfseal.signer.check import check
from bpfseal.signer.helpers import HELPER_BY_NAME
from bpfseal.signer.identity import Identity
from bpfseal.signer.policy import decide
from bpfseal.signer.refusal import Refusal
from tests.fuzz.fuzz_insn import seen
from tests.fuzz.loop import impossible, mutate, run
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


NUMBERS = (0, 1, 2, 3, 4, 8, 24, 31, 255, 4096, 65536, 1 << 31, (1 << 32) - 1, 1 << 32, -1, 1 << 63, (1 << 64) - 1)


def change(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    if rng.random() < 0.5:
        return mutate(rng, data, others)
    try:
        found = decode(data)
    except BundleError:
        return mutate(rng, data, others)
    try:
        return encode(_changed(rng, found, others))
    except (OverflowError, UnicodeEncodeError):
        return data


def _changed(rng: random.Random, value: Any, others: Sequence[bytes]) -> Any:
    """A value with one thing in it changed, of the same type."""
    if isinstance(value, bytes):
        return mutate(rng, value, others)
    if isinstance(value, str):
        return rng.choice((value + "\x1b", value[:-1], value * 3, "", "vfs_read", "\u202e", value + "\0"))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((*NUMBERS, value + 1, value - 1, value ^ 1 << rng.randrange(32)))
    if isinstance(value, tuple) and value:
        items = list(value)
        at = rng.randrange(len(items))
        way = rng.randrange(6)
        if way == 0:
            del items[at]
        elif way == 1:
            items.insert(at, rng.choice(items))
        else:
            items[at] = _changed(rng, items[at], others)
        return tuple(items)
    if isinstance(value, dict):
        return value | {rng.choice(("retprobe", "type", "x\0")): rng.choice(NUMBERS)}
    if isinstance(value, msgspec.Struct):
        weights = [8 if isinstance(getattr(value, f), tuple | bytes | Bundle) else 1 for f in value.__struct_fields__]
        name = rng.choices(value.__struct_fields__, weights)[0]
        return msgspec.structs.replace(value, **{name: _changed(rng, getattr(value, name), others)})
    return value


if __name__ == "__main__":
    raise SystemExit(run("bundle", target, _seeds(), change))
