"""Where a program may go: attach specifications against program types, targets against the kernel's BTF.

`attach_targets` gives the names that policy patterns are matched with. They are made from what the kernel will be
told (type, target, symbols, attach BTF name), not from the text in `Attach.probe`, except where an event has no
name in the kernel (timers, counters).

    tracepoint:CATEGORY:NAME   rawtracepoint:NAME      kprobe:FUNCTION  kretprobe:FUNCTION
    fentry:MODULE:FUNCTION     fexit:MODULE:FUNCTION   fmod_ret:MODULE:FUNCTION
    lsm:HOOK   iter:NAME       uprobe:PATH:0xOFFSET    uretprobe:PATH:0xOFFSET   usdt:PATH:0xOFFSET
    profile:… interval:… software:… hardware:…         watchpoint:0xADDRESS:LENGTH
    xdp:INTERFACE              tc:INTERFACE:ingress    begin  end  self:signal:NUMBER  test:NAME  bench:NAME
    none:TYPE                  a program that the bundle attaches nowhere
    fentry:prog-ID:FUNCTION    fexit:prog-ID:FUNCTION  freplace:prog-ID:FUNCTION    of another BPF program
"""

from __future__ import annotations

import re
from typing import Final

from bpfseal.signer import btf as kinds
from bpfseal.signer import helpers as known
from bpfseal.signer.btf import Btf, BtfError
from bpfseal.signer.bundle import Attach, ProgramSpec
from bpfseal.signer.kernel_ids import Kernel
from bpfseal.signer.program_target import ProgramTarget, program_target
from bpfseal.signer.refusal import Refusal

MAX_TARGETS: Final = 1 << 16  # per program
_TRACED: Final = (known.TRACE_RAW_TP, known.TRACE_FENTRY, known.TRACE_FEXIT, known.MODIFY_RETURN, known.TRACE_FSESSION)
_RUN: Final[dict[int, tuple[int, ...]]] = {known.RAW_TRACEPOINT: (0,), known.SYSCALL: (0,)}

# Attach.kind → program type → expected attach types
_KINDS: Final[dict[str, dict[int, tuple[int, ...]]]] = {
    "perf_tracepoint": {known.TRACEPOINT: (0,)},
    "raw_tracepoint": {known.RAW_TRACEPOINT: (0,)},
    "trace": {known.TRACING: _TRACED, known.LSM: (known.LSM_MAC,)},
    "iter": {known.TRACING: (known.TRACE_ITER,)},
    "kprobe": {known.KPROBE: (0,)},
    "kprobe_multi": {known.KPROBE: (known.KPROBE_MULTI, known.KPROBE_SESSION)},
    "uprobe": {known.KPROBE: (0,)},
    "uprobe_multi": {known.KPROBE: (known.UPROBE_MULTI, known.UPROBE_SESSION)},
    "usdt": {known.KPROBE: (0, known.UPROBE_MULTI)},
    "perf_event": {known.PERF_EVENT: (0, known.ATTACH_PERF_EVENT)},
    "watchpoint": {known.PERF_EVENT: (0, known.ATTACH_PERF_EVENT)},
    "test_run": _RUN,
    "signal": _RUN,
    "xdp": {known.XDP: (0, known.ATTACH_XDP)},
    "tc": {known.SCHED_CLS: (0, known.TCX_INGRESS, known.TCX_EGRESS)},
}
_ATTACH_TYPES: Final = {
    type: {*known.CGROUP_ATTACH.get(type, ()), *(e for table in _KINDS.values() for e in table.get(type, ()))}
    for type in known.PROGRAM_TYPES
}
_IN_LOAD: Final = frozenset((known.TRACING, known.EXT, known.LSM))  # types whose target is part of BPF_PROG_LOAD
_OF_PROGRAMS: Final = (known.TRACE_FENTRY, known.TRACE_FEXIT, known.TRACE_FSESSION)
_PREFIXES: Final = {known.TRACE_RAW_TP: "btf_trace_", known.LSM_MAC: "bpf_lsm_", known.TRACE_ITER: "bpf_iter_"}
_PROVIDERS: Final = {known.TRACE_RAW_TP: "rawtracepoint", known.LSM_MAC: "lsm", known.TRACE_ITER: "iter"}
_TEXT: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f]{0,4096}")
_EVENT: Final = {0: ("hardware",), 1: ("profile", "interval", "software"), 3: ("hardware",)}
_RUNS: Final = re.compile(r"(?i:begin|end)|(self|test|bench):[\w:.*-]{1,128}")
_FUNCTION: Final = re.compile(r"[A-Za-z0-9_.$]{1,512}", re.ASCII)


