"""Maps: their keys, their values, aggregations."""

from __future__ import annotations

from collections.abc import Sequence

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check.conversions import UNKNOWN, as_int, coerce, is_unknown, promote, to_int
from bpfseal.dsl.check.state import MapInfo, State, is_aggregate_read, nothing
from bpfseal.dsl.source import Span
from bpfseal.dsl.table import AGGREGATES, near
from bpfseal.dsl.types import I64, U64, Aggregate, Int, Ptr, Str, Tuple, Type, Void

KINDS = ("hash", "lruhash", "percpuhash", "percpulruhash")

# What reads as one integer; the others can only be printed.
READABLE = frozenset({"count", "sum", "min", "max", "avg"})

EXAMPLES = {
    "count": "count()",
    "sum": "sum(retval)",
    "min": "min(retval)",
    "max": "max(retval)",
    "avg": "avg(retval)",
    "stats": "stats(arg2)",
    "hist": "hist(retval)",
    "lhist": "lhist(retval, 0, 1000, 10)",
    "tseries": "tseries(retval, 1s, 10)",
}


def lookup(c: State, name: str, span: Span) -> MapInfo:
    """The map called `name`, made at its first mention."""
    info = c.memory.maps.get(name)
    if info is None:
        definition = typed.MapDef(name, None, UNKNOWN, int(c.config["max_map_keys"]), "auto", span)
        info = MapInfo(name, span, definition)
        c.memory.maps[name] = info
    return info


def declare(c: State, decl: ast.MapDecl) -> None:
    """A map of the script's head."""
    if decl.kind and decl.kind not in KINDS:
        c.error(decl.span, f"invalid map type: {decl.kind}", "valid types are " + ", ".join(KINDS))
        return
    info = lookup(c, decl.name, decl.span)
    if info.declared is not None and info.declared is not decl:
        c.error(decl.span, f"map @{decl.name} is declared twice", None, ("first here", info.declared.span))
        return
    info.declared = decl
    info.definition.span = decl.span
    if decl.kind:
        info.definition.kind = decl.kind
    if decl.max_entries is not None:
        if not 0 < decl.max_entries < 1 << 32:
            c.error(decl.span, f"a map cannot have {decl.max_entries} entries", "it needs between 1 and 4294967295")
        info.definition.entries = decl.max_entries


def self_started(c: State, info: MapInfo) -> None:
    """Note that a map's value is used before anything says what it is: then it holds numbers."""
    info.used = True


def settle(c: State) -> None:
    """After a walk that changed nothing else: maps that only ever start from themselves hold numbers."""
    for info in c.memory.maps.values():
        if info.value is None and info.used and info.keyed is not None:
            info.value = Int(8, True)
            info.definition.value = info.value
            c.memory.changed = True


def access(c: State, node: ast.Map, write: bool = False) -> tuple[MapInfo | None, typed.Expr | None]:
    """The map and the key of an element that is read or written; (None, None) when that is wrong."""
    info = lookup(c, node.name, node.span)
    info.written = info.written or write
    keyed = node.key is not None
    if info.keyed is None:
        info.keyed, info.keyed_at = keyed, node.span
    elif info.keyed != keyed:
        used, before = ("with", "without") if keyed else ("without", "with")
        trail = (("used that way here", info.keyed_at),) if info.keyed_at is not None else ()
        c.error(node.span, f"@{node.name} is used {used} a key here, but {before} one before", None, *trail)
        return None, None
    if node.key is None:
        return info, None
    key = key_of(c, info, node.key, node.span)
    return (info, key) if key is not None else (None, None)


def key_of(c: State, info: MapInfo, node: ast.Expr, span: Span) -> typed.Expr | None:
    """`node` as a key of a map; None when it cannot be one."""
    key = c.expr(node)
    if is_unknown(key.type):
        return None
    problem = _bad_key(key.type)
    if problem:
        c.error(node.span, problem)
        return None
    if not c.grow_map(info, "key", key.type):
        assert info.key is not None
        c.error(span, _mismatch(info.name, key.type, info.key), _arity(info.key, key.type))
        return None
    assert info.key is not None
    converted = coerce(key, info.key, c.narrowing)
    if converted is None:
        c.error(span, _mismatch(info.name, key.type, info.key))
    return converted


