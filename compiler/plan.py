"""From a probe of the script to programs: type, target and attach points, one small function per kind of probe.

Kinds are those of `dsl.env.Point`, what is in their params is told in `runtime.probes`, attach kinds in
`runtime.attach`. Program and attach types are those of `include/uapi/linux/bpf.h`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct, field
from msgspec.structs import replace

from bpfseal.compiler.analysis import nodes
from bpfseal.compiler.unit import Unit
from bpfseal.dsl import typed, types
from bpfseal.dsl.env import Point
from bpfseal.errors import BpfsealError
from bpfseal.signer.bundle import Attach

KPROBE, SCHED_CLS, TRACEPOINT, XDP, PERF_EVENT, RAW_TRACEPOINT, TRACING, LSM = 2, 3, 5, 6, 7, 17, 26, 29
TRACE_RAW_TP, TRACE_FENTRY, TRACE_FEXIT, LSM_MAC, TRACE_ITER = 23, 24, 25, 27, 28
ATTACH_XDP, KPROBE_MULTI, TCX_INGRESS, TCX_EGRESS, UPROBE_MULTI = 37, 42, 46, 47, 48

_SOFTWARE: Final = 1  # PERF_TYPE_SOFTWARE; its config 0 is PERF_COUNT_SW_CPU_CLOCK
_RESULTS: Final = {"xdp": 2, "tc": -1}  # XDP_PASS, TCX_NEXT: let the packet go on


class Program(Struct, frozen=True):
    """One program of the bundle before its code.

    kind     of its points
    numbers  system call numbers to dispatch on, one per point: for the two raw tracepoints that all system call
             tracepoints share
    (Where a program has several points otherwise, the BPF cookie is the index of the point.)
    result   what it returns unless the script says so
    """

    kind: str
    type: int
    points: tuple[Point, ...]
    attach: tuple[Attach, ...]
    expected: int = 0
    attach_btf: str = ""
    attach_btf_id: int = 0
    attach_module: str = ""
    numbers: tuple[int, ...] = ()
    entering: bool = False
    result: int = 0
    name: str = field(default="")


def programs(unit: Unit, probe: typed.Probe) -> list[Program]:
    """The programs that serve a probe's points."""
    if not probe.points:
        return []
    kind = probe.points[0].kind
    make = _KINDS.get(kind)
    if make is None:
        raise BpfsealError(f"probes of kind {kind} cannot be compiled")
    if kind == "tracepoint" and _needs_no_record(probe):
        return _tracepoint(unit, probe.points, typed_as_well=True)
    return make(unit, probe.points)


# Where the kernel runs what was attached last first: these are attached from the last to the first, after the others,
# so that blocks on the same place run in the order in which they stand. As in the reference.
_LAST_FIRST: Final = frozenset({"kprobe", "uprobe", "uretprobe", "usdt", "fentry", "fexit", "iter"})


def attach_order(made: Sequence[Program]) -> list[Program]:
    """The programs in the order in which they are to be attached."""
    reverse = [p for p in made if p.kind in _LAST_FIRST]
    return [p for p in made if p.kind not in _LAST_FIRST] + reverse[::-1]


def _param(point: Point, name: str, default: int = 0) -> int:
    for key, value in point.params:
        if key == name and isinstance(value, int):
            return value
    return default


def _text(point: Point, name: str) -> str:
    return next((value for key, value in point.params if key == name and isinstance(value, str)), "")


# --- probes that the tracer fires -------------------------------------------------------------------------------


def _run(phase: str) -> Callable[[Unit, Sequence[Point]], list[Program]]:
    def make(unit: Unit, points: Sequence[Point]) -> list[Program]:
        attach = tuple(Attach(kind="test_run", probe=p.name, phase=phase) for p in points[:1])
        return [Program(points[0].kind, RAW_TRACEPOINT, tuple(points), attach)]

    return make


