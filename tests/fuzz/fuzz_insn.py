"""Fuzzes decoder, control-flow graph, analysis and guard with instruction bytes. Only Refusal may come out.

Options: see tests/fuzz/loop.py.
"""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bpfseal.signer.analyse import analyse
from bpfseal.signer.bundle import MapSpec
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
        facts = analyse(insns, KNOWN, FAKE)
    except Refusal as error:
        placed = error.insn is None or 0 <= error.insn <= len(data) // 8
        return error.rule if placed and "\n" not in str(error) else impossible(error)
    assert encode(insns) == data
    assert seen(data) == (set(facts.found.helpers), len(facts.starts) - 1)
    guarded(insns, split(insns))
    return "taken"


def seen(data: bytes) -> tuple[set[str], int]:
    """Helpers and subprograms by a second, naive decoder that shares nothing with the first but the name table."""
    from bpfseal.signer.helpers import HELPERS, is_poison

    helpers, starts, at = set(), set(), 0
    while at < len(data):
        code, regs = data[at], data[at + 1]
        imm = int.from_bytes(data[at + 4 : at + 8], "little", signed=True)
        if code == 0x85 and regs == 0x00 and not is_poison(imm):
            helpers.add(HELPERS[imm].name)
        if (code == 0x85 and regs == 0x10) or (code == 0x18 and regs >> 4 == 4):
            starts.add(at // 8 + 1 + imm)
        assert code != 0x8D
        assert code != 0x18 or regs >> 4 not in (1, 2)
        at += 16 if code == 0x18 else 8
    return helpers, len(starts)


def poisoned(insns: bytes, draw: random.Random) -> bytes:
    """Some instruction is one of those that stand for what is not there."""
    at = 8 * draw.randrange(len(insns) // 8)
    return insns[:at] + struct.pack("<BBhi", 0x85, 0, 0, draw.choice(POISON)) + insns[at + 8 :]


POISON = (195896080, 2001000001, 2002000002)
# A map of maps and one of sockets behind the others.
KNOWN = (
    *MAPS,
    MapSpec(name="outer.7", type=13, key_size=4, value_size=4, max_entries=1, id=7),
    MapSpec(name="sockets.8", type=15, key_size=4, value_size=4, max_entries=1, id=8),
)
SEEDS = [generate(random.Random(seed)).insns() for seed in range(200)]
SEEDS += [poisoned(seed, random.Random(number)) for number, seed in enumerate(SEEDS)]
# Map 0 is another one.
SEEDS += [seed.replace(b"\x18\x51\0\0\0\0\0\0", b"\x18\x51\0\0" + bytes([len(MAPS)]) + b"\0\0\0") for seed in SEEDS]

if __name__ == "__main__":
    raise SystemExit(run("insn", target, SEEDS))
