"""Statements: conditions, loops, jumps. Assignments are in `assignments`."""

from __future__ import annotations

from collections.abc import Sequence

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check import assignments, fold, introspection, maps, operators, scopes, walk
from bpfseal.dsl.check.conversions import UNKNOWN, as_int, coerce, is_unknown, promote_int, to_int
from bpfseal.dsl.check.state import State, StatementHandler, Variable
from bpfseal.dsl.env import Point
from bpfseal.dsl.source import Span
from bpfseal.dsl.types import (
    I64,
    Aggregate,
    Int,
    Tuple,
    Type,
    Void,
)

MAX_UNROLL = 100


def body(c: State, nodes: Sequence[ast.Statement]) -> list[typed.Stmt]:
    """Statements one after the other; what stands after a jump is checked but not kept."""
    done: list[typed.Stmt] = []
    jumped = warned = False
    for node in nodes:
        if jumped and not warned:
            c.warn(node.span, "Unreachable statement.")
            warned = True
        translated = c.statement(node)
        if not jumped:
            done += translated
        jumped = jumped or (bool(translated) and (_jumps(translated[-1]) or _exits(translated[-1])))
    return done


def _jumps(statement: typed.Stmt) -> bool:
    match statement:
        case typed.Jump():
            return True
        case typed.If(then=then, otherwise=otherwise):
            return bool(then) and bool(otherwise) and _jumps(then[-1]) and _jumps(otherwise[-1])
        case typed.Scope(body=inner):
            return bool(inner) and _jumps(inner[-1])
        case _:
            return False


def _exits(statement: typed.Stmt) -> bool:
    return isinstance(statement, typed.Do) and isinstance(statement.expr, typed.Call) and statement.expr.name == "exit"


def leaves(statements: Sequence[typed.Stmt]) -> bool:
    """Whether statements always end with a jump."""
    return bool(statements) and _jumps(statements[-1])


def nested(c: State, node: ast.Block) -> tuple[typed.Stmt, ...]:
    """The statements of a block with variables of its own."""
    with scopes.block(c):
        done = body(c, node.statements)
        if node.result is not None:
            done += expression(c, ast.ExprStatement(node.result, node.result.span))
    return tuple(done)


def block(c: State, node: ast.Block) -> Sequence[typed.Stmt]:
    done = nested(c, node)
    return (typed.Scope(done, node.span),) if done else ()


# --- expressions for their effect ---------------------------------------------------------------------------------


def expression(c: State, node: ast.ExprStatement) -> Sequence[typed.Stmt]:
    from bpfseal.dsl.check import calls

    expr = node.expr
    if isinstance(expr, ast.Block):
        return block(c, expr)
    if isinstance(expr, ast.IfExpr):
        return if_(c, ast.If(expr.condition, expr.then, expr.otherwise, expr.span))
    if isinstance(expr, ast.Ternary):
        return _ternary(c, expr, node.span)
    if isinstance(expr, ast.Call):
        statements = calls.statement(c, expr)
        if statements is not None:
            return statements
    value = c.expr(expr)
    if is_unknown(value.type) and not isinstance(expr, ast.IncDec):
        return ()
    if not isinstance(value.type, Void) and not isinstance(expr, ast.IncDec) and not c.warnings_off:
        c.warn(node.span, "Return value discarded.", "write _ = … before it if that is what you want")
    return (typed.Do(value, node.span),)


def _ternary(c: State, node: ast.Ternary, span: Span) -> Sequence[typed.Stmt]:
    """`condition ? print("a") : print("b");` chooses between effects."""

    def arm(expr: ast.Expr) -> ast.Block:
        return ast.Block((ast.ExprStatement(expr, expr.span),), None, expr.span)

    return if_(c, ast.If(node.condition, arm(node.then), arm(node.otherwise), span))


# --- conditions and loops -------------------------------------------------------------------------------------------


def if_(c: State, node: ast.If) -> Sequence[typed.Stmt]:
    if isinstance(node.condition, ast.Comptime):
        chosen = introspection.decide(c, node.condition)
        if chosen is None:
            return ()
        branch = node.then if chosen else node.otherwise
        return block(c, branch) if branch is not None else ()
    test = operators.condition(c, node.condition)
    then = nested(c, node.then)
    otherwise = nested(c, node.otherwise) if node.otherwise is not None else ()
    return (typed.If(test, then, otherwise, node.span),)


