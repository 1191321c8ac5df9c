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
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec

from bpfseal.errors import BpfsealError
from bpfseal.signer.analyse import Kernel
from bpfseal.signer.bundle import (
    Attach,
    Attributes,
    Bundle,
    BundleError,
    MapSpec,
    ProgramSpec,
    SealRequest,
    decode,
    encode,
)
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
            found = _changed(rng, found, others)
        return encode(found)
    except (OverflowError, UnicodeEncodeError):
        return data


def _fields(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    """Names of the fields, those that hold much eight times."""
    heavy = {"programs", "maps", "insns", "btf", "attach", "func_info", "line_info", "initial", "helpers", "symbols"}
    return tuple(name for name in kind.__struct_fields__ for _ in range(8 if name in heavy else 1))


_FIELDS = {kind: _fields(kind) for kind in (Bundle, ProgramSpec, MapSpec, Attach, Attributes)}
_TEXTS = ("", "vfs_read", "\u202e")


def _changed(rng: random.Random, value: Any, others: Sequence[bytes]) -> Any:
    """A value with one thing in it changed, of the same type."""
    draw = rng.random
    if isinstance(value, msgspec.Struct):
        names = _FIELDS[type(value)]
        name = names[int(draw() * len(names))]
        return msgspec.structs.replace(value, **{name: _changed(rng, getattr(value, name), others)})
    if isinstance(value, bytes):
        return mutate(rng, value, others)
    if isinstance(value, tuple):
        if not value:
            return value
        items = list(value)
        at = int(draw() * len(items))
        way = draw()
        if way < 0.1:
            del items[at]
        elif way < 0.2:
            items.insert(at, rng.choice(items))
        else:
            items[at] = _changed(rng, items[at], others)
        return tuple(items)
    if isinstance(value, str):
        way = int(draw() * 6)
        return _TEXTS[way] if way < 3 else (value + "\x1b", value[:-1], value * 3 + "\0")[way - 3]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        way = int(draw() * (len(NUMBERS) + 3))
        if way < len(NUMBERS):
            return NUMBERS[way]
        return (value + 1, value - 1, value ^ 1 << int(draw() * 32))[way - len(NUMBERS)]
    if isinstance(value, dict):
        return value | {rng.choice(("retprobe", "type", "x\0")): rng.choice(NUMBERS)}
    return value


if __name__ == "__main__":
    raise SystemExit(run("bundle", target, _seeds(), change))
