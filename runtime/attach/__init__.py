"""From an `Attach` of the bundle and a program fd to a running probe.

    links = [attach(spec, prog_fd, AttachContext(pid=target)) for ...]
    ...
    detach_all(links)

Everything is held by descriptors: nothing is pinned, nothing is written to tracefs, and a process that is killed
leaves nothing behind. What the kinds of `signer.bundle.Attach` mean, member by member (unnamed params are 0):

    test_run         run once by `run_once`, in the phases "begin" and "end"
    signal           params signal: number; run by `run_once` whenever the tracer gets that signal
    perf_tracepoint  target "category:event"
    raw_tracepoint   target is the tracepoint's name; cookies (one) needs Linux 6.10
    trace            fentry, fexit, fmod_ret, tp_btf, lsm: the target is part of the loaded program;
                     params type: expected attach type, only needed with a cookie
    kprobe           target is the function or "", params offset (from the function), address (when target is ""),
                     retprobe (1); target "module:function" picks a module's
    kprobe_multi     symbols, or addresses in offsets; cookies; params retprobe, session (1: entry and return)
    uprobe           target is the file, params offset (in the file), retprobe, semaphore (offset in the file of a USDT
                     probe's counter), pid
    usdt             as uprobe
    uprobe_multi     target is the file, offsets, cookies, params retprobe, session, pid, semaphore (same for all)
    perf_event       params type, config (as perf_event_open(2)), sample_period or sample_freq, one_cpu (1: the first
                     CPU only), pid
    watchpoint       params address, length (1 2 4 8), mode (1 read, 2 write, 4 execute, or-ed), pid
    iter             target is the iterator; params pid, map (index in the bundle: use AttachContext.map_fd)
    xdp              target is the interface; params flags (2 generic, 4 driver, 8 offload)
    tc               target is the interface; params egress (1), else ingress
    none             nothing to do

`pid`: 0 every process, -1 the session's target (AttachContext.pid; every process if it has none), else that process.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Final

import msgspec

from bpfseal.errors import BpfsealError
from bpfseal.signer.bundle import Attach


class AttachError(BpfsealError):
    """A probe could not be attached. `code` is the errno, 0 for none; `probe` its canonical name; `whole`: the reason
    is a sentence that stands for itself."""

    def __init__(self, probe: str, reason: str, code: int = 0, *, hint: str | None = None, whole: bool = False) -> None:
        super().__init__(reason if whole else f"Unable to attach probe: {probe}: {reason}", hint=hint)
        self.probe = probe
        self.code = code


class AttachContext(msgspec.Struct, frozen=True):
    """`pid` of the target, 0 for none; `child`: it is held before its exec; `map_fd`: descriptor of a bundle's map."""

    pid: int = 0
    child: bool = False
    map_fd: Callable[[int], int] | None = None


class Link(msgspec.Struct):
    """One attachment. Closing `fds` detaches; closing the `slow` ones then only tidies up. `iterator` is what to read
    for an iter probe."""

    probe: str
    fds: list[int] = msgspec.field(default_factory=list)
    slow: list[int] = msgspec.field(default_factory=list)
    iterator: int = -1

    def close(self) -> None:
        detach_all([self])


_KINDS: Final = {
    "perf_tracepoint": "perf",
    "perf_event": "perf",
    "watchpoint": "perf",
    "raw_tracepoint": "tracing",
    "trace": "tracing",
    "iter": "tracing",
    "kprobe": "dynamic",
    "kprobe_multi": "dynamic",
    "uprobe": "dynamic",
    "usdt": "dynamic",
    "uprobe_multi": "dynamic",
    "xdp": "network",
    "tc": "network",
}
_IDLE: Final = frozenset(("none", "test_run", "signal"))


def attach(spec: Attach, prog_fd: int, context: AttachContext) -> Link:
    """Attach one program. Raises AttachError, having undone what it did. The program fd stays the caller's."""
    if spec.kind in _IDLE:
        return Link(spec.probe)
    where = _KINDS.get(spec.kind)
    if where is None:
        raise AttachError(spec.probe, f"unknown kind {spec.kind!r}")
    link = Link(spec.probe)
    try:
        import_module(f"bpfseal.runtime.attach.{where}").KINDS[spec.kind](spec, prog_fd, context, link)
    except OSError as error:
        detach_all([link])
        raise explain(spec, error) from None
    except BaseException:
        detach_all([link])
        raise
    return link


