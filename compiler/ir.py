"""Writing LLVM IR as text: functions, blocks, values.

Text is what the assembler of LLVM reads fastest of all that Python can produce fast: an object per instruction costs
more than the whole optimiser does on a one-liner.

Integers in registers have their own width, booleans are `i1`; addresses that the verifier follows (context, kernel
objects, maps, stack) are `ptr`, foreign addresses are `i64`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

PTR: Final = "ptr"
I1, I8, I16, I32, I64 = "i1", "i8", "i16", "i32", "i64"


class Value(NamedTuple):
    """An operand: LLVM type and text, e.g. ("i64", "%t3") or ("i32", "-1")."""

    type: str
    text: str

    def __str__(self) -> str:
        return f"{self.type} {self.text}"


def const(value: int, type: str = I64) -> Value:
    """An integer constant; i1 takes 0 or 1."""
    return Value(type, str(value)) if type != I1 else Value(I1, "true" if value else "false")


NULL: Final = Value(PTR, "null")
TRUE: Final = Value(I1, "true")
FALSE: Final = Value(I1, "false")


def bits(type: str) -> int:
    """Width of an integer type."""
    return int(type[1:])


class Function:
    """One function being written. Instructions go to the end of the current block; after a jump they are dropped until
    a block is started, so that callers need not care whether code is reachable."""

    def __init__(self, name: str, returns: str, params: tuple[Value, ...], head: str = "", tail: str = "") -> None:
        """`head` stands before the result type (linkage), `tail` behind the parameters (section, attributes)."""
        self.name = name
        self.returns = returns
        self.params = params
        self._head, self._tail = head, tail
        self._entry: list[str] = []
        self._body: list[str] = []
        self._count = 0
        self.open = True

    def text(self) -> str:
        params = ", ".join(map(str, self.params))
        lines = (f"define {self._head}{self.returns} @{self.name}({params}) {self._tail}{{", *self._entry, *self._body)
        return "\n".join(lines) + "\n}\n"

    def fresh(self, hint: str = "t") -> str:
        self._count += 1
        return f"{hint}{self._count}"

    # Instructions

    def do(self, text: str) -> None:
        """An instruction without a result."""
        if self.open:
            self._body.append("  " + text)

    def op(self, type: str, text: str) -> Value:
        """An instruction with a result of `type`."""
        self._count += 1
        name = f"%t{self._count}"
        if self.open:
            self._body.append(f"  {name} = {text}")
            return Value(type, name)
        return Value(type, "poison")

    def alloca(self, size: int, align: int = 8) -> Value:
        """`size` bytes of stack for the whole function."""
        self._count += 1
        name = f"%a{self._count}"
        self._entry.append(f"  {name} = alloca [{size} x i8], align {align}")
        return Value(PTR, name)

    def slot(self, type: str) -> Value:
        """A variable of a register type, which LLVM turns into registers; zero from here on."""
        self._count += 1
        name = f"%v{self._count}"
        self._entry.append(f"  {name} = alloca {type}")
        self.do(f"store {type} {'null' if type == PTR else '0' if type != I1 else 'false'}, ptr {name}")
        return Value(PTR, name)

    # Blocks

    def start(self, label: str) -> None:
        """Begin the block `label`; the current one falls into it."""
        if self.open:
            self._body.append(f"  br label %{label}")
        self._body.append(f"{label}:")
        self.open = True

    def jump(self, label: str) -> None:
        self.do(f"br label %{label}")
        self.open = False

    def branch(self, condition: Value, yes: str, no: str) -> None:
        self.do(f"br i1 {condition.text}, label %{yes}, label %{no}")
        self.open = False

    def ret(self, value: Value | None = None) -> None:
        self.do(f"ret {value}" if value is not None else "ret void")
        self.open = False

    # Shorthands

    def load(self, type: str, pointer: Value, align: int) -> Value:
        return self.op(type, f"load {type}, ptr {pointer.text}, align {align}")

    def store(self, value: Value, pointer: Value, align: int) -> None:
        self.do(f"store {value}, ptr {pointer.text}, align {align}")

    def atomic_add(self, value: Value, pointer: Value) -> None:
        """Add to a word in memory whoever else does, too."""
        self.do(f"atomicrmw add ptr {pointer.text}, {value} monotonic")

    def add(self, pointer: Value, offset: int) -> Value:
        """Address `offset` bytes into memory of ours."""
        if not offset:
            return pointer
        return self.op(PTR, f"getelementptr i8, ptr {pointer.text}, i64 {offset}")

    def index(self, pointer: Value, offset: Value) -> Value:
        return self.op(PTR, f"getelementptr i8, ptr {pointer.text}, {offset}")

    def binary(self, op: str, left: Value, right: Value) -> Value:
        """`op`: add, sub, mul, and, or, xor, shl, lshr, ashr, udiv, urem."""
        return self.op(left.type, f"{op} {left}, {right.text}")

    def compare(self, op: str, left: Value, right: Value) -> Value:
        """`op`: eq, ne, ult, ule, ugt, uge, slt, sle, sgt, sge."""
        return self.op(I1, f"icmp {op} {left}, {right.text}")

    def is_null(self, pointer: Value) -> Value:
        return self.op(I1, f"icmp eq ptr {pointer.text}, null")

    def integer(self, value: Value, type: str, signed: bool = False) -> Value:
        """`value` as an integer of another width (i1 counts as unsigned), or an address as one."""
        if value.type == PTR:
            value = self.op(I64, f"ptrtoint {value} to i64")
        have, want = bits(value.type), bits(type)
        if have == want:
            return value
        if _is_number(value.text):
            number = int(value.text) & ((1 << have) - 1) if not signed else int(value.text)
            return Value(type, str(_wrap(number, want)))
        if have > want:
            return self.op(type, f"trunc {value} to {type}")
        return self.op(type, f"{'sext' if signed and have > 1 else 'zext'} {value} to {type}")

    def pointer(self, value: Value) -> Value:
        """An address that the verifier is to follow."""
        if value.type == PTR:
            return value
        if value.text == "0":
            return NULL
        return self.op(PTR, f"inttoptr {value} to ptr")

    def select(self, condition: Value, yes: Value, no: Value) -> Value:
        return self.op(yes.type, f"select {condition}, {yes}, {no}")


def _is_number(text: str) -> bool:
    return text.lstrip("-").isdigit()


def _wrap(value: int, width: int) -> int:
    value &= (1 << width) - 1
    return value - (1 << width) if width > 1 and value >> (width - 1) else value