def _self(unit: Unit, points: Sequence[Point]) -> list[Program]:
    attach = tuple(Attach(kind="signal", probe=p.name, target=p.function, params={"signal": p.number}) for p in points)
    return [Program("self", RAW_TRACEPOINT, tuple(points), attach)]


# --- perf events ------------------------------------------------------------------------------------------------


def _sampling(unit: Unit, points: Sequence[Point]) -> list[Program]:
    return [Program(points[0].kind, PERF_EVENT, tuple(points), tuple(_sampling_attach(p) for p in points))]


def _sampling_attach(point: Point) -> Attach:
    if point.kind in ("interval", "profile"):
        params = {"type": _SOFTWARE, "config": 0}
        if frequency := _param(point, "frequency"):
            params["sample_freq"] = frequency
        else:
            params["sample_period"] = _param(point, "period")
        if point.kind == "interval":
            params["one_cpu"] = 1
    else:
        params = {
            "type": _param(point, "type"),
            "config": _param(point, "config"),
            "sample_period": point.number,
        }
    if point.kind != "interval":
        params["pid"] = -1
    return Attach(kind="perf_event", probe=point.name, params=params)


def _watchpoint(unit: Unit, points: Sequence[Point]) -> list[Program]:
    attach = tuple(
        Attach(
            kind="watchpoint",
            probe=p.name,
            params={"address": p.number, "length": _param(p, "length"), "mode": _param(p, "mode"), "pid": -1},
        )
        for p in points
    )
    return [Program("watchpoint", PERF_EVENT, tuple(points), attach)]


# --- tracepoints ------------------------------------------------------------------------------------------------


_FEW: Final = 8  # that many programs load and detach sooner than one program detaches from as many perf events


def _needs_no_record(probe: typed.Probe) -> bool:
    """Whether a program that is called with the tracepoint's own arguments, not with the record of the perf event, does
    the same: it uses nothing of the record, nor the kernel's stack, which would show how it was called."""
    if len(probe.points) > 1 and probe.uses_probe_name:
        return False
    for node in nodes(probe.body):
        if isinstance(node, typed.ArgField) or (isinstance(node, typed.Builtin) and node.name in ("args", "ctx")):
            return False
        if isinstance(node, typed.CallUser) or isinstance(getattr(node, "type", None), types.Stack):
            return False
    return True


def _tracepoint(unit: Unit, points: Sequence[Point], typed_as_well: bool = False) -> list[Program]:
    """System calls through the raw tracepoints that they share: one link for any number of them, and what it is
    attached to is part of the signed load. The others the classic way, unless typed programs will do
    (`typed_as_well`): those detach at once, where a perf event takes a grace period of some 40 ms."""
    entering = [p for p in points if _is_syscall(p, "sys_enter_")]
    leaving = [p for p in points if _is_syscall(p, "sys_exit_")]
    others = (
        tuple(p for p in points if p not in entering and p not in leaving)
        if len(entering) + len(leaving) < len(points)
        else ()
    )
    made = []
    for which, target in ((entering, "sys_enter"), (leaving, "sys_exit")):
        if which:
            made.append(_syscalls(unit, tuple(which), target))
    if typed_as_well and len(others) <= _FEW and all(_text(p, "btf") for p in others):
        made += [_served_by_type(unit, p) for p in others]
    elif others:
        attach = tuple(
            Attach(kind="perf_tracepoint", probe=p.name, target=f"{p.category}:{p.function}", cookies=cookies)
            for p, cookies in zip(others, _cookies(others), strict=True)
        )
        made.append(Program("tracepoint", TRACEPOINT, others, attach))
    return made


def _served_by_type(unit: Unit, point: Point) -> Program:
    """The signing helper takes the event's name from the target (signer.attach)."""
    made = _tracing(unit, point, TRACE_RAW_TP, _text(point, "btf"), "t")
    return replace(made, attach=(Attach(kind="trace", probe=point.name, target=f"{point.category}:{point.function}"),))