def while_(c: State, node: ast.While) -> Sequence[typed.Stmt]:
    test = operators.condition(c, node.condition)
    c.loops += 1
    inside = nested(c, node.body)
    c.loops -= 1
    return (typed.While(test, inside, node.span),)


def for_map(c: State, node: ast.ForMap) -> Sequence[typed.Stmt]:
    info = maps.lookup(c, node.map.name, node.map.span)
    if node.map.key is not None:
        c.error(node.map.span, "a loop runs over a whole map", f"write @{node.map.name} without a key")
        return ()
    if info.keyed is False:
        c.error(node.map.span, f"@{info.name} has no keys and cannot be iterated over")
        return ()
    if info.keyed is None:
        info.keyed, info.keyed_at = True, node.map.span
    value = maps.value_type(info)
    if isinstance(value, Aggregate):
        c.error(node.map.span, f"a loop cannot run over the map of {value.kind}()", f"print(@{info.name}) shows it")
        return ()
    if scopes.shadowed(c, node.variable.name, node.variable.span, "loop variable"):
        return ()
    known = info.key is not None and not is_unknown(value)
    if not known:
        maps.self_started(c, info)
    type: Type = Tuple((info.key, value)) if known and info.key is not None else UNKNOWN
    variable, inside = _loop(c, node.variable, type, node.body)
    return (typed.ForMap(variable, info.definition, inside, node.span),) if known else ()


def for_range(c: State, node: ast.ForRange) -> Sequence[typed.Stmt]:
    low, high = c.expr(node.low), c.expr(node.high)
    for bound, what in ((low, "start"), (high, "end")):
        if not is_unknown(bound.type) and as_int(bound.type) is None:
            c.error(bound.span, f"the {what} of a range must be an integer, not {bound.type}")
            return ()
    if scopes.shadowed(c, node.variable.name, node.variable.span, "loop variable"):
        return ()
    a, b = as_int(low.type), as_int(high.type)
    if a is None or b is None:
        _loop(c, node.variable, UNKNOWN, node.body)
        return ()
    common = promote_int(a, b)
    type = Int(common.bits, common.signed, common.flexible)
    variable, inside = _loop(c, node.variable, type, node.body)
    return (typed.ForRange(variable, to_int(low, type), to_int(high, type), inside, node.span),)


def _loop(c: State, name: ast.Variable, type: Type, node: ast.Block) -> tuple[typed.Var, tuple[typed.Stmt, ...]]:
    with scopes.block(c):
        variable = scopes.declare(c, name.name, name, name.span, "made the loop variable", type)
        variable.assigned = variable.fixed = True
        c.loops += 1
        c.callbacks += 1
        inside = nested(c, node)
        c.callbacks -= 1
        c.loops -= 1
    return variable.var, inside


def unroll(c: State, node: ast.Unroll) -> Sequence[typed.Stmt]:
    count = fold.constant(c.expr(node.count))
    if count is None:
        c.error(node.count.span, "the count of unroll must be a literal number")
        return ()
    if not 1 <= count <= MAX_UNROLL:
        c.error(
            node.count.span,
            f"unroll {'minimum' if count < 1 else 'maximum'} value is {1 if count < 1 else MAX_UNROLL}, not {count}",
        )
        return ()
    done: list[typed.Stmt] = []
    outer = c.copy
    for n in range(count):
        c.copy = (*outer, n)
        inside = nested(c, node.body)
        if inside:
            done.append(typed.Scope(inside, node.span))
        if len(done) > 1 and _size(done) > 200_000:
            c.error(node.span, "the unrolled body becomes too large", "use for ($i : 0..n)")
            break
    c.copy = outer
    return done


def _size(statements: Sequence[typed.Stmt]) -> int:
    return sum(len(s.body) if isinstance(s, typed.Scope) else 1 for s in statements)


