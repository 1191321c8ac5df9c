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
from bpfseal.runtime.native_ring import give_back, members, record
from bpfseal.runtime.ring import RingReader

_ROOM: Final = 1 << 21
_MOST: Final = 1 << 16  # records in one piece
# Members of the state, in 64-bit words: names in the code below, numbers here.
_STATE: Final = (
    "data*", "mask", "producer*", "consumer*", "position", "out*", "room", "used",
    "places*", "most", "count", "step", "wanted*", "kinds",
)  # fmt: skip
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


# A record that is of a kind that is not wanted is Python's.
_CODE: Final = f"""
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)

define i64 @copy(ptr %state) {{
entry:
{members(_STATE)}
  br label %look
look:
  %here = phi i64 [ %position, %entry ], [ %behind, %go ]
  %released = phi i64 [ %position, %entry ], [ %given, %go ]
  %records = phi i64 [ 0, %entry ], [ %counted, %go ]
  %filled = phi i64 [ 0, %entry ], [ %full, %go ]
{record(kept="kept", skipped="next", end="done")}
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
  %end = add i64 %filled, %body
  %small = icmp ule i64 %end, %room
  %few = icmp ult i64 %records, %most
  %both = and i1 %small, %few
  br i1 %both, label %take, label %done
take:
  %to = getelementptr i8, ptr %out, i64 %filled
  call void @llvm.memcpy.p0.p0.i64(ptr %to, ptr %record, i64 %body, i1 false)
  %place = getelementptr i32, ptr %places, i64 %records
  %start = trunc i64 %filled to i32
  store i32 %start, ptr %place
  %more = add i64 %records, 1
  br label %next
next:
  %counted = phi i64 [ %records, %whole ], [ %more, %take ]
  %full = phi i64 [ %filled, %whole ], [ %end, %take ]
{give_back(of="next", then="go")}
  br label %look
done:
  %reason = phi i64 [ 0, %look ], [ 0, %head ], [ 1, %kept ], [ 1, %asked ], [ 2, %fits ]
  store atomic i64 %here, ptr %consumer release, align 8
  store i64 %here, ptr %position_at
  store i64 %filled, ptr %used_at
  store i64 %records, ptr %count_at
  %last = getelementptr i32, ptr %places, i64 %records
  %stop = trunc i64 %filled to i32
  store i32 %stop, ptr %last
  ret i64 %reason
}}
"""