def _cookies(points: Sequence[Point]) -> list[tuple[int, ...]]:
    """For each point its index among those of its program, by which the program can tell them apart."""
    return [(n,) if len(points) > 1 else () for n in range(len(points))]


def _is_syscall(point: Point, prefix: str) -> bool:
    return (
        point.category == "syscalls"
        and point.function.startswith(prefix)
        and any(key == "nr" for key, _ in point.params)
    )


def _syscalls(unit: Unit, points: tuple[Point, ...], target: str) -> Program:
    name = f"btf_trace_{target}"
    probe = points[0].name if len(points) == 1 else f"tracepoint:syscalls:{target}_*"
    return Program(
        "syscall",
        TRACING,
        points,
        (Attach(kind="trace", probe=probe, target=target),),
        TRACE_RAW_TP,
        name,
        _target_id(unit, "t", name, ""),
        numbers=tuple(_param(p, "nr") for p in points),
        entering=target == "sys_enter",
    )


def _raw_tracepoint(unit: Unit, points: Sequence[Point]) -> list[Program]:
    return [_tracing(unit, p, TRACE_RAW_TP, _text(p, "btf") or f"btf_trace_{p.function}", "t") for p in points]


# --- functions of the kernel ------------------------------------------------------------------------------------


def _target_id(unit: Unit, letter: str, name: str, module: str) -> int:
    found = unit.kernel.find(letter, name, module)
    if not found:
        raise BpfsealError(f"the kernel has no type information for {name}")
    return found


def _tracing(unit: Unit, point: Point, expected: int, target: str, letter: str = "f") -> Program:
    module = "" if point.module == "vmlinux" else point.module
    return Program(
        point.kind,
        TRACING,
        (point,),
        (Attach(kind="trace", probe=point.name, target=point.function),),
        expected,
        target,
        _param(point, "btf_id") or _target_id(unit, letter, target, module),  # known already: in another program's BTF
        module,
    )


def _fentry(unit: Unit, points: Sequence[Point]) -> list[Program]:
    expected = TRACE_FENTRY if points[0].kind == "fentry" else TRACE_FEXIT
    return [_tracing(unit, p, expected, p.function) for p in points]


def _lsm(unit: Unit, points: Sequence[Point]) -> list[Program]:
    made = []
    for point in points:
        name = f"bpf_lsm_{point.function}"
        attach = (Attach(kind="trace", probe=point.name, target=point.function),)
        made.append(Program("lsm", LSM, (point,), attach, LSM_MAC, name, _target_id(unit, "f", name, "")))
    return made


def _iter(unit: Unit, points: Sequence[Point]) -> list[Program]:
    made = []
    for point in points:
        name = f"bpf_iter_{point.function}"
        attach = (Attach(kind="iter", probe=point.name, target=point.function, params={"pid": -1}),)
        made.append(Program("iter", TRACING, (point,), attach, TRACE_ITER, name, _target_id(unit, "f", name, "")))
    return made


def _kprobe(unit: Unit, points: Sequence[Point]) -> list[Program]:
    """Several functions by one link where the kernel can; those it cannot one by one."""
    returns = {"retprobe": 1} if points[0].kind == "kretprobe" else {}
    many = [p for p in points if _param(p, "multi")] if len(points) > 1 else []
    single = [p for p in points if p not in many] if many else list(points)
    made = []
    if many:
        symbols = tuple(p.function for p in many)
        cookies = tuple(range(len(symbols)))
        attach = Attach(
            kind="kprobe_multi", probe=_common(many), symbols=symbols, cookies=cookies, params=dict(returns)
        )
        made.append(Program(points[0].kind, KPROBE, tuple(many), (attach,), KPROBE_MULTI))
    if single:
        attaches = tuple(
            _kprobe_attach(p, returns, cookies) for p, cookies in zip(single, _cookies(single), strict=True)
        )
        made.append(Program(points[0].kind, KPROBE, tuple(single), attaches))
    return made


