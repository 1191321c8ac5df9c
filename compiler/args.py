"""Arguments of the traced thing: `args.NAME`, argN, retval, registers."""

from __future__ import annotations

from bpfseal.compiler.arch import registers
from bpfseal.compiler.gen import MEMORIES, SCALARS, Gen, impossible, is_signed, register_type
from bpfseal.compiler.ir import I32, I64, PTR, Value, const
from bpfseal.compiler.memory import Place, read_memory, read_scalar
from bpfseal.dsl import typed, types
from bpfseal.dsl.types import U64, Field, Type

SYSCALL_NUMBER = 6
"""The `Field.argument` that stands for the system call's number."""


def context(g: Gen) -> str:
    assert g.probe is not None
    return g.probe.args.context


def argument_place(g: Gen, node: typed.ArgField) -> Place:
    """Where an argument of memory type lies."""
    field = node.field
    match context(g):
        case "ctx":
            return Place("ctx", g.ctx, field.offset)
        case "packet":
            from bpfseal.compiler.packet import place

            return place(g, field)
        case "argument":  # a record by value takes words of the context
            return Place("ctx", g.ctx, 8 * field.argument)
        case other:
            raise impossible(f"an argument of type {node.type} in {other}")


def _scalar(g: Gen, node: typed.ArgField) -> Value:
    field, type = node.field, node.type
    if field.data_loc:
        return _data_loc(g, field, type)
    match context(g):
        case "ctx":
            return _context_field(g, field, type)
        case "argument":
            return convert(g, word(g, g.ctx, 8 * field.argument, type), type)
        case "syscall" | "syscall_exit":
            return convert(g, _syscall(g, field), type)
        case "registers":
            return convert(g, register_argument(g, field.argument), type)
        case "usdt":
            from bpfseal.compiler.usdt import usdt_argument

            return convert(g, usdt_argument(g, field.argument), type)
        case "packet":
            from bpfseal.compiler.packet import scalar

            return convert(g, scalar(g, field), type)
        case other:
            raise impossible(f"arguments of {other}")


def _context_field(g: Gen, field: Field, type: Type) -> Value:
    place = Place("ctx", g.ctx, field.offset)
    if field.bits:
        from bpfseal.compiler.memory import read_bits

        return read_bits(g, place, field, type)
    return read_scalar(g, place, type)


def _data_loc(g: Gen, field: Field, type: Type) -> Value:
    """Address of a dynamic array: the low half of the word is its offset from the record's start, or from the word's
    end."""
    word = g.load_context(g.ctx, field.offset, I32)
    offset = g.fn.binary("and", g.fn.integer(word, I64), const(0xFFFF))
    base = g.fn.op(I64, f"ptrtoint {g.ctx} to i64")
    if field.relative:
        base = g.fn.binary("add", base, const(field.offset + 4))
    return convert(g, g.fn.binary("add", base, offset), type)


def word(g: Gen, base: Value, offset: int, type: Type) -> Value:
    """One 8-byte word of a context of words; an address that the verifier knows stays one."""
    return g.load_context(base, offset, PTR if register_type(type) == PTR else I64)


def convert(g: Gen, value: Value, type: Type) -> Value:
    """A machine word as a value of `type`."""
    wanted = register_type(type)
    if isinstance(type, types.Bool):
        return g.truth(g.fn.integer(value, "i8"))
    if wanted == PTR:
        return g.fn.pointer(value)
    return g.fn.integer(value, wanted, signed=is_signed(type))


def _syscall(g: Gen, field: Field) -> Value:
    """System calls are raw tracepoints: (struct pt_regs *, number) and (struct pt_regs *, result)."""
    entering = context(g) == "syscall"
    if field.argument == SYSCALL_NUMBER:
        return syscall_number(g, entering)
    if not entering:
        return g.load_context(g.ctx, 8, I64)
    saved = g.load_context(g.ctx, 0, PTR)
    return g.fn.load(I64, g.fn.add(saved, registers().syscall_arguments[field.argument]), 8)


def syscall_number(g: Gen, entering: bool) -> Value:
    if entering:
        return g.load_context(g.ctx, 8, I64)
    saved = g.load_context(g.ctx, 0, PTR)
    return g.fn.integer(g.fn.load(I32, g.fn.add(saved, registers().syscall_number), 4), I64, signed=True)


def register(g: Gen, offset: int) -> Value:
    """A register of the program's context."""
    return g.load_context(g.ctx, offset, I64)


def register_argument(g: Gen, number: int) -> Value:
    """The n-th integer argument at a function's entry."""
    regs = registers()
    if number < len(regs.arguments):
        return register(g, regs.arguments[number])
    at = regs.stack_argument + 8 * (number - len(regs.arguments))
    assert g.program is not None
    space = "user" if g.program.kind in ("uprobe", "uretprobe") else "kernel"
    return read_scalar(g, Place(space, register(g, regs.stack), at), U64)


def arg_builtin(g: Gen, number: int) -> Value:
    """`argN`."""
    assert g.program is not None
    match context(g):
        case "argument":
            return g.load_context(g.ctx, 8 * number, I64)
        case "usdt":
            from bpfseal.compiler.usdt import usdt_argument

            return usdt_argument(g, number)
        case _ if g.program.kind == "rawtracepoint":
            return g.load_context(g.ctx, 8 * number, I64)
        case _ if g.program.kind == "usdt":
            from bpfseal.compiler.usdt import usdt_argument

            return usdt_argument(g, number)
        case _:
            return register_argument(g, number)


def retval(g: Gen, type: Type) -> Value:
    """`retval`."""
    assert g.program is not None
    if g.program.kind in ("fexit", "fentry"):
        assert g.probe is not None
        fields = g.probe.args.fields
        count = g.probe.args.extra.get("arguments")
        if count == "unknown":
            result = g.buffer(8)
            g.helper("get_func_ret", g.ctx, result)
            return convert(g, g.fn.load(I64, result, 8), type)
        if not isinstance(count, int):
            count = 1 + max((f.argument for f in fields.fields), default=-1) if fields is not None else 0
        return convert(g, word(g, g.ctx, 8 * count, type), type)
    return convert(g, register(g, registers().result), type)


def whole(g: Gen, node: typed.Builtin, target: Value) -> None:
    """`args` as a record, for printing."""
    assert g.probe is not None
    info = g.probe.args.fields
    assert info is not None
    if context(g) == "ctx":
        read_memory(g, Place("kernel", g.fn.op(I64, f"ptrtoint {g.ctx} to i64")), node.type, target)
        return
    g.clear(target, info.size)
    for field in info.fields:
        where = g.fn.add(target, field.offset)
        if types.is_scalar(field.type):
            g.store_scalar(_scalar(g, typed.ArgField(field, field.type)), field.type, where)
        else:
            read_memory(g, argument_place(g, typed.ArgField(field, field.type)), field.type, where)


def _memory(g: Gen, node: typed.ArgField, target: Value, clean: bool) -> None:
    read_memory(g, argument_place(g, node), node.type, target, clean)


SCALARS[typed.ArgField] = _scalar
MEMORIES[typed.ArgField] = _memory
