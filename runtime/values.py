"""Bytes from the kernel to Python values, by Shape.

`decoder(shape)` builds a function once per shape; decoding is then a call with a buffer and an offset. Values are
what a Python user expects: int, bool, str (undecodable bytes as surrogate escapes, so that nothing is lost), bytes,
tuple, list, dict, and the small classes below where rendering needs more than the value.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import msgspec

from bpfseal.compiler.layout import CUT, Shape

Buffer = bytes | bytearray | memoryview
Decoder = Callable[[Buffer, int], Any]

_INTS = {
    (1, False): struct.Struct("<B"),
    (1, True): struct.Struct("<b"),
    (2, False): struct.Struct("<H"),
    (2, True): struct.Struct("<h"),
    (4, False): struct.Struct("<I"),
    (4, True): struct.Struct("<i"),
    (8, False): struct.Struct("<Q"),
    (8, True): struct.Struct("<q"),
}


class EnumValue(int):
    """An integer that knows the name of the enumerator, "" when it has none."""

    name: str

    def __new__(cls, value: int, name: str) -> EnumValue:
        self = super().__new__(cls, value)
        self.name = name
        return self


class Pointer(int):
    """An address; prints as hex."""


class UserId(int):
    """A user id that came from `username`; prints as the user's name."""

    @property
    def name(self) -> str:
        """The name in the user database; the number where there is none."""
        return _user(int(self))


@lru_cache(maxsize=1024)
def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


class StackValue(msgspec.Struct, frozen=True):
    """A stack trace before symbols: `id` in the stack map `map`, frames looked up when rendered."""

    space: str
    id: int
    pid: int
    probe: int
    frames: int
    mode: str
    depth: int


class SymbolValue(msgspec.Struct, frozen=True):
    """An address to be shown as a symbol. `pid` 0 for the kernel."""

    space: str
    address: int
    pid: int = 0
    probe: int = 0


class TimestampValue(msgspec.Struct, frozen=True):
    """strftime's argument: `nanoseconds` on `clock`, to be written with format number `format`."""

    format: int
    nanoseconds: int
    clock: str


class CgroupPathValue(msgspec.Struct, frozen=True):
    id: int
    mount: int


class Fields(dict[str, Any]):
    """A C record or language record: field name → value, in declaration order."""


def decoder(shape: Shape, enums: Mapping[str, Mapping[int, str]]) -> Decoder:
    """The function that decodes `shape`. Aggregates are not values of one place: see `runtime.maps`."""
    match shape.kind:
        case "int":
            packed = _INTS[shape.size, shape.signed]
            if shape.name == "username":
                return lambda data, at: UserId(packed.unpack_from(data, at)[0])
            return lambda data, at: packed.unpack_from(data, at)[0]
        case "bool":
            return lambda data, at: data[at] != 0
        case "ptr":
            address = _INTS[8, False]
            return lambda data, at: Pointer(address.unpack_from(data, at)[0])
        case "enum":
            packed = _INTS[shape.size, shape.signed]
            names = enums.get(shape.name, {})
            return lambda data, at: _enum(packed.unpack_from(data, at)[0], names)
        case "str":
            return partial(_string, shape.size, str(shape.params[0]) if shape.params else CUT)
        case "buf":
            return _buffer
        case "array":
            assert shape.element is not None
            return partial(_array, decoder(shape.element, enums), shape.element.size, shape.count)
        case "tuple" | "record":
            return _members(shape, enums)
        case "kstack" | "ustack":
            return partial(_stack, shape)
        case "ksym":
            address = _INTS[8, False]
            return lambda data, at: SymbolValue("kernel", address.unpack_from(data, at)[0])
        case "usym":
            return _usym
        case "inet":
            return _inet
        case "mac":
            return lambda data, at: ":".join(f"{b:02X}" for b in data[at : at + 6])
        case "timestamp":
            return partial(_timestamp, str(shape.params[0]) if shape.params else "boot")
        case "cgroup_path":
            return lambda data, at: CgroupPathValue(*reversed(struct.unpack_from("<QQ", data, at)))
        case "none":
            return lambda data, at: None
    raise ValueError(f"no decoder for shape {shape.kind!r}")


def _enum(value: int, names: Mapping[int, str]) -> EnumValue:
    return EnumValue(value, names.get(value, ""))


def _string(size: int, cut: str, data: Buffer, at: int) -> str:
    raw = bytes(data[at : at + size])
    end = raw.find(0)
    if end < 0:
        return raw.decode("utf-8", "surrogateescape") + cut
    return raw[:end].decode("utf-8", "surrogateescape")


def _buffer(data: Buffer, at: int) -> bytes:
    length = _INTS[4, False].unpack_from(data, at)[0]
    return bytes(data[at + 4 : at + 4 + length])


def _array(element: Decoder, stride: int, count: int, data: Buffer, at: int) -> list[Any]:
    return [element(data, at + i * stride) for i in range(count)]


def _members(shape: Shape, enums: Mapping[str, Mapping[int, str]]) -> Decoder:
    parts: list[tuple[str, int, Decoder]] = []
    for member in shape.members:
        decode = decoder(member.shape, enums)
        if member.bits:
            decode = partial(_bits, decode, member.bits, member.bit_offset, member.shape.signed)
        parts.append((member.name, member.offset, decode))
    if shape.kind == "record" or any(m.name for m in shape.members):
        return lambda data, at: Fields((name, decode(data, at + offset)) for name, offset, decode in parts)
    return lambda data, at: tuple(decode(data, at + offset) for _, offset, decode in parts)


def _bits(decode: Decoder, bits: int, shift: int, signed: bool, data: Buffer, at: int) -> int:
    value = (int(decode(data, at)) >> shift) & ((1 << bits) - 1)
    return value - (1 << bits) if signed and value >> (bits - 1) else value


def _stack(shape: Shape, data: Buffer, at: int) -> StackValue:
    identity, pid, probe, frames = struct.unpack_from("<qIIQ", data, at)
    mode = str(shape.params[0]) if shape.params else "bpftrace"
    depth = int(shape.params[1]) if len(shape.params) > 1 else 127
    space = "kernel" if shape.kind == "kstack" else "user"
    return StackValue(space, identity, pid, probe, frames, mode, depth)


def _usym(data: Buffer, at: int) -> SymbolValue:
    address, pid, probe = struct.unpack_from("<QII", data, at)
    return SymbolValue("user", address, pid, probe)


def _inet(data: Buffer, at: int) -> str:
    import socket

    family = _INTS[8, False].unpack_from(data, at)[0]
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, bytes(data[at + 8 : at + 12]))
    return socket.inet_ntop(socket.AF_INET6, bytes(data[at + 8 : at + 24]))


def _timestamp(clock: str, data: Buffer, at: int) -> TimestampValue:
    number, nanoseconds = struct.unpack_from("<QQ", data, at)
    return TimestampValue(number, nanoseconds, clock)
