"""Writing one function: variables, buffers, helper calls, and the dispatch over the typed tree.

A value of a scalar type is a `Value` in a register. A value of a memory type is where it is wanted: `store` builds it
at a given address, so that a string goes straight into the map key or event that it is for; `address` gives a place
where it can be read, which is a buffer only if it is nowhere yet.

Strings are clean: the bytes behind the NUL are zero, so that strings compare, and work as keys, as memory. Only what
goes into events need not be (`clean=False`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from bpfseal.compiler import ir
from bpfseal.compiler.helpers import HELPERS, MEMORY
from bpfseal.compiler.ir import I1, I8, I32, I64, PTR, Value, const
from bpfseal.compiler.unit import Declared, Unit
from bpfseal.dsl import types
from bpfseal.dsl.source import NOWHERE
from bpfseal.dsl.typed import Expr, Function, Probe, Stmt, Var
from bpfseal.dsl.types import Type, is_scalar, size_of
from bpfseal.errors import BpfsealError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bpfseal.compiler.callbacks import Frame
    from bpfseal.compiler.packet import Packet
    from bpfseal.compiler.plan import Program

STRIDE: Final = "$stride$"
"""In the text of functions: size of a CPU's part of the scratch map, known when all is written."""

_INLINE_BYTES: Final = 64  # what is copied or cleared by instructions; more by a helper call

Scalar = Callable[["Gen", Any], Value]
Memory = Callable[["Gen", Any, Value, bool], None]
Statement = Callable[["Gen", Any], None]

# Filled by the modules of expressions and statements.
SCALARS: Final[dict[type, Scalar]] = {}
MEMORIES: Final[dict[type, Memory]] = {}
ADDRESSES: Final[dict[type, Callable[[Gen, Any], Value | None]]] = {}
STATEMENTS: Final[dict[type, Statement]] = {}


def register_type(type: Type) -> str:
    """LLVM type of a scalar in a register."""
    match type:
        case types.Int(bits=bits) | types.Enum(bits=bits):
            return f"i{bits}"
        case types.Bool():
            return I1
        case types.Ptr(space=space):
            return PTR if space in ("btf", "ctx", "bpf") else I64
        case _:
            return I64


def memory_type(type: Type) -> str:
    """LLVM type of a scalar in memory."""
    return I8 if isinstance(type, types.Bool) else register_type(type)


def is_signed(type: Type) -> bool:
    return isinstance(type, types.Int | types.Enum) and type.signed


class Buffer(Struct):
    """A place that was reserved: on the stack, or at `offset` of the scratch memory; in deferred blocks of the map
    element."""

    stack: Value | None
    offset: int = 0


class Element(Struct):
    """Memory in the value of a map element: where it is, how much of it is taken; `faults` where the program may sleep
    until a page is there."""

    value: Value
    size: int
    faults: bool = True

    def take(self, size: int) -> int:
        """Offset of `size` new bytes."""
        at = self.size
        self.size += (size + 7) & -8
        return at


class Loop(Struct):
    """Labels of the innermost loop; in a callback `leave` is what `break` does."""

    again: str
    leave: str


