"""LLVM IR of the native consumer (see `runtime.native`): one function for the printf sites of a script.

The state that it is given, in 64-bit words: 0 data area, 1 mask of positions, 2 producer's position (address),
3 consumer's position (address), 4 our position, 5 output, 6 its size, 7 bytes of it that are used, 8 records done,
9 bytes after which space is given back to the kernel. Ring layout: see `runtime.ring`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from bpfseal.compiler.layout import CUT, EventField, EventLayout, Shape
from bpfseal.runtime.render.printf import CONVERSION, bits_of, narrowed

_NUMBER: Final = 24  # most bytes of a number in decimal
_MOST_WIDTH: Final = 4096


@dataclass(frozen=True)
class Program:
    """IR with `i64 @consume(ptr state)`; `bound`: bytes that the longest line can take."""

    text: str
    bound: int


class _Unknown(Exception):
    """A format that is Python's business."""


class _Lines:
    """Code of one event: each step moves `%o<n>`, the place where the output goes on."""

    def __init__(self, event: int, *, json: bool = False) -> None:
        """`json`: the line is an object, the text in it a string with escapes."""
        self.event = event
        self.json = json
        self.code: list[str] = []
        self.constants: list[str] = []
        self.bound = 0
        self.steps = 0

    def _name(self, what: str) -> str:
        return f"%{what}{self.event}_{self.steps}"

    def out(self) -> str:
        return f"%o{self.event}_{self.steps}"

    def _advance(self, call: str) -> None:
        self.steps += 1
        self.code.append(f"{self.out()} = {call}")

    def literal(self, text: bytes) -> None:
        if self.json:
            from json import dumps

            text = dumps(text.decode("utf-8", "replace"), ensure_ascii=False)[1:-1].encode()
        self.fixed(text)

    def fixed(self, text: bytes) -> None:
        """Bytes as they are."""
        if not text:
            return
        name = self._constant(text)
        self.code.append(f"call void @llvm.memcpy.p0.p0.i64(ptr {self.out()}, ptr {name}, i64 {len(text)}, i1 false)")
        self.bound += len(text)
        self._advance(f"getelementptr i8, ptr {self.out()}, i64 {len(text)}")

    def _constant(self, text: bytes) -> str:
        name = f"@s{self.event}_{len(self.constants)}"
        escaped = "".join(f"\\{byte:02x}" for byte in text)
        self.constants.append(f'{name} = private constant [{len(text)} x i8] c"{escaped}"')
        return name

    def load(self, field: EventField) -> str:
        """The field as an i64, by its own sign."""
        shape = field.shape
        size = 8 if shape.kind == "ptr" else shape.size
        self.code.append(f"{self._name('f')} = getelementptr i8, ptr %record, i64 {field.offset}")
        self.code.append(f"{self._name('n')} = load i{size * 8}, ptr {self._name('f')}, align 1")
        if size == 8:
            return self._name("n")
        extend = "sext" if shape.signed else "zext"
        self.code.append(f"{self._name('w')} = {extend} i{size * 8} {self._name('n')} to i64")
        if shape.kind != "bool":
            return self._name("w")
        self.code.append(f"{self._name('b')} = icmp ne i64 {self._name('w')}, 0")
        self.code.append(f"{self._name('v')} = zext i1 {self._name('b')} to i64")
        return self._name("v")

    def masked(self, value: str, shape: Shape, bits: int) -> str:
        """Without the sign, as a number of `bits`."""
        if shape.kind == "ptr" or bits == 64 or not shape.signed:
            return value
        self.code.append(f"{self._name('m')} = and i64 {value}, {(1 << bits) - 1}")
        return self._name("m")

    def number(self, function: str, value: str) -> None:
        self.bound += _NUMBER
        self._advance(f"call ptr @{function}(ptr {self.out()}, i64 {value})")

    def string(self, field: EventField) -> None:
        at = self._name("t")
        self.code.append(f"{at} = getelementptr i8, ptr %record, i64 {field.offset}")
        self.code.append(f"{self._name('l')} = call i64 @strnlen(ptr {at}, i64 {field.shape.size})")
        self.code.append(
            f"call void @llvm.memcpy.p0.p0.i64(ptr {self.out()}, ptr {at}, i64 {self._name('l')}, i1 false)"
        )
        self.bound += field.shape.size
        step = self.steps
        self._advance(f"getelementptr i8, ptr {self.out()}, i64 {self._name('l')}")
        cut = _cut(field.shape)
        if cut and field.shape.size:
            # Written in any case: what comes next overwrites it unless the string was cut.
            whole, length = f"%whole{self.event}_{step}", f"%cut{self.event}_{step}"
            self.code.append(f"{whole} = icmp eq i64 %l{self.event}_{step}, {field.shape.size}")
            self.code.append(f"{length} = select i1 {whole}, i64 {len(cut)}, i64 0")
            text = self._constant(cut)
            self.code.append(
                f"call void @llvm.memcpy.p0.p0.i64(ptr {self.out()}, ptr {text}, i64 {len(cut)}, i1 false)"
            )
            self.bound += len(cut)
            self._advance(f"getelementptr i8, ptr {self.out()}, i64 {length}")

    def ended(self, field: EventField) -> tuple[str, int]:
        """A string as C has it, and the most bytes that it can have: where it was cut a copy that says so."""
        size, cut = field.shape.size, _cut(field.shape)
        at, mark = self._name("t"), f"{self.event}_{self.steps}"
        self.code.append(f"{at} = getelementptr i8, ptr %record, i64 {field.offset}")
        if not cut or not size:
            return at, size
        copy = f"@copy{mark}"
        self.constants.append(f"{copy} = internal global [{size + len(cut) + 1} x i8] zeroinitializer")
        self.code += [
            f"%l{mark} = call i64 @strnlen(ptr {at}, i64 {size})",
            f"%whole{mark} = icmp eq i64 %l{mark}, {size}",
            f"br label %test{mark}",
            f"test{mark}:",
            f"br i1 %whole{mark}, label %long{mark}, label %both{mark}",
            f"long{mark}:",
            f"call void @llvm.memcpy.p0.p0.i64(ptr {copy}, ptr {at}, i64 {size}, i1 false)",
            f"%end{mark} = getelementptr i8, ptr {copy}, i64 {size}",
            f"call void @llvm.memcpy.p0.p0.i64(ptr %end{mark}, ptr {self._constant(cut)}, i64 {len(cut)}, i1 false)",
            f"br label %both{mark}",
            f"both{mark}:",
            f"%p{mark} = phi ptr [ {at}, %test{mark} ], [ {copy}, %long{mark} ]",
        ]
        return f"%p{mark}", size + len(cut)

    def plain_string(self, field: EventField) -> None:
        """A string of printable ASCII that needs no escapes; a record with any other is Python's."""
        if not field.shape.size:
            return
        mark = f"{self.event}_{self.steps}"
        self.code += [
            f"%t{mark} = getelementptr i8, ptr %record, i64 {field.offset}",
            f"%j{mark} = call ptr @plain(ptr {self.out()}, ptr %t{mark}, i64 {field.shape.size})",
            f"%odd{mark} = icmp eq ptr %j{mark}, null",
            f"br i1 %odd{mark}, label %foreign, label %even{mark}",
            f"even{mark}:",
        ]
        self.bound += field.shape.size
        self._advance(f"getelementptr i8, ptr %j{mark}, i64 0")

    def character(self, value: str) -> None:
        self.code.append(f"{self._name('c')} = trunc i64 {value} to i8")
        self.code.append(f"store i8 {self._name('c')}, ptr {self.out()}")
        self.bound += 1
        self._advance(f"getelementptr i8, ptr {self.out()}, i64 1")

    def printf(self, format: bytes, arguments: str, bound: int) -> None:
        """One conversion by libc, for widths and flags."""
        name = self._constant(format + b"\0")
        self.bound += bound + 1
        self.code.append(
            f"{self._name('r')} = call i32 (ptr, i64, ptr, ...) @snprintf(ptr {self.out()}, i64 {bound + 1}, "
            f"ptr {name}, {arguments})"
        )
        self.code.append(f"{self._name('e')} = sext i32 {self._name('r')} to i64")
        self._advance(f"getelementptr i8, ptr {self.out()}, i64 {self._name('e')}")


