"""The module's text: one function per program, dispatch on system call numbers, declarations."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from bpfseal.compiler import (  # the handlers register themselves
    aggregates,
    arch,
    args,
    calls,
    casts,
    deferred,
    events,
    functions,
    loops,
    memory,
    names,
    packet,
    plan,
    sessions,
    statements,
    values,
)
from bpfseal.compiler.analysis import nodes, unset_variables
from bpfseal.compiler.args import syscall_number
from bpfseal.compiler.callbacks import declare_variables
from bpfseal.compiler.gen import STRIDE, Gen
from bpfseal.compiler.ir import I64, PTR, Function, Value, const
from bpfseal.compiler.link import DECLARATIONS
from bpfseal.compiler.llvm import DATA_LAYOUT, TRIPLE
from bpfseal.compiler.merge import in_one_program, merged
from bpfseal.compiler.plan import Program
from bpfseal.compiler.sessions import Part
from bpfseal.compiler.unit import Unit
from bpfseal.dsl import typed
from bpfseal.errors import BpfsealError

_HANDLERS = (aggregates, args, calls, casts, deferred, events, functions, loops, memory, names, statements, values)

_INTRINSICS = """\
declare i64 @llvm.bpf.pseudo(i64, i64)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
"""


def write(unit: Unit) -> list[Program]:
    """Write all programs of the script into the unit."""
    parts: list[Part] = []
    for probe, bodies in in_one_program(merged(unit.script.probes)):
        for program in plan.programs(unit, probe):
            parts.append(Part(replace(program, name=f"p{len(parts)}"), probe, bodies))
    done = []
    for group in sessions.paired(unit, parts):
        _write_program(unit, *group)
        done.append(group[0].program)
    return plan.attach_order(done)


def text(unit: Unit) -> str:
    """The whole module for LLVM."""
    declared = "".join(unit.declared[name].line(name) + "\n" for name in unit.declared)
    data = "".join(f"\\{b:02X}" for b in declared.encode())
    return "".join(
        (
            f'target triple = "{TRIPLE}"\ntarget datalayout = "{DATA_LAYOUT}"\n',
            *(f"@{name} = external global [0 x i8], align 8\n" for name in sorted(unit.externals)),
            _INTRINSICS,
            *(f"declare {signature}\n" for signature in sorted(unit.kfuncs)),
            *(function.replace(STRIDE, str(unit.scratch_stride)) for function in unit.functions),
            f'@declared = constant [{len(declared.encode())} x i8] c"{data}", section "{DECLARATIONS}"\n',
        )
    )


def _write_program(unit: Unit, part: Part, leaving: Part | None = None) -> None:
    """`leaving` is what happens at the other end of a session."""
    program = part.program
    fn = Function(program.name, I64, (Value(PTR, "%ctx"),), tail=f'section ".f.{program.name}" ')
    g = Gen(unit, fn, program, part.probe)
    if program.kind in ("kprobe", "kretprobe") and unit.options.addresses is not None:
        _guard(g, program, unit.options.addresses)
    if leaving is not None:
        entry, other = fn.fresh("entry"), fn.fresh("return")
        fn.branch(sessions.returning(g), other, entry)
        fn.start(other)
        end = Gen(unit, fn, leaving.program, leaving.probe)
        end.declared = g.declared
        _write_body(end, leaving)
        fn.start(entry)
    _write_body(g, part)
    unit.add_function(fn, g.declared)


def _write_body(g: Gen, part: Part) -> None:
    program, probe, bodies, fn = part.program, part.probe, part.bodies, g.fn
    named = probe.uses_probe_name and len(program.points) > 1
    first = g.unit.probe_numbers([p.name for p in program.points])
    g.probe_number = const(first, "i32")
    index = None
    if program.numbers:
        index = _dispatch(g, program, named)
    elif named:
        index = g.helper("get_attach_cookie", g.ctx)
    if named and index is not None:
        g.point_index = index
        g.probe_number = fn.binary("add", fn.integer(g.point_index, "i32"), const(first, "i32"))
    declare_variables(g, probe.body, unset_variables(probe.body))
    if program.kind in ("xdp", "tc"):
        packet.prepare(g, probe.body)
    for body in bodies[:-1]:
        _statements_before_others(g, body)
    last = bodies[-1]
    if program.numbers:
        predicate = 1 if _only_looks(last) else 0  # most events end there, and it costs less than the other test
        g.statements(last[:predicate])
        _leave_compat(g)
        last = last[predicate:]
    g.statements(last)
    fn.ret(const(program.result))


def _statements_before_others(g: Gen, body: tuple[typed.Stmt, ...]) -> None:
    """A body that others follow: where it ends early, they go on, unless it has decided."""
    leave, following = g.leave, g.fn.fresh("following")
    g.leave = lambda value: g.fn.jump(following) if value is None else leave(value)
    g.statements(body)
    g.fn.start(following)
    g.leave = leave


def _guard(g: Gen, program: Program, addresses: Mapping[str, int]) -> None:
    """Leave unless the traced function is one that the program was made for. The signing helper recognises the form:
    until the address is known to be one of these constants nothing has an effect (signer.guard)."""
    fn = g.fn
    inside = fn.fresh("guarded")
    found = g.helper("get_func_ip", g.ctx)
    for point in program.points:
        address = addresses.get(point.function)
        if address is None or point.number:
            raise BpfsealError(f"{point.name} cannot be bound to its address", hint="only the entry of a function can")
        other = fn.fresh("other")
        fn.branch(fn.compare("eq", found, const(address)), inside, other)
        fn.start(other)
    fn.ret(const(program.result))
    fn.start(inside)


def _dispatch(g: Gen, program: Program, named: bool) -> Value | None:
    """Leave unless the system call is one of the points'. The index of the point, if it is wanted."""
    fn = g.fn
    number = syscall_number(g, program.entering)
    wanted = fn.fresh("wanted")
    other = fn.fresh("other")
    index = None
    if len(program.numbers) == 1:
        fn.branch(fn.compare("eq", number, const(program.numbers[0])), wanted, other)
    elif named:
        index = _look_up_index(g, program, number, wanted, other)
    else:
        _look_up_number(g, program, number, wanted, other)
    fn.start(other)
    fn.ret(const(program.result))
    fn.start(wanted)
    return fn.binary("sub", index, const(1)) if index is not None else None