def _mismatch(name: str, have: Type, want: Type) -> str:
    """The sentence that bpftrace's users know."""
    given, expected = (str(type).replace(", ", ",") for type in (have, want))
    return (
        f"Argument mismatch for @{name}: trying to access with arguments: '{given}' "
        f"when map expects arguments: '{expected}'"
    )


def _arity(want: Type, have: Type) -> str | None:
    def parts(type: Type) -> int:
        return len(type.elements) if isinstance(type, Tuple) else 1

    if parts(want) != parts(have):
        return f"it was used with {parts(want)} part{'s' if parts(want) != 1 else ''} before"
    return None


def _bad_key(type: Type) -> str:
    for part in type.elements if isinstance(type, Tuple) else (type,):
        if isinstance(part, Ptr) and part.space == "ctx":
            return "the context cannot be part of a map key"
        if isinstance(part, Void):
            return "something that has no value cannot be a map key"
    return ""


def value_type(info: MapInfo) -> Type:
    """What reading an element gives."""
    value = info.value
    if isinstance(value, Aggregate):
        if value.kind not in READABLE:
            return value
        return U64 if value.kind == "count" or not value.signed else I64
    return value if value is not None else UNKNOWN


def read(c: State, node: ast.Map) -> typed.Expr:
    """The value of an element."""
    info, key = access(c, node)
    if info is None:
        return nothing(node.span)
    if info.value is None:
        self_started(c, info)
        return nothing(node.span)
    type = value_type(info)
    if isinstance(type, Aggregate):
        return c.error(
            node.span,
            f"the value of a {type.kind}() map cannot be used in an expression",
            f"print(@{info.name}) shows the whole map",
        )
    return typed.MapRead(info.definition, key, type, node.span)


def aggregation(node: ast.Expr) -> ast.Call | None:
    """The aggregation that a right side is, looking into blocks that macros leave."""
    while isinstance(node, ast.Block) and node.result is not None:
        node = node.result
    return node if isinstance(node, ast.Call) and node.name in AGGREGATES else None


def assign(c: State, target: ast.Map, value: ast.Expr, span: Span) -> Sequence[typed.Stmt]:
    """`@m[k] = value`."""
    if c.silent:
        c.error(span, "maps cannot be assigned inside of sizeof, typeof or typeinfo")
        return ()
    call = aggregation(value)
    if call is not None:
        from bpfseal.dsl.check import aggregates

        return aggregates.assign(c, target, value, call, span)
    info, key = access(c, target, write=True)
    expr = c.expr(value)
    if info is None or is_unknown(expr.type):
        return ()
    if isinstance(expr.type, Void):
        c.error(span, "something that has no value cannot be assigned to a map")
        return ()
    if is_aggregate_read(expr) and (info.value is None or as_int(info.value) is None):
        return _copied_aggregate(c, info, expr, span)
    if isinstance(info.value, Aggregate):
        c.error(
            span,
            f"type mismatch for @{info.name}: it is written by {info.value.kind}(), a value of type {expr.type} "
            "cannot be assigned",
            f"write @{info.name} = {EXAMPLES[info.value.kind]}, or use another map",
        )
        return ()
    converted = store(c, info, expr, span)
    return () if converted is None else (typed.AssignMap(info.definition, key, converted, span),)


def store(c: State, info: MapInfo, expr: typed.Expr, span: Span) -> typed.Expr | None:
    """`expr` as a value of a map, which may grow for it; None when it does not fit."""
    problem = None
    if isinstance(expr.type, Ptr) and expr.type.space == "ctx":
        problem = "the context cannot be kept in a map"
    elif not c.grow_map(info, "value", plain(expr.type)):
        problem = f"type mismatch for @{info.name}: it holds values of type {info.value}, not {expr.type}"
    if problem is not None:
        c.error(span, problem)
        return None
    assert info.value is not None
    converted = coerce(expr, info.value, c.narrowing)
    if converted is None:
        c.error(span, f"type mismatch for @{info.name}: it holds values of type {info.value}, not {expr.type}")
    return converted


