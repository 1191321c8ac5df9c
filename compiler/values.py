"""Expressions: constants, variables, operators, tuples."""

from __future__ import annotations

from bpfseal.compiler import events, mapping
from bpfseal.compiler.gen import (
    ADDRESSES,
    MEMORIES,
    SCALARS,
    Gen,
    is_signed,
    register_type,
)
from bpfseal.compiler.ir import I1, I64, PTR, TRUE, Value, const
from bpfseal.dsl import typed, types
from bpfseal.dsl.types import is_scalar, size_of, tuple_layout

_ARITHMETIC = {"+": "add", "-": "sub", "*": "mul", "&": "and", "|": "or", "^": "xor", "<<": "shl", ">>": "lshr"}
_UNSIGNED = {"==": "eq", "!=": "ne", "<": "ult", "<=": "ule", ">": "ugt", ">=": "uge"}
_SIGNED = {"==": "eq", "!=": "ne", "<": "slt", "<=": "sle", ">": "sgt", ">=": "sge"}
_LITERAL_INLINE = 32


def _int(g: Gen, node: typed.Int) -> Value:
    wanted = register_type(node.type)
    if wanted == PTR:
        return g.fn.pointer(const(node.value))
    return const(int(node.value != 0) if wanted == I1 else node.value, wanted)


# --- strings ----------------------------------------------------------------------------------------------------


def literal(g: Gen, node: typed.StrLit, target: Value, clean: bool) -> None:
    size = size_of(node.type)
    text = node.value[: size - 1].split(b"\0")[0]
    if size > _LITERAL_INLINE and len(text) > _LITERAL_INLINE:
        g.copy(target, constant_text(g, text, size), size)
        return
    at = 0
    for at, word, width in words(text + b"\0"):
        g.fn.store(const(word, f"i{8 * width}"), g.fn.add(target, at), 1 if at % width else width)
        end = at + width
    if clean and end < size:
        g.clear_tail(target, end, size)


def words(data: bytes) -> list[tuple[int, int, int]]:
    """`data` as (offset, number, bytes) in pieces of 8, 4, 2 and 1 bytes."""
    found = []
    at = 0
    for width in (8, 4, 2, 1):
        while len(data) - at >= width:
            found.append((at, int.from_bytes(data[at : at + width], "little"), width))
            at += width
    return found


def constant_text(g: Gen, text: bytes, size: int) -> Value:
    """Where the map of constants has `text`, filled up with zeros to `size` bytes."""
    at = g.unit.constant(text + bytes(size - len(text)))
    index = g.unit.constants_index()
    g.declared.use(index, "read")
    return g.fn.add(g.unit.value(index), at)


def _literal_address(g: Gen, node: typed.StrLit) -> Value:
    return constant_text(g, node.value, size_of(node.type))


# --- variables --------------------------------------------------------------------------------------------------


def _variable(g: Gen, node: typed.VarRef) -> Value:
    type = register_type(node.type)
    return g.fn.load(type, g.locate(g.vars[node.var]), _align(type))


