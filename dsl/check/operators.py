"""Operators: arithmetic, comparison, logic, ++ and --, the ternary."""

from __future__ import annotations

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check import fold, maps, scopes
from bpfseal.dsl.check.conversions import (
    as_int,
    coerce,
    is_unknown,
    literal_type,
    promote,
    promote_int,
    same,
    to_int,
    truth,
    wrap,
)
from bpfseal.dsl.check.state import State, nothing
from bpfseal.dsl.source import Span
from bpfseal.dsl.types import (
    BOOL,
    I64,
    U64,
    Array,
    Bool,
    Buf,
    Enum,
    Inet,
    Int,
    Mac,
    Ptr,
    Str,
    Sym,
    Tuple,
    Type,
    size_of,
)

_COMPARE = frozenset(fold.COMPARISONS)
_TEXTS = (Str, Buf, Mac)


def number(value: int | bool | bytes, span: Span) -> typed.Expr:
    """A literal as an expression."""
    if isinstance(value, bool):
        return typed.Int(int(value), BOOL, span)
    if isinstance(value, bytes):
        return typed.StrLit(value, Str(len(value) + 1), span)
    return typed.Int(value, literal_type(value), span)


def condition(c: State, node: ast.Expr) -> typed.Expr:
    """A value that decides: an integer, pointer or boolean, as Bool."""
    expr = c.expr(node)
    text = fold.literal(expr)
    if text is not None:
        return typed.Int(int(bool(text)), BOOL, expr.span)
    if is_unknown(expr.type) or isinstance(expr.type, Int | Bool | Enum | Ptr):
        return truth(expr)
    return c.error(node.span, f"invalid condition of type {expr.type}", "compare it with something")


def binary(c: State, node: ast.Binary) -> typed.Expr:
    return apply(c, node.op, c.expr(node.left), c.expr(node.right), node.span)


def apply(c: State, op: str, left: typed.Expr, right: typed.Expr, span: Span) -> typed.Expr:
    """`left op right` on translated operands."""
    if is_unknown(left.type) or is_unknown(right.type):
        return nothing(span)
    folded = _fold(c, op, left, right, span)
    if folded is not None:
        return folded
    a, b = left.type, right.type
    if op in ("&&", "||"):
        for side in (left, right):
            if not isinstance(side.type, Int | Bool | Enum | Ptr):
                return _refuse(c, op, a, b, span)
        return typed.Logical(op, truth(left), truth(right), BOOL, span)
    if isinstance(a, Ptr) or isinstance(b, Ptr):
        return _pointers(c, op, left, right, span)
    if isinstance(a, Bool) and isinstance(b, Bool):
        return _booleans(op, left, right, span)
    if _arithmetic(a) is not None and _arithmetic(b) is not None:
        return _integers(c, op, left, right, span)
    return _memory(c, op, left, right, span)


def _refuse(c: State, op: str, a: Type, b: Type, span: Span) -> typed.Expr:
    return c.error(span, f"the {op} operator cannot be used on expressions of types {a} and {b}")


def _arithmetic(type: Type) -> Int | None:
    if isinstance(type, Bool):
        return Int(8, False, flexible=True)
    return as_int(type)


def _fold(c: State, op: str, left: typed.Expr, right: typed.Expr, span: Span) -> typed.Expr | None:
    if isinstance(left, typed.TupleExpr) and op in ("==", "!=") and fold.is_literal(left) and fold.is_literal(right):
        return number(fold.equal(left, right) == (op == "=="), span)
    a, b = fold.literal(left), fold.literal(right)
    if a is None or b is None:
        return None
    try:
        if isinstance(a, bytes) or isinstance(b, bytes):
            return _fold_text(c, op, a, b, span)
        if op in ("&&", "||"):
            return number(bool(a) and bool(b) if op == "&&" else bool(a) or bool(b), span)
        if op in _COMPARE:
            return number(fold.COMPARISONS[op](int(a), int(b)), span)
        if isinstance(a, bool) or isinstance(b, bool):
            return None
        return number(fold.integers(op, a, b), span)
    except fold.FoldError as error:
        return c.error(span, str(error))


