"""The events that a trace has kept, in the order of arrival: pieces of memory with thousands of records each where the
stream is busy, single entries where it is not."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from collections.abc import Iterable

_FEW, _SMALL = 1 << 14, 1 << 9


@dataclass(frozen=True, slots=True)
class Note:
    """An entry that is no record: what time(), join(), cat() and print() of a map said, and troubles. `kind` and
    `values` as in `runtime.api.Event`."""

    kind: str
    text: str
    values: tuple[Any, ...] = ()


Entry = bytes | Note


class Piece(Sequence[bytes]):
    """Records in one block of memory; `places` are u32s: where each begins and, behind them, where the last one
    ends. Records are padded to multiples of 8 bytes."""

    __slots__ = ("data", "places")

    def __init__(self, data: bytes, places: bytes) -> None:
        self.data = data
        self.places = memoryview(places).cast("I")

    def __len__(self) -> int:
        return len(self.places) - 1

    def __getitem__(self, index: Any) -> Any:
        return self.data[self.places[index] : self.places[index + 1]]


Part = list[Entry] | Piece
Span = tuple[Part, int, int]


class View(Sequence[Entry]):
    """Entries of one moment: what arrives later does not change it. `first` is the number of its first entry in the
    whole stream."""

    def __init__(self, spans: Iterable[Span], first: int = 0) -> None:
        self.first = first
        self.spans = [span for span in spans if span[1] < span[2]]
        self._ends = list(accumulate(stop - start for _, start, stop in self.spans))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> View: ...
    def __getitem__(self, index: int | slice) -> Entry | View:
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            if step != 1:
                raise ValueError("entries are taken in steps of 1")
            return View(self._between(first, last), self.first + first)
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._ends, index)
        part, _, stop = self.spans[number]
        entry: Entry = part[stop - (self._ends[number] - index)]
        return entry

    def _between(self, first: int, last: int) -> Iterator[Span]:
        for (part, start, stop), end in zip(self.spans, self._ends, strict=True):
            begin = end - (stop - start)
            low, high = max(first, begin), min(last, end)
            if low < high:
                yield part, start + low - begin, start + high - begin

    def __iter__(self) -> Iterator[Entry]:
        for part, start, stop in self.spans:
            for index in range(start, stop):
                yield part[index]


class Stream:
    """Only one thread appends and cuts; any may look. `dropped` entries were let go at the front."""

    def __init__(self) -> None:
        # Replaced as a whole when the front is cut off, so that who looks sees parts and their number together.
        self._state: tuple[int, list[tuple[Part, int]]] = (0, [])
        self._few: list[Entry] | None = None
        self._arrived = 0

    def append(self, entry: Entry) -> None:
        few = self._few
        if few is None or len(few) >= _FEW:
            self._few = few = []
            self._state[1].append((few, 0))
        few.append(entry)
        self._arrived += 1

    def extend(self, piece: Piece) -> None:
        """Small pieces are taken apart: a stream is to have few parts."""
        if len(piece) < _SMALL:
            for entry in piece:
                self.append(entry)
            return
        self._few = None
        self._state[1].append((piece, 0))
        self._arrived += len(piece)

    @property
    def dropped(self) -> int:
        return self._state[0]

    def __len__(self) -> int:
        return self._arrived - self._state[0]

    def view(self, since: int = 0) -> View:
        """The entries that are there, from number `since` of the whole stream on."""
        dropped, parts = self._state
        whole = View([(part, start, len(part)) for part, start in list(parts)], dropped)
        return whole[since - dropped :] if since > dropped else whole

    def cut(self, keep: int) -> None:
        """Let go of the oldest but `keep` entries."""
        dropped, parts = self._state
        rest = over = len(self) - keep
        if over <= 0:
            return
        left: list[tuple[Part, int]] = []
        for part, start in parts:
            gone = min(rest, len(part) - start)
            rest -= gone
            if start + gone < len(part):
                left.append((part, start + gone))
        if not left or left[-1][0] is not self._few:
            self._few = None
        self._state = (dropped + over, left)