def _look_up_index(g: Gen, program: Program, number: Value, wanted: str, other: str) -> Value:
    """By a table of 1 + the point's index for each system call number."""
    fn = g.fn
    last = max(program.numbers)
    table = bytearray(2 * (last + 1))
    for index, n in enumerate(program.numbers):
        table[2 * n : 2 * n + 2] = (index + 1).to_bytes(2, "little")
    place = _table(g, bytes(table), 2)
    inside = fn.fresh("known")
    fn.branch(fn.compare("ugt", number, const(last)), other, inside)
    fn.start(inside)
    found = fn.load("i16", fn.index(place, fn.binary("shl", number, const(1))), 2)
    wide = fn.integer(found, I64)
    fn.branch(g.truth(wide), wanted, other)
    return wide


def _table(g: Gen, data: bytes, align: int) -> Value:
    index = g.unit.constants_index()
    g.declared.use(index, "read")
    return g.fn.add(g.unit.value(index), g.unit.constant(data, align))


def _look_up_number(g: Gen, program: Program, number: Value, wanted: str, other: str) -> None:
    """A bit per system call number in the map of constants."""
    fn = g.fn
    last = max(program.numbers)
    bits = bytearray(last // 8 + 1)
    for n in program.numbers:
        bits[n // 8] |= 1 << n % 8
    table = _table(g, bytes(bits), 1)
    inside = fn.fresh("known")
    fn.branch(fn.compare("ugt", number, const(last)), other, inside)
    fn.start(inside)
    byte = fn.load("i8", fn.index(table, fn.binary("lshr", number, const(3))), 1)
    bit = fn.binary("and", fn.integer(number, "i32"), const(7, "i32"))
    shifted = fn.binary("lshr", fn.integer(byte, "i32"), bit)
    fn.branch(g.truth(fn.binary("and", shifted, const(1, "i32"))), wanted, other)


_HARMLESS = (
    typed.Int,
    typed.StrLit,
    typed.Builtin,
    typed.ArgField,
    typed.FieldOf,
    typed.Logical,
    typed.Unary,
    typed.Cast,
)


def _only_looks(body: tuple[typed.Stmt, ...]) -> bool:
    """Whether a body begins with a predicate that has no effect, so that nobody sees whether it was tested."""
    match body[:1]:
        case (typed.If(condition=condition, then=(typed.Jump(kind="return", value=None),), otherwise=()),):
            pass
        case _:
            return False
    return all(
        isinstance(node, _HARMLESS) or (isinstance(node, typed.Binary) and node.op not in ("/", "%"))
        for node in nodes(condition)
    )


def _leave_compat(g: Gen) -> None:
    """Leave in 32-bit system calls, whose numbers mean others, as trace_syscall_enter does
    (kernel/trace/trace_syscalls.c, ARCH_TRACE_IGNORE_COMPAT_SYSCALLS)."""
    from bpfseal.compiler.compat import compat_flag

    found = compat_flag(g.unit)
    if found is None:
        return
    offset, mask = found
    inside, other = g.fn.fresh("native"), g.fn.fresh("compat")
    _pass_native(g, inside)
    task = g.helper("get_current_task_btf")
    flags = g.fn.load("i32", g.fn.add(task, offset), 4)
    g.fn.branch(g.truth(g.fn.binary("and", flags, const(mask, "i32"))), other, inside)
    g.fn.start(other)
    assert g.program is not None
    g.fn.ret(const(g.program.result))
    g.fn.start(inside)


def _pass_native(g: Gen, inside: str) -> None:
    """Go `inside` where the registers tell: the instruction `syscall`, which 64-bit calls are made with, leaves its
    return address in rcx (entry_SYSCALL_64 in arch/x86/entry/entry_64.S). Nearly all calls are spared a look at the
    task. (A process that prepares rcx so for `int 0x80` has its own calls counted under the wrong name, no more.)"""
    registers = arch.registers().names
    if "cx" not in registers:
        return
    saved = g.load_context(g.ctx, 0, PTR)
    counter, address = (g.fn.load(I64, g.fn.add(saved, registers[name]), 8) for name in ("cx", "ip"))
    unsure = g.fn.fresh("unsure")
    g.fn.branch(g.fn.compare("eq", counter, address), inside, unsure)
    g.fn.start(unsure)
