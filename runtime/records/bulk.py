"""Records of a busy ring in bulk: machine code copies what is to be kept, and Python sees one piece of memory for
thousands of events.

Handling a record costs Python some microseconds, and a busy probe fires every one. The function here knows nothing of
the program that is traced, so a process compiles it once.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any, Final

from bpfseal.compiler.layout import EventLayout
from bpfseal.runtime.native import FOREIGN, FULL, compile_function, map_ring, unmap_ring
from bpfseal.runtime.ring import RingReader

_ROOM: Final = 1 << 21
_MOST: Final = 1 << 16  # records in one piece
# Members of the state, in 64-bit words; the code below knows them by number.
_DATA, _MASK, _PRODUCER, _CONSUMER, _POSITION, _OUT, _SPACE, _USED = range(8)
_PLACES, _LIMIT, _COUNT, _STEP, _WANTED, _KINDS = range(8, 14)

Take = Callable[[bytes, bytes], None]
"""(records one after another, each at a multiple of 8 bytes; where each begins and where the last ends, as u32)."""


class BulkConsumer:
    """The session's consumer (see `runtime.native.NativeConsumer`) that hands pieces to `take`. Raises ImportError,
    OSError or RuntimeError where there is no compiler for this machine."""

    def __init__(self, ring: RingReader, events: Sequence[EventLayout], wanted: Collection[int], take: Take) -> None:
        """`wanted`: the event numbers to copy; others are left to Python, one by one and in their turn."""
        self._ring = ring
        self._take = take
        self._copy = _function()
        self._size = mmap.PAGESIZE + 2 * ring.size
        self._pages = map_ring(ring.fd, self._size)
        self._consumer = (ctypes.c_char * 8).from_buffer(ring.consumer)
        self._out = ctypes.create_string_buffer(_ROOM)
        self._view = memoryview(self._out).cast("B")
        self._places = (ctypes.c_uint32 * (_MOST + 1))()
        self._places_view = memoryview(self._places).cast("B")
        self._wanted = (ctypes.c_uint8 * max(len(events), 1))(*(number in wanted for number in range(len(events))))
        self._state = state = (ctypes.c_uint64 * 14)()
        state[_DATA], state[_MASK] = self._pages + mmap.PAGESIZE, ring.size - 1
        state[_PRODUCER], state[_CONSUMER] = self._pages, ctypes.addressof(self._consumer)
        state[_OUT], state[_SPACE] = ctypes.addressof(self._out), _ROOM
        state[_PLACES], state[_LIMIT] = ctypes.addressof(self._places), _MOST
        state[_STEP] = ring.size >> 2
        state[_WANTED], state[_KINDS] = ctypes.addressof(self._wanted), len(events)

    def run(self) -> tuple[int, int]:
        """As `NativeConsumer.run`: one piece."""
        state = self._state
        state[_POSITION], state[_USED], state[_COUNT] = self._ring.position, 0, 0
        reason: int = self._copy(ctypes.addressof(state))
        self._ring.position = state[_POSITION]
        count = state[_COUNT]
        if reason == FULL and not count:
            reason = FOREIGN  # larger than the whole room
        if count:
            self._take(bytes(self._view[: state[_USED]]), bytes(self._places_view[: 4 * (count + 1)]))
        return reason, count

    def close(self) -> None:
        if self._pages:
            del self._consumer
            self._view.release()
            self._places_view.release()
            unmap_ring(self._pages, self._size)
            self._pages = 0


@cache
def _function() -> Callable[[int], int]:
    engine, address = compile_function(_CODE, "copy")
    function: Any = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(address)
    function.engine = engine  # which owns the code
    made: Callable[[int], int] = function
    return made


# Why records are looked at in this way (busy and discard bits, padding): `runtime.ring`. A record that is of a kind
# that is not wanted is Python's.
_CODE: Final = """
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)

