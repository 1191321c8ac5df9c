"""Calls: which function is meant, whether it may be used here, how many arguments; then its own rule."""

from __future__ import annotations

from collections.abc import Sequence

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check import (
    call_addresses,
    call_maps,
    call_meta,
    call_output,
    call_strings,
    call_system,
    external,
    names,
)
from bpfseal.dsl.check.arguments import Rule
from bpfseal.dsl.check.conversions import coerce, is_unknown
from bpfseal.dsl.check.state import State, nothing
from bpfseal.dsl.table import AGGREGATES, BUILTINS, FUNCTIONS, FunctionSpec, near

RULES: dict[str, Rule] = {
    **call_output.RULES,
    **call_strings.RULES,
    **call_addresses.RULES,
    **call_maps.RULES,
    **call_system.RULES,
    **call_meta.RULES,
}

# Functions that deferred blocks may call in any probe.
_LATER = frozenset({"path"})


def call(c: State, node: ast.Call) -> typed.Expr:
    name = node.name
    if name in c.functions:
        return _user(c, node)
    if name in AGGREGATES:
        return c.error(
            node.span,
            f"{name}() must be assigned directly to a map",
            f"@x = {name}({', '.join(['…'] * len(node.args))})",
        )
    spec = FUNCTIONS.get(name)
    if spec is None:
        if name in BUILTINS:
            return _builtin(c, node)
        if name in c.externals:
            return external.call(c, node, c.externals[name])
        return _unknown(c, node)
    if not allowed(c, node, spec) or not _counted(c, node, spec):
        return nothing(node.span)
    return RULES[name](c, node)


def statement(c: State, node: ast.Call) -> Sequence[typed.Stmt] | None:
    """Calls that are statements of their own kind; None for the others."""
    if node.name in c.functions:
        return None
    spec = FUNCTIONS.get(node.name)
    rule = call_meta.STATEMENTS.get(node.name) or call_maps.STATEMENTS.get(node.name)
    if spec is None or rule is None:
        return None
    if not allowed(c, node, spec) or not _counted(c, node, spec):
        return ()
    return rule(c, node)


def allowed(c: State, node: ast.Call, spec: FunctionSpec) -> bool:
    """Whether the function may be called at this place; reports why not."""
    kind = c.place.kind
    if spec.unsafe and not c.env.target.unsafe:
        c.error(node.span, f"{spec.name}() is unsafe. To use you need the --unsafe flag")
        return False
    if spec.probes and kind and kind not in spec.probes and not (spec.name in _LATER and c.deferred >= 0):
        c.error(
            node.span,
            f"{spec.name}() cannot be used with {names.kind_name(kind)} probes",
            "it is available in " + ", ".join(sorted(spec.probes)) + " probes",
        )
        return False
    if spec.probes and not kind:
        c.error(node.span, f"{spec.name}() can only be used inside of a probe")
        return False
    return True


def _counted(c: State, node: ast.Call, spec: FunctionSpec) -> bool:
    least, most = spec.arguments
    given = len(node.args)
    if least <= given and (most < 0 or given <= most):
        return True
    if least == most:
        wanted = "no arguments" if least == 0 else "one argument" if least == 1 else f"{least} arguments"
    elif given < least:
        wanted = "at least " + ("one argument" if least == 1 else f"{least} arguments")
    else:
        wanted = "at most " + ("one argument" if most == 1 else f"{most} arguments")
    c.error(node.span, f"{spec.name}() takes {wanted}, {given} given", "; ".join(spec.signatures))
    return False


def _builtin(c: State, node: ast.Call) -> typed.Expr:
    if node.args:
        return c.error(node.span, f"{node.name} takes no arguments, {len(node.args)} given")
    return names.builtin(c, node.name, node.span)


def _unknown(c: State, node: ast.Call) -> typed.Expr:
    span = node.name_span if node.name_span.source >= 0 else node.span
    close = near(node.name, [*FUNCTIONS, *AGGREGATES, *BUILTINS, *c.functions, *c.externals])
    hint = "did you mean " + " or ".join(close) + "?" if close else None
    return c.error(span, f"unknown function: '{node.name}'", hint)


def _user(c: State, node: ast.Call) -> typed.Expr:
    """A function that the script defines."""
    function = c.functions[node.name]
    if len(node.args) != len(function.params):
        return c.error(
            node.span,
            f"{function.name}() needs {len(function.params)} of its arguments, {len(node.args)} given",
        )
    args: list[typed.Expr] = []
    for given, param in zip(node.args, function.params, strict=True):
        if isinstance(given, ast.TypeName | ast.TypeOf):
            return c.error(given.span, "a value is needed here, not a type")
        value = c.expr(given)
        if is_unknown(value.type):
            return nothing(node.span)
        converted = coerce(value, param.type, c.narrowing)
        if converted is None:
            return c.error(given.span, f"{function.name}() expects {param.type} for ${param.name}, not {value.type}")
        args.append(converted)
    return typed.CallUser(function, tuple(args), function.returns, node.span)
