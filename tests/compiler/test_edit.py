"""Edited code goes where it went before; markers become loop bounds."""

from __future__ import annotations

import struct

import pytest

from bpfseal.compiler.edit import BOUND, FENCE, Code, EditError

SLOT = struct.Struct("<BBhi")
EXIT = SLOT.pack(0x95, 0, 0, 0)
NOTHING = SLOT.pack(0xB7, 0, 0, 0)  # r0 = 0


def marker(kind: int, register: int) -> bytes:
    return SLOT.pack(0x18, register | kind << 4, 0, 0) + SLOT.pack(0, 0, 0, 0)


def slots(data: bytes) -> list[tuple[int, ...]]:
    return list(SLOT.iter_unpack(data))


def edited(data: bytes, starts: tuple[int, ...] = (0,)) -> tuple[bytes, list[int]]:
    code = Code(data, starts)
    code.bound_loops()
    code.tidy()
    return code.encode()


def test_unchanged() -> None:
    jump = SLOT.pack(0x05, 0, 1, 0)
    code = NOTHING + jump + NOTHING + EXIT
    assert edited(code)[0] == code


@pytest.mark.parametrize("between", [b"", NOTHING * 3])
def test_bound_that_leaves(between: bytes) -> None:
    """`if rX != 0 goto out` becomes `may_goto out`."""
    branch = SLOT.pack(0x55, 3, 1, 0)
    found, _ = edited(marker(BOUND, 3) + between + branch + NOTHING + EXIT)
    assert slots(found) == [*slots(between), (0xE5, 0, 1, 0), *slots(NOTHING + EXIT)]


def test_bound_that_stays() -> None:
    """`if rX == 0 goto body; out:` becomes `may_goto out; goto body; out:`."""
    branch = SLOT.pack(0x15, 3, 1, 0)
    found, _ = edited(marker(BOUND, 3) + branch + EXIT + NOTHING + EXIT)
    assert slots(found) == [(0xE5, 0, 1, 0), (0x05, 0, 1, 0), *slots(EXIT + NOTHING + EXIT)]


def test_fence_vanishes_and_jumps_follow() -> None:
    back = SLOT.pack(0x05, 0, -4, 0)
    found, _ = edited(NOTHING + marker(FENCE, 1) + NOTHING + back)
    assert slots(found) == [*slots(NOTHING * 2), (0x05, 0, -2, 0)]


def test_bound_without_branch() -> None:
    with pytest.raises(EditError):
        edited(marker(BOUND, 3) + EXIT)


def test_calls_and_starts_move_along() -> None:
    """A subprogram behind code that shrinks is still where calls of it go."""
    call = SLOT.pack(0x85, 1 << 4, 0, 3)
    shifts = SLOT.pack(0x67, 1, 0, 32) + SLOT.pack(0x77, 1, 0, 32)
    found, starts = edited(call + shifts + EXIT + NOTHING + EXIT, (0, 4))
    assert starts == [0, 3]
    assert slots(found)[0] == (0x85, 1 << 4, 0, 2)
    assert slots(found)[1] == (0xBC, 0x11, 0, 0)  # w1 = w1


def test_shifts_that_are_jumped_between_stay() -> None:
    shifts = SLOT.pack(0x67, 1, 0, 32) + SLOT.pack(0x77, 1, 0, 32)
    code = SLOT.pack(0x15, 2, 1, 0) + shifts + EXIT
    assert edited(code)[0] == code


def test_function_pointers_move_along() -> None:
    pointer = SLOT.pack(0x18, 1 | 4 << 4, 0, 4) + SLOT.pack(0, 0, 0, 0)
    shifts = SLOT.pack(0x67, 1, 0, 32) + SLOT.pack(0x77, 1, 0, 32)
    found, starts = edited(pointer + shifts + EXIT + NOTHING + EXIT, (0, 5))
    assert starts == [0, 4]
    assert slots(found)[0][3] == 3
