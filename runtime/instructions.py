"""Where instructions start: a probe in the middle of one breaks the traced program.

x86-64 by its encoding (Intel SDM volume 2, chapter 2 and appendix A): only lengths, from the start of a function on.
"""

from __future__ import annotations

from typing import Final

X86_64, AARCH64 = 62, 183  # e_machine

_PREFIXES: Final = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3))


def boundary(machine: int, code: bytes, offset: int) -> bool | None:
    """Whether an instruction of the function `code` starts at `offset`; None when that cannot be told."""
    if machine == AARCH64:
        return offset % 4 == 0
    if machine != X86_64:
        return None
    at = 0
    while at < offset:
        length = length_x86_64(code, at)
        if not length:
            return None
        at += length
    return at == offset


def _set(*ranges: int | tuple[int, int]) -> frozenset[int]:
    found: set[int] = set()
    for item in ranges:
        found |= {item} if isinstance(item, int) else set(range(item[0], item[1] + 1))
    return frozenset(found)


# fmt: off
_ARITHMETIC = tuple(8 * row + column for row in range(8) for column in range(4))
_MODRM: Final = _set(*_ARITHMETIC, 0x63, 0x69, 0x6B, (0x80, 0x81), (0x83, 0x8F), 0xC0, 0xC1, 0xC6, 0xC7,
                     (0xD0, 0xD3), (0xD8, 0xDF), 0xF6, 0xF7, 0xFE, 0xFF)
_BYTE: Final = _set(*(8 * row + 4 for row in range(8)), 0x6A, 0x6B, (0x70, 0x7F), 0x80, 0x83, 0xA8, (0xB0, 0xB7), 0xC0,
                    0xC1, 0xC6, 0xCD, (0xE0, 0xE7), 0xEB)
_WORD_OR_LONG: Final = _set(*(8 * row + 5 for row in range(8)), 0x68, 0x69, 0x81, 0xA9, 0xC7)
_INVALID: Final = _set(*(8 * row + column for row in range(8) for column in (6, 7)), 0x60, 0x61, 0x82, 0x9A, 0xCE,
                       0xD4, 0xD5, 0xD6, 0xEA) - _PREFIXES
_TWO_PLAIN: Final = _set((0x05, 0x09), 0x0B, 0x0E, (0x30, 0x37), 0x77, 0xA0, 0xA1, 0xA2, 0xA8, 0xA9, 0xAA, (0xC8, 0xCF))
_TWO_INVALID: Final = _set(0x04, 0x0A, 0x0C, (0x24, 0x27), 0x36, (0x39, 0x3F), 0xA6, 0xA7) - {0x3A}
_TWO_BYTE: Final = _set(0x0F, (0x70, 0x73), 0xA4, 0xAC, 0xBA, 0xC2, (0xC4, 0xC6))
# fmt: on


def length_x86_64(code: bytes, at: int) -> int:
    """Bytes of the instruction at `at`; 0 when the bytes are none or run out."""
    try:
        length = _length(code, at) - at
    except IndexError:
        return 0
    return length if 0 < length <= 15 and at + length <= len(code) else 0


def _length(code: bytes, start: int) -> int:
    """Index behind the instruction, `start` for an invalid one."""
    at, short, wide, narrow_address = start, False, False, False
    while code[at] in _PREFIXES:
        short = short or code[at] == 0x66
        narrow_address = narrow_address or code[at] == 0x67
        at += 1
    if code[at] & 0xF0 == 0x40:
        wide = bool(code[at] & 8)
        at += 1
    opcode = code[at]
    at += 1
    if opcode in (0xC4, 0xC5, 0x62):
        return _vector(code, start, opcode, at)
    if opcode == 0x0F:
        return _two_bytes(code, start, at)
    if opcode in _INVALID:
        return start
    if opcode in (0xF6, 0xF7):
        test = code[at] >> 3 & 7 < 2
        at = _operand(code, at)
        return at + ((1 if opcode == 0xF6 else 2 if short else 4) if test else 0)
    if opcode in _MODRM:
        at = _operand(code, at)
    if opcode in _BYTE:
        return at + 1
    if opcode in _WORD_OR_LONG:
        return at + (2 if short and not wide else 4)
    if 0xB8 <= opcode <= 0xBF:
        return at + (8 if wide else 2 if short else 4)
    if 0xA0 <= opcode <= 0xA3:
        return at + (4 if narrow_address else 8)
    return at + {0xC2: 2, 0xCA: 2, 0xC8: 3, 0xE8: 4, 0xE9: 4}.get(opcode, 0)


def _two_bytes(code: bytes, start: int, at: int) -> int:
    opcode = code[at]
    at += 1
    if opcode == 0x38:
        return _operand(code, at + 1)
    if opcode == 0x3A:
        return _operand(code, at + 1) + 1
    if opcode in _TWO_INVALID:
        return start
    if opcode in _TWO_PLAIN:
        return at
    if 0x80 <= opcode <= 0x8F:
        return at + 4
    return _operand(code, at) + (1 if opcode in _TWO_BYTE else 0)


def _vector(code: bytes, start: int, prefix: int, at: int) -> int:
    """VEX with two or three bytes, EVEX with four; their maps are those of 0F, 0F 38, 0F 3A."""
    if prefix == 0xC5:
        table, at = 1, at + 1
    elif prefix == 0xC4:
        table, at = code[at] & 0x1F, at + 2
    else:
        table, at = code[at] & 7, at + 3
    opcode = code[at]
    at += 1
    if table not in (1, 2, 3, 5, 6):
        return start
    if table == 1 and opcode == 0x77 and prefix != 0x62:
        return at
    return _operand(code, at) + (1 if table == 3 or (table == 1 and opcode in _TWO_BYTE) else 0)


def _operand(code: bytes, at: int) -> int:
    """Index behind ModRM, SIB and displacement."""
    modrm = code[at]
    at += 1
    mode, base = modrm >> 6, modrm & 7
    if mode == 3:
        return at
    if base == 4:
        base = code[at] & 7
        at += 1
        # base 5 in the SIB byte and base 5 in ModRM mean the same here: with mode 0 a displacement of four bytes
    if mode == 0:
        return at + (4 if base == 5 else 0)
    return at + (1 if mode == 1 else 4)
