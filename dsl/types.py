"""The types of the language, as plain values.

Sizes are bytes. A type is *scalar* when the compiler keeps it in a register (integers, booleans, enums,
pointers, and the 8-byte handles of stacks, symbols and times) and *memory* when it is kept in memory and passed
by address (strings, buffers, records, arrays, tuples, network addresses).
"""

from __future__ import annotations

from typing import Union

from msgspec import Struct


class Void(Struct, frozen=True):
    """No value: statements and functions called for their effect."""


class Int(Struct, frozen=True):
    """An integer of 8, 16, 32 or 64 bits.

    Two remarks of the checker ride along and take no part in comparisons; nobody after it needs them. `flexible`: the
    value comes from non-negative literals only and takes the sign of whatever it meets. `space`: the integer is an
    address of that space (argN, reg(), kaddr()), so that dereferencing it reads the right memory.
    """

    bits: int = 64
    signed: bool = True
    flexible: bool = False
    space: str = ""

    def __eq__(self, other: object) -> bool:
        if type(other) is not Int:
            return NotImplemented
        return self.bits == other.bits and self.signed == other.signed

    def __hash__(self) -> int:
        return hash((Int, self.bits, self.signed))

    def __repr__(self) -> str:
        return f"Int(bits={self.bits}, signed={self.signed})"

    def __str__(self) -> str:
        return f"{'' if self.signed else 'u'}int{self.bits}"


class Bool(Struct, frozen=True):
    """One byte, 0 or 1, printed as true/false."""

    def __str__(self) -> str:
        return "bool"


ANONYMOUS = "#"
"""Begins the name of an enum that has none; what follows tells such enums apart."""


class Enum(Struct, frozen=True):
    """A C enum; values print as their names through `Environment.enum`."""

    name: str
    bits: int = 32
    signed: bool = False

    def __str__(self) -> str:
        return "enum" if self.name.startswith(ANONYMOUS) else f"enum {self.name}"


class Str(Struct, frozen=True):
    """A NUL-terminated string in a field of `size` bytes, the NUL included."""

    size: int

    def __str__(self) -> str:
        return f"string[{self.size}]" if self.size else "string"


class Buf(Struct, frozen=True):
    """Raw bytes: a u32 length, then up to `capacity` bytes."""

    capacity: int

    def __str__(self) -> str:
        return f"buffer[{self.capacity}]" if self.capacity else "buffer"


class Ptr(Struct, frozen=True):
    """A 64-bit address. `to` is None for void*. `space` says how it is read:

    kernel   bpf_probe_read_kernel; user  bpf_probe_read_user; none  decided at the point of use (kernel first);
    btf      trusted pointer of the verifier, fields load directly; ctx  the program's context;
    bpf      memory of our own (map value, stack), loads directly
    """

    to: Type | None
    space: str = "none"

    def __str__(self) -> str:
        return f"{self.to if self.to is not None else 'void'} *"


class Array(Struct, frozen=True):
    """`count` elements side by side."""

    element: Type
    count: int

    def __str__(self) -> str:
        return f"{self.element}[{self.count}]"


class Record(Struct, frozen=True):
    """A C struct or union by tag, or an anonymous one; fields are looked up through `Environment.record`.

    `name` is "struct task_struct", "union sigval", or a unique made-up name for anonymous ones; kept by name so
    that records may refer to each other and to themselves.
    """

    name: str
    size: int

    def __str__(self) -> str:
        return self.name


class Tuple(Struct, frozen=True):
    """Elements laid out like a C struct: natural alignment, padded to the largest.

    `names` is empty for tuples and one name per element for the language's own records `(x=1, y=2)`.
    """

    elements: tuple[Type, ...]
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.names:
            inner = ", ".join(f".{n} = {e}" for n, e in zip(self.names, self.elements, strict=True))
            return "{ " + inner + " }"
        return "(" + ", ".join(str(e) for e in self.elements) + ")"


class Stack(Struct, frozen=True):
    """A stack trace handle. `space` "kernel"/"user"; `mode` "bpftrace"/"perf"/"raw"/"build_id"; `depth` frames."""

    space: str
    mode: str = "bpftrace"
    depth: int = 127

    def __str__(self) -> str:
        return f"{self.space[0]}stack_{self.mode}_{self.depth}"


class Sym(Struct, frozen=True):
    """An address shown as a symbol. `space` "kernel" (8 bytes) or "user" (16: address, pid and probe id)."""

    space: str

    def __str__(self) -> str:
        return f"{self.space[0]}sym_t"


class Inet(Struct, frozen=True):
    """A network address for ntop: 8-byte family, then 16 bytes."""

    def __str__(self) -> str:
        return "inet"


class Mac(Struct, frozen=True):
    """Six bytes of hardware address."""

    def __str__(self) -> str:
        return "mac_address"


