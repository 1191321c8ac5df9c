"""Language types as the reader's shapes."""

from __future__ import annotations

from bpfseal.compiler.layout import CUT, Member, Shape
from bpfseal.dsl import types
from bpfseal.dsl.types import RecordInfo, Type, size_of, tuple_layout

_DEPTH = 8  # of records in records; what is deeper prints as nothing


class Shapes:
    """Shapes of a script's types. `records` as in TypedScript."""

    def __init__(self, records: dict[str, RecordInfo], trailer: str = CUT, longest: int = 0) -> None:
        """`trailer` is shown behind strings that were cut: those of `longest` bytes (max_strlen) without a NUL. Arrays
        of characters that are full were not."""
        self._records = records
        self._text = (trailer,) if trailer != CUT else ()
        self._longest = longest
        self._known: dict[Type, Shape] = {}

    def of(self, type: Type, depth: int = _DEPTH) -> Shape:
        if depth != _DEPTH:
            return self._make(type, depth)
        found = self._known.get(type)
        if found is None:
            found = self._known[type] = self._make(type, depth)
        return found

    def _make(self, type: Type, depth: int) -> Shape:
        size = size_of(type)
        match type:
            case types.Int(signed=signed):
                return Shape(kind="int", size=size, signed=signed)
            case types.Bool():
                return Shape(kind="bool", size=1)
            case types.Enum(name=name, signed=signed):
                return Shape(kind="enum", size=size, signed=signed, name=name)
            case types.Str():
                return Shape(kind="str", size=size, params=self._text if size == self._longest else ("",))
            case types.Buf():
                return Shape(kind="buf", size=size)
            case types.Ptr():
                return Shape(kind="ptr", size=8)
            case types.Array(element=element, count=count):
                if not size:
                    return Shape(kind="none", size=0)
                return Shape(kind="array", size=size, element=self._make(element, depth), count=count)
            case types.Record(name=name):
                return self._record(name, size, depth)
            case types.Tuple(elements=elements, names=names):
                offsets, _ = tuple_layout(type)
                members = tuple(
                    Member(name=names[n] if names else "", offset=at, shape=self._make(element, depth))
                    for n, (at, element) in enumerate(zip(offsets, elements, strict=True))
                )
                return Shape(kind="tuple", size=size, members=members)
            case types.Stack(space=space, mode=mode, depth=frames):
                return Shape(kind=f"{space[0]}stack", size=size, params=(mode, frames))
            case types.Sym(space=space):
                return Shape(kind=f"{space[0]}sym", size=size)
            case types.Inet():
                return Shape(kind="inet", size=size)
            case types.Mac():
                return Shape(kind="mac", size=size)
            case types.Timestamp(mode=mode):
                return Shape(kind="timestamp", size=size, params=(mode,))
            case types.CgroupPath():
                return Shape(kind="cgroup_path", size=size)
            case types.Username():
                return Shape(kind="int", size=size, name="username")
            case types.Aggregate(kind=kind, signed=signed, params=params):
                return Shape(kind=kind, size=size, signed=signed and kind != "count", params=params)
            case types.Void():
                return Shape(kind="none", size=0)

    def _record(self, name: str, size: int, depth: int) -> Shape:
        info = self._records.get(name)
        if info is None or depth <= 0:
            return Shape(kind="record", size=size, name=name)
        members = tuple(
            Member(
                name=field.name,
                offset=field.offset,
                shape=self._make(field.type, depth - 1),
                bits=field.bits,
                bit_offset=field.bit_offset,
            )
            for field in info.fields
        )
        return Shape(kind="record", size=size, name=name, members=members)