def _cut(shape: Shape) -> bytes:
    """What follows a string that fills its place."""
    return str(shape.params[0] if shape.params else CUT).encode("utf-8", "surrogateescape")


def program(events: Sequence[EventLayout], *, json: bool = False) -> Program | None:
    """IR for the events that can be written natively, as lines of JSON or as text; None when there are none."""
    done = {n: lines for n, event in enumerate(events) if (lines := _event(n, event, json)) is not None}
    if not done:
        return None
    bound = max(lines.bound for lines in done.values()) + 64
    return Program("\n".join(_module(done, bound)), bound)


def _event(number: int, event: EventLayout, json: bool) -> _Lines | None:
    if event.action != "printf":
        return None
    lines = _Lines(number, json=json)
    try:
        lines.fixed(b'{"type": "printf", "data": "' if json else b"")
        _format(lines, event.format, event.fields)
        lines.fixed(b'"}\n' if json else b"")
    except _Unknown:
        return None
    return lines


def _format(lines: _Lines, format: bytes, fields: Sequence[EventField]) -> None:
    source = format.decode("utf-8", "surrogateescape")
    at = number = 0
    for match in CONVERSION.finditer(source):
        lines.literal(source[at : match.start()].encode("utf-8", "surrogateescape"))
        at = match.end()
        if match["kind"] == "%":
            lines.literal(b"%")
            continue
        if number >= len(fields):
            raise _Unknown
        _conversion(lines, match, fields[number])
        number += 1
    lines.literal(source[at:].encode("utf-8", "surrogateescape"))