def run_once(spec: Attach, prog_fd: int) -> int:
    """Run a program of kind "test_run" or "signal" on this CPU; its return value. Raises AttachError."""
    from bpfseal.signer.bpf import prog_run

    while True:
        try:
            return prog_run(prog_fd)[0]
        except OSError as error:
            if error.errno == errno.EINTR:
                continue
            raise AttachError(spec.probe, f"cannot run it: {error.strerror}", error.errno or 0) from None


def detach_all(links: Iterable[Link]) -> None:
    """Detach: when this returns no program of these links runs any more. Idempotent; never raises.

    What the kernel makes a close wait for is in `release`.
    """
    now: list[int] = []
    slow: list[int] = []
    for link in links:
        if link.iterator >= 0:
            now.append(link.iterator)
        now += link.fds
        slow += link.slow
        link.iterator = -1
        link.fds.clear()
        link.slow.clear()
    if len(now) + len(slow) <= 1:
        for fd in (*now, *slow):
            os.close(fd)
    else:
        from bpfseal.runtime.attach import release

        release.together(now)
        release.later(slow)


def effective_pid(spec: Attach, context: AttachContext) -> int:
    """The process that `spec` is limited to, 0 for none."""
    pid = spec.params.get("pid", 0)
    return context.pid if pid == -1 else max(pid, 0)


def explain(spec: Attach, error: OSError) -> AttachError:
    """The error with what it means for this kind, where the number alone does not say."""
    code = error.errno or 0
    reason: str = error.strerror or str(error)
    hint = None
    if (spec.kind, code) == ("kprobe", errno.EILSEQ):
        # scripts look for this line as a whole
        reason = "Possible attachment attempt in the middle of an instruction, try a different offset."
        return AttachError(spec.probe, reason, code, hint=f"{spec.probe} was not attached", whole=True)
    if code in (errno.EPERM, errno.EACCES) and os.geteuid() != 0:
        hint = "tracing needs root, or CAP_BPF and CAP_PERFMON"
    elif (spec.kind, code) in _MEANING:
        reason, hint = _MEANING[spec.kind, code]
    elif code in (errno.EMFILE, errno.ENFILE):
        hint = "raise the limit of open files (ulimit -n)"
    return AttachError(spec.probe, reason, code, hint=hint)


_MEANING: Final[dict[tuple[str, int], tuple[str, str | None]]] = {
    ("kprobe", errno.ENOENT): ("no such kernel function", "-l 'kprobe:*NAME*' lists what there is"),
    ("kprobe", errno.EINVAL): ("the kernel does not allow a probe there", "it may be inlined or marked notrace"),
    ("kprobe", errno.EADDRNOTAVAIL): ("the kernel has several functions of that name", "name the module"),
    ("kprobe_multi", errno.ESRCH): ("one of the functions cannot be traced", None),
    ("kprobe_multi", errno.EOPNOTSUPP): ("this kernel has no multi-kprobes", None),
    ("uprobe", errno.EINVAL): ("no instruction can be probed at that offset", None),
    ("uprobe", errno.ESRCH): ("no such process", None),
    ("uprobe_multi", errno.ESRCH): ("no such process", None),
    ("raw_tracepoint", errno.ENOENT): ("no such tracepoint", None),
    ("trace", errno.EPERM): ("the kernel forbids it (is it locked down?)", None),
    ("watchpoint", errno.ENOSPC): ("all hardware watchpoint registers are taken", None),
    ("watchpoint", errno.EINVAL): ("the CPU cannot watch that address, length and mode", None),
    ("perf_event", errno.ENOENT): ("this machine does not have that counter", "virtual machines often have none"),
    ("perf_event", errno.EOPNOTSUPP): ("this machine does not have that counter", "virtual machines often have none"),
    ("xdp", errno.EBUSY): ("another XDP program is on the interface", None),
}


__all__: Sequence[str] = ("AttachContext", "AttachError", "Link", "attach", "detach_all", "run_once")