class Timestamp(Struct, frozen=True):
    """strftime(): u64 format id, then u64 nanoseconds; `mode` is the clock: "boot", "tai", "sw_tai"."""

    mode: str = "boot"

    def __str__(self) -> str:
        return "timestamp"


class CgroupPath(Struct, frozen=True):
    """cgroup_path(): u64 index of the mount, then u64 cgroup id, resolved when printed."""

    def __str__(self) -> str:
        return "cgroup_path_t"


class Username(Struct, frozen=True):
    """A u64 user id that prints as the user's name."""

    def __str__(self) -> str:
        return "username_t"


class Aggregate(Struct, frozen=True):
    """The value of a map written by an aggregation.

    `kind`: count sum min max avg stats hist lhist tseries. `signed` of the measured value. `params`: hist (bits,),
    lhist (min, max, step), tseries (interval_ns, buckets, aggregation kind as string).
    """

    kind: str
    signed: bool = True
    params: tuple[int | str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}_t" if self.signed or self.kind in ("count", "hist", "lhist") else f"u{self.kind}_t"


Type = Union[  # noqa: UP007 - a string forward reference in Ptr needs a runtime alias
    Void,
    Int,
    Bool,
    Enum,
    Str,
    Buf,
    Ptr,
    Array,
    Record,
    Tuple,
    Stack,
    Sym,
    Inet,
    Mac,
    Timestamp,
    CgroupPath,
    Username,
    Aggregate,
]

U8, U16, U32, U64 = Int(8, False), Int(16, False), Int(32, False), Int(64, False)
I8, I16, I32, I64 = Int(8, True), Int(16, True), Int(32, True), Int(64, True)
BOOL = Bool()
VOID = Void()

STACK_HANDLE = 24  # i64 stack id, u32 pid, u32 probe id, u64 reserved for the frame count


def size_of(type: Type) -> int:
    """Bytes that a value of `type` takes in a map, a tuple or an event."""
    match type:
        case Void():
            return 0
        case Int(bits=bits) | Enum(bits=bits):
            return bits // 8
        case Bool():
            return 1
        case Str(size=size) | Record(size=size):
            return size
        case Buf(capacity=capacity):
            return 4 + capacity
        case Ptr() | Username():
            return 8
        case Array(element=element, count=count):
            return size_of(element) * count
        case Tuple():
            return tuple_layout(type)[1]
        case Stack():
            return STACK_HANDLE
        case Sym(space=space):
            return 8 if space == "kernel" else 16
        case Inet():
            return 24
        case Mac():
            return 6
        case Timestamp() | CgroupPath():
            return 16
        case Aggregate(kind=kind):
            return {"count": 8, "sum": 8, "min": 16, "max": 16, "avg": 16, "stats": 16}.get(kind, 8)


def align_of(type: Type) -> int:
    """Natural alignment of `type` in bytes, at most 8."""
    match type:
        case Int(bits=bits) | Enum(bits=bits):
            return bits // 8
        case Bool() | Str() | Mac() | Void():
            return 1
        case Buf():
            return 4
        case Array(element=element):
            return align_of(element)
        case Tuple(elements=elements):
            return max((align_of(e) for e in elements), default=1)
        case _:
            return 8


def tuple_layout(type: Tuple) -> tuple[tuple[int, ...], int]:
    """(offset of each element, total size) of a tuple."""
    offsets: list[int] = []
    at = 0
    for element in type.elements:
        align = align_of(element)
        at = (at + align - 1) & -align
        offsets.append(at)
        at += size_of(element)
    align = align_of(type)
    return tuple(offsets), (at + align - 1) & -align


def is_scalar(type: Type) -> bool:
    """Whether the compiler keeps a value of `type` in a register."""
    return isinstance(type, Int | Bool | Enum | Ptr | Username) or (isinstance(type, Sym) and type.space == "kernel")


def is_integral(type: Type) -> bool:
    """Whether arithmetic works on `type` without a cast."""
    return isinstance(type, Int | Bool | Enum)


class Field(Struct, frozen=True):
    """A member of a record or of `args`.

    `offset` is bytes from the start of the record. Bitfields: `bits` > 0, `bit_offset` counted from `offset`'s
    least significant bit, and `type` is the integer the storage unit is read as. `data_loc`: tracepoint dynamic
    arrays, whose u32 at `offset` holds (length << 16 | offset from the record's start). `relative` data_locs
    (__rel_loc) count from the end of the field itself. `argument` >= 0: not memory at all but argument number N of
    the traced function or raw tracepoint.
    """

    name: str
    type: Type
    offset: int = 0
    bits: int = 0
    bit_offset: int = 0
    data_loc: bool = False
    relative: bool = False
    argument: int = -1


class RecordInfo(Struct, frozen=True):
    """The members of a struct, union, or argument record. `name` as in `Record.name`."""

    name: str
    size: int
    fields: tuple[Field, ...]
    union: bool = False

    def field(self, name: str) -> Field | None:
        for f in self.fields:
            if f.name == name:
                return f
        return None