def attach_targets(spec: ProgramSpec) -> tuple[tuple[str, ...], bool]:
    """Names for policy, and whether they are part of the signed load. Raises Refusal for attach specifications that
    do not fit the program."""
    allowed = _ATTACH_TYPES.get(spec.type)
    if allowed is None or spec.expected_attach_type not in allowed | {0}:
        kind = known.PROGRAM_TYPES.get(spec.type, spec.type)
        reason = f"attach type {spec.expected_attach_type} does not fit a {kind} program"
        raise Refusal("attach-type", reason, attribute="expected_attach_type")
    in_load = spec.type in _IN_LOAD
    if in_load:
        names = _load_targets(spec)
    elif spec.attach_btf or spec.attach_btf_id or spec.attach_module:
        raise Refusal(
            "attach-btf", f"a {known.PROGRAM_TYPES[spec.type]} program has no target in BTF", attribute="attach_btf"
        )
    else:
        names = []
    count = 0
    for attach in spec.attach:
        _check_attach(attach, spec)
        count += len(attach.symbols) + len(attach.offsets) + 1
        if count > MAX_TARGETS:
            raise Refusal("size", f"more than {MAX_TARGETS} attach points", attribute="attach")
        if not in_load and attach.kind != "none":
            names += _names(attach)
    if spec.linked:
        _check_linked(spec)
    if in_load and (event := _event(spec)) is not None:
        return (event,), False
    enforceable = in_load and program_target(spec.attach_module) is None
    return tuple(dict.fromkeys(names)) or (f"none:{known.PROGRAM_TYPES[spec.type]}",), enforceable


def _check_attach(attach: Attach, spec: ProgramSpec) -> None:
    if attach.kind != "none":
        fits = _KINDS.get(attach.kind)
        if fits is None:
            raise Refusal("attach", f"unknown kind of attach point {attach.kind[:32]!r}", attribute="kind")
        if spec.expected_attach_type not in fits.get(spec.type, ()):
            what = known.ATTACH_TYPES[spec.expected_attach_type] or known.PROGRAM_TYPES[spec.type]
            raise Refusal("attach", f"a {what} program cannot be attached as {attach.kind}", attribute="kind")
    if attach.phase not in ("begin", "attach", "end"):
        raise Refusal("attach", f"unknown phase {attach.phase[:32]!r}", attribute="phase")
    for text in (attach.probe, attach.target, *attach.symbols, *attach.params):
        if not _TEXT.fullmatch(text):
            raise Refusal("attach", f"bad text {text[:64]!r} in an attach point", attribute="probe")
    points = max(len(attach.symbols), len(attach.offsets), 1)
    if (attach.symbols and attach.offsets) or len(attach.cookies) not in (0, 1, points):
        raise Refusal("attach", "symbols, offsets and cookies do not fit together", attribute="cookies")


def _check_linked(spec: ProgramSpec) -> None:
    """What the loader attaches has one place to go to, and that is part of the load."""
    (attach,) = spec.attach if len(spec.attach) == 1 else (Attach(kind="none", probe=""),)
    fits = attach.kind == "trace" and attach.phase == "attach" and len(attach.cookies) <= 1
    if not fits or spec.type not in (known.TRACING, known.LSM):
        reason = "a loader links programs with one target, which is part of the load"
        raise Refusal("attach", reason, attribute="linked")


def _load_targets(spec: ProgramSpec) -> list[str]:
    kind, name = spec.expected_attach_type, spec.attach_btf
    if (target := program_target(spec.attach_module)) is not None or spec.type == known.EXT:
        return _functions_of(spec, target)
    prefix = _PREFIXES.get(kind, "")
    if not kind or not name.startswith(prefix) or len(name) == len(prefix) or not spec.attach_btf_id:
        raise Refusal("attach-btf", f"no target for a {known.PROGRAM_TYPES[spec.type]} program", attribute="attach_btf")
    short = name.removeprefix(prefix)
    if kind in _PROVIDERS:
        return [f"{_PROVIDERS[kind]}:{short}"]
    place = f"{spec.attach_module or 'vmlinux'}:{short}"
    if kind == known.TRACE_FSESSION:
        return [f"fentry:{place}", f"fexit:{place}"]
    return [f"{known.ATTACH_TYPES[kind]}:{place}"]