def _fold_text(c: State, op: str, a: int | bool | bytes, b: int | bool | bytes, span: Span) -> typed.Expr | None:
    if isinstance(a, bytes) and isinstance(b, bytes):
        return number(fold.strings(op, a, b), span)
    text, other = (a, b) if isinstance(a, bytes) else (b, a)
    assert isinstance(text, bytes)
    if op in ("&&", "||"):
        return number(bool(a) and bool(b) if op == "&&" else bool(a) or bool(b), span)
    if op == "+" and isinstance(other, int) and not isinstance(other, bool) and other >= 0:
        if other >= len(text):
            c.warn(span, "the literal string will always be empty")
        return number(text[other:], span)
    return None


def _booleans(op: str, left: typed.Expr, right: typed.Expr, span: Span) -> typed.Expr:
    if op in ("==", "!=", "&", "|", "^"):
        return typed.Binary(op, left, right, BOOL, span)
    wide = typed.Binary(op, to_int(left, U64), to_int(right, U64), BOOL if op in _COMPARE else U64, span)
    return truth(wide)


def _integers(c: State, op: str, left: typed.Expr, right: typed.Expr, span: Span) -> typed.Expr:
    a, b = _arithmetic(left.type), _arithmetic(right.type)
    assert a is not None
    assert b is not None
    if op in _COMPARE:
        common: Type = left.type if left.type == right.type else promote_int(a, b)
        return typed.Binary(op, _side(c, left, common), _side(c, right, common), BOOL, span)
    # a literal takes the sign of the other side
    if a.flexible and not b.flexible:
        a = Int(a.bits, b.signed, False, a.space)
    elif b.flexible and not a.flexible:
        b = Int(b.bits, a.signed, False, b.space)
    signed = a.signed or b.signed or op == "-"
    if op in ("/", "%") and a != b and (a.signed or b.signed):
        c.warn(
            span,
            f"signed operands of {op} are divided as unsigned numbers",
            "cast them to an unsigned type if they are never negative",
        )
    space = a.space if a.space else b.space
    if a.space and b.space and a.space != b.space:
        space = ""
    result = Int(64, signed, space=space)
    return typed.Binary(op, _side(c, left, result), _side(c, right, result), result, span)


def _side(c: State, expr: typed.Expr, type: Type) -> typed.Expr:
    """An operand in the operation's type, with a warning where values may be lost."""
    if isinstance(expr.type, Bool):
        return to_int(expr, type)
    done = coerce(expr, type, c.narrowing)
    return done if done is not None else to_int(expr, type)


def _pointers(c: State, op: str, left: typed.Expr, right: typed.Expr, span: Span) -> typed.Expr:
    a, b = left.type, right.type
    if isinstance(a, Ptr) and isinstance(b, Ptr):
        if op not in _COMPARE:
            return _refuse(c, op, a, b, span)
        if a.to is not None and b.to is not None and not same(a.to, b.to):
            c.warn(span, f"comparison of distinct pointer types: {a} and {b}")
        return typed.Binary(op, to_int(left, U64), to_int(right, U64), BOOL, span)
    other = b if isinstance(a, Ptr) else a
    if _arithmetic(other) is None:
        return _refuse(c, op, a, b, span)
    if op in _COMPARE:
        return typed.Binary(op, to_int(left, U64), to_int(right, U64), BOOL, span)
    if op not in ("+", "-") or (op == "-" and not isinstance(a, Ptr)):
        return _refuse(c, op, a, b, span)
    pointer, offset = (left, right) if isinstance(a, Ptr) else (right, left)
    return move(pointer, op, offset, span)


