"""From the syntax tree to the typed script: names, types, conversions, and every mistake with its place.

`check` is pure but for what the Environment answers. How it goes about it is told in `state`.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from bpfseal.dsl import ast, typed
from bpfseal.dsl.check import expressions, functions, limits, maps, probes, settings, statements
from bpfseal.dsl.check.state import Memory, State
from bpfseal.dsl.env import CFunction, Environment
from bpfseal.dsl.source import Diagnostic, DslError
from bpfseal.errors import BpfsealError

__all__ = ["check"]

MAX_WALKS = 60


class _Walk(Struct, frozen=True):
    state: State
    probes: tuple[typed.Probe, ...]
    functions: tuple[typed.Function, ...]
    maps: tuple[typed.MapDef, ...]


def check(
    script: ast.Script, env: Environment, config_overrides: Mapping[str, str | int | bool] | None = None
) -> typed.TypedScript:
    """The typed script. `config_overrides`: variables that win over the script's config block.

    Raises DslError with every error that was found, warnings included.
    """
    config, findings = settings.effective(script.config, config_overrides)
    first = State(env, config, Memory(), expressions.table(), statements.table())
    first.diagnostics += findings
    try:
        return _check(script, env, first)
    except RecursionError:
        first.error(probes.span_of(script), "the script is nested too deeply", "split it with variables or functions")
        raise DslError(first.diagnostics, list(script.sources)) from None


def _check(script: ast.Script, env: Environment, first: State) -> typed.TypedScript:
    config, memory = first.config, first.memory
    for decl in script.maps:
        maps.declare(first, decl)
    groups = probes.resolve(first, script)
    if not script.probes and not first.diagnostics:
        first.error(probes.span_of(script), "the script has no probes", "for example: begin { print(1); }")
    elif not groups and not any(d.severity == "error" for d in first.diagnostics):
        report = first.warn if env.target.checking else first.error
        report(probes.span_of(script), "no probe point of the script exists\nNo probes to attach")
    externals = _externals(first, script)
    if script.c_files and any(d.severity == "error" for d in first.diagnostics):
        raise DslError(_ordered([*script.warnings, *first.diagnostics]), list(script.sources))
    walk = _settle(script, env, config, memory, groups, externals)
    findings = _ordered([*script.warnings, *first.diagnostics, *walk.state.diagnostics])
    if any(d.severity == "error" for d in findings):
        raise DslError(findings, list(script.sources))
    return typed.TypedScript(
        walk.probes,
        walk.maps,
        walk.functions,
        config,
        script.sources,
        dict(sorted(walk.state.records.items())),
        dict(sorted(walk.state.enums.items())),
        tuple(findings),
        tuple((file.path, file.text) for file in script.c_files),
    )


def _externals(first: State, script: ast.Script) -> dict[str, CFunction]:
    """Functions of imported C files by name; reports files that cannot be compiled and names that exist twice."""
    found: dict[str, CFunction] = {}
    for file in script.c_files:
        try:
            functions = first.env.c_functions(file.path, file.text)
        except BpfsealError as error:
            first.error(file.span, error.message, error.hint)
            continue
        for function in functions:
            if function.name in found:
                first.error(file.span, f"two imported C files have a function {function.name}")
            found[function.name] = function
    return found


def _settle(
    script: ast.Script,
    env: Environment,
    config: dict[str, str | int | bool],
    memory: Memory,
    groups: list[probes.Group],
    externals: dict[str, CFunction],
) -> _Walk:
    """Walk until no type changes any more."""
    last = False
    for n in range(MAX_WALKS):
        memory.changed = False
        memory.walks = n
        state = State(env, config, memory, expressions.table(), statements.table(), last=last, externals=externals)
        done = functions.translate(state, script)
        translated = tuple(probes.translate(state, group) for group in groups)
        if not memory.changed:
            maps.settle(state)
        if not memory.changed and (last or not state.waiting):
            break
        # a walk that changes nothing and still lacks something is followed by one that insists
        last = not memory.changed or n >= MAX_WALKS - 2
    else:
        state.error(
            probes.span_of(script), "the types of the script's variables and maps depend on each other endlessly"
        )
    found = tuple(maps.finish(state))
    limits.maps(state)
    _unresolved(state)
    return _Walk(state, translated, done, found)


def _unresolved(state: State) -> None:
    """Variables that are read although nothing says their type: an error, unless one explains it already."""
    if any(d.severity == "error" for d in state.diagnostics):
        return
    for variable in state.unresolved:
        state.error(variable.span, f"nothing says the type of ${variable.var.name}", "assign a value to it")


def _ordered(findings: list[Diagnostic]) -> list[Diagnostic]:
    """By place in the script; a finding that several points share once."""
    unique = {(d.severity, d.message, d.span): d for d in findings}
    return sorted(unique.values(), key=lambda d: (d.span.source, d.span.start, d.span.end, d.message))