def _functions_of(spec: ProgramSpec, target: ProgramTarget | None) -> list[str]:
    """Targets in another BPF program."""
    kind, name = spec.expected_attach_type, spec.attach_btf
    if target is None or not spec.attach_btf_id or not _FUNCTION.fullmatch(name):
        reason = f"no function of a program as target of a {known.PROGRAM_TYPES[spec.type]} program"
        raise Refusal("attach-btf", reason, attribute="attach_btf")
    if spec.type == known.EXT:
        return [f"freplace:prog-{target.id}:{name}"]
    if spec.type != known.TRACING or kind not in _OF_PROGRAMS:
        raise Refusal("attach-btf", f"attach type {kind} is not for functions of programs", attribute="attach_btf")
    provider = ("fentry", "fexit") if kind == known.TRACE_FSESSION else (known.ATTACH_TYPES[kind],)
    return [f"{p}:prog-{target.id}:{name}" for p in provider]


def _event(spec: ProgramSpec) -> str | None:
    """The event tracepoint:CATEGORY:NAME that a program on the tracepoint NAME is said to serve, so that a grant of the
    event covers it. The name is what is signed; the category is the client's word, so this is not enforceable, as it
    is for programs on the event itself."""
    if spec.expected_attach_type != known.TRACE_RAW_TP or len(spec.attach) != 1 or spec.attach_module:
        return None
    target, name = spec.attach[0].target, spec.attach_btf.removeprefix(_PREFIXES[known.TRACE_RAW_TP])
    return f"tracepoint:{target}" if re.fullmatch(rf"\w{{1,64}}:{re.escape(name)}", target, re.ASCII) else None


def _names(attach: Attach) -> list[str]:
    kind, target, params = attach.kind, attach.target, attach.params
    if kind == "perf_tracepoint":
        return [f"tracepoint:{target}"]
    if kind == "raw_tracepoint":
        return [f"rawtracepoint:{target}"]
    if kind in ("kprobe", "kprobe_multi", "uprobe", "uprobe_multi", "usdt"):
        probe = "kprobe" if kind[0] == "k" else "usdt" if attach.probe.startswith("usdt:") else kind[:6]
        places = list(attach.symbols) or [f"{offset:#x}" for offset in attach.offsets]
        if kind == "kprobe" and not places:
            places = [target or f"{params.get('address', 0):#x}"]
        elif probe != "kprobe":
            places = [f"{target}:{place}" for place in places or [f"{params.get('offset', 0):#x}"]]
        returns = probe.replace("probe", "retprobe")
        providers = [probe, returns] if params.get("session") else [returns if params.get("retprobe") else probe]
        return [f"{provider}:{place}" for provider in providers for place in places]
    if kind == "watchpoint":
        return [f"watchpoint:{params.get('address', 0):#x}:{params.get('length', 0)}"]
    if kind == "xdp":
        return [f"xdp:{target}"]
    if kind == "tc":
        return [f"tc:{target}:{'egress' if params.get('egress') else 'ingress'}"]
    if kind == "perf_event":
        if attach.probe.partition(":")[0] not in _EVENT.get(params.get("type", 1), ()):
            raise Refusal("attach", f"{attach.probe[:64]} is not event type {params.get('type', 1)}", attribute="probe")
    elif not _RUNS.fullmatch(attach.probe):
        raise Refusal("attach", f"{attach.probe[:64]!r} is not something that is run directly", attribute="probe")
    return [attach.probe]


def check_target(spec: ProgramSpec, kernel: Kernel) -> None:
    """The id of the target is that of the name it is given under, in the BTF it will be looked up in."""
    if spec.type not in _IN_LOAD or program_target(spec.attach_module) is not None:
        return
    name, id = spec.attach_btf, spec.attach_btf_id
    wanted = kinds.TYPEDEF if spec.expected_attach_type == known.TRACE_RAW_TP else kinds.FUNC
    try:
        btf = Btf.module(spec.attach_module) if spec.attach_module else kernel.btf()
        found, kind = btf.name(id), btf.kind(id)
    except BtfError as error:
        raise Refusal("attach-btf", f"target {name[:64]}: {error.message}", attribute=name[:64]) from None
    if found != name or kind != wanted:
        raise Refusal(
            "attach-btf",
            f"BTF type {id} is {kinds.KIND_NAMES[kind]} {found[:64]!r}, not {name[:64]!r}",
            attribute=name[:64],
        )