def move(pointer: typed.Expr, op: str, offset: typed.Expr, span: Span) -> typed.Expr:
    """`pointer ± offset`, the offset counted in targets of the pointer."""
    type = pointer.type
    assert isinstance(type, Ptr)
    scale = max(1, size_of(type.to)) if type.to is not None else 1
    # a moved pointer is one the verifier does not know
    type = Ptr(type.to, "kernel" if type.space in ("btf", "ctx") else type.space)
    steps = to_int(offset, I64)
    value = fold.constant(steps)
    if value is not None:
        steps = typed.Int(wrap(value * scale, I64), I64, offset.span)
    elif scale != 1:
        steps = typed.Binary("*", steps, typed.Int(scale, I64, offset.span), I64, offset.span)
    return typed.Binary(op, pointer, steps, type, span)


def _addresses(c: State, op: str, left: typed.Expr, right: typed.Expr, span: Span) -> typed.Expr:
    """A network or hardware address compared with one that is written as a string."""
    from bpfseal.dsl.check import call_addresses

    value, text = (right, left) if isinstance(left.type, Str) else (left, right)
    written = fold.literal(text)
    if not isinstance(written, bytes):
        return c.error(text.span, f"{value.type} can only be compared with an address or a string literal")
    literal = call_addresses.literal(c, written.decode("utf-8", "replace"), value.type, text.span)
    return typed.Binary(op, value, literal, BOOL, span)


def _memory(c: State, op: str, left: typed.Expr, right: typed.Expr, span: Span) -> typed.Expr:
    a, b = left.type, right.type
    equality = op in ("==", "!=")
    match a, b:
        case (Str(), Str()) | (Buf(), Buf()) | (Mac(), Mac()) | (Inet(), Inet()) if equality:
            return typed.Binary(op, left, right, BOOL, span)
        case ((Inet() | Mac()), Str()) | (Str(), (Inet() | Mac())) if equality:
            return _addresses(c, op, left, right, span)
        case Array(), Array():
            if not equality:
                return c.error(span, f"the {op} operator cannot be used on arrays")
            if a.count != b.count or a.element != b.element or as_int(a.element) is None:
                return c.error(span, f"only arrays of the same size and integer type can be compared, not {a} and {b}")
            return typed.Binary(op, left, right, BOOL, span)
        case Tuple(), Tuple() if equality:
            common = promote(a, b)
            if common is not None:
                first, second = coerce(left, common, c.narrowing), coerce(right, common, c.narrowing)
                if first is not None and second is not None:
                    return typed.Binary(op, first, second, BOOL, span)
        case (Sym(), Sym()) if equality and a == b:
            return typed.Binary(op, left, right, BOOL, span)
        case _:
            pass
    if type(a) is type(b):
        return _refuse(c, op, a, b, span)
    hint = None
    if isinstance(a, Str) != isinstance(b, Str) and (_arithmetic(a) or _arithmetic(b)):
        hint = "use str() to read a string from an address"
    return c.error(span, f"type mismatch for '{op}': {a} with {b}", hint)


def unary(c: State, node: ast.Unary) -> typed.Expr:
    """- ~ ! + on a value; `access.unary` has the others."""
    operand = c.expr(node.operand)
    if is_unknown(operand.type):
        return operand
    value = fold.literal(operand)
    if isinstance(value, int):
        return _fold_unary(c, node.op, value, node.span)
    type = operand.type
    if node.op == "!":
        if isinstance(type, Int | Bool | Enum | Ptr):
            return typed.Unary("!", truth(operand), BOOL, node.span)
    else:
        integer = as_int(type)
        if integer is not None:
            if node.op == "+":
                return operand
            if not integer.signed:
                # of its own width, as in C
                narrow = typed.Unary(node.op, to_int(operand, integer), integer, node.span)
                return to_int(narrow, U64)
            return typed.Unary(node.op, to_int(operand, I64), I64, node.span)
    return c.error(node.span, f"the {node.op} operator cannot be used on expressions of type {type}")


