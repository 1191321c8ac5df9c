"""The user's stack without frame pointers, for dw_ustack(): call frame information of the target's files, which the
client has put into two maps (`runtime.unwind`) as rows of fixed size, and a walk by it.

Mappings: by process id, `MAPPINGS` rows of u64 start, u64 end (addresses in the process), u64 bias (address minus
address in the file), u32 first, u32 count (of the file's rows), in order, unused ones behind with start -1. Rows: by
number >> 8, `CHUNK` rows of u32 address in the file, u8 kind, u8 base, s16 base offset, s32 frame offset, u32 zero. A
row is about the addresses up to the next one's. The canonical frame address is, by kind:

    END       there is none: the outermost function, or a rule that these rows cannot say
    STACK     stack pointer + frame offset
    FRAME     frame pointer + frame offset
    PLT       stack pointer + 8, and 8 more in the second half of 16 bytes of code (lazy binding)
    DEREF     what is at frame pointer + frame offset
    SIGNAL    a signal handler was called: all registers are at fixed places behind the stack pointer

and the caller's frame pointer, by base: SAME as now, CFA: at frame address + base offset, OWN: at frame pointer + base
offset. The return address is in front of the frame address, as the calling convention of x86-64 has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bpfseal.compiler.arch import registers
from bpfseal.compiler.gen import Gen
from bpfseal.compiler.ir import I8, I16, I32, I64, Value, const
from bpfseal.compiler.loops import may_leave
from bpfseal.compiler.unit import HASH, Unit
from bpfseal.signer.bundle import MapSpec

MAPPINGS: Final = 1024
MAPPING: Final = 32
CHUNK: Final = 256
ROW: Final = 16
END, STACK, FRAME, PLT, DEREF, SIGNAL = range(6)
SAME, CFA, OWN = range(3)

# struct rt_sigframe of arch/x86/include/asm/sigframe.h, from where the stack pointer is in the trampoline: ucontext,
# whose uc_mcontext (arch/x86/include/uapi/asm/sigcontext.h) begins at 40.
SIGNAL_BP, SIGNAL_SP, SIGNAL_IP = 120, 160, 168

_PROCESSES, _CHUNKS = 1024, 1 << 16
_NO_PREALLOC: Final = 1 << 0


def maps(unit: Unit) -> tuple[int, int]:
    """Indexes of the maps of mappings and rows."""
    if unit.unwind is None:
        unit.unwind = (
            _map(unit, "unwind_maps", MAPPINGS * MAPPING, _PROCESSES),
            _map(unit, "unwind_rows", CHUNK * ROW, _CHUNKS),
        )
    return unit.unwind


def _map(unit: Unit, name: str, value_size: int, entries: int) -> int:
    return unit.add_map(
        MapSpec(name=name, type=HASH, key_size=4, value_size=value_size, max_entries=entries, flags=_NO_PREALLOC)
    )


class Walk:
    """Code that walks up the stack from where the task left user space."""

    def __init__(self, g: Gen, buffer: Value, depth: int) -> None:
        self.g, self.fn, self.buffer, self.depth = g, g.fn, buffer, depth
        self.mappings, self.rows = maps(g.unit)
        slot = g.fn.slot
        self.ip, self.sp, self.bp, self.cfa, self.number = slot(I64), slot(I64), slot(I64), slot(I64), slot(I64)
        self.low, self.count, self.back = slot(I64), slot(I64), slot(I64)
        self.word = g.buffer(8)
        self.key = g.fn.alloca(8)
        self.stop = g.fn.fresh("stop")

    def get(self, slot: Value) -> Value:
        return self.fn.load(I64, slot, 8)

    def put(self, slot: Value, value: Value) -> None:
        self.fn.store(value, slot, 8)

    def read(self, address: Value) -> Value:
        """A word of the process; leaves the walk when it is not there."""
        fn = self.fn
        got = fn.fresh("got")
        failed = self.g.helper("probe_read_user", self.word, const(8), address)
        fn.branch(fn.compare("eq", failed, const(0)), got, self.stop)
        fn.start(got)
        return fn.load(I64, self.word, 8)

    def write(self, tgid: Value, missing: str) -> Value:
        """Write the addresses; bytes written. Goes to `missing` when nothing is known of the process."""
        g, fn = self.g, self.fn
        fn.store(g.fn.integer(tgid, I32), self.key, 4)
        table = g.helper_on_map("map_lookup_elem", self.mappings, "read", self.key)
        known = fn.fresh("known")
        fn.branch(fn.is_null(table), missing, known)
        fn.start(known)
        saved, regs = g.helper("task_pt_regs", g.helper("get_current_task_btf")), registers().names
        for slot, name in ((self.ip, "ip"), (self.sp, "sp"), (self.bp, "bp")):
            self.put(slot, fn.load(I64, fn.add(saved, regs[name]), 8))
        zero = g.unknown_zero()
        self.put(self.back, zero)
        self.put(self.number, zero)
        again, room = fn.fresh("frame"), fn.fresh("room")
        fn.start(again)
        may_leave(g, self.stop)
        at = self.get(self.number)
        fn.branch(fn.compare("ult", at, const(self.depth)), room, self.stop)
        fn.start(room)
        fn.store(self.get(self.ip), fn.index(self.buffer, fn.binary("shl", at, const(3))), 8)
        self.put(self.number, fn.binary("add", at, const(1)))
        # A call may be the last thing in a function: what it returns to is the next one's first byte.
        self._step(table, fn.binary("sub", self.get(self.ip), self.get(self.back)))
        fn.jump(again)
        fn.start(self.stop)
        return fn.binary("shl", self.get(self.number), const(3))

    def _step(self, table: Value, ip: Value) -> None:
        """From a function to its caller."""
        fn = self.fn
        row = self._row(*self._file(table, ip))
        kind = fn.load(I8, fn.add(row, 4), 1)
        base = fn.load(I8, fn.add(row, 5), 1)
        base_at = fn.integer(fn.load(I16, fn.add(row, 6), 2), I64, signed=True)
        frame_at = fn.integer(fn.load(I32, fn.add(row, 8), 4), I64, signed=True)
        found, signal, after = fn.fresh("cfa"), fn.fresh("signal"), fn.fresh("stepped")
        makers: dict[int, Callable[[], Value]] = {
            STACK: lambda: fn.binary("add", self.get(self.sp), frame_at),
            FRAME: lambda: fn.binary("add", self.get(self.bp), frame_at),
            PLT: lambda: self._plt(ip),
            DEREF: lambda: self.read(fn.binary("add", self.get(self.bp), frame_at)),
        }
        for number, make in makers.items():
            this, other = fn.fresh("kind"), fn.fresh("other")
            fn.branch(fn.compare("eq", kind, const(number, I8)), this, other)
            fn.start(this)
            self.put(self.cfa, make())
            fn.jump(found)
            fn.start(other)
        fn.branch(fn.compare("eq", kind, const(SIGNAL, I8)), signal, self.stop)
        fn.start(signal)
        frame = self.get(self.sp)
        self.put(self.ip, self.read(fn.binary("add", frame, const(SIGNAL_IP))))
        self.put(self.bp, self.read(fn.binary("add", frame, const(SIGNAL_BP))))
        self.put(self.sp, self.read(fn.binary("add", frame, const(SIGNAL_SP))))
        self.put(self.back, self.g.unknown_zero())
        fn.jump(after)
        fn.start(found)
        self._caller(base, base_at)
        fn.start(after)
        sensible = fn.fresh("sensible")
        fn.branch(self.g.truth(self.get(self.ip)), sensible, self.stop)
        fn.start(sensible)

    def _plt(self, ip: Value) -> Value:
        fn = self.fn
        late = fn.compare("uge", fn.binary("and", ip, const(15)), const(11))
        more = fn.binary("shl", fn.integer(late, I64), const(3))
        return fn.binary("add", fn.binary("add", self.get(self.sp), const(8)), more)

    def _caller(self, base: Value, base_at: Value) -> None:
        """Registers of the caller by the frame address."""
        fn = self.fn
        cfa = self.get(self.cfa)
        self.put(self.ip, self.read(fn.binary("sub", cfa, const(8))))
        after, other, own = fn.fresh("base"), fn.fresh("other"), fn.fresh("own")
        in_frame = fn.fresh("in_frame")
        fn.branch(fn.compare("eq", base, const(CFA, I8)), in_frame, other)
        fn.start(in_frame)
        self.put(self.bp, self.read(fn.binary("add", cfa, base_at)))
        fn.jump(after)
        fn.start(other)
        fn.branch(fn.compare("eq", base, const(OWN, I8)), own, after)
        fn.start(own)
        self.put(self.bp, self.read(fn.binary("add", self.get(self.bp), base_at)))
        fn.start(after)
        self.put(self.sp, cfa)
        self.put(self.back, fn.binary("add", self.g.unknown_zero(), const(1)))

    def _file(self, table: Value, ip: Value) -> tuple[Value, Value, Value]:
        """First row, number of rows and address in the file, of the mapping that `ip` is in."""
        fn = self.fn
        self._halve(
            self.g.unknown_zero(),
            const(MAPPINGS),
            lambda at: fn.compare("ule", fn.load(I64, self._mapping(table, at), 8), ip),
        )
        mine = self._mapping(table, self.get(self.low))
        first, inside, behind = fn.load(I64, mine, 8), fn.fresh("inside"), fn.fresh("mapped")
        fn.branch(fn.compare("ule", first, ip), inside, self.stop)
        fn.start(inside)
        fn.branch(fn.compare("ult", ip, fn.load(I64, fn.add(mine, 8), 8)), behind, self.stop)
        fn.start(behind)
        address = fn.binary("sub", ip, fn.load(I64, fn.add(mine, 16), 8))
        start = fn.integer(fn.load(I32, fn.add(mine, 24), 4), I64)
        return start, fn.integer(fn.load(I32, fn.add(mine, 28), 4), I64), address

    def _mapping(self, table: Value, number: Value) -> Value:
        bounded = self.fn.binary("and", number, const(MAPPINGS - 1))
        return self.fn.index(table, self.fn.binary("mul", bounded, const(MAPPING)))

    def _row(self, first: Value, count: Value, address: Value) -> Value:
        """The last row of a file that is not behind `address`."""
        fn = self.fn
        some = fn.fresh("rows")
        fn.branch(self.g.truth(count), some, self.stop)
        fn.start(some)
        self._halve(
            first,
            count,
            lambda at: fn.compare("ule", fn.integer(fn.load(I32, self._numbered(at), 4), I64), address),
        )
        row = self._numbered(self.get(self.low))
        fits = fn.fresh("fits")
        fn.branch(fn.compare("ule", fn.integer(fn.load(I32, row, 4), I64), address), fits, self.stop)
        fn.start(fits)
        return row

    def _numbered(self, number: Value) -> Value:
        fn = self.fn
        fn.store(fn.integer(fn.binary("lshr", number, const(8)), I32), self.key, 4)
        chunk = self.g.helper_on_map("map_lookup_elem", self.rows, "read", self.key)
        there = fn.fresh("chunk")
        fn.branch(fn.is_null(chunk), self.stop, there)
        fn.start(there)
        bounded = fn.binary("and", number, const(CHUNK - 1))
        return fn.index(chunk, fn.binary("mul", bounded, const(ROW)))

    def _halve(self, first: Value, count: Value, not_behind: Callable[[Value], Value]) -> None:
        """Leave in `low` the last of `count` elements from `first` that is `not_behind`, or the first."""
        fn = self.fn
        self.put(self.low, first)
        self.put(self.count, count)
        again, inside, up, on, done = (fn.fresh(h) for h in ("halve", "half", "up", "on", "halved"))
        fn.start(again)
        may_leave(self.g, self.stop)
        left = self.get(self.count)
        fn.branch(fn.compare("ugt", left, const(1)), inside, done)
        fn.start(inside)
        half = fn.binary("lshr", left, const(1))
        middle = fn.binary("add", self.get(self.low), half)
        fn.branch(not_behind(middle), up, on)
        fn.start(up)
        self.put(self.low, middle)
        fn.start(on)
        self.put(self.count, fn.binary("sub", left, half))
        fn.jump(again)
        fn.start(done)


def user_stack(g: Gen, buffer: Value, depth: int) -> Value:
    """Write the addresses of the user's stack to `buffer`, which has room for `depth`; bytes written, 0 (and a
    message) for processes whose files the client has not looked at."""
    from bpfseal.compiler.events import runtime_error
    from bpfseal.compiler.names import pid

    fn = g.fn
    g.clear(buffer, 8 * depth)
    result = fn.slot(I64)
    missing, after = fn.fresh("no_dwarf"), fn.fresh("walked")
    fn.store(Walk(g, buffer, depth).write(pid(g), missing), result, 8)
    fn.jump(after)
    fn.start(missing)
    fn.store(const(0), result, 8)
    runtime_error(g, "dw_ustack", g.span)
    fn.start(after)
    return fn.load(I64, result, 8)