def _conversion(lines: _Lines, match: re.Match[str], field: EventField) -> None:
    # The space flag and precisions do nothing, as in Python's formatter.
    flags, width, kind = match["flags"].replace(" ", ""), match["width"] or "", match["kind"]
    shape = field.shape
    if int(width or 0) > _MOST_WIDTH:
        raise _Unknown
    if shape.kind == "str" and kind == "s":
        if lines.json and width:
            raise _Unknown
        if not width:
            (lines.plain_string if lines.json else lines.string)(field)
            return
        if "0" in flags:
            raise _Unknown
        pointer, most = lines.ended(field)
        lines.printf(f"%{flags.strip('+#')}{width}.{most}s".encode(), f"ptr {pointer}", max(int(width or 0), most))
        return
    if shape.kind not in ("int", "ptr", "bool", "enum"):
        raise _Unknown
    plain = not flags and not width
    field = narrowed(match, field)
    value = lines.load(field)
    match kind:
        case "d" | "i":
            letter = "d"
        case "u" | "x" | "X" | "o":
            value, letter, flags = lines.masked(value, field.shape, bits_of(match)), kind, flags.replace("+", "")
        case "p":
            letter, flags = "x", flags.replace("+", "").replace("#", "") + "#"
        case "c" if plain and not lines.json:
            lines.character(value)
            return
        case _:
            raise _Unknown
    if plain and kind in "diux":
        lines.number({"d": "signed", "u": "unsigned", "x": "hexadecimal"}[letter], value)
        return
    # Zeros that C puts behind signs and prefixes, and streams before them.
    if "0" in flags and (letter == "d" or set(flags) & {"-", "#"}):
        raise _Unknown
    lines.printf(f"%{flags}{width}ll{letter}".encode(), f"i64 {value}", max(int(width or 0), _NUMBER))


