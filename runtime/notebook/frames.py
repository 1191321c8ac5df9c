"""Records and maps as pandas frames, by columns: numbers straight from the bytes, repeated text as categories.

dtypes: integers as wide and signed as the program has them, addresses uint64, strings, enumerators, users, symbols
and stacks category (stacks as "outermost;…;innermost"), strftime() datetime64[ns, UTC], buffers objects of bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bpfseal.compiler.layout import EventLayout, Reader, Shape
from bpfseal.errors import BpfsealError
from bpfseal.runtime.notebook import columns
from bpfseal.runtime.notebook.lookup import Lookup
from bpfseal.runtime.values import StackValue, TimestampValue, decoder

if TYPE_CHECKING:
    from bpfseal.runtime.maps import MapContents

_INTEGERS = {"int", "enum", "ptr"}


def pandas() -> Any:
    """The pandas module. Raises BpfsealError when it is not installed."""
    try:
        import pandas as module
    except ImportError:
        raise BpfsealError("frames need pandas", hint="pip install 'bpfseal[notebook]'") from None
    return module


# --- events ----------------------------------------------------------------------------------------------------------


def of_records(records: Sequence[bytes], number: int, reader: Reader, source: str, lookup: Lookup) -> Any:
    """A frame of the records of event site `number`: the columns of its call, and "probe" where several use it."""
    import numpy as np

    pd = pandas()
    event = reader.events[number]
    rows = len(records)
    size = len(records[0]) if records else max(event.size, 8)
    # One block of equal rows; a record that is shorter or longer than the first does not exist for one site.
    block = np.frombuffer(b"".join(records), dtype=np.uint8).reshape(rows, size)
    made: dict[str, Any] = {}
    names = columns.of_call(source, event.where, len(event.fields), format=event.action != "print")
    for name, field in zip(names, event.fields, strict=True):
        _add(made, name, field.shape, block, field.offset, reader, lookup, alone=event.action == "print")
    if len(reader.probes) > 1:
        codes = np.ascontiguousarray(block[:, 4:8]).view("<u4").ravel().astype(np.int64)
        present = np.unique(codes)
        if len(present) > 1:
            made["probe"] = pd.Categorical(np.array(reader.probes, dtype=object)[codes])
    return pd.DataFrame(made, index=pd.RangeIndex(rows))


def _add(
    made: dict[str, Any], name: str, shape: Shape, block: Any, at: int, reader: Reader, lookup: Lookup, *, alone: bool
) -> None:
    """The columns of one value: a record's or tuple's members have one each."""
    if shape.kind in ("record", "tuple") and not any(member.bits for member in shape.members):
        prefix = "" if alone else f"{name}."
        for index, member in enumerate(shape.members):
            inner = f"{prefix}{member.name or index}" if prefix or member.name else f"value{index}"
            _add(made, inner, member.shape, block, at + member.offset, reader, lookup, alone=False)
        return
    made[name] = _column(shape, block, at, reader, lookup)


def _column(shape: Shape, block: Any, at: int, reader: Reader, lookup: Lookup) -> Any:
    import numpy as np

    pd = pandas()
    if shape.kind in _INTEGERS or shape.kind == "bool":
        size = 8 if shape.kind == "ptr" else shape.size
        kind = "i" if shape.signed and shape.kind != "ptr" else "u"
        numbers = np.ascontiguousarray(block[:, at : at + size]).view(f"<{kind}{size}").ravel()
        if shape.kind == "bool":
            return numbers != 0
        if shape.name == "username" or shape.kind == "enum":
            return _named(numbers, shape, reader, lookup)
        return numbers
    if shape.kind == "str":
        return _strings(np.ascontiguousarray(block[:, at : at + shape.size]))
    decode = decoder(shape, reader.enums)
    values = [decode(row, at) for row in block]
    if shape.kind == "timestamp":
        return pd.to_datetime([wall_ns(value) for value in values], unit="ns", utc=True)
    if shape.kind == "buf":
        return pd.Series(values, dtype=object)
    return _texts(values, shape, lookup)


def _named(numbers: Any, shape: Shape, reader: Reader, lookup: Lookup) -> Any:
    import numpy as np

    pd = pandas()
    distinct, codes = np.unique(numbers, return_inverse=True)
    enum = reader.enums.get(shape.name, {})

    def name(number: int) -> str:
        return lookup.text(number, shape) if shape.name == "username" else enum.get(number, str(number))

    return _categories([name(int(number)) for number in distinct], codes, pd)


def _categories(texts: list[str], codes: Any, pd: Any) -> Any:
    """A Categorical of code → text, where texts may repeat."""
    import numpy as np

    distinct = list(dict.fromkeys(texts))
    place = {text: number for number, text in enumerate(distinct)}
    return pd.Categorical.from_codes(np.array([place[text] for text in texts], dtype=np.int64)[codes], distinct)


def _strings(block: Any) -> Any:
    """Rows of NUL-terminated bytes as a Categorical; what stands behind the NUL is not part of the string."""
    pd = pandas()
    rows, size = block.shape
    if not rows or not size:
        return pd.Categorical([""] * rows)
    # bytes objects, trailing NULs stripped by numpy: equal ones are found by hashing, and few are left to decode.
    raw = block.view(f"S{size}").ravel().astype(object)
    codes, distinct = pd.factorize(raw)
    texts = [bytes(value).partition(b"\0")[0].decode("utf-8", "replace") for value in distinct]
    return _categories(texts, codes, pd)


def _texts(values: list[Any], shape: Shape, lookup: Lookup) -> Any:
    pd = pandas()
    known: dict[Any, str] = {}
    texts = []
    for value in values:
        try:
            text = known.get(value)
            if text is None:
                text = known[value] = plain(value, shape, lookup)
        except TypeError:  # lists and records are no keys
            text = plain(value, shape, lookup)
        texts.append(text)
    return pd.Categorical(texts)


def plain(value: Any, shape: Shape | None, lookup: Lookup) -> str:
    """Text of one value in a frame: stacks folded as flame graphs take them, all else as printed."""
    if isinstance(value, StackValue):
        return ";".join(reversed(lookup.frames(value)))
    return lookup.text(value, shape).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def wall_ns(value: TimestampValue) -> int:
    """Nanoseconds since 1970 by the clocks' present difference."""
    import time

    clocks = {"boot": time.CLOCK_BOOTTIME, "tai": getattr(time, "CLOCK_TAI", time.CLOCK_REALTIME)}
    if value.clock not in clocks:
        return value.nanoseconds
    away = time.clock_gettime_ns(time.CLOCK_REALTIME) - time.clock_gettime_ns(clocks[value.clock])
    return away + value.nanoseconds


