"""Probes: from attach points as written to groups of points that one translation of the body serves."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from bpfseal.dsl import ast, points, typed
from bpfseal.dsl.check import operators, scopes, statements, walk
from bpfseal.dsl.check.names import USER_KINDS
from bpfseal.dsl.check.state import Place, State
from bpfseal.dsl.env import Args, AttachSpec, Point
from bpfseal.dsl.source import Span
from bpfseal.dsl.types import BOOL
from bpfseal.errors import BpfsealError

KERNEL_KINDS = frozenset({"kprobe", "kretprobe", "fentry", "fexit", "tracepoint", "iter", "rawtracepoint", "lsm"})
# The kernel attaches the others to a process (iterators too), or they are nobody's: begin, interval.
_OF_ANY_PROCESS = KERNEL_KINDS - {"iter"}


class Group(Struct, frozen=True):
    """Points of one written probe that share a translation of its body."""

    probe: ast.Probe
    id: object
    points: tuple[Point, ...]
    args: Args


def space_of(kind: str) -> str:
    """How a probe of `kind` reads an address that nothing else is known of."""
    if kind in USER_KINDS:
        return "user"
    return "kernel" if kind in KERNEL_KINDS else "none"


def resolve(c: State, script: ast.Script) -> list[Group]:
    """All groups of the script; reports points that do not exist as config missing_probes says."""
    groups: list[Group] = []
    count = 0
    for number, probe in enumerate(script.probes):
        found = _points(c, probe)
        count += len(found)
        if len(found) > int(c.config["max_bpf_progs"]) and "probe" in walk.words((probe.predicate, probe.body)):
            _too_many_programs(c, probe, len(groups) + len(found))
            break
        if count > int(c.config["max_probes"]):
            c.error(
                probe.points[0].span if probe.points else probe.span,
                f"Can't attach to {count} probes: at most {c.config['max_probes']} are allowed",
                f"narrow the wildcard, or raise the limit with BPFTRACE_MAX_PROBES={count}",
            )
            break
        groups += _grouped(c, probe, number, found)
    limit = int(c.config["max_bpf_progs"])
    if len(groups) > limit:
        _too_many_programs(c, groups[limit].probe, len(groups))
    _check_iterators(c, groups)
    _check_names(c, groups)
    return groups


def _too_many_programs(c: State, probe: ast.Probe, programs: int) -> None:
    limit = c.config["max_bpf_progs"]
    c.error(
        probe.points[0].span if probe.points else probe.span,
        f"Your program is trying to generate more than {programs - 1} BPF programs, "
        f"which exceeds the current limit of {limit}",
        "You can increase the limit through the BPFTRACE_MAX_BPF_PROGS environment variable.",
    )


def _check_names(c: State, groups: Sequence[Group]) -> None:
    """Results are told by the names of tests and benchmarks."""
    seen: set[str] = set()
    for group in groups:
        for point in group.points:
            if point.kind in ("test", "bench"):
                if point.name in seen:
                    c.error(
                        group.probe.points[0].span,
                        f"there is another {point.kind} probe with the name '{point.function}'",
                    )
                seen.add(point.name)


def _points(c: State, probe: ast.Probe) -> list[Point]:
    found: list[Point] = []
    missing: list[tuple[ast.AttachPoint, AttachSpec]] = []
    target = c.env.target
    for written in probe.points:
        try:
            specs = points.specs(written.text, pid=bool(target.pid or target.command), unsafe=target.unsafe)
            here = [p for spec in specs for p in c.env.expand(spec)]
        except BpfsealError as error:
            report = c.warn if target.checking and getattr(error, "absent", False) else c.error
            report(written.span, str(error), error.hint)
            continue
        for p in here:
            if ("unlisted", 1) in p.params:
                c.warn(written.span, _untraceable(p.function))
        if not here:
            missing.append((written, specs[0]))
        found += [replace(p, name=probe.name) for p in here] if probe.name else here
    for written, spec in missing:
        _missing(c, written, spec, bool(found))
    if not found and probe.points and c.config["missing_probes"] == "warn":
        c.warn(
            probe.points[0].span,
            "Probe has no valid attach points. It is being removed which may cause issues with program behavior.",
        )
    return found


def _missing(c: State, written: ast.AttachPoint, spec: AttachSpec, others: bool) -> None:
    """`others`: the probe has other points. Then a wildcard that matches nothing is no reason to stop."""
    policy = c.config["missing_probes"]
    if policy == "ignore":
        return
    wild = any(sign in written.text for sign in "*?[")
    message = f"No matches for {spec.kind} {':'.join(spec.parts)}."
    if spec.kind in ("kprobe", "kretprobe") and not wild and not spec.parts[-1][:1].isdigit():
        c.warn(written.span, _untraceable(spec.parts[-1].partition("+")[0]))
    if policy == "warn" or (others and wild):
        c.warn(written.span, message + " Skipping.")
        return
    if wild or (spec.kind == "rawtracepoint" and len(spec.parts) == 1):
        c.error(written.span, f"Probe has no valid attach points. {message}", "bpfseal -l lists what there is")
        return
    close = c.env.suggest(spec.kind, written.text)[:3]
    hint = "did you mean " + " or ".join(close) + "?" if close else "bpfseal -l lists what there is"
    c.error(written.span, message, hint)


def _untraceable(function: str) -> str:
    return (
        f'{function} is not traceable (either non-existing, inlined, or marked as "notrace"); '
        "attaching to it will likely fail"
    )


def _grouped(c: State, probe: ast.Probe, number: int, found: Sequence[Point]) -> list[Group]:
    """Points that the body cannot tell apart go together."""
    words = walk.words((probe.predicate, probe.body))
    named = "probe" in words
    typed_args = bool(words & {"args", "retval", "ctx", "capture"}) or any(w.startswith("arg") for w in words)
    uses_module = "uaddr" in words
    together: dict[object, tuple[list[Point], Args]] = {}
    for position, point in enumerate(found):
        args = _arguments(c, point, typed_args)
        key: object
        if named or point.kind == "iter":
            key = position
        else:
            extra = tuple(sorted(args.extra.items()))
            fields = args.fields.fields if args.fields is not None else None
            key = (point.kind, args.context, fields, args.returns, extra)
        if uses_module:
            key = (key, point.module)
        together.setdefault(key, ([], args))[0].append(point)
    return [Group(probe, (number, n), tuple(p), a) for n, (p, a) in enumerate(together.values())]


# How a probe's context is laid out where nothing of it is used.
_CONTEXTS = {
    "tracepoint": "ctx",
    "rawtracepoint": "argument",
    "fentry": "argument",
    "fexit": "argument",
    "lsm": "argument",
    "usdt": "usdt",
    **dict.fromkeys(("kprobe", "kretprobe", "uprobe", "uretprobe"), "registers"),
}


def _arguments(c: State, point: Point, used: bool) -> Args:
    """Arguments at a point. Where the body uses none they are not looked for, which can take long: all but how the
    context is reached, which for system calls only the environment knows."""
    if used:
        return c.env.args(point)
    if point.kind == "tracepoint" and point.category == "syscalls":
        known = c.env.args(point)
        return Args(None, known.context, None, known.extra)
    return Args(None, _CONTEXTS.get(point.kind, "none"))


def _check_iterators(c: State, groups: Sequence[Group]) -> None:
    iterators = [g for g in groups if g.points[0].kind == "iter"]
    if iterators and len(groups) > 1:
        c.error(iterators[0].probe.span, "an iterator probe cannot be mixed with any other probe")


def translate(c: State, group: Group) -> typed.Probe:
    """The body, for the points of a group."""
    kind = group.points[0].kind
    c.place = Place(group.id, kind, group.points, group.args, space_of(kind))
    c.scopes, c.loops, c.callbacks, c.copy = [], 0, 0, ()
    probe = group.probe
    body: list[typed.Stmt] = []
    with scopes.block(c):
        if c.env.target.pid and kind in _OF_ANY_PROCESS:
            body += _predicate(c, _of_process(c.env.target.pid, probe.span))
        if probe.predicate is not None:
            body += _predicate(c, probe.predicate)
        body += statements.nested(c, probe.body)
    return typed.Probe(group.points, group.args, tuple(body), probe.span, c.place.uses_probe_name)


def _of_process(pid: int, span: Span) -> ast.Expr:
    """`pid == PID`, of the process that -p names."""
    return ast.Binary("==", ast.Identifier("pid", span), ast.Integer(pid, span=span), span)


def _predicate(c: State, node: ast.Expr) -> list[typed.Stmt]:
    test = operators.condition(c, node)
    if isinstance(test, typed.Int) and test.type == BOOL and test.value:
        return []
    leave = typed.Jump("return", None, node.span)
    return [typed.If(typed.Unary("!", test, BOOL, node.span), (leave,), (), node.span)]


def span_of(script: ast.Script) -> Span:
    """The whole script, for messages about nothing in particular."""
    text = script.sources[0].text if script.sources else ""
    return Span(0, min(1, len(text)))