def plain(type: Type) -> Type:
    """A type as it is kept: pointers the verifier trusts are ordinary ones once they have been stored."""
    match type:
        case Ptr(to=to, space="btf"):
            return Ptr(to, "kernel")
        case Tuple(elements=elements, names=names):
            return Tuple(tuple(plain(e) for e in elements), names)
        case _:
            return type


def _copied_aggregate(c: State, info: MapInfo, expr: typed.Expr, span: Span) -> Sequence[typed.Stmt]:
    assert isinstance(expr, typed.MapRead)
    assert isinstance(expr.map.value, Aggregate)
    source = expr.map
    kind = expr.map.value.kind
    at = f"@{info.name}"
    c.error(
        span,
        f"the value of {kind}() cannot be assigned from one map to another",
        f"call the function, {at} = {EXAMPLES[kind]}, or take its number, {at} = (int64)@{source.name}",
    )
    return ()


def raw(c: State, node: object, function: str, keyed: bool = False) -> MapInfo | None:
    """The whole map that a function is about; None (and a report) when the argument is none."""
    if not isinstance(node, ast.Map) or node.key is not None:
        span = getattr(node, "span")  # noqa: B009 - every syntax node has one
        c.error(span, f"{function}() expects a map argument", "write it without a key")
        return None
    info = lookup(c, node.name, node.span)
    if keyed:
        if info.keyed is False:
            c.error(node.span, f"call to {function}() expects a map with explicit keys (non-scalar map)")
            return None
        if info.keyed is None:
            info.keyed, info.keyed_at = True, node.span
    return info


def finish(c: State) -> list[typed.MapDef]:
    """Check what can only be known at the end, and give the maps that exist."""
    found = []
    for info in c.memory.maps.values():
        definition = info.definition
        if info.value is None or info.keyed is None or (info.keyed and info.key is None):
            if info.declared is not None and info.keyed is None:
                c.warn(info.declared.span, f"Unused map: @{info.name}")
            elif not any(d.severity == "error" for d in c.diagnostics):
                c.error(info.span, f"undefined map: @{info.name}", _meant(c, info) or "assign a value to it somewhere")
            continue
        if not info.written and info.declared is None:
            c.warn(info.span, f"@{info.name} is never written, it is always zero", _meant(c, info))
        definition.key = info.key if info.keyed else None
        definition.value = info.value
        _check_kind(c, info)
        c.note_type(info.value)
        if definition.key is not None:
            c.note_type(definition.key)
        found.append(definition)
    return found


def _meant(c: State, info: MapInfo) -> str | None:
    """A map that the name may have been meant for."""
    close = near(info.name, [i.name for i in c.memory.maps.values() if i.written], 1)
    return f"did you mean @{close[0]}?" if close else None


def _check_kind(c: State, info: MapInfo) -> None:
    declared = info.declared
    if declared is None or not declared.kind:
        return
    per_cpu = isinstance(info.value, Aggregate)
    if per_cpu != declared.kind.startswith("percpu"):
        needed = "percpuhash or percpulruhash" if per_cpu else "hash or lruhash"
        c.error(
            info.span,
            f"incompatible map type: @{info.name} is declared as {declared.kind}, but its values need {needed}",
        )


def integer_argument(c: State, expr: typed.Expr, function: str) -> typed.Expr | None:
    """A measured value as an integer; None (and a report) when it is none."""
    if is_unknown(expr.type):
        return None
    if as_int(expr.type) is None:
        hint = "use strlen() for its length" if isinstance(expr.type, Str) else None
        if isinstance(expr.type, Ptr):
            hint = "cast it: (uint64)"
        c.error(expr.span, f"{function}() only supports integer arguments, not {expr.type}", hint)
        return None
    return expr


def measured(c: State, info: MapInfo, expr: typed.Expr, function: str) -> tuple[typed.Expr, bool]:
    """The value for sum() and its family widened to 64 bits, and whether the map's numbers are signed."""
    both = promote(info.measured, expr.type)
    if both is None:
        c.error(expr.span, f"type mismatch for {function}(): {expr.type} here, {info.measured} before")
        both = expr.type
    if info.measured is not None and both != info.measured:
        c.memory.changed = True
    info.measured = both
    integer = as_int(both)
    signed = integer is None or integer.signed
    return to_int(expr, I64 if signed else U64), signed