def together(frames: dict[int, Any], order: Sequence[int], events: Sequence[EventLayout]) -> Any:
    """Frames of several sites as one in the order of arrival, "site" naming the place; integers that not every site
    has become pandas' nullable ones. `order` is the site of each row."""
    import numpy as np

    pd = pandas()
    where = np.array(order, dtype=np.int64)
    parts = []
    for number, frame in frames.items():
        part = frame.copy(deep=False)
        part.index = pd.Index(np.flatnonzero(where == number))
        for name in part.columns:
            column = part[name]
            if isinstance(column.dtype, pd.CategoricalDtype):
                part[name] = column.astype(object)
            elif column.dtype.kind in "iu":
                part[name] = column.astype(str(column.dtype).replace("uint", "UInt").replace("int", "Int", 1))
        part.insert(0, "site", events[number].where.partition(":")[2])
        parts.append(part)
    whole = pd.concat(parts).sort_index()
    for name in whole.columns:
        if whole[name].dtype == object and whole[name].map(lambda v: isinstance(v, str) or v is None or v != v).all():
            whole[name] = whole[name].astype("category")
    return whole


# --- maps ------------------------------------------------------------------------------------------------------------


def of_map(contents: MapContents, source: str, lookup: Lookup) -> Any:
    """A map as a frame: a column for each part of the key, then its value: "count" and the like for aggregations,
    one row per bucket (low, high, count) for histograms, per interval (time, value) for time series."""
    pd = pandas()
    key = contents.layout.key
    shapes = _key_shapes(key)
    names = columns.of_map(source, contents.name, len(shapes)) if shapes else []
    keys: list[tuple[Any, ...]] = []
    rows: list[dict[str, Any]] = []
    for user_key, value in contents.items:
        parts = _key_parts(user_key, len(shapes))
        for row in _rows(contents, value, lookup):
            keys.append(parts)
            rows.append(row)
    made: dict[str, Any] = {}
    for index, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        made[name] = _values([part[index] for part in keys], shape, lookup)
    taken = set(made)
    value_columns: dict[str, list[Any]] = {name: [] for name in _value_names(contents)}
    for row in rows:
        for name in row:
            value_columns.setdefault(name, [])
    for row in rows:
        for name, column in value_columns.items():
            column.append(row.get(name))
    for name, column in value_columns.items():
        label = f"{name}_value" if name in taken else name
        plain_value = name == "value" and contents.kind not in _AGGREGATES
        made[label] = _values(column, contents.layout.value if plain_value else None, lookup)
    return pd.DataFrame(made)


