"""The decoder: what it takes comes out as it went in, what it refuses has a place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfseal.signer.insn import FORMS, MAX_INSNS, Insn, decode, disassemble, encode
from bpfseal.signer.refusal import Refusal
from tests.signer_analysis.kit import EXIT, RETURN, ld64, movi, raw

TEXTS = [
    (raw(0xBF, 6, 1), "(bf) r6 = r1"),
    (raw(0xBC, 6, 1), "(bc) w6 = w1"),
    (raw(0xBF, 6, 1, 8), "(bf) r6 = (s8)r1"),
    (raw(0xBF, 6, 1, 32), "(bf) r6 = (s32)r1"),
    (raw(0xB7, 0, imm=-1), "(b7) r0 = -1"),
    (raw(0x07, 2, imm=-8), "(07) r2 += -8"),
    (raw(0x3F, 1, 2, 1), "(3f) r1 s/= r2"),
    (raw(0x94, 1, 0, 1, 5), "(94) w1 s%= 5"),
    (raw(0xC7, 1, imm=3), "(c7) r1 s>>= 3"),
    (raw(0x87, 1), "(87) r1 = -r1"),
    (raw(0xD7, 1, imm=64), "(d7) r1 = bswap64 r1"),
    (raw(0xDC, 1, imm=16), "(dc) r1 = be16 r1"),
    (raw(0xD4, 1, imm=32), "(d4) r1 = le32 r1"),
    (raw(0x79, 1, 6, 8), "(79) r1 = *(u64 *)(r6 +8)"),
    (raw(0x91, 1, 6, -1), "(91) r1 = *(s8 *)(r6 -1)"),
    (raw(0x7B, 10, 1, -16), "(7b) *(u64 *)(r10 -16) = r1"),
    (raw(0x62, 1, 0, 4, -7), "(62) *(u32 *)(r1 +4) = -7"),
    (raw(0xDB, 1, 2, 0, 0x00), "(db) lock_add((u64 *)(r1 +0), r2)"),
    (raw(0xC3, 1, 2, 0, 0xA1), "(c3) r2 = atomic_fetch_xor((u32 *)(r1 +0), r2)"),
    (raw(0xDB, 1, 2, 0, 0xE1), "(db) r2 = atomic_xchg((u64 *)(r1 +0), r2)"),
    (raw(0xDB, 1, 2, 0, 0xF1), "(db) r0 = atomic_cmpxchg((u64 *)(r1 +0), r0, r2)"),
    (raw(0xD3, 1, 2, 0, 0x100), "(d3) r1 = load_acquire((u8 *)(r2 +0))"),
    (raw(0xCB, 1, 2, 4, 0x110), "(cb) store_release((u16 *)(r1 +4), r2)"),
    (raw(0x15, 0, 0, 3, 0), "(15) if r0 == 0x0 goto pc+3"),
    (raw(0xCE, 1, 2, -3), "(ce) if w1 s< w2 goto pc-3"),
    (raw(0x05, off=-2), "(05) goto pc-2"),
    (raw(0x06, imm=70000), "(06) gotol pc+70000"),
    (raw(0xE5, off=4), "(e5) may_goto pc+4"),
    (raw(0x85, imm=1), "(85) call bpf_map_lookup_elem#1"),
    (raw(0x85, 0, 1, 0, 6), "(85) call pc+6"),
    (raw(0x85, 0, 2, 0, 77), "(85) call kfunc#77"),
    (raw(0x30, imm=14), "(30) r0 = *(u8 *)skb[14]"),
    (raw(0x48, 0, 7, 0, 2), "(48) r0 = *(u16 *)skb[r7 + 2]"),
    (EXIT, "(95) exit"),
]


@pytest.mark.parametrize(("insn", "text"), TEXTS, ids=[text for _, text in TEXTS])
def test_each_form(insn: bytes, text: str) -> None:
    decoded = decode(insn)
    assert disassemble(decoded[0]) == text
    assert encode(decoded) == insn


def test_pseudo_kinds_in_text() -> None:
    shown = [disassemble(*decode(ld64(1, 3, kind, high))) for kind, high in ((0, 1), (4, 0), (5, 0), (6, 24))]
    assert shown == ["(18) r1 = 0x100000003", "(18) r1 = func[3]", "(18) r1 = map[3]", "(18) r1 = map_value[3]+24"]


def test_slots_are_positions() -> None:
    decoded = decode(ld64(1, 1 << 40) + RETURN)
    assert len(decoded) == 4
    assert decoded[1] == Insn(0, 0, 1 << 8)
    assert (decoded[2].code, decoded[2].dst, decoded[2].src, decoded[2].imm) == (0xB7, 0, 0, 0)


def test_make_is_the_inverse_of_the_parts() -> None:
    insn = Insn.make(0x7B, 10, 1, -16, 0)
    assert (insn.code, insn.dst, insn.src, insn.off, insn.imm) == (0x7B, 10, 1, -16, 0)
    assert Insn.make(0xB7, imm=0xFFFFFFFF).imm == -1


def test_the_limit_is_the_kernels() -> None:
    assert len(decode(movi(0, 0) * (MAX_INSNS - 1) + EXIT)) == MAX_INSNS
    with pytest.raises(Refusal, match="over the limit"):
        decode(movi(0, 0) * MAX_INSNS + EXIT)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.binary(min_size=8, max_size=8), min_size=1, max_size=6))
def test_round_trip_or_refusal_with_a_place(slots: list[bytes]) -> None:
    data = b"".join(slots)
    try:
        decoded = decode(data)
    except Refusal as error:
        place = error.insn
    else:
        place = 0
        assert encode(decoded) == data
        _can_be_shown(decoded)
    assert place is not None
    assert place < len(slots)


def _can_be_shown(decoded: list[Insn]) -> None:
    for at, insn in enumerate(decoded):
        if insn.head:
            assert "???" not in disassemble(insn, decoded[at + 1] if insn.code == 0x18 else None)


def test_memory_for_forms_is_bounded() -> None:
    for head in range(1 << 16):
        try:
            decode(head.to_bytes(2, "little") + bytes(6))
        except Refusal:
            pass
    assert len(FORMS) < 1 << 15
