"""Records and maps as pandas frames, by columns: numbers straight from the bytes, repeated text as categories.

dtypes: integers as wide and signed as the program has them, addresses uint64, strings, enumerators, users, symbols
and stacks category (stacks as "outermost;…;innermost"), strftime() datetime64[ns, UTC], buffers objects of bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from bpfseal.compiler.layout import EventLayout, Reader, Shape
from bpfseal.errors import BpfsealError
from bpfseal.runtime.records import columns
from bpfseal.runtime.records.lookup import Lookup
from bpfseal.runtime.records.stream import Piece, View
from bpfseal.runtime.values import StackValue, decoder

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


def blocks(view: View, wanted: Collection[int]) -> tuple[dict[int, Any], Any]:
    """({event site: its records as rows of bytes}, site of each row of all of them in the order of arrival)."""
    import numpy as np

    rows: dict[int, list[Any]] = {}
    order = []
    for part, start, stop in view.spans:
        if isinstance(part, Piece):
            numbers = _of_piece(part, start, stop, rows)
        else:
            records = [entry for entry in part[start:stop] if isinstance(entry, bytes)]
            numbers = np.array([int.from_bytes(record[:4], "little") for record in records], dtype=np.int64)
            by_site: dict[int, list[bytes]] = {}
            for record in records:
                by_site.setdefault(int.from_bytes(record[:4], "little"), []).append(record)
            for number, some in by_site.items():
                rows.setdefault(number, []).append(_rows(b"".join(some), len(some)))
        order.append(numbers)
    found = {number: _joined(some) for number, some in rows.items() if number in wanted}
    sites = np.concatenate(order) if order else np.empty(0, dtype=np.int64)
    return found, sites[np.isin(sites, list(found))] if len(rows) > len(found) else sites


def _rows(data: bytes, count: int) -> Any:
    import numpy as np

    return np.frombuffer(data, dtype=np.uint8).reshape(count, -1)


def _of_piece(piece: Piece, start: int, stop: int, rows: dict[int, list[Any]]) -> Any:
    """Adds the records of a piece to `rows`; their sites."""
    import numpy as np

    places = np.frombuffer(piece.places, dtype=np.uint32)[start : stop + 1].astype(np.int64)
    numbers = np.frombuffer(piece.data, dtype="<u4")[places[:-1] // 4].astype(np.int64)
    if (numbers == numbers[0]).all():
        # One site: its records are equally long and lie one behind the other.
        rows.setdefault(int(numbers[0]), []).append(_rows(piece.data[places[0] : places[-1]], stop - start))
        return numbers
    words = np.frombuffer(piece.data, dtype="<u8")
    for number in np.unique(numbers):
        chosen = np.flatnonzero(numbers == number)
        first = chosen[0]
        size = int(places[first + 1] - places[first]) // 8
        at = places[chosen, None] // 8 + np.arange(size)
        rows.setdefault(int(number), []).append(words[at].view(np.uint8))
    return numbers


def _joined(some: list[Any]) -> Any:
    """Rows of one site; those that came in bulk are padded to 8 bytes, the others are not."""
    import numpy as np

    width = min(rows.shape[1] for rows in some)
    return np.concatenate([rows[:, :width] for rows in some]) if len(some) > 1 else some[0]


def of_block(block: Any, number: int, reader: Reader, source: str, lookup: Lookup) -> Any:
    """A frame of the records of event site `number`, which are the rows of `block`: the columns of its call, and
    "probe" where several use it."""
    import numpy as np

    pd = pandas()
    event = reader.events[number]
    made: dict[str, Any] = {}
    names = columns.of_call(source, event.where, len(event.fields), format=event.action != "print")
    for name, field in zip(names, event.fields, strict=True):
        _add(made, name, field.shape, block, field.offset, reader, lookup, alone=event.action == "print")
    if len(reader.probes) > 1 and len(block):
        codes = np.ascontiguousarray(block[:, 4:8]).view("<u4").ravel().astype(np.int64)
        if codes.min() != codes.max():
            made["probe"] = pd.Categorical.from_codes(*_coded(codes, list(reader.probes)))
    return pd.DataFrame(made, index=pd.RangeIndex(len(block)))


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
    if shape.kind == "timestamp":
        numbers = np.ascontiguousarray(block[:, at + 8 : at + 16]).view("<i8").ravel()
        return pd.to_datetime(numbers + lookup.clock_offset(str(shape.params[0]) if shape.params else "boot"), utc=True)
    decode = decoder(shape, reader.enums)
    if shape.kind == "buf":
        return pd.Series([decode(row, at) for row in block], dtype=object)
    # Values come again and again: equal bytes are found by columns, and few are left to decode.
    codes, firsts = _distinct(block[:, at : at + shape.size])
    if shape.kind == "str":
        texts = [
            bytes(block[first, at : at + shape.size]).partition(b"\0")[0].decode("utf-8", "replace") for first in firsts
        ]
    else:
        texts = [plain(decode(bytes(block[first]), at), shape, lookup) for first in firsts]
    return pd.Categorical.from_codes(*_coded(codes, texts))


def _distinct(block: Any) -> tuple[Any, Any]:
    """(for each row the number of its value, for each value the first row that has it) of rows of bytes."""
    import numpy as np

    pd = pandas()
    rows, size = block.shape
    words = np.zeros((rows, -(-size // 8) * 8), dtype=np.uint8)
    words[:, :size] = block
    codes = np.zeros(rows, dtype=np.int64)
    for column in words.view("<u8").T:
        if not column.any():
            continue
        parts, values = pd.factorize(column)
        codes, _ = pd.factorize(codes * len(values) + parts)
    count = int(codes.max()) + 1 if rows else 0
    firsts: Any = np.empty(count, dtype=np.int64)
    firsts[codes[::-1]] = np.arange(rows)[::-1]
    return codes, firsts


def _named(numbers: Any, shape: Shape, reader: Reader, lookup: Lookup) -> Any:
    pd = pandas()
    codes, distinct = pd.factorize(numbers, sort=True)
    enum = reader.enums.get(shape.name, {})

    def name(number: int) -> str:
        return lookup.text(number, shape) if shape.name == "username" else enum.get(number, str(number))

    return pd.Categorical.from_codes(*_coded(codes, [name(int(number)) for number in distinct]))


def _coded(codes: Any, texts: list[str]) -> tuple[Any, list[str]]:
    """(codes, categories) of a Categorical, in the order of the words, where `texts` may repeat."""
    import numpy as np

    categories = sorted(set(texts))
    place = {text: number for number, text in enumerate(categories)}
    table = np.array([place[text] for text in texts], dtype=np.int64)
    return (table[codes] if len(texts) else codes), categories


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


def together(frames: dict[int, Any], order: Any, events: Sequence[EventLayout]) -> Any:
    """Frames of several sites as one in the order of arrival, "site" naming the place; integers that not every site
    has become pandas' nullable ones. `order` is the site of each row."""
    import numpy as np

    pd = pandas()
    where = np.asarray(order)
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
    whole["site"] = whole["site"].astype("category")
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
        for row in _map_rows(contents, value, lookup):
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


def _map_rows(contents: MapContents, value: Any, lookup: Lookup) -> list[dict[str, Any]]:
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
        away = {value.clock: lookup.clock_offset(value.clock) for value in values}
        return pd.to_datetime([away[value.clock] + value.nanoseconds for value in values], unit="ns", utc=True)
    if any(value is None for value in values):
        small = all(value is None or -(1 << 63) <= value < 1 << 63 for value in values)
        return pd.array(values, dtype="Int64" if small else "UInt64")
    if shape is not None and shape.kind == "int":
        return pd.Series(values, dtype=f"{'int' if shape.signed else 'uint'}{8 * shape.size}")
    if values and all(isinstance(value, str) for value in values):
        return pd.Categorical(values)
    return values