define i64 @copy(ptr %state) {
entry:
  %data = load ptr, ptr %state
  %mask_at = getelementptr i64, ptr %state, i64 1
  %mask = load i64, ptr %mask_at
  %producer_at = getelementptr i64, ptr %state, i64 2
  %producer = load ptr, ptr %producer_at
  %consumer_at = getelementptr i64, ptr %state, i64 3
  %consumer = load ptr, ptr %consumer_at
  %position_at = getelementptr i64, ptr %state, i64 4
  %first = load i64, ptr %position_at
  %out_at = getelementptr i64, ptr %state, i64 5
  %out = load ptr, ptr %out_at
  %room_at = getelementptr i64, ptr %state, i64 6
  %room = load i64, ptr %room_at
  %used_at = getelementptr i64, ptr %state, i64 7
  %places_at = getelementptr i64, ptr %state, i64 8
  %places = load ptr, ptr %places_at
  %most_at = getelementptr i64, ptr %state, i64 9
  %most = load i64, ptr %most_at
  %count_at = getelementptr i64, ptr %state, i64 10
  %step_at = getelementptr i64, ptr %state, i64 11
  %step = load i64, ptr %step_at
  %wanted_at = getelementptr i64, ptr %state, i64 12
  %wanted = load ptr, ptr %wanted_at
  %kinds_at = getelementptr i64, ptr %state, i64 13
  %kinds = load i64, ptr %kinds_at
  br label %look
look:
  %position = phi i64 [ %first, %entry ], [ %behind, %go ]
  %released = phi i64 [ %first, %entry ], [ %given, %go ]
  %count = phi i64 [ 0, %entry ], [ %counted, %go ]
  %used = phi i64 [ 0, %entry ], [ %filled, %go ]
  %produced = load atomic i64, ptr %producer acquire, align 8
  %there = icmp ult i64 %position, %produced
  br i1 %there, label %head, label %done
head:
  %at = and i64 %position, %mask
  %header = getelementptr i8, ptr %data, i64 %at
  %word = load atomic i32, ptr %header acquire, align 8
  %busy = icmp slt i32 %word, 0
  br i1 %busy, label %done, label %whole
whole:
  %bits = and i32 %word, 1073741823
  %length = zext i32 %bits to i64
  %longer = add i64 %length, 15
  %padded = and i64 %longer, -8
  %behind = add i64 %position, %padded
  %flag = and i32 %word, 1073741824
  %discarded = icmp ne i32 %flag, 0
  br i1 %discarded, label %next, label %kept
kept:
  %record = getelementptr i8, ptr %header, i64 8
  %number32 = load i32, ptr %record
  %number = zext i32 %number32 to i64
  %known = icmp ult i64 %number, %kinds
  br i1 %known, label %asked, label %done
asked:
  %flag_at = getelementptr i8, ptr %wanted, i64 %number
  %want = load i8, ptr %flag_at
  %mine = icmp ne i8 %want, 0
  br i1 %mine, label %fits, label %done
fits:
  %body = sub i64 %padded, 8
  %end = add i64 %used, %body
  %small = icmp ule i64 %end, %room
  %few = icmp ult i64 %count, %most
  %both = and i1 %small, %few
  br i1 %both, label %take, label %done
take:
  %to = getelementptr i8, ptr %out, i64 %used
  call void @llvm.memcpy.p0.p0.i64(ptr %to, ptr %record, i64 %body, i1 false)
  %place = getelementptr i32, ptr %places, i64 %count
  %start = trunc i64 %used to i32
  store i32 %start, ptr %place
  %more = add i64 %count, 1
  br label %next
next:
  %counted = phi i64 [ %count, %whole ], [ %more, %take ]
  %filled = phi i64 [ %used, %whole ], [ %end, %take ]
  %held = sub i64 %behind, %released
  %much = icmp uge i64 %held, %step
  br i1 %much, label %give, label %go
give:
  store atomic i64 %behind, ptr %consumer release, align 8
  br label %go
go:
  %given = phi i64 [ %released, %next ], [ %behind, %give ]
  br label %look
done:
  %reason = phi i64 [ 0, %look ], [ 0, %head ], [ 1, %kept ], [ 1, %asked ], [ 2, %fits ]
  store atomic i64 %position, ptr %consumer release, align 8
  store i64 %position, ptr %position_at
  store i64 %used, ptr %used_at
  store i64 %count, ptr %count_at
  %last = getelementptr i32, ptr %places, i64 %count
  %stop = trunc i64 %used to i32
  store i32 %stop, ptr %last
  ret i64 %reason
}
"""