class Gen:
    """One function of the bundle being written."""

    def __init__(self, unit: Unit, fn: ir.Function, program: Program | None = None, probe: Probe | None = None) -> None:
        self.unit = unit
        self.fn = fn
        self.program = program
        self.probe = probe
        self.declared = Declared()
        self.vars: dict[Var, Buffer] = {}
        self.loops: list[Loop] = []
        self.stack_bytes = 0
        self.handed_down: Value = Value(PTR, "%ctx")  # the context, in loops of deferred blocks their element
        self.leave: Callable[[Value | None], None] = self._return
        self.probe_number: Value = const(0, "i32")
        self.span = NOWHERE  # of the statement being written
        self.point_index: Value | None = None  # which of the program's points, where it matters
        # Deferred blocks have their memory in the map element that they were scheduled by, and may sleep
        self.element: Element | None = None
        self.deferred = False  # in a deferred block, or in a loop over a map in one
        # Loops over maps (callbacks) and calls of the script's functions
        self.frame: Frame | None = None
        self.callback_frame: Frame | None = None
        self.calls: list[Function] = []
        self.result_target: Value | None = None
        self.packet: Packet | None = None  # what is read of the packet, in xdp and tc probes

    @property
    def ctx(self) -> Value:
        """The program's context. Raises BpfsealError in deferred blocks: the probe is over when they run."""
        if self.deferred:
            raise BpfsealError(
                "a deferred block has nothing of the probe that scheduled it but its variables",
                hint="put what comes from the probe's arguments or registers into a variable before the block",
            )
        return self.handed_down

    # Dispatch

    def scalar(self, expr: Expr) -> Value:
        """The value of an expression of scalar type."""
        return SCALARS[type(expr)](self, expr)

    def store(self, expr: Expr, target: Value, *, clean: bool = True) -> None:
        """Write the value of an expression to `target`, which has `size_of(expr.type)` bytes, 8-byte aligned for
        memory types unless they are smaller."""
        if is_scalar(expr.type):
            self.store_scalar(self.scalar(expr), expr.type, target)
        else:
            MEMORIES[type(expr)](self, expr, target, clean)

    def address(self, expr: Expr) -> Value:
        """Memory of ours that holds the value of an expression of memory type; valid until the next statement."""
        handler = ADDRESSES.get(type(expr))
        found = handler(self, expr) if handler is not None else None
        if found is None:
            found = self.buffer(size_of(expr.type))
            self.store(expr, found)
        return found

    def statements(self, body: tuple[Stmt, ...]) -> None:
        for statement in body:
            self.span = statement.span
            STATEMENTS[type(statement)](self, statement)

    def store_scalar(self, value: Value, type: Type, target: Value) -> None:
        if value.type == I1:
            value = self.fn.integer(value, I8)
        self.fn.store(value, target, size_of(type))

    def load_scalar(self, type: Type, source: Value, align: int = 0) -> Value:
        """A scalar from memory that can be read directly."""
        value = self.fn.load(memory_type(type), source, align or size_of(type))
        return self.truth(value) if isinstance(type, types.Bool) else value

    def load_context(self, context: Value, offset: int, type: str) -> Value:
        """A load from the program's context. The verifier wants the offset in the instruction itself, so it is one that
        LLVM neither splits nor moves parts of (llvm/lib/Target/BPF/BPFPreserveStaticOffset.cpp)."""
        align = 3 if type == PTR else {8: 0, 16: 1, 32: 2, 64: 3}[int(type[1:])]
        name = f"@llvm.bpf.getelementptr.and.load.{'p0' if type == PTR else type}"
        self.unit.kfuncs.add(f"{type} {name}(ptr captures(none), i1, i8, i8, i8, i1, ...)")
        call = f"call {type} (ptr, i1, i8, i8, i8, i1, ...) {name}"
        # not inbounds, not atomic, system scope, alignment as a power, not volatile, offset
        return self.fn.op(
            type,
            f"{call}(ptr readonly elementtype(i8) {context.text}, i1 false, i8 0, i8 1, i8 {align}, i1 false, "
            f"i64 immarg {offset})",
        )

    def truth(self, value: Value) -> Value:
        """i1: not zero."""
        if value.type == I1:
            return value
        if value.type == PTR:
            return self.fn.op(I1, f"icmp ne ptr {value.text}, null")
        return self.fn.compare("ne", value, const(0, value.type))

    # Buffers

    def buffer(self, size: int, align: int = 8) -> Value:
        """New memory for a value that lives until the end of the statement."""
        return self.locate(self.reserve(size, align))

    def reserve(self, size: int, align: int = 8) -> Buffer:
        """Memory of this function's own; what is in it at first is unknown."""
        if self.element is not None and size > 8:
            return Buffer(None, self.element.take(size))
        if size <= self.unit.on_stack_limit and self.stack_bytes + size <= self.unit.stack_budget:
            self.stack_bytes += (size + 7) & -8
            return Buffer(self.fn.alloca(max(size, 1), align))
        return Buffer(None, self.unit.scratch(size))

    def reserve_scratch(self, size: int) -> Buffer:
        """Memory in a map, where offsets that are known at run time only may be used."""
        if self.element is not None:
            return Buffer(None, self.element.take(size))
        return Buffer(None, self.unit.scratch(size))

    def locate(self, buffer: Buffer) -> Value:
        if buffer.stack is not None:
            return buffer.stack
        if self.element is not None:
            return self.fn.add(self.element.value, buffer.offset)
        return self.fn.add(self._scratch(), buffer.offset)

    def _scratch(self) -> Value:
        """This CPU's part of the scratch memory."""
        index = self.unit.scratch_index
        self.declared.use(index, "read", "write")
        base = self.unit.value(index)
        if self.unit.options.cpu_slots == 1:
            return base
        cpu = self.helper("get_smp_processor_id")
        mine = self.fn.binary("and", cpu, const(self.unit.options.cpu_slots - 1))
        return self.fn.index(base, self.fn.op(I64, f"mul nuw nsw {mine}, {STRIDE}"))

    def unknown_zero(self) -> Value:
        """Zero, as the verifier does not know: what it is added to stops being a constant to it. Loops end for the
        verifier when a round finds nothing new, which takes that it is not counting along."""
        if self.unit.zero_at < 0:
            self.unit.zero_at = self.unit.scratch(8)
        index = self.unit.scratch_index
        self.declared.use(index, "read")
        place = self.fn.add(self.unit.value(index), self.unit.zero_at)
        return self.fn.op(I64, f"load volatile i64, ptr {place.text}, align 8")

    def opaque(self, value: Value) -> Value:
        """The same i64, of which LLVM knows nothing: so that it tests the very register that is used afterwards, which
        is what the verifier follows, and not some relative of it that it finds equivalent."""
        place = self.fn.alloca(8)
        self.fn.do(f"store volatile {value}, ptr {place.text}, align 8")
        return self.fn.op(I64, f"load volatile i64, ptr {place.text}, align 8")

    def as_number(self, pointer: Value) -> Value:
        """A pointer that the verifier follows, or thinks may be null, as a plain number: by way of memory that it does
        not look into."""
        place = self.locate(self.reserve_scratch(8))
        self.fn.do(f"store volatile {pointer}, ptr {place.text}, align 8")
        return self.fn.op(I64, f"load volatile i64, ptr {place.text}, align 8")

    # Calls

    def helper(self, name: str, *args: Value) -> Value:
        """Call a helper; its result, an i64 or a ptr."""
        spec = HELPERS[name]
        self.declared.helpers.add(name)
        # What a helper gets, it does not keep; records of the ring buffer excepted.
        keep = "" if name.startswith("ringbuf_") else " captures(none)"
        listed = ", ".join(f"ptr{keep} {a.text}" if a.type == PTR else f"i64 {self._wide(a).text}" for a in args)
        callee = f"{spec.returns} inttoptr (i64 {spec.id} to ptr)({listed})"
        return self.fn.op(spec.returns, f"call {callee} nounwind willreturn {MEMORY[spec.memory]}")

    def _wide(self, value: Value) -> Value:
        return self.fn.integer(value, I64)

    def reading_helper(self, name: str, *args: Value) -> Value:
        """A helper that gives zeros when it fails, which the client is told of only on request."""
        result = self.helper(name, *args)
        if self.unit.options.helper_errors > 1:
            self.report_failure(name, result)
        return result

    def report_failure(self, name: str, result: Value) -> None:
        """An event when a helper's result is an error."""
        from bpfseal.compiler.events import runtime_error

        failed = self.fn.compare("slt", self.fn.integer(result, I32), const(0, I32))
        with self.when(failed, "failed"):
            runtime_error(self, "helper", self.span, result, name)

    def kfunc(self, returns: str, name: str, *args: Value) -> Value:
        """Call a kernel function by name."""
        self.unit.kfuncs.add(f"{returns} @{name}({', '.join(a.type for a in args)})")
        self.declared.kfuncs.add(name)
        call = f"call {returns} @{name}({', '.join(map(str, args))}) nounwind"
        if returns == "void":
            self.fn.do(call)
            return Value("void", "")
        return self.fn.op(returns, call)

    def helper_on_map(self, name: str, index: int, operation: str, *args: Value) -> Value:
        """A helper whose first argument is the map `index`."""
        self.declared.use(index, operation)
        return self.helper(name, self.unit.map(index), *args)

    # Memory of ours

    def clear(self, target: Value, size: int) -> None:
        """Zero `size` bytes."""
        if not size:
            return
        if size <= _INLINE_BYTES:
            self.fn.do(f"call void @llvm.memset.p0.i64(ptr align 8 {target.text}, i8 0, i64 {size}, i1 false)")
            return
        # The kernel clears what it could not read.
        self.helper("probe_read_kernel", target, const(size), const(0))

    def clear_tail(self, target: Value, start: int, end: int) -> None:
        """Zero the bytes of `target` (8-byte aligned) from `start` to before `end`."""
        if end - start > _INLINE_BYTES:
            self.helper("probe_read_kernel", self.fn.add(target, start), const(end - start), const(0))
            return
        while start < end:
            width = next(w for w in (8, 4, 2, 1) if start % w == 0 and start + w <= end)
            self.fn.store(const(0, f"i{8 * width}"), self.fn.add(target, start), width)
            start += width

    def copy(self, target: Value, source: Value, size: int, align: int = 8) -> None:
        """Copy between places that can be accessed directly."""
        if size <= _INLINE_BYTES:
            self.fn.do(
                f"call void @llvm.memcpy.p0.p0.i64(ptr align {align} {target.text}, ptr align {align} {source.text}, "
                f"i64 {size}, i1 false)"
            )
        else:
            self.helper("probe_read_kernel", target, const(size), source)

    # Control

    @contextmanager
    def when(self, condition: Value, hint: str = "then") -> Iterator[None]:
        """What is written inside runs only if `condition` (i1)."""
        yes, after = self.fn.fresh(hint), self.fn.fresh("after")
        self.fn.branch(condition, yes, after)
        self.fn.start(yes)
        yield
        self.fn.start(after)

    @contextmanager
    def unless(self, condition: Value, hint: str = "else") -> Iterator[None]:
        yes, after = self.fn.fresh(hint), self.fn.fresh("after")
        self.fn.branch(condition, after, yes)
        self.fn.start(yes)
        yield
        self.fn.start(after)

    def _return(self, value: Value | None) -> None:
        if self.fn.returns == "void":
            self.fn.ret()
        elif value is None:
            # Not 0: for XDP that means to drop the packet.
            self.fn.ret(const(self.program.result if self.program is not None else 0, self.fn.returns))
        else:
            self.fn.ret(self.fn.integer(value, self.fn.returns, signed=True))


def impossible(what: str) -> BpfsealError:
    """For trees that the checker does not make."""
    return BpfsealError(f"the code generator cannot translate {what}")
