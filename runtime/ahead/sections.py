"""What the name of a program's section says: `SEC("tracepoint/syscalls/sys_enter_openat")`.

Names as in libbpf (Documentation/bpf/libbpf/program_types.rst of the kernel tree); types that nothing here can seal
are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bpfseal.errors import BpfsealError
from bpfseal.signer import helpers as known
from bpfseal.signer.bundle import Attach


@dataclass(frozen=True)
class Kind:
    """How a program is loaded and attached. `target`: prefix of its target's name in the kernel's types, None where the
    load names none. `attach`: kind of `signer.bundle.Attach`, empty for programs that others attach."""

    type: int
    expected: int = 0
    target: str | None = None
    attach: str = ""
    flags: int = 0


_SLEEPABLE: Final = known.SLEEPABLE
_KINDS: Final[dict[str, Kind]] = {
    "tracepoint": Kind(known.TRACEPOINT, attach="perf_tracepoint"),
    "tp": Kind(known.TRACEPOINT, attach="perf_tracepoint"),
    "raw_tracepoint": Kind(known.RAW_TRACEPOINT, attach="raw_tracepoint"),
    "raw_tp": Kind(known.RAW_TRACEPOINT, attach="raw_tracepoint"),
    "tp_btf": Kind(known.TRACING, known.TRACE_RAW_TP, "btf_trace_", "trace"),
    "fentry": Kind(known.TRACING, known.TRACE_FENTRY, "", "trace"),
    "fexit": Kind(known.TRACING, known.TRACE_FEXIT, "", "trace"),
    "fmod_ret": Kind(known.TRACING, known.MODIFY_RETURN, "", "trace"),
    "fentry.s": Kind(known.TRACING, known.TRACE_FENTRY, "", "trace", _SLEEPABLE),
    "fexit.s": Kind(known.TRACING, known.TRACE_FEXIT, "", "trace", _SLEEPABLE),
    "fmod_ret.s": Kind(known.TRACING, known.MODIFY_RETURN, "", "trace", _SLEEPABLE),
    "lsm": Kind(known.LSM, known.LSM_MAC, "bpf_lsm_", "trace"),
    "lsm.s": Kind(known.LSM, known.LSM_MAC, "bpf_lsm_", "trace", _SLEEPABLE),
    "iter": Kind(known.TRACING, known.TRACE_ITER, "bpf_iter_", "iter"),
    "iter.s": Kind(known.TRACING, known.TRACE_ITER, "bpf_iter_", "iter", _SLEEPABLE),
    "kprobe": Kind(known.KPROBE, attach="kprobe"),
    "kretprobe": Kind(known.KPROBE, attach="kprobe"),
    "uprobe": Kind(known.KPROBE),
    "uretprobe": Kind(known.KPROBE),
    "usdt": Kind(known.KPROBE),
    "perf_event": Kind(known.PERF_EVENT),
    "socket": Kind(known.SOCKET_FILTER),
    "xdp": Kind(known.XDP, known.ATTACH_XDP),
    "xdp.frags": Kind(known.XDP, known.ATTACH_XDP, flags=1 << 5),
    "tc": Kind(known.SCHED_CLS),
    "classifier": Kind(known.SCHED_CLS),
    "tcx/ingress": Kind(known.SCHED_CLS, known.TCX_INGRESS),
    "tcx/egress": Kind(known.SCHED_CLS, known.TCX_EGRESS),
    "syscall": Kind(known.SYSCALL, flags=_SLEEPABLE),
}


def kind_of(section: str) -> tuple[Kind, str]:
    """The kind of a section's programs and what it names behind that. Raises BpfsealError."""
    if section in _KINDS:
        return _KINDS[section], ""
    name, _, rest = section.partition("/")
    if name in _KINDS:
        return _KINDS[name], rest
    raise BpfsealError(
        f"section {section[:64]}: programs of that kind cannot be sealed",
        hint="kinds that can: " + ", ".join(_KINDS),
    )


def attach_of(section: str, kind: Kind, target: str) -> tuple[Attach, ...]:
    """Where `bpfseal run` attaches a program; nowhere if its section does not say. Raises BpfsealError."""
    if not kind.attach or not target:
        return ()
    if kind.attach == "perf_tracepoint":
        category, slash, event = target.partition("/")
        if not slash:
            raise BpfsealError(f"section {section[:64]}: a tracepoint is CATEGORY/NAME")
        return (Attach(kind=kind.attach, probe=f"tracepoint:{category}:{event}", target=f"{category}:{event}"),)
    if kind.attach == "kprobe":
        name, plus, offset = target.partition("+")
        params = {"retprobe": 1} if section.startswith("kretprobe") else {}
        if plus:
            params["offset"] = int(offset, 0) if offset.replace("x", "0").isalnum() else 0
        provider = "kretprobe" if "retprobe" in params else "kprobe"
        return (Attach(kind="kprobe", probe=f"{provider}:{target}", target=name, params=params),)
    provider = section.partition("/")[0].removesuffix(".s")
    provider = {"raw_tp": "rawtracepoint", "raw_tracepoint": "rawtracepoint", "tp_btf": "rawtracepoint"}.get(
        provider, provider
    )
    middle = "vmlinux:" if provider in ("fentry", "fexit", "fmod_ret") else ""
    params = {"pid": -1} if kind.attach == "iter" else {}
    return (Attach(kind=kind.attach, probe=f"{provider}:{middle}{target}", target=target, params=params),)