def _fold_unary(c: State, op: str, value: int, span: Span) -> typed.Expr:
    if op == "!":
        return number(not value, span)
    if isinstance(value, bool):
        return c.error(span, f"the {op} operator cannot be used on expressions of type bool")
    result = {"-": -value, "~": value ^ fold.MOST if value >= 0 else ~value, "+": value}[op]
    if not fold.LEAST <= result <= fold.MOST:
        return c.error(span, f"{op}{value} is too small for 64 bits")
    return number(result, span)


def ternary(c: State, node: ast.Ternary) -> typed.Expr:
    test = condition(c, node.condition)
    return choose(c, test, c.expr(node.then), c.expr(node.otherwise), node.span)


def choose(c: State, test: typed.Expr, then: typed.Expr, otherwise: typed.Expr, span: Span) -> typed.Expr:
    """A condition with two values, which must be of one type."""
    if is_unknown(then.type) or is_unknown(otherwise.type):
        return nothing(span)
    if fold.literal(test) is not None and fold.literal(then) is not None and fold.literal(otherwise) is not None:
        return then if fold.literal(test) else otherwise
    common = promote(then.type, otherwise.type)
    if common is None:
        return c.error(
            span,
            f"both branches must have the same type, here they are {then.type} and {otherwise.type}",
        )
    first, second = coerce(then, common, c.narrowing), coerce(otherwise, common, c.narrowing)
    if first is None or second is None:
        return c.error(span, f"both branches must have the same type, here they are {then.type} and {otherwise.type}")
    return typed.Ternary(test, first, second, common, span)


def inc_dec(c: State, node: ast.IncDec) -> typed.Expr:
    match node.target:
        case ast.Variable():
            return _inc_variable(c, node, node.target)
        case ast.Map():
            return _inc_map(c, node, node.target)
        case _:
            return c.error(node.span, f"the {node.op} operator must be applied to a map or variable")


def _stepped(type: Type, down: bool) -> Type | None:
    """Type of what ++ or -- leaves in a place that held `type`."""
    integer = as_int(type)
    if integer is None:
        return None
    return I64 if integer.signed or down else U64


def _delta(op: str, type: Type) -> int:
    scale = max(1, size_of(type.to)) if isinstance(type, Ptr) and type.to is not None else 1
    return scale if op == "++" else -scale


def _inc_variable(c: State, node: ast.IncDec, target: ast.Variable) -> typed.Expr:
    place = c.expr(target)
    variable = scopes.find(c, target.name)
    if variable is None or not isinstance(place, typed.VarRef):
        return nothing(node.span)
    if not isinstance(place.type, Ptr):
        grown = _stepped(place.type, node.op == "--")
        if grown is None:
            return c.error(node.span, f"the {node.op} operator cannot be used on a variable of type {place.type}")
        if not variable.fixed:
            c.grow_variable(variable, grown)
    type = variable.var.type
    place = typed.VarRef(variable.var, type, target.span)
    return typed.IncDec(place, _delta(node.op, type), node.prefix, type, node.span)


def _inc_map(c: State, node: ast.IncDec, target: ast.Map) -> typed.Expr:
    info, key = maps.access(c, target, write=True)
    if info is None:
        return nothing(node.span)
    if info.value is None:
        # nothing else has been assigned so far; if nothing is, the map holds numbers from zero
        maps.self_started(c, info)
        return nothing(node.span)
    if not isinstance(info.value, Ptr):
        grown = _stepped(info.value, node.op == "--")
        if grown is None:
            return c.error(
                node.span,
                f"the {node.op} operator cannot be used on map @{info.name}, whose values are {info.value}",
            )
        c.grow_map(info, "value", grown)
    place = typed.MapRead(info.definition, key, info.value, target.span)
    return typed.IncDec(place, _delta(node.op, info.value), node.prefix, info.value, node.span)
