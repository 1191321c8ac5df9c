"""Which prologues bind a program to addresses, and which only look like it."""

from __future__ import annotations

import pytest

from bpfseal.signer.cfg import split
from bpfseal.signer.guard import guarded
from bpfseal.signer.insn import decode
from tests.signer_analysis.kit import (
    EXIT,
    RETURN,
    call,
    ja,
    jeq,
    jeqi,
    jne,
    ld64,
    ldx,
    lookup,
    mov,
    movi,
    raw,
    st,
    stx,
)

IP = call("get_func_ip")
A, B = 0xFFFFFFFF81000010, 0xFFFFFFFF81000020
WORK = lookup() + jeqi(0, 0, 1) + st(0, 0, 1)
SKIP = len(WORK) // 8


def addresses(insns: bytes) -> set[int] | None:
    decoded = decode(insns)
    found = guarded(decoded, split(decoded))
    return None if found is None else set(found)


GUARDS = {
    "not equal, leave": (IP + ld64(1, A) + jne(0, 1, SKIP) + WORK + RETURN, {A}),
    "equal, work": (IP + ld64(1, A) + jeq(0, 1, 2) + RETURN + WORK + RETURN, {A}),
    "sign-extended immediate": (IP + raw(0x55, 0, 0, SKIP, A & 0xFFFFFFFF) + WORK + RETURN, {A}),
    "constant on the left": (IP + ld64(1, A) + jne(1, 0, SKIP) + WORK + RETURN, {A}),
    "two addresses": (IP + ld64(1, A) + jeq(0, 1, 3) + ld64(1, B) + jne(0, 1, SKIP) + WORK + RETURN, {A, B}),
    "context kept, address moved": (mov(6, 1) + IP + mov(7, 0) + ld64(8, A) + jne(7, 8, SKIP) + WORK + RETURN, {A}),
    "reads before": (ldx(3, 1, 8) + stx(10, -16, 3) + IP + ld64(1, A) + jne(0, 1, SKIP) + WORK + RETURN, {A}),
    "binary search": (
        IP + ld64(1, A) + raw(0x2D, 0, 1, 2) + jeq(0, 1, 5) + ja(2) + movi(2, 0) + ja(0) + RETURN + WORK + RETURN,
        {A},
    ),
}
NOT_GUARDS = {
    "no comparison": IP + WORK + RETURN,
    "nothing but exit": RETURN,
    "compared, then ignored": IP + ld64(1, A) + jne(0, 1, 0) + WORK + RETURN,
    "inverted": IP + ld64(1, A) + jeq(0, 1, SKIP) + WORK + RETURN,
    "32 bits only": IP + ld64(1, A) + raw(0x5E, 0, 1, SKIP) + WORK + RETURN,
    "compared with a variable": mov(6, 1) + IP + ldx(1, 6, 8) + jne(0, 1, SKIP) + WORK + RETURN,
    "result changed": IP + raw(0x57, 0, imm=0) + ld64(1, 0) + jne(0, 1, SKIP) + WORK + RETURN,
    "another context": mov(1, 10) + IP + ld64(1, A) + jne(0, 1, SKIP) + WORK + RETURN,
    "work before": mov(6, 1) + WORK + mov(1, 6) + IP + ld64(1, A) + jne(0, 1, 0) + RETURN,
    "other helper": call("get_attach_cookie") + ld64(1, A) + jne(0, 1, SKIP) + WORK + RETURN,
    "a way round": ldx(3, 1) + jeqi(3, 0, 4) + IP + ld64(1, A) + jne(0, 1, SKIP) + WORK + RETURN,
    "greater is not equal": IP + ld64(1, A) + raw(0x2D, 0, 1, SKIP) + WORK + RETURN,
    "may_goto is no comparison": IP + raw(0xE5, off=SKIP) + WORK + RETURN,
    "store outside the stack": stx(1, 0, 1) + IP + ld64(1, A) + jne(0, 1, 0) + movi(0, 0) + EXIT,
}


@pytest.mark.parametrize("name", GUARDS)
def test_guard(name: str) -> None:
    insns, expected = GUARDS[name]
    assert addresses(insns) == expected


@pytest.mark.parametrize("name", NOT_GUARDS)
def test_no_guard(name: str) -> None:
    assert addresses(NOT_GUARDS[name]) is None


def test_thousands_of_addresses() -> None:
    count = 5000
    chain = b"".join(raw(0x15, 0, 0, (count - i - 1) + 2, 0x81000000 + 16 * i) for i in range(count))
    found = addresses(IP + chain + RETURN + WORK + RETURN)
    assert found is not None
    assert len(found) == count
