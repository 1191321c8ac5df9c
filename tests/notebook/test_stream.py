"""Streams of events: what is kept, how it is looked at, and records in bulk against records one by one."""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfseal.compiler.layout import EventLayout
from bpfseal.runtime.records import frames
from bpfseal.runtime.records.bulk import BulkConsumer
from bpfseal.runtime.records.stream import Note, Piece, Stream, View
from bpfseal.runtime.ring import RingReader

EVENTS = tuple(EventLayout(action=action, size=0) for action in ("printf", "print", "exit"))
KEPT = {0, 1}
_BUSY, _DISCARD = 1 << 31, 1 << 30


def piece(*records: bytes) -> Piece:
    padded = [record.ljust(-(-len(record) // 8) * 8, b"\0") for record in records]
    places = np.cumsum([0, *map(len, padded)], dtype=np.uint32)
    return Piece(b"".join(padded), places.tobytes())


def record(number: int, *words: int) -> bytes:
    return struct.pack(f"<II{len(words)}Q", number, 0, *words)


# --- streams ---------------------------------------------------------------------------------------------------------


def test_views_do_not_change() -> None:
    stream = Stream()
    stream.append(b"one")
    early = stream.view()
    stream.append(Note("map", "two"))
    stream.extend(piece(*[record(0, n) for n in range(600)]))
    stream.append(b"last")
    assert list(early) == [b"one"]
    view = stream.view()
    assert len(view) == len(stream) == 603
    assert [view[0], view[1], view[2], view[601], view[-1]] == [
        b"one", Note("map", "two"), record(0, 0), record(0, 599), b"last"
    ]  # fmt: skip
    assert list(view[-2:]) == [record(0, 599), b"last"]
    assert list(view[1:3]) == [Note("map", "two"), record(0, 0)]
    assert (view[1:3].first, view[-2:].first) == (1, 601)
    assert list(stream.view(602)) == [b"last"]
    with pytest.raises(IndexError):
        view[603]


@given(st.lists(st.integers(0, 1500), max_size=8), st.integers(1, 2000))
def test_the_oldest_go(sizes: list[int], keep: int) -> None:
    stream, whole = Stream(), []
    for size in sizes:
        records = [record(0, len(whole) + n) for n in range(size)]
        whole += records
        if size % 2:
            for one in records:
                stream.append(one)
        elif size:
            stream.extend(piece(*records))
        stream.cut(keep)
        assert stream.dropped == max(0, len(whole) - keep)
        assert list(stream.view()) == whole[-keep:]
        assert stream.view().first == stream.dropped
        assert list(stream.view(len(whole) - 1)) == whole[-1:]


def test_readers_see_every_entry_once_while_it_grows() -> None:
    stream = Stream()
    total = 40_000

    def grow() -> None:
        for start in range(0, total, 1000):
            stream.extend(piece(*[record(0, n) for n in range(start, start + 600)]))
            for n in range(start + 600, start + 1000):
                stream.append(record(0, n))

    thread = threading.Thread(target=grow)
    thread.start()
    seen: list[int] = []
    while len(seen) < total:
        assert thread.is_alive() or len(stream) == total
        view = stream.view(len(seen))
        assert view.first == len(seen) or not len(view)
        seen += [int.from_bytes(entry[8:16], "little") for entry in view if isinstance(entry, bytes)]
    thread.join()
    assert seen == list(range(total))


def test_blocks_of_mixed_records() -> None:
    """Single entries, pieces of one site and pieces of several are one table, in the order of arrival."""
    mixed = [record(1, n, n) if n % 3 else record(0, n) for n in range(600)]
    parts: Any = [([record(0, 7)[:12], Note("map", "")], 0, 2), (piece(*mixed), 5, 600), (piece(record(1, 1, 1)), 0, 1)]
    found, order = frames.blocks(View(parts), [0, 1])
    expected = [0, *(1 if n % 3 else 0 for n in range(5, 600)), 1]
    assert order.tolist() == expected
    assert found[0].shape == (expected.count(0), 12)
    assert found[1].shape == (expected.count(1), 24)
    assert found[1][:, 8:16].copy().view("<u8").ravel().tolist() == [*(n for n in range(5, 600) if n % 3), 1]
    only, order = frames.blocks(View(parts), [1])
    assert list(only) == [1]
    assert len(order) == len(only[1])


# --- the consumer in machine code ------------------------------------------------------------------------------------


class Ring:
    """A ring as the kernel lays it out, in a file of memory: consumer's page, producer's page, data twice."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * mmap.PAGESIZE + 2 * size)
        self.produced = 0

    def start_at(self, position: int) -> None:
        self.produced = position
        os.pwrite(self.fd, struct.pack("Q", position), 0)
        os.pwrite(self.fd, struct.pack("Q", position), mmap.PAGESIZE)

    def put(self, data: bytes, flags: int = 0) -> None:
        whole = struct.pack("<II", len(data) | flags, 0) + data.ljust(-(-len(data) // 8) * 8, b"\0")
        base = 2 * mmap.PAGESIZE
        for index in range(0, len(whole), 8):
            at = (self.produced + index) % self.size
            for copy in (0, self.size):
                os.pwrite(self.fd, whole[index : index + 8], base + copy + at)
        self.produced += len(whole)
        os.pwrite(self.fd, struct.pack("Q", self.produced), mmap.PAGESIZE)

    def consumed(self) -> int:
        return int.from_bytes(os.pread(self.fd, 8, 0), "little")


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = Ring(mmap.PAGESIZE)
    yield made
    os.close(made.fd)


RECORDS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 5), st.sampled_from([0, 0, 0, _DISCARD])), min_size=1, max_size=40
)


@settings(max_examples=60, deadline=None)
@given(RECORDS, st.integers(0, 200), st.none() | st.integers(0, 39))
def test_bulk_takes_what_python_takes(kinds: list[tuple[int, int, int]], start: int, busy: int | None) -> None:
    """Records of every size and kind, some given up, one perhaps still being written: kept ones arrive in bulk, the
    others one by one, all in their order, and the kernel gets the space back."""
    ring = Ring(mmap.PAGESIZE)
    ring.start_at(8 * start)
    expected = []
    behind = 0
    for index, (number, extra, flags) in enumerate(kinds):
        data = record(number, index) + bytes(extra)
        writing = _BUSY if index == busy else 0
        ring.put(data, flags | writing)
        if writing or behind:
            behind = behind or index + 1
        elif not flags:
            expected.append(data)
    got: list[bytes] = []

    def take(data: bytes, places: bytes) -> None:
        got.extend(Piece(data, places))

    with RingReader(ring.fd, ring.size) as reader:
        consumer = BulkConsumer(reader, EVENTS, KEPT, take)
        try:
            while True:
                reason, _ = consumer.run()
                if reason == 1:
                    foreign = [bytes(one) for one in reader.read(1)]
                    assert all(int.from_bytes(one[:4], "little") not in KEPT for one in foreign)
                    got.extend(foreign)
                elif reason == 0:
                    break
        finally:
            consumer.close()
        assert reader.position == ring.consumed()
        assert bool(reader.pending()) == bool(behind)
    os.close(ring.fd)
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        # In bulk a record is padded to eight bytes.
        assert one[: len(other)] == other
        assert len(one) - len(other) < 8


def test_a_room_that_is_full_is_no_end(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    from bpfseal.runtime.records import bulk

    monkeypatch.setattr(bulk, "_ROOM", 64)
    monkeypatch.setattr(bulk, "_MOST", 3)
    records = [record(0, n) for n in range(10)] + [record(0, *range(20)), record(1, 5)]
    for one in records:
        ring.put(one)
    pieces: list[Piece] = []
    with RingReader(ring.fd, ring.size) as reader:
        consumer = BulkConsumer(reader, EVENTS, KEPT, lambda data, places: pieces.append(Piece(data, places)))
        reasons = []
        while not reasons or reasons[-1]:
            reasons.append(consumer.run()[0])
            if reasons[-1] == 1:
                # what has no room at all is Python's
                assert [bytes(one) for one in reader.read(1)] == [records[10]]
        consumer.close()
    assert [len(one) for one in pieces] == [3, 3, 3, 1, 1]
    assert [entry for one in pieces for entry in one] == [*records[:10], records[11]]
    assert reasons == [2, 2, 2, 2, 1, 0]


# --- a live stream ---------------------------------------------------------------------------------------------------


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.usefixtures("bpf_permitted")
def test_a_million_live_events_are_a_frame() -> None:
    """As quickly as a process can cause them; processor time is this process's, who shares the machine with others."""
    import time

    from bpfseal.runtime.build import Request
    from bpfseal.runtime.notebook.run import Run
    from bpfseal.runtime.sealing import Signing

    million = 1_000_000
    program = 'tracepoint:syscalls:sys_enter_write /pid == cpid/ { printf("%d %d %s\\n", nsecs, args.count, comm); }'
    command = f"dd if=/dev/zero of=/dev/null bs=1 count={million} status=none"
    run = Run(Request(text=program, command=command), Signing("auto")).start().wait()
    began = time.process_time()
    frame = run.events
    took = time.process_time() - began
    assert len(frame) + run.lost == million
    assert run.lost < million // 10
    assert frame.nsecs.is_monotonic_increasing
    assert (frame["count"] == 1).all()
    assert frame.comm.cat.categories.tolist() == ["dd"]
    assert took < 2