_AGGREGATES = {"count", "sum", "min", "max", "avg", "stats", "hist", "lhist", "tseries"}
_NAMES = {
    "stats": ("count", "average", "total"),
    "hist": ("low", "high", "count"),
    "lhist": ("low", "high", "count"),
    "tseries": ("time", "value"),
}


def _value_names(contents: MapContents) -> tuple[str, ...]:
    kind = contents.kind
    if kind in _NAMES:
        return _NAMES[kind]
    return (kind,) if kind in _AGGREGATES else ()


def _rows(contents: MapContents, value: Any, lookup: Lookup) -> list[dict[str, Any]]:
    match contents.kind:
        case "hist" | "lhist":
            return [{"low": b.low, "high": b.high, "count": b.count} for b in value]
        case "tseries":
            pd = pandas()
            return [{"time": pd.Timestamp(s.start_ns, unit="ns", tz="UTC"), "value": s.value} for s in value]
        case "stats":
            return [dict(value)]
        case kind if kind in _AGGREGATES:
            return [{kind: value}]
    if isinstance(value, dict):
        return [{name: _cell(part, lookup) for name, part in value.items()}]
    if isinstance(value, tuple):
        return [{f"value{index}": _cell(part, lookup) for index, part in enumerate(value)}]
    return [{"value": value}]


def _cell(value: Any, lookup: Lookup) -> Any:
    return value if isinstance(value, int | str | bytes) else plain(value, None, lookup)


def _key_shapes(key: Shape | None) -> list[Shape]:
    if key is None:
        return []
    return [member.shape for member in key.members] if key.kind in ("tuple", "record") else [key]


def _key_parts(key: Any, count: int) -> tuple[Any, ...]:
    if isinstance(key, dict):
        return tuple(key.values())
    return key if isinstance(key, tuple) and count != 1 else (key,)


def _values(values: list[Any], shape: Shape | None, lookup: Lookup) -> Any:
    """A column of decoded values."""
    pd = pandas()
    if shape is not None and (shape.kind not in ("int", "ptr", "bool", "buf", "timestamp") or shape.name == "username"):
        return _texts(values, shape, lookup)
    if shape is not None and shape.kind == "timestamp":
        return pd.to_datetime([wall_ns(value) for value in values], unit="ns", utc=True)
    if any(value is None for value in values):
        small = all(value is None or -(1 << 63) <= value < 1 << 63 for value in values)
        return pd.array(values, dtype="Int64" if small else "UInt64")
    if shape is not None and shape.kind == "int":
        return pd.Series(values, dtype=f"{'int' if shape.signed else 'uint'}{8 * shape.size}")
    if values and all(isinstance(value, str) for value in values):
        return pd.Categorical(values)
    return values
