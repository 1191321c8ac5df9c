"""LLVM IR of the native consumer that is the same for every script: the walk through the ring, and numbers as text.

The state that the walk is given, in 64-bit words: 0 data area, 1 mask of positions, 2 producer's position (address),
3 consumer's position (address), 4 our position, 5 output, 6 its size, 7 bytes of it that are used, 8 records done,
9 bytes after which space is given back to the kernel. Ring layout: see `runtime.ring`.
"""

from __future__ import annotations

from typing import Final

from bpfseal.runtime.native_ring import give_back, members, record

# The end of what makes digits: those from %q to %end.
_DIGITS: Final = """\
copy:
  %from = ptrtoint ptr %q to i64
  %to = ptrtoint ptr %end to i64
  %length = sub i64 %to, %from
  call void @llvm.memcpy.p0.p0.i64(ptr %out, ptr %q, i64 24, i1 false)
  %next = getelementptr i8, ptr %out, i64 %length
  ret ptr %next
}"""

PRELUDE: Final = """
declare i32 @snprintf(ptr, i64, ptr, ...)
declare i64 @strnlen(ptr, i64)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
@digits = private constant [16 x i8] c"0123456789abcdef"

; Copies a string up to its end; null when a byte of it would need an escape in JSON, or it has no end.
define internal ptr @plain(ptr %out, ptr %text, i64 %size) {
entry:
  br label %look
look:
  %n = phi i64 [ 0, %entry ], [ %m, %copy ]
  %some = icmp ult i64 %n, %size
  br i1 %some, label %byte, label %bad
byte:
  %from = getelementptr i8, ptr %text, i64 %n
  %c = load i8, ptr %from
  %to = getelementptr i8, ptr %out, i64 %n
  %end = icmp eq i8 %c, 0
  br i1 %end, label %done, label %check
check:
  %control = icmp slt i8 %c, 32
  %quote = icmp eq i8 %c, 34
  %slash = icmp eq i8 %c, 92
  %either = or i1 %quote, %slash
  %odd = or i1 %either, %control
  br i1 %odd, label %bad, label %copy
copy:
  store i8 %c, ptr %to
  %m = add i64 %n, 1
  br label %look
done:
  ret ptr %to
bad:
  ret ptr null
}

; Digits are made from the last one on, in the middle of a buffer from which a fixed number of bytes is copied.
define internal ptr @unsigned(ptr %out, i64 %value) {
entry:
  %buffer = alloca [64 x i8]
  %end = getelementptr i8, ptr %buffer, i64 24
  br label %digit
digit:
  %v = phi i64 [ %value, %entry ], [ %rest, %digit ]
  %p = phi ptr [ %end, %entry ], [ %q, %digit ]
  %rest = udiv i64 %v, 10
  %times = mul i64 %rest, 10
  %low = sub i64 %v, %times
  %byte = trunc i64 %low to i8
  %char = add i8 %byte, 48
  %q = getelementptr i8, ptr %p, i64 -1
  store i8 %char, ptr %q
  %more = icmp ne i64 %rest, 0
  br i1 %more, label %digit, label %copy
DIGITS

define internal ptr @signed(ptr %out, i64 %value) {
entry:
  %negative = icmp slt i64 %value, 0
  br i1 %negative, label %minus, label %plain
minus:
  store i8 45, ptr %out
  %after = getelementptr i8, ptr %out, i64 1
  %turned = sub i64 0, %value
  %r = call ptr @unsigned(ptr %after, i64 %turned)
  ret ptr %r
plain:
  %s = call ptr @unsigned(ptr %out, i64 %value)
  ret ptr %s
}

define internal ptr @hexadecimal(ptr %out, i64 %value) {
entry:
  %buffer = alloca [64 x i8]
  %end = getelementptr i8, ptr %buffer, i64 24
  br label %digit
digit:
  %v = phi i64 [ %value, %entry ], [ %rest, %digit ]
  %p = phi ptr [ %end, %entry ], [ %q, %digit ]
  %low = and i64 %v, 15
  %rest = lshr i64 %v, 4
  %place = getelementptr i8, ptr @digits, i64 %low
  %char = load i8, ptr %place
  %q = getelementptr i8, ptr %p, i64 -1
  store i8 %char, ptr %q
  %more = icmp ne i64 %rest, 0
  br i1 %more, label %digit, label %copy
DIGITS
""".replace("DIGITS", _DIGITS)

_STATE: Final = ("data*", "mask", "producer*", "consumer*", "position", "out*", "cap", "used", "done", "step")

WALK: Final = f"""
define i64 @consume(ptr %state) {{
entry:
  %place = alloca ptr
{members(_STATE)}
  store ptr %out, ptr %place
  %usable = sub i64 %cap, BOUND
  %last = getelementptr i8, ptr %out, i64 %usable
  br label %look
look:
  %here = phi i64 [ %position, %entry ], [ %behind, %next ]
  %released = phi i64 [ %position, %entry ], [ %given, %next ]
  %count = phi i64 [ 0, %entry ], [ %counted, %next ]
{record(kept="wanted", skipped="skip", end="empty")}
wanted:
  %now = load ptr, ptr %place
  %room = icmp ule ptr %now, %last
  br i1 %room, label %choose, label %full
choose:
  %record = getelementptr i8, ptr %header, i64 8
  %number = load i32, ptr %record, align 8
  switch i32 %number, label %foreign [ CASES ]
written:
  %one = add i64 %count, 1
  br label %next_of
skip:
  br label %next_of
next_of:
  %counted = phi i64 [ %one, %written ], [ %count, %skip ]
{give_back(of="next_of", then="next")}
  br label %look
empty:
  br label %leave
foreign:
  br label %leave
full:
  br label %leave
leave:
  %reason = phi i64 [ 0, %empty ], [ 1, %foreign ], [ 2, %full ]
  store atomic i64 %here, ptr %consumer release, align 8
  store i64 %here, ptr %position_at
  store i64 %count, ptr %done_at
  %finally = load ptr, ptr %place
  %from = ptrtoint ptr %out to i64
  %to = ptrtoint ptr %finally to i64
  %written_bytes = sub i64 %to, %from
  store i64 %written_bytes, ptr %used_at
  ret i64 %reason
"""
