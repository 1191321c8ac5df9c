"""`@m[k] = count()` and its family."""

from __future__ import annotations

from collections.abc import Sequence

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check import fold, maps, scopes
from bpfseal.dsl.check.conversions import to_int
from bpfseal.dsl.check.state import MapInfo, State
from bpfseal.dsl.source import NOWHERE, Span
from bpfseal.dsl.table import AGGREGATES
from bpfseal.dsl.types import I64, Aggregate

MAX_BUCKETS = 1000
MAX_INTERVALS = 1_000_000
SERIES = ("avg", "max", "min", "sum")


def assign(c: State, target: ast.Map, value: ast.Expr, call: ast.Call, span: Span) -> Sequence[typed.Stmt]:
    """The statement for an aggregation; `value` is `call` or blocks that end with it."""
    if isinstance(value, ast.Block):
        with scopes.block(c):
            body = [s for statement in value.statements for s in c.statement(statement)]
            assert value.result is not None
            body += assign(c, target, value.result, call, span)
        return (typed.Scope(tuple(body), span),)
    info, key = maps.access(c, target, write=True)
    measured = _measure(c, info, call)
    if info is None or measured is None:
        return ()
    type, expr = measured
    if not _grow(c, info, type, call):
        return ()
    return (typed.Aggregate(info.definition, key, expr, span),)


def _grow(c: State, info: MapInfo, type: Aggregate, call: ast.Call) -> bool:
    old = info.value
    if isinstance(old, Aggregate) and old.kind == type.kind:
        if old.params != type.params:
            trail = (("first here", info.aggregate_at),) if info.aggregate_at is not None else ()
            c.error(
                call.span,
                f"all {type.kind}() calls on @{info.name} must have the same parameters",
                None,
                *trail,
            )
            return False
        if old != type:
            info.value = info.definition.value = type
            c.memory.changed = True
        return True
    if old is not None:
        kind = f"written by {old.kind}()" if isinstance(old, Aggregate) else f"of type {old}"
        c.error(
            call.span,
            f"type mismatch for @{info.name}: {call.name}() cannot be assigned, its values are {kind}",
            "use another map",
        )
        return False
    info.value = info.definition.value = type
    info.aggregate_at = call.span
    if info.used:
        c.memory.changed = True
    return True


def _measure(c: State, info: MapInfo | None, call: ast.Call) -> tuple[Aggregate, typed.Expr | None] | None:
    """Type of the map and the measured value; None when the call is wrong."""
    least, most = AGGREGATES[call.name].arguments
    if not least <= len(call.args) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        c.error(
            call.span,
            f"{call.name}() takes {wanted} argument{'s' if wanted != '1' else ''}, not {len(call.args)}",
            AGGREGATES[call.name].signatures[0],
        )
        return None
    if call.name == "count":
        return Aggregate("count", False), None
    args = [_argument(c, node) for node in call.args]
    expr = maps.integer_argument(c, args[0], call.name)
    if expr is None:
        return None
    if call.name in ("sum", "min", "max", "avg", "stats"):
        if info is None:
            return None
        value, signed = maps.measured(c, info, expr, call.name)
        return Aggregate(call.name, signed), value
    params = {"hist": _hist, "lhist": _lhist, "tseries": _tseries}[call.name](c, call, args)
    return None if params is None else (Aggregate(call.name, True, params), to_int(expr, I64))


def _argument(c: State, node: ast.Expr | ast.TypeName | ast.TypeOf) -> typed.Expr:
    if isinstance(node, ast.TypeName | ast.TypeOf):
        return c.error(node.span, "a value is needed here, not a type")
    return c.expr(node)


def _number(c: State, expr: typed.Expr, call: ast.Call, name: str) -> int | None:
    value = fold.constant(expr)
    if value is None:
        c.error(expr.span, f"{call.name}(): {name} must be a literal number")
    elif value < 0 and name != "value":
        c.error(expr.span, f"{call.name}(): {name} must not be negative, it is {value}")
        return None
    return value


def _hist(c: State, call: ast.Call, args: list[typed.Expr]) -> tuple[int | str, ...] | None:
    bits = _number(c, args[1], call, "bits") if len(args) > 1 else 0
    if bits is None:
        return None
    if bits > 5:
        c.error(args[1].span, f"hist(): bits must be between 0 and 5, not {bits}")
        return None
    return (bits,)


def _lhist(c: State, call: ast.Call, args: list[typed.Expr]) -> tuple[int | str, ...] | None:
    low, high, step = (_number(c, a, call, n) for a, n in zip(args[1:], ("min", "max", "step"), strict=True))
    if low is None or high is None or step is None:
        return None
    if step < 1:
        c.error(args[3].span, f"lhist(): step must be at least 1, not {step}")
    elif low > high:
        c.error(call.span, f"lhist(): min must be less than max, they are {low} and {high}")
    elif high - low < step:
        c.error(call.span, f"lhist(): a step of {step} is too large for a range of {high - low}")
    elif (high - low) // step > MAX_BUCKETS:
        count = (high - low) // step
        c.error(
            call.span,
            f"lhist(): {count} buckets are too many, at most {MAX_BUCKETS} are possible",
            f"use a step of {-(-(high - low) // MAX_BUCKETS)} or more",
        )
    else:
        return (low, high, step)
    return None


def _tseries(c: State, call: ast.Call, args: list[typed.Expr]) -> tuple[int | str, ...] | None:
    interval, count = _number(c, args[1], call, "interval_ns"), _number(c, args[2], call, "intervals")
    if interval is None or count is None:
        return None
    if c.config["unstable_tseries"] == "error":
        c.error(call.span, "tseries() is not stable yet and is disabled", "config = { unstable_tseries = enable }")
        return None
    if c.config["unstable_tseries"] == "warn":
        # Once for the script and not where it stands, as in the reference.
        c.warn(NOWHERE, "tseries() is not stable yet", "config = { unstable_tseries = enable } silences this")
    kind = "none"
    if len(args) > 3:
        text = fold.literal(args[3])
        if not isinstance(text, bytes) or text.decode("utf-8", "replace") not in SERIES:
            c.error(args[3].span, "tseries(): the aggregation is one of " + ", ".join(f'"{s}"' for s in SERIES))
            return None
        kind = text.decode()
    if interval < 1:
        c.error(args[1].span, f"tseries(): interval_ns must be at least 1, not {interval}")
    elif not 1 <= count <= MAX_INTERVALS:
        c.error(args[2].span, f"tseries(): intervals must be between 1 and {MAX_INTERVALS}, not {count}")
    else:
        return (interval, count, kind)
    return None