def jump(c: State, node: ast.Jump) -> Sequence[typed.Stmt]:
    if node.kind in ("break", "continue"):
        if not c.loops:
            c.error(node.span, f"'{node.kind}' can only be used inside of a loop")
            return ()
        return (typed.Jump(node.kind, None, node.span),)
    if c.deferred >= 0:
        if node.value is not None:
            c.error(node.value.span, "a deferred block has nobody to return a value to")
        return (typed.Jump("return", None, node.span),)
    function = c.place.function
    if function is None:
        return _return_from_probe(c, node)
    if node.value is None:
        if not isinstance(function.returns, Void):
            c.error(node.span, f"{function.name} has to return a value of type {function.returns}")
        return (typed.Jump("return", None, node.span),)
    value = c.expr(node.value)
    converted = coerce(value, function.returns, c.narrowing)
    if converted is None:
        c.error(node.span, f"{function.name} returns {function.returns}, not {value.type}")
        converted = value
    return (typed.Jump("return", converted, node.span),)


# Probes whose result changes what the machine does.
_DECIDING = {
    "lsm": "the value that an lsm probe returns decides whether the operation is allowed",
    "xdp": "the value that an xdp probe returns decides what becomes of the packet",
    "tc": "the value that a tc probe returns decides what becomes of the packet",
}


def _return_from_probe(c: State, node: ast.Jump) -> Sequence[typed.Stmt]:
    if node.value is None:
        return (typed.Jump("return", None, node.span),)
    value = c.expr(node.value)
    if is_unknown(value.type):
        return ()
    if as_int(value.type) is None:
        c.error(node.span, f"a probe can only return an integer, not {value.type}")
        return ()
    if c.place.kind in _DECIDING and not c.env.target.unsafe:
        c.error(node.span, f"{_DECIDING[c.place.kind]}. To use it you need the --unsafe flag")
        return ()
    return (typed.Jump("return", to_int(value, I64), node.span),)


def defer(c: State, node: ast.Defer) -> Sequence[typed.Stmt]:
    """The block runs later; it keeps copies of the variables that it uses."""
    if c.deferred >= 0:
        c.error(node.span, "defer cannot be used inside of defer", "the block already runs in the task's own context")
        return ()
    if node.mode == "signal" and any(map(_comes_again, c.place.points)):
        message = (
            "defer(signal) interrupts system calls that sleep; the kernel starts them again, and this probe with them"
        )
        c.warn(node.span, message, "use defer, or defer(signal) in probes that samples or other things fire")
    captured: dict[str, Variable] = {}
    visible = {name: v for scope in c.scopes for name, v in scope.items()}
    kept = c.captures, c.loops, c.deferred
    c.captures, c.loops, c.deferred = [*c.captures, captured], 0, len(c.scopes)
    c.callbacks += 1
    inside = nested(c, node.body)
    c.callbacks -= 1
    c.captures, c.loops, c.deferred = kept
    for place in _reassigned(c, node.body, visible):
        c.warn(place.span, f"the deferred block changes its own copy of ${place.name} only")
    copies = tuple(v.var for name, v in captured.items() if visible.get(name) is v)
    return (typed.Defer(node.mode, copies, inside, node.span),)


def _comes_again(point: Point) -> bool:
    """Whether a system call that sleeps passes the probe each time that it is started anew."""
    return point.kind in ("tracepoint", "rawtracepoint") and (
        point.function == "sched_switch" or point.function.startswith("sys_enter")
    )


def _reassigned(c: State, block: ast.Block, visible: dict[str, Variable]) -> list[ast.Variable]:
    """Where a block assigns variables of the probe around it."""
    if c.silent:
        return []
    changed = [n.target for n in walk.nodes(block) if isinstance(n, ast.Assign | ast.IncDec)]
    return [t for t in changed if isinstance(t, ast.Variable) and t.name in visible]


def table() -> dict[type, StatementHandler]:
    """Handlers by class of node."""
    return {
        ast.ExprStatement: expression,
        ast.Assign: assignments.assign,
        ast.Let: assignments.let,
        ast.If: if_,
        ast.While: while_,
        ast.ForMap: for_map,
        ast.ForRange: for_range,
        ast.Unroll: unroll,
        ast.Jump: jump,
        ast.Defer: defer,
        ast.Block: block,
    }
