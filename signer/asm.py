"""A small BPF assembler: instructions in order, jumps to labels, nothing clever.

Used for programs that are written by hand here (the trusted loader, the enforcement program, feature probes). Register
operands are `R` members, immediates are plain ints, so that `mov(R.R1, R.R2)` and `mov(R.R1, 2)` cannot be mixed up.
Encodings: Documentation/bpf/standardization/instruction-set.rst of the kernel.
"""

from __future__ import annotations

import struct
from enum import IntEnum

INSN_SIZE = 8

# src_reg of a 16-byte load immediate (include/uapi/linux/bpf.h)
PSEUDO_MAP_FD = 1
PSEUDO_MAP_VALUE = 2
PSEUDO_BTF_ID = 3
PSEUDO_FUNC = 4
PSEUDO_MAP_IDX = 5
PSEUDO_MAP_IDX_VALUE = 6
# src_reg of a call
PSEUDO_CALL = 1
PSEUDO_KFUNC_CALL = 2


class R(IntEnum):
    """Registers. r6 to r9 survive calls, r10 is the read-only frame pointer."""

    R0 = 0
    R1 = 1
    R2 = 2
    R3 = 3
    R4 = 4
    R5 = 5
    R6 = 6
    R7 = 7
    R8 = 8
    R9 = 9
    R10 = 10


_SIZE_BITS = {4: 0x00, 2: 0x08, 1: 0x10, 8: 0x18}

_ALU = {
    "add": 0x00,
    "sub": 0x10,
    "mul": 0x20,
    "div": 0x30,
    "or": 0x40,
    "and": 0x50,
    "lsh": 0x60,
    "rsh": 0x70,
    "neg": 0x80,
    "mod": 0x90,
    "xor": 0xA0,
    "mov": 0xB0,
    "arsh": 0xC0,
}

_JUMP = {
    "==": 0x10,
    ">": 0x20,
    ">=": 0x30,
    "&": 0x40,
    "!=": 0x50,
    "s>": 0x60,
    "s>=": 0x70,
    "<": 0xA0,
    "<=": 0xB0,
    "s<": 0xC0,
    "s<=": 0xD0,
}

_INSN = struct.Struct("<BBhi")
_IMM32 = struct.Struct("<I")


def put_imm(code: bytearray, slot: int, value: int, *, wide: bool = False) -> None:
    """Replace the immediate of the instruction at `slot`; `wide` for both halves of an ld_imm64. Raises ValueError for
    a number that does not fit the one half."""
    if wide:
        _IMM32.pack_into(code, slot * INSN_SIZE + 12, value >> 32 & 0xFFFFFFFF)
        value &= 0xFFFFFFFF
    _IMM32.pack_into(code, slot * INSN_SIZE + 4, _imm(value) & 0xFFFFFFFF)


def _imm(value: int) -> int:
    """`value` as the signed 32 bits that an instruction holds. Unsigned 32-bit values are taken too."""
    if not -(1 << 31) <= value < 1 << 32:
        raise ValueError(f"immediate {value} does not fit 32 bits")
    return value - (1 << 32) if value >= 1 << 31 else value


