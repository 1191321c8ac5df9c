"""Fuzzes decoder, control-flow graph, analysis and guard with instruction bytes. Only Refusal may come out.

Options: see tests/fuzz/loop.py.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bpfseal.signer.analyse import analyse
from bpfseal.signer.cfg import split
from bpfseal.signer.guard import guarded
from bpfseal.signer.insn import decode, encode
from bpfseal.signer.kernel_ids import Kernel
from bpfseal.signer.refusal import Refusal
from tests.fuzz.loop import impossible, run
from tests.hostile.case import KERNEL
from tests.signer_analysis.generate import MAPS, generate

FAKE = Kernel(lambda: KERNEL)


def target(data: bytes) -> str:
    try:
        insns = decode(data)
        facts = analyse(insns, MAPS, FAKE)
    except Refusal as error:
        placed = error.insn is None or 0 <= error.insn <= len(data) // 8
        return error.rule if placed and "\n" not in str(error) else impossible(error)
    assert encode(insns) == data
    assert seen(data) == (set(facts.found.helpers), len(facts.starts) - 1)
    guarded(insns, split(insns))
    return "taken"


def seen(data: bytes) -> tuple[set[str], int]:
    """Helpers and subprograms by a second, naive decoder that shares nothing with the first but the name table."""
    from bpfseal.signer.helpers import HELPERS

    helpers, starts, at = set(), set(), 0
    while at < len(data):
        code, regs = data[at], data[at + 1]
        imm = int.from_bytes(data[at + 4 : at + 8], "little", signed=True)
        if code == 0x85 and regs == 0x00:
            helpers.add(HELPERS[imm].name)
        if (code == 0x85 and regs == 0x10) or (code == 0x18 and regs >> 4 == 4):
            starts.add(at // 8 + 1 + imm)
        assert code != 0x8D
        assert code != 0x18 or regs >> 4 not in (1, 2)
        at += 16 if code == 0x18 else 8
    return helpers, len(starts)


SEEDS = [generate(random.Random(seed)).insns() for seed in range(200)]

if __name__ == "__main__":
    raise SystemExit(run("insn", target, SEEDS))