def _module(done: dict[int, _Lines], bound: int) -> Iterator[str]:
    for lines in done.values():
        yield from lines.constants
    yield _PRELUDE
    yield _WALK.replace("BOUND", str(bound)).replace(
        "CASES", " ".join(f"i32 {number}, label %event{number}" for number in done)
    )
    for number, lines in done.items():
        yield f"event{number}:"
        yield f"%o{number}_0 = load ptr, ptr %place"
        yield from lines.code
        yield f"store ptr {lines.out()}, ptr %place"
        yield "br label %written"
    yield "}"


_PRELUDE: Final = """
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
copy:
  %from = ptrtoint ptr %q to i64
  %to = ptrtoint ptr %end to i64
  %length = sub i64 %to, %from
  call void @llvm.memcpy.p0.p0.i64(ptr %out, ptr %q, i64 24, i1 false)
  %next = getelementptr i8, ptr %out, i64 %length
  ret ptr %next
}

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
copy:
  %from = ptrtoint ptr %q to i64
  %to = ptrtoint ptr %end to i64
  %length = sub i64 %to, %from
  call void @llvm.memcpy.p0.p0.i64(ptr %out, ptr %q, i64 24, i1 false)
  %next = getelementptr i8, ptr %out, i64 %length
  ret ptr %next
}
"""

_WALK: Final = """
define i64 @consume(ptr %state) {
entry:
  %place = alloca ptr
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
  store ptr %out, ptr %place
  %cap_at = getelementptr i64, ptr %state, i64 6
  %cap = load i64, ptr %cap_at
  %used_at = getelementptr i64, ptr %state, i64 7
  %count_at = getelementptr i64, ptr %state, i64 8
  %step_at = getelementptr i64, ptr %state, i64 9
  %step = load i64, ptr %step_at
  %usable = sub i64 %cap, BOUND
  %last = getelementptr i8, ptr %out, i64 %usable
  br label %look
look:
  %position = phi i64 [ %first, %entry ], [ %behind, %next ]
  %released = phi i64 [ %first, %entry ], [ %given, %next ]
  %count = phi i64 [ 0, %entry ], [ %counted, %next ]
  %produced = load atomic i64, ptr %producer acquire, align 8
  %there = icmp ult i64 %position, %produced
  br i1 %there, label %head, label %empty
head:
  %at = and i64 %position, %mask
  %header = getelementptr i8, ptr %data, i64 %at
  %word = load atomic i32, ptr %header acquire, align 8
  %busy = icmp slt i32 %word, 0
  br i1 %busy, label %empty, label %whole
whole:
  %kept = and i32 %word, 1073741823
  %discard = and i32 %word, 1073741824
  %dropped = icmp ne i32 %discard, 0
  br i1 %dropped, label %skip, label %wanted
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
  %length = zext i32 %kept to i64
  %padded = add i64 %length, 15
  %span = and i64 %padded, -8
  %behind = add i64 %position, %span
  %since = sub i64 %behind, %released
  %due = icmp uge i64 %since, %step
  br i1 %due, label %give, label %next
give:
  store atomic i64 %behind, ptr %consumer release, align 8
  br label %next
next:
  %given = phi i64 [ %behind, %give ], [ %released, %next_of ]
  br label %look
empty:
  br label %leave
foreign:
  br label %leave
full:
  br label %leave
leave:
  %reason = phi i64 [ 0, %empty ], [ 1, %foreign ], [ 2, %full ]
  store atomic i64 %position, ptr %consumer release, align 8
  store i64 %position, ptr %position_at
  store i64 %count, ptr %count_at
  %finally = load ptr, ptr %place
  %from = ptrtoint ptr %out to i64
  %to = ptrtoint ptr %finally to i64
  %used = sub i64 %to, %from
  store i64 %used, ptr %used_at
  ret i64 %reason
"""