class Asm:
    """Collects instructions; `code()` resolves the labels and returns the bytes."""

    def __init__(self) -> None:
        self._insns: list[tuple[int, int, int, int | str, int]] = []
        self._labels: dict[str, int] = {}
        self._calls: dict[int, str] = {}
        self.marks: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._insns)

    def raw(self, opcode: int, dst: int = 0, src: int = 0, off: int | str = 0, imm: int = 0) -> None:
        """One instruction slot as it is. `off` may be a label, then the instruction is a jump."""
        self._insns.append((opcode, dst, src, off, _imm(imm)))

    def label(self, name: str) -> None:
        if name in self._labels:
            raise ValueError(f"label {name} is defined twice")
        self._labels[name] = len(self._insns)

    def mark(self, name: str) -> None:
        """Remember where the next instruction is, to put another immediate there later (`put_imm`)."""
        self.marks[name] = len(self._insns)

    def alu(self, op: str, dst: R, src: R | int, *, bits: int = 64) -> None:
        opcode = _ALU[op] | (0x07 if bits == 64 else 0x04)
        if isinstance(src, R):
            self.raw(opcode | 0x08, dst, src)
        else:
            self.raw(opcode, dst, imm=src)

    def mov(self, dst: R, src: R | int, *, bits: int = 64) -> None:
        self.alu("mov", dst, src, bits=bits)

    def add(self, dst: R, src: R | int) -> None:
        self.alu("add", dst, src)

    def ldx(self, size: int, dst: R, base: R, off: int = 0) -> None:
        """dst = *(unsigned `size` bytes *)(base + off)"""
        self.raw(0x61 | _SIZE_BITS[size], dst, base, off)

    def stx(self, size: int, base: R, off: int, src: R) -> None:
        """*(`size` bytes *)(base + off) = src"""
        self.raw(0x63 | _SIZE_BITS[size], base, src, off)

    def st(self, size: int, base: R, off: int, imm: int) -> None:
        """*(`size` bytes *)(base + off) = imm"""
        self.raw(0x62 | _SIZE_BITS[size], base, off=off, imm=imm)

    def xchg(self, size: int, base: R, off: int, src: R) -> None:
        """Atomic exchange of src with *(base + off); size 4 or 8."""
        self.raw(0xC3 | _SIZE_BITS[size], base, src, off, 0xE1)

    def atomic_add(self, size: int, base: R, off: int, src: R) -> None:
        self.raw(0xC3 | _SIZE_BITS[size], base, src, off, 0x00)

    def ld_imm64(self, dst: R, value: int) -> None:
        value &= (1 << 64) - 1
        self.raw(0x18, dst, imm=value & 0xFFFFFFFF)
        self.raw(0, imm=value >> 32)

    def ld_pseudo(self, dst: R, kind: int, first: int, second: int = 0) -> None:
        """The 16-byte load of a kernel object: map by fd or index, map value, BTF variable (PSEUDO_*)."""
        self.raw(0x18, dst, kind, imm=first)
        self.raw(0, imm=second)

    def jump(self, label: str) -> None:
        self.raw(0x05, off=label)

    def jump_if(self, dst: R, op: str, src: R | int, label: str, *, bits: int = 64) -> None:
        opcode = _JUMP[op] | (0x05 if bits == 64 else 0x06)
        if isinstance(src, R):
            self.raw(opcode | 0x08, dst, src, label)
        else:
            self.raw(opcode, dst, 0, label, src)

    def call(self, helper: int) -> None:
        """Helper by number (enum bpf_func_id)."""
        self.raw(0x85, imm=helper)

    def call_kfunc(self, btf_id: int, *, offset: int = 0) -> None:
        """kfunc by BTF id; `offset` is the fd_array index of a module's BTF, 0 for vmlinux."""
        self.raw(0x85, 0, PSEUDO_KFUNC_CALL, offset, btf_id)

    def call_local(self, label: str) -> None:
        """A subprogram of this program."""
        self._calls[len(self._insns)] = label
        self.raw(0x85, 0, PSEUDO_CALL)

    def exit(self) -> None:
        self.raw(0x95)

    def ret(self, value: int) -> None:
        self.mov(R.R0, value)
        self.exit()

    def code(self) -> bytes:
        """The instructions. Raises ValueError for an unknown label or a jump that is too far for 16 bits."""
        out = bytearray()
        for at, (opcode, dst, src, off, imm) in enumerate(self._insns):
            if isinstance(off, str):
                off = self._distance(at, off)
            if at in self._calls:
                imm = self._distance(at, self._calls[at])
            if not -0x8000 <= off < 0x8000:
                raise ValueError(f"offset {off} of instruction {at} does not fit 16 bits")
            out += _INSN.pack(opcode, src << 4 | dst, off, imm)
        return bytes(out)

    def _distance(self, at: int, label: str) -> int:
        try:
            return self._labels[label] - at - 1
        except KeyError:
            raise ValueError(f"no label {label}") from None