def _common(points: Sequence[Point]) -> str:
    return points[0].name if len(points) == 1 else f"{points[0].kind}:*"


def _kprobe_attach(point: Point, returns: dict[str, int], cookies: tuple[int, ...]) -> Attach:
    params = dict(returns)
    if point.function:
        if point.number:
            params["offset"] = point.number
    else:
        params["address"] = point.number
    target = f"{point.module}:{point.function}" if point.module and point.function else point.function
    return Attach(kind="kprobe", probe=point.name, target=target, cookies=cookies, params=params)


# --- functions of programs --------------------------------------------------------------------------------------


def _uprobe(unit: Unit, points: Sequence[Point]) -> list[Program]:
    """Several places of one file by one link."""
    kind = points[0].kind
    returns = {"retprobe": 1} if kind == "uretprobe" else {}
    by_file: dict[str, list[Point]] = {}
    for point in points:
        by_file.setdefault(point.module, []).append(point)
    made = []
    single: list[Point] = []
    for path, places in by_file.items():
        if len(places) == 1:
            single += places
            continue
        attach = Attach(
            kind="uprobe_multi",
            probe=_common(places),
            target=path,
            offsets=tuple(p.number for p in places),
            cookies=tuple(range(len(places))),
            params={**returns, "pid": -1},
        )
        made.append(Program(kind, KPROBE, tuple(places), (attach,), UPROBE_MULTI))
    if single:
        attaches = tuple(
            Attach(
                kind="uprobe",
                probe=p.name,
                target=p.module,
                cookies=cookies,
                params={**returns, "offset": p.number, "pid": -1},
            )
            for p, cookies in zip(single, _cookies(single), strict=True)
        )
        made.append(Program(kind, KPROBE, tuple(single), attaches))
    return made


def _usdt(unit: Unit, points: Sequence[Point]) -> list[Program]:
    attach = tuple(
        Attach(
            kind="usdt",
            probe=p.name,
            target=p.module,
            params={"offset": p.number, "semaphore": _param(p, "semaphore"), "pid": -1},
        )
        for p in points
    )
    return [Program("usdt", KPROBE, tuple(points), attach)]


# --- packets ----------------------------------------------------------------------------------------------------


def _xdp(unit: Unit, points: Sequence[Point]) -> list[Program]:
    attach = tuple(Attach(kind="xdp", probe=p.name, target=p.function) for p in points)
    return [Program("xdp", XDP, tuple(points), attach, ATTACH_XDP, result=_RESULTS["xdp"])]


def _tc(unit: Unit, points: Sequence[Point]) -> list[Program]:
    made = []
    for egress in (0, 1):
        which = tuple(p for p in points if _param(p, "egress") == egress)
        if which:
            attach = tuple(
                Attach(kind="tc", probe=p.name, target=p.function, params={"egress": 1} if egress else {})
                for p in which
            )
            expected = TCX_EGRESS if egress else TCX_INGRESS
            made.append(Program("tc", SCHED_CLS, which, attach, expected, result=_RESULTS["tc"]))
    return made


_KINDS: Final[dict[str, Callable[[Unit, Sequence[Point]], list[Program]]]] = {
    "begin": _run("begin"),
    "end": _run("end"),
    "test": _run("attach"),
    "bench": _run("attach"),
    "self": _self,
    "interval": _sampling,
    "profile": _sampling,
    "software": _sampling,
    "hardware": _sampling,
    "watchpoint": _watchpoint,
    "tracepoint": _tracepoint,
    "rawtracepoint": _raw_tracepoint,
    "fentry": _fentry,
    "fexit": _fentry,
    "lsm": _lsm,
    "iter": _iter,
    "kprobe": _kprobe,
    "kretprobe": _kprobe,
    "uprobe": _uprobe,
    "uretprobe": _uprobe,
    "usdt": _usdt,
    "xdp": _xdp,
    "tc": _tc,
}
