"""Random programs that the verifier accepts, with what they do written down while they are made.

Every piece is a closed fragment: it may use r0-r5 and the stack below -64 freely, keeps r6 (context), and is entered
with unknown r0-r5. Pointers take detours on purpose: through stack slots, registers, subprograms and callbacks.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from bpfseal.signer.bundle import MapSpec
from tests.signer_analysis.kit import (
    EXIT,
    RETURN,
    add,
    addi,
    atomic,
    call,
    callsub,
    ja,
    jeqi,
    ldfunc,
    ldmap,
    ldvalue,
    ldx,
    mov,
    movi,
    raw,
    st,
    stx,
)

MAPS = (
    MapSpec(name="hash_a", type=1, key_size=8, value_size=64, max_entries=16),
    MapSpec(name="hash_b", type=1, key_size=8, value_size=64, max_entries=16),
    MapSpec(name="array_c", type=2, key_size=4, value_size=64, max_entries=4),
    MapSpec(name="array_d", type=2, key_size=4, value_size=64, max_entries=1),
    MapSpec(name="percpu_e", type=6, key_size=4, value_size=64, max_entries=2),
    MapSpec(name="ring_f", type=27, key_size=0, value_size=0, max_entries=4096),
)
KEYED, DIRECT, RING = range(5), 3, 5
HASHES = (0, 1)


@dataclass
class Made:
    """A program and its ground truth. Subprograms come after the main program in the order of `subprograms`."""

    rng: random.Random
    main: bytes = b""
    subprograms: list[bytes] = field(default_factory=list)
    calls: list[tuple[int, int]] = field(default_factory=list)  # (offset in main, number of subprogram)
    helpers: set[str] = field(default_factory=set)
    operations: dict[int, set[str]] = field(default_factory=dict)

    def does(self, index: int, *operations: str) -> None:
        self.operations.setdefault(index, set()).update(operations)

    def helper(self, name: str) -> bytes:
        self.helpers.add(name)
        return call(name)

    def insns(self) -> bytes:
        """The whole program, with calls and callbacks pointing at their subprograms."""
        starts, at = [], len(self.main) // 8
        for code in self.subprograms:
            starts.append(at)
            at += len(code) // 8
        main = bytearray(self.main)
        for offset, number in self.calls:
            delta = starts[number] - offset // 8 - 1
            main[offset + 4 : offset + 8] = (delta & 0xFFFFFFFF).to_bytes(4, "little")
        return bytes(main) + b"".join(self.subprograms)

    def maps(self) -> tuple[tuple[int, tuple[str, ...]], ...]:
        return tuple((index, tuple(sorted(self.operations[index]))) for index in sorted(self.operations))


def _key(made: Made, register: int = 2) -> bytes:
    return st(10, -72, made.rng.randrange(2)) + mov(register, 10) + addi(register, -72)


def _detour(made: Made, register: int) -> bytes:
    """A pointer in `register` goes somewhere and comes back."""
    way = made.rng.randrange(4)
    if way == 0:
        return stx(10, -88, register) + movi(register, 0) + ldx(register, 10, -88)
    if way == 1:
        return mov(7, register) + movi(register, 7) + mov(register, 7)
    if way == 2 and register != 3:
        return stx(10, -96, register) + mov(3, 10) + addi(3, -112) + movi(register, 1) + ldx(register, 3, 16)
    return b""


def _touch(made: Made, index: int) -> bytes:
    """Something with the value that r0 points to; leaves r0-r5 in any state."""
    way = made.rng.randrange(6)
    if way == 0:
        return ldx(3, 0, 8)
    if way == 1:
        made.does(index, "write")
        return st(0, 16, made.rng.randrange(1 << 16))
    if way == 2:
        made.does(index, "write")
        return movi(1, 1) + atomic(0, 0, 1, made.rng.choice((0x00, 0x01, 0x40, 0x50, 0xA0, 0xE1)))
    if way == 3:
        made.does(index, "write")
        return mov(1, 0) + movi(2, 16) + made.helper("get_current_comm")
    if way == 4:
        made.does(index, "write")
        return ldx(3, 0, 8) + raw(0x57, 3, imm=31) + add(0, 3) + st(0, 8, 0x5A, 0x10)
    made.does(index, "write")
    return mov(1, 0) + movi(2, 8) + mov(3, 6) + made.helper("probe_read_kernel")


def lookup(made: Made) -> bytes:
    index = made.rng.choice(KEYED)
    made.does(index, "read")
    code = _key(made) + ldmap(1, index) + _detour(made, 1) + _key(made) + made.helper("map_lookup_elem")
    use = _detour(made, 0) + _touch(made, index)
    return code + jeqi(0, 0, len(use) // 8) + use


def update(made: Made) -> bytes:
    index = made.rng.choice(KEYED)
    made.does(index, "write")
    code = _key(made)
    for at in range(-136, -72, 8):
        code += st(10, at, made.rng.randrange(1 << 16))
    return code + mov(3, 10) + addi(3, -136) + movi(4, 0) + ldmap(1, index) + made.helper("map_update_elem")


def delete(made: Made) -> bytes:
    index = made.rng.choice(HASHES)
    made.does(index, "delete")
    return _key(made) + ldmap(1, index) + made.helper("map_delete_elem")


def direct(made: Made) -> bytes:
    made.does(DIRECT, "read")
    code = ldvalue(0, DIRECT, made.rng.randrange(0, 16, 8)) + _detour(made, 0)
    return code + _touch(made, DIRECT)


def either(made: Made) -> bytes:
    """One call that gets one map or another."""
    made.does(0, "read")
    made.does(1, "read")
    code = made.helper("ktime_get_ns") + ldmap(1, 0) + raw(0x45, 0, 0, 2, 1) + ldmap(1, 1) + _key(made)
    made.does(0, "write")
    made.does(1, "write")
    return code + made.helper("map_lookup_elem") + jeqi(0, 0, 1) + st(0, 24, 3)


def output(made: Made) -> bytes:
    made.does(RING, "output")
    code = st(10, -72, 7) + mov(2, 10) + addi(2, -72) + movi(3, 8) + movi(4, 0) + ldmap(1, RING)
    return code + made.helper("ringbuf_output")


def reserve(made: Made) -> bytes:
    made.does(RING, "output")
    code = ldmap(1, RING) + movi(2, 16) + movi(3, 0) + made.helper("ringbuf_reserve")
    use = st(0, 0, 5) + mov(1, 0) + movi(2, 0) + made.helper("ringbuf_submit")
    return code + jeqi(0, 0, len(use) // 8) + use


def through_subprogram(made: Made) -> bytes:
    """A value goes to a subprogram that writes to it, or comes back from one."""
    index = made.rng.choice(KEYED)
    made.does(index, "read", "write")
    code = _key(made) + ldmap(1, index) + made.helper("map_lookup_elem")
    if made.rng.random() < 0.5:
        use = mov(1, 0)
        after = b""
        made.subprograms.append(_detour_free(made) + st(1, 32, 9) + RETURN)
    else:
        use = mov(1, 0)
        after = st(0, 40, 2)
        made.subprograms.append(stx(10, -8, 1) + ldx(0, 10, -8) + EXIT)
    made.calls.append((len(made.main) + len(code) + 8 + len(use), len(made.subprograms) - 1))
    return code + jeqi(0, 0, (len(use) + 8 + len(after)) // 8) + use + callsub(0) + after


def _detour_free(made: Made) -> bytes:
    return mov(2, 1) + mov(1, 2) if made.rng.random() < 0.5 else b""


def through_frames(made: Made) -> bytes:
    """A value's address lies on the stack; a subprogram gets the address of that."""
    index = made.rng.choice(KEYED)
    made.does(index, "read", "write")
    code = _key(made) + ldmap(1, index) + made.helper("map_lookup_elem")
    use = stx(10, -104, 0) + mov(1, 10) + addi(1, -104)
    made.subprograms.append(ldx(2, 1) + st(2, 48, 1) + RETURN)
    made.calls.append((len(made.main) + len(code) + 8 + len(use), len(made.subprograms) - 1))
    return code + jeqi(0, 0, len(use) // 8 + 1) + use + callsub(0)


def each(made: Made) -> bytes:
    index = made.rng.choice(HASHES)
    made.does(index, "iterate")
    writes = made.rng.random() < 0.5
    if writes:
        made.does(index, "write")
    made.subprograms.append((st(3, 8, 1) if writes else ldx(2, 3, 8)) + RETURN)
    code = ldmap(1, index)
    made.calls.append((len(made.main) + len(code), len(made.subprograms) - 1))
    # ldfunc counts from its own slot, as a call does
    return code + ldfunc(2, 0) + movi(3, 0) + movi(4, 0) + made.helper("for_each_map_elem")


def loop(made: Made) -> bytes:
    """A callback that reads a value's address from the caller's stack and writes through it."""
    made.does(DIRECT, "read", "write")
    code = ldvalue(0, DIRECT) + stx(10, -104, 0) + mov(3, 10) + addi(3, -104) + movi(1, 3) + movi(4, 0)
    made.calls.append((len(made.main) + len(code), len(made.subprograms) - 1 + 1))
    made.subprograms.append(ldx(2, 2) + st(2, 56, 1) + RETURN)
    return code + ldfunc(2, 0) + made.helper("loop")


def numbers(made: Made) -> bytes:
    name = made.rng.choice(("ktime_get_ns", "get_current_pid_tgid", "get_smp_processor_id", "get_prandom_u32"))
    code = made.helper(name) + stx(10, -80, 0)
    for _ in range(made.rng.randrange(4)):
        code += raw(made.rng.choice((0x0F, 0x1F, 0x2F, 0x4F, 0x5F, 0xAF, 0x0C, 0xAC)), 0, 0)
    return code + jeqi(0, made.rng.randrange(100), 1) + addi(0, 3) + ja(0)


PIECES: tuple[Callable[[Made], bytes], ...] = (
    *(lookup, lookup, lookup, update, delete, direct, either, output, reserve),
    *(through_subprogram, through_frames, each, loop, numbers, numbers),
)


def generate(rng: random.Random, size: int = 6) -> Made:
    """A program of up to `size` pieces."""
    made = Made(rng, mov(6, 1))
    # The verifier wants every slot of the stack that is read written first.
    for at in range(-136, -64, 8):
        made.main += st(10, at, 0)
    for _ in range(rng.randrange(1, size + 1)):
        made.main += rng.choice(PIECES)(made)
    made.main += RETURN
    return made