def _align(type: str) -> int:
    return 8 if type == PTR else max(1, int(type[1:]) // 8)


def _variable_address(g: Gen, node: typed.VarRef) -> Value:
    return g.locate(g.vars[node.var])


def _variable_memory(g: Gen, node: typed.VarRef, target: Value, clean: bool) -> None:
    g.copy(target, _variable_address(g, node), size_of(node.type))


# --- operators --------------------------------------------------------------------------------------------------


def _unary(g: Gen, node: typed.Unary) -> Value:
    operand = g.scalar(node.operand)
    match node.op:
        case "-":
            return g.fn.binary("sub", const(0, operand.type), operand)
        case "~":
            return g.fn.binary("xor", operand, const(-1, operand.type))
        case _:
            return g.fn.binary("xor", g.truth(operand), TRUE)


def _binary(g: Gen, node: typed.Binary) -> Value:
    op = node.op
    if op in _UNSIGNED:
        return _comparison(g, node)
    if isinstance(node.type, types.Ptr):
        return _move(g, node)
    left, right = g.scalar(node.left), g.scalar(node.right)
    if op in ("/", "%"):
        return _divide(g, node, left, right)
    if op in ("<<", ">>") and not isinstance(node.right, typed.Int):
        right = g.fn.binary("and", right, const(int(left.type[1:]) - 1, right.type))
    elif op in ("<<", ">>"):
        right = const(int(right.text) & (int(left.type[1:]) - 1), right.type)
    return g.fn.binary(_ARITHMETIC[op], left, g.fn.integer(right, left.type))


def _move(g: Gen, node: typed.Binary) -> Value:
    """Pointer ± distance in bytes."""
    base, distance = g.scalar(node.left), g.scalar(node.right)
    if base.type == PTR:
        if node.op == "-":
            distance = g.fn.binary("sub", const(0), distance)
        moved = g.fn.index(base, distance)
    else:
        moved = g.fn.binary(_ARITHMETIC[node.op], base, distance)
    if register_type(node.type) == PTR:
        return g.fn.pointer(moved)
    return g.fn.integer(moved, I64)


def _divide(g: Gen, node: typed.Binary, left: Value, right: Value) -> Value:
    """Unsigned whatever the types, as the language has it; by zero gives one and an error at run time."""
    op = "udiv" if node.op == "/" else "urem"
    if isinstance(node.right, typed.Int) and node.right.value:
        return g.fn.binary(op, left, right)
    slot = g.fn.slot(left.type)
    g.fn.store(const(1, left.type), slot, _align(left.type))
    zero, divide, after = g.fn.fresh("zero"), g.fn.fresh("divide"), g.fn.fresh("after")
    g.fn.branch(g.truth(right), divide, zero)
    g.fn.start(zero)
    events.runtime_error(g, "divide_by_zero", node.span)
    g.fn.jump(after)
    g.fn.start(divide)
    g.fn.store(g.fn.binary(op, left, right), slot, _align(left.type))
    g.fn.start(after)
    return g.fn.load(left.type, slot, _align(left.type))


def divide_signed(g: Gen, left: Value, right: Value) -> Value:
    """Signed quotient, cut towards zero. Below CPU v4 the machine only divides unsigned numbers."""
    fn = g.fn
    negative = fn.compare("slt", left, const(0))
    size = fn.select(negative, fn.binary("sub", const(0), left), left)
    quotient = fn.binary("udiv", size, right)
    return fn.select(negative, fn.binary("sub", const(0), quotient), quotient)


def _comparison(g: Gen, node: typed.Binary) -> Value:
    if not is_scalar(node.left.type):
        from bpfseal.compiler.strings import equal_values

        same = equal_values(g, node.left, node.right)
        return same if node.op == "==" else g.fn.binary("xor", same, TRUE)
    left, right = g.scalar(node.left), g.scalar(node.right)
    if PTR in (left.type, right.type):
        left, right = g.fn.integer(left, I64), g.fn.integer(right, I64)
    table = _SIGNED if is_signed(node.left.type) else _UNSIGNED
    return g.fn.compare(table[node.op], left, right)


def branch(g: Gen, condition: typed.Expr, yes: str, no: str) -> None:
    """Jump by a condition, without making a value of && and ||."""
    match condition:
        case typed.Logical(op=op, left=left, right=right):
            second = g.fn.fresh("second")
            branch(g, left, second if op == "&&" else yes, no if op == "&&" else second)
            g.fn.start(second)
            branch(g, right, yes, no)
        case typed.Unary(op="!", operand=operand) if isinstance(operand.type, types.Bool):
            branch(g, operand, no, yes)
        case _:
            g.fn.branch(g.truth(g.scalar(condition)), yes, no)


def _logical(g: Gen, node: typed.Logical) -> Value:
    slot = g.fn.slot(I1)
    yes, after = g.fn.fresh("true"), g.fn.fresh("after")
    branch(g, node, yes, after)
    g.fn.start(yes)
    g.fn.store(TRUE, slot, 1)
    g.fn.start(after)
    return g.fn.load(I1, slot, 1)


def _ternary(g: Gen, node: typed.Ternary) -> Value:
    type = register_type(node.type)
    slot = g.fn.slot(type)

    def arm(expr: typed.Expr) -> None:
        g.fn.store(_as(g, g.scalar(expr), type), slot, _align(type))

    _arms(g, node, arm)
    return g.fn.load(type, slot, _align(type))


def _as(g: Gen, value: Value, type: str) -> Value:
    """A pointer or integer in the register type that is wanted."""
    if value.type == type:
        return value
    return g.fn.pointer(value) if type == PTR else g.fn.integer(value, type)


def _arms(g: Gen, node: typed.Ternary, arm: object) -> None:
    assert callable(arm)
    yes, no, after = g.fn.fresh("then"), g.fn.fresh("else"), g.fn.fresh("after")
    branch(g, node.condition, yes, no)
    g.fn.start(yes)
    arm(node.then)
    g.fn.jump(after)
    g.fn.start(no)
    arm(node.otherwise)
    g.fn.start(after)


def _ternary_memory(g: Gen, node: typed.Ternary, target: Value, clean: bool) -> None:
    _arms(g, node, lambda expr: g.store(expr, target, clean=clean))


# --- tuples -----------------------------------------------------------------------------------------------------


def clear_gaps(g: Gen, type: types.Tuple, target: Value) -> None:
    """Zero the padding, so that equal tuples are equal as memory."""
    offsets, size = tuple_layout(type)
    ends = [at + size_of(e) for at, e in zip(offsets, type.elements, strict=True)]
    for end, start in zip(ends, (*offsets[1:], size), strict=True):
        g.clear_tail(target, end, start)


def _tuple(g: Gen, node: typed.TupleExpr, target: Value, clean: bool) -> None:
    offsets, _ = tuple_layout(node.type)
    clear_gaps(g, node.type, target)
    for at, element, type in zip(offsets, node.elements, node.type.elements, strict=True):
        where = g.fn.add(target, at)
        if at % 8 and not is_scalar(element.type):
            # Stores to the stack must be aligned; what writes memory values takes it for granted.
            g.copy(where, g.address(element), size_of(type), at & -at)
        else:
            g.store(element, where)


def inc_dec(g: Gen, node: typed.IncDec) -> Value:
    if isinstance(node.target, typed.MapRead):
        return mapping.increment(g, node)
    place = g.locate(g.vars[node.target.var])
    type = register_type(node.type)
    old = g.fn.load(type, place, _align(type))
    if type == PTR:
        new = g.fn.index(old, const(node.delta))
    else:
        new = g.fn.binary("add", old, const(node.delta, type))
    mapping.store_variable(g, new, place)
    return new if node.prefix else old


def _block(g: Gen, node: typed.BlockExpr) -> Value:
    g.statements(node.body)
    return g.scalar(node.result)


def _block_memory(g: Gen, node: typed.BlockExpr, target: Value, clean: bool) -> None:
    g.statements(node.body)
    g.store(node.result, target, clean=clean)


SCALARS.update(
    {
        typed.Int: _int,
        typed.VarRef: _variable,
        typed.Unary: _unary,
        typed.Binary: _binary,
        typed.Logical: _logical,
        typed.Ternary: _ternary,
        typed.IncDec: inc_dec,
        typed.BlockExpr: _block,
    }
)
MEMORIES.update(
    {
        typed.StrLit: literal,
        typed.VarRef: _variable_memory,
        typed.Ternary: _ternary_memory,
        typed.TupleExpr: _tuple,
        typed.BlockExpr: _block_memory,
    }
)
ADDRESSES.update({typed.StrLit: _literal_address, typed.VarRef: _variable_address})
