"""The BPF instruction set, v1 to v4: decoder, encoder and disassembler.

Encodings after RFC 9669 and `include/uapi/linux/bpf.h`; which fields must be zero after the checks in
`kernel/bpf/verifier.c`. What the set does not define is refused, including what kernels only use inside
(register 11, PROBE_MEM loads, stores to arenas) and jumps and calls by register, which no analysis here follows.

A decoded program is a list with one `Insn` per 8-byte slot, so that positions are those of jump offsets. The
second slot of `ld_imm64` is an Insn with head 0.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import Final, NamedTuple

from bpfseal.signer.refusal import Refusal

# Classes, sizes, modes
LD, LDX, ST, STX, ALU, JMP, JMP32, ALU64 = range(8)
W, H, B, DW = 0x00, 0x08, 0x10, 0x18
IMM, ABS, IND, MEM, MEMSX, ATOMIC = 0x00, 0x20, 0x40, 0x60, 0x80, 0xC0
K, X = 0x00, 0x08
ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, NEG, MOD, XOR, MOV, ARSH, END = range(0x00, 0xE0, 0x10)
JA, JEQ, JGT, JGE, JSET, JNE, JSGT, JSGE, CALL, EXIT, JLT, JLE, JSLT, JSLE, JCOND = range(0x00, 0xF0, 0x10)
FETCH, XCHG, CMPXCHG, LOAD_ACQ, STORE_REL = 0x01, 0xE1, 0xF1, 0x100, 0x110
LD_IMM64: Final = LD | IMM | DW

# src_reg of ld_imm64 and of call
PSEUDO_MAP_FD, PSEUDO_MAP_VALUE, PSEUDO_BTF_ID, PSEUDO_FUNC, PSEUDO_MAP_IDX, PSEUDO_MAP_IDX_VALUE = range(1, 7)
PSEUDO_CALL, PSEUDO_KFUNC_CALL = 1, 2

MAX_INSNS: Final = 1_000_000  # BPF_COMPLEXITY_LIMIT_INSNS, the kernel's limit for one program with CAP_BPF


class Insn(NamedTuple):
    """One slot: `head` is opcode | dst << 8 | src << 12, as in the first two bytes."""

    head: int
    off: int
    imm: int

    @property
    def code(self) -> int:
        return self.head & 0xFF

    @property
    def dst(self) -> int:
        return self.head >> 8 & 15

    @property
    def src(self) -> int:
        return self.head >> 12

    @classmethod
    def make(cls, code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> Insn:
        """An Insn of its parts. `imm` may be given unsigned."""
        return cls(code | dst << 8 | src << 12, off, imm - (1 << 32) if imm >= 1 << 31 else imm)


# What an instruction does to registers and control; the analysis switches on it.
(OP_SCALAR, OP_MOVE, OP_PTR_ADD, OP_KEEP, OP_LOAD, OP_SPILL, OP_STORE, OP_ATOMIC, OP_PACKET, OP_LD_IMM64, OP_HELPER,
 OP_KFUNC, OP_CALL, OP_BRANCH, OP_JUMP, OP_JUMP_LONG, OP_EXIT) = range(17)  # fmt: skip

# Which of off and imm are in use; the others must be 0.
(USES_NONE, USES_IMM, USES_OFF, USES_BOTH, USES_SPECIAL) = range(5)

Form = tuple[int, int, int, int]  # (OP_*, dst, src, USES_*)

_SLOT: Final = struct.Struct("<Hhi")
_ATOMICS: Final = frozenset((ADD, OR, AND, XOR, ADD | FETCH, OR | FETCH, AND | FETCH, XOR | FETCH, XCHG, CMPXCHG))
_make_insn = partial(tuple.__new__, Insn)


def _bad(reason: str, rule: str = "opcode") -> Refusal:
    return Refusal(rule, reason)


def _form(head: int) -> Form:
    """Shape of an instruction from its opcode and registers. Raises Refusal for what the set does not define."""
    code, dst, src = head & 0xFF, head >> 8 & 15, head >> 12
    if code == LD_IMM64:
        if src > PSEUDO_MAP_IDX_VALUE:
            raise _bad(f"ld_imm64 of unknown kind {src}", "pseudo")
        _writable(dst)
        return OP_LD_IMM64, dst, src, USES_IMM
    cls = code & 7
    if cls in (ALU, ALU64):
        form = _alu_form(code, dst, src)
    elif cls in (JMP, JMP32):
        form = _jump_form(code, dst, src)
    else:
        form = _memory_form(code, dst, src)
    if dst > 10 or src > 10:
        raise _bad(f"register r{max(dst, src)} does not exist", "register")
    return form


def _writable(dst: int) -> None:
    if dst >= 10:
        raise _bad("the frame pointer is read-only" if dst == 10 else f"register r{dst} does not exist", "register")


def _no_src(src: int) -> None:
    if src:
        raise _bad("reserved source register is not zero", "reserved")


def _alu_form(code: int, dst: int, src: int) -> Form:
    cls, op = code & 7, code & 0xF0
    _writable(dst)
    if op > END or (op == NEG and code & X) or (op == END and cls == ALU64 and code & X):
        raise _bad(f"unknown opcode {code:#04x}")
    if op == END:
        _no_src(src)
        return OP_SCALAR, dst, src, USES_SPECIAL
    if op == NEG:
        _no_src(src)
        return OP_SCALAR, dst, src, USES_NONE
    if not code & X:
        _no_src(src)
        kind = OP_KEEP if cls == ALU64 and op in (ADD, SUB) else OP_SCALAR
        return kind, dst, src, USES_SPECIAL if op in (DIV, MOD) else USES_IMM
    kind = OP_SCALAR
    if cls == ALU64:
        kind = OP_MOVE if op == MOV else OP_PTR_ADD if op in (ADD, SUB) else OP_SCALAR
    return kind, dst, src, USES_SPECIAL if op in (DIV, MOD, MOV) else USES_NONE


def _jump_form(code: int, dst: int, src: int) -> Form:
    cls, op = code & 7, code & 0xF0
    if code in (JMP | CALL | X, JMP32 | CALL | X):
        raise _bad("call by register", "call-register")
    if code == JMP | JA | X:
        raise _bad("goto by register", "goto-register")
    if op in (JA, CALL, EXIT, JCOND):
        if code not in (JMP | JA, JMP32 | JA, JMP | CALL, JMP | EXIT, JMP | JCOND):
            raise _bad(f"unknown opcode {code:#04x}")
        if dst:
            raise _bad("reserved destination register is not zero", "reserved")
        if op == CALL:
            if src > PSEUDO_KFUNC_CALL:
                raise _bad(f"call of unknown kind {src}", "pseudo")
            return (OP_HELPER, OP_CALL, OP_KFUNC)[src], dst, src, USES_SPECIAL if src == PSEUDO_KFUNC_CALL else USES_IMM
        if op == JCOND and src:
            raise _bad(f"unknown conditional jump {src}")
        _no_src(src)
        if op == EXIT:
            return OP_EXIT, dst, src, USES_NONE
        if op == JCOND:
            return OP_BRANCH, dst, src, USES_OFF
        return (OP_JUMP_LONG, dst, src, USES_IMM) if cls == JMP32 else (OP_JUMP, dst, src, USES_OFF)
    if op > JCOND:
        raise _bad(f"unknown opcode {code:#04x}")
    if code & X:
        return OP_BRANCH, dst, src, USES_OFF
    _no_src(src)
    return OP_BRANCH, dst, src, USES_BOTH


def _memory_form(code: int, dst: int, src: int) -> Form:
    cls, size, mode = code & 7, code & 0x18, code & 0xE0
    if cls == LD and mode in (ABS, IND) and size != DW:
        if dst or (mode == ABS and src):
            raise _bad("reserved register is not zero", "reserved")
        return OP_PACKET, dst, src, USES_IMM
    if cls == LDX and (mode == MEM or (mode == MEMSX and size != DW)):
        _writable(dst)
        return OP_LOAD, dst, src, USES_OFF
    if cls == ST and mode == MEM:
        _no_src(src)
        return OP_STORE, dst, src, USES_BOTH
    if cls == STX and mode == MEM:
        return OP_SPILL if size == DW else OP_STORE, dst, src, USES_OFF
    if cls == STX and mode == ATOMIC:
        return OP_ATOMIC, dst, src, USES_SPECIAL
    raise _bad(f"unknown opcode {code:#04x}")


def _check_special(insn: Insn, kind: int) -> None:
    """Rules that depend on off or imm. Raises Refusal."""
    code, off, imm = insn.code, insn.off, insn.imm
    op = code & 0xF0
    if kind == OP_ATOMIC:
        size = code & 0x18
        if imm == LOAD_ACQ:
            _writable(insn.dst)
        elif imm != STORE_REL and (imm not in _ATOMICS or size not in (W, DW)):
            raise _bad(f"unknown atomic operation {imm:#x}", "atomic")
        elif imm & FETCH and imm != CMPXCHG:
            _writable(insn.src)
    elif kind == OP_KFUNC:
        if off:
            raise _bad("kfunc of a module", "kfunc")
    elif op == END:
        if off:
            raise _bad("reserved offset is not zero", "reserved")
        if imm not in (16, 32, 64):
            raise _bad(f"byte swap of {imm} bits")
    elif op == MOV:
        if imm:
            raise _bad("reserved immediate is not zero", "reserved")
        if off not in ((0, 8, 16, 32) if code & 7 == ALU64 else (0, 8, 16)):
            raise _bad(f"move with unknown width {off}")
    else:
        if off not in (0, 1):
            raise _bad(f"division of unknown kind {off}")
        if code & X and imm:
            raise _bad("reserved immediate is not zero", "reserved")


class _Forms(dict[int, Form]):
    """Forms by head, filled as they are met; at most 65,536."""

    def __missing__(self, head: int) -> Form:
        form = self[head] = _form(head)
        return form


FORMS: Final = _Forms()


def decode(insns: bytes) -> list[Insn]:
    """One Insn per slot. Raises Refusal with the slot's index for anything the set does not define.

    Jump targets are not looked at here: `cfg.split` does that.
    """
    if len(insns) % 8:
        raise Refusal("length", f"{len(insns)} bytes are not whole instructions")
    if not insns:
        raise Refusal("length", "no instructions")
    if len(insns) > MAX_INSNS * 8:
        raise Refusal("length", f"{len(insns) // 8} instructions are over the limit of {MAX_INSNS}")
    decoded: list[Insn] = list(map(_make_insn, _SLOT.iter_unpack(insns)))
    forms, slots, at = FORMS, enumerate(decoded), 0
    try:
        for at, insn in slots:  # noqa: B007 (for the error below)
            kind, _dst, src, uses = forms[insn[0]]
            if uses == USES_BOTH:
                continue
            if uses == USES_OFF:
                if insn[2]:
                    raise _bad("reserved immediate is not zero", "reserved")
            elif uses == USES_SPECIAL:
                if kind != OP_MOVE or insn[1] or insn[2]:
                    _check_special(insn, kind)
            else:
                if insn[1]:
                    raise _bad("reserved offset is not zero", "reserved")
                if uses == USES_NONE and insn[2]:
                    raise _bad("reserved immediate is not zero", "reserved")
                if kind == OP_LD_IMM64:
                    _at, second = next(slots, (0, None))
                    if second is None:
                        raise _bad("ld_imm64 is cut at the end", "ld_imm64")
                    if second[0] or second[1]:
                        raise _bad("second half of ld_imm64 has reserved fields that are not zero", "ld_imm64")
                    if src not in (0, PSEUDO_MAP_VALUE, PSEUDO_MAP_IDX_VALUE) and second[2]:
                        raise _bad("second half of ld_imm64 has reserved fields that are not zero", "ld_imm64")
    except Refusal as error:
        raise error.at("", at) from None
    return decoded


def encode(insns: list[Insn]) -> bytes:
    """The bytes that `decode` turns into `insns`."""
    pack = _SLOT.pack
    return b"".join(pack(*insn) for insn in insns)


def imm64(first: Insn, second: Insn) -> int:
    """The 64-bit constant of an ld_imm64, unsigned."""
    return (first.imm & 0xFFFFFFFF) | (second.imm & 0xFFFFFFFF) << 32


_SIZES: Final = {W: "u32", H: "u16", B: "u8", DW: "u64"}
_ALU_SIGNS: Final = dict(
    zip(
        range(0, 0xD0, 0x10),
        ("+=", "-=", "*=", "/=", "|=", "&=", "<<=", ">>=", "", "%=", "^=", "=", "s>>="),
        strict=True,
    )
)
_JUMP_SIGNS: Final = {
    JEQ: "==", JGT: ">", JGE: ">=", JSET: "&", JNE: "!=", JSGT: "s>", JSGE: "s>=", JLT: "<", JLE: "<=", JSLT: "s<",
    JSLE: "s<=",
}  # fmt: skip
_ATOMIC_NAMES: Final = {ADD: "add", OR: "or", AND: "and", XOR: "xor"}
_PSEUDO_NAMES: Final = ("", "map_fd", "map_value_fd", "btf_id", "func", "map", "map_value")


def disassemble(insn: Insn, second: Insn | None = None) -> str:
    """One instruction in the manner of kernel dumps, e.g. `(79) r1 = *(u64 *)(r6 +8)`. `second` for ld_imm64."""
    from bpfseal.signer.helpers import HELPERS

    head, off, imm = insn
    code, dst, src = insn.code, insn.dst, insn.src
    try:
        kind = FORMS[head][0]
    except Refusal:
        return f"({code:02x}) ???"
    text = ""
    if kind == OP_LD_IMM64:
        value = imm64(insn, second) if second is not None else imm & 0xFFFFFFFF
        target = f"{value:#x}" if not src else f"{_PSEUDO_NAMES[src]}[{imm}]"
        text = f"r{dst} = {target}" + (f"+{second.imm}" if src == PSEUDO_MAP_IDX_VALUE and second is not None else "")
    elif kind == OP_HELPER:
        text = f"call bpf_{HELPERS[imm].name}#{imm}" if imm in HELPERS else f"call unknown#{imm}"
    elif kind in (OP_CALL, OP_KFUNC):
        text = f"call pc{imm:+d}" if kind == OP_CALL else f"call kfunc#{imm}"
    elif kind == OP_EXIT:
        text = "exit"
    elif kind in (OP_JUMP, OP_JUMP_LONG):
        text = f"goto pc{off:+d}" if kind == OP_JUMP else f"gotol pc{imm:+d}"
    elif kind == OP_BRANCH:
        if code & 0xF0 == JCOND:
            text = f"may_goto pc{off:+d}"
        else:
            name = "w" if code & 7 == JMP32 else "r"
            right = f"{name}{src}" if code & X else f"{imm & 0xFFFFFFFF:#x}"
            text = f"if {name}{dst} {_JUMP_SIGNS[code & 0xF0]} {right} goto pc{off:+d}"
    elif kind == OP_PACKET:
        at = f"r{src} + {imm}" if code & 0xE0 == IND else f"{imm}"
        text = f"r0 = *({_SIZES[code & 0x18]} *)skb[{at}]"
    elif kind == OP_LOAD:
        size = _SIZES[code & 0x18]
        text = f"r{dst} = *({size.replace('u', 's') if code & 0xE0 == MEMSX else size} *)(r{src} {off:+d})"
    elif kind in (OP_STORE, OP_SPILL):
        text = f"*({_SIZES[code & 0x18]} *)(r{dst} {off:+d}) = " + (f"{imm}" if code & 7 == ST else f"r{src}")
    elif kind == OP_ATOMIC:
        text = _atomic_text(insn)
    else:
        text = _alu_text(insn)
    return f"({code:02x}) {text}"


def _atomic_text(insn: Insn) -> str:
    size, imm = _SIZES[insn.code & 0x18], insn.imm
    place = f"(({size} *)(r{insn.dst} {insn.off:+d})"
    if imm == LOAD_ACQ:
        return f"r{insn.dst} = load_acquire(({size} *)(r{insn.src} {insn.off:+d}))"
    if imm == STORE_REL:
        return f"store_release{place}, r{insn.src})"
    if imm == CMPXCHG:
        return f"r0 = atomic_cmpxchg{place}, r0, r{insn.src})"
    if imm == XCHG:
        return f"r{insn.src} = atomic_xchg{place}, r{insn.src})"
    name = _ATOMIC_NAMES.get(imm & ~FETCH, "???")
    return (
        f"r{insn.src} = atomic_fetch_{name}{place}, r{insn.src})"
        if imm & FETCH
        else f"lock_{name}{place}, r{insn.src})"
    )


def _alu_text(insn: Insn) -> str:
    code, op = insn.code, insn.code & 0xF0
    name = "w" if code & 7 == ALU else "r"
    if op == END:
        swap = "bswap" if code & 7 == ALU64 else "be" if code & X else "le"
        return f"r{insn.dst} = {swap}{insn.imm} r{insn.dst}"
    if op == NEG:
        return f"{name}{insn.dst} = -{name}{insn.dst}"
    right = f"{name}{insn.src}" if code & X else f"{insn.imm}"
    if op == MOV and insn.off:
        right = f"(s{insn.off})r{insn.src}"
    sign = f"s{_ALU_SIGNS[op]}" if op in (DIV, MOD) and insn.off == 1 else _ALU_SIGNS[op]
    return f"{name}{insn.dst} {sign} {right}"
