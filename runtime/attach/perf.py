"""Probes on perf events: tracepoints the classic way, samples, counters, watchpoints.

`struct perf_event_attr`: include/uapi/linux/perf_event.h, version 5 (112 bytes).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from typing import Final

from bpfseal.runtime.attach import AttachContext, AttachError, Link, effective_pid
from bpfseal.runtime.bpf_link import link_perf_event
from bpfseal.signer.bundle import Attach
from bpfseal.signer.syscall import syscall

TYPE_SOFTWARE, TYPE_TRACEPOINT, TYPE_BREAKPOINT = 1, 2, 5
_INHERIT, _FREQ = 1 << 1, 1 << 10  # bits of the flags word
_FD_CLOEXEC: Final = 8
_ATTR = struct.Struct("<IIQQQQQIIQQ40x")
_READ, _WRITE, _EXECUTE = 1, 2, 4
_LARGEST_FREQUENCY: Final = 1 << 32


def open_event(
    type: int,
    config: int,
    *,
    pid: int = -1,
    cpu: int = -1,
    period: int = 0,
    frequency: int = 0,
    inherit: bool = False,
    bp_type: int = 0,
    config1: int = 0,
    config2: int = 0,
) -> int:
    """perf_event_open(2) for one event that nobody reads; its close-on-exec fd. Raises OSError."""
    flags = (_INHERIT if inherit else 0) | (_FREQ if frequency else 0)
    attr = _ATTR.pack(type, _ATTR.size, config, frequency or period, 0, 0, flags, 0, bp_type, config1, config2)
    return syscall("perf_event_open", attr, pid, cpu, -1, _FD_CLOEXEC)


def online_cpus() -> list[int]:
    """Numbers of the CPUs that are up."""
    with open("/sys/devices/system/cpu/online") as file:
        text = file.read().strip()
    cpus: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus


def _tracepoint(spec: Attach, prog_fd: int, context: AttachContext, link: Link) -> None:
    """The program runs for every event on every CPU, whatever CPU or process the perf event is for."""
    from bpfseal.runtime.tracefs import tracefs

    category, _, event = spec.target.partition(":")
    number = tracefs().event_id(category, event)
    if number is None:
        raise AttachError(spec.probe, "no such tracepoint", errno.ENOENT)
    fd = open_event(TYPE_TRACEPOINT, number, pid=-1, cpu=0 if 0 in (cpus := online_cpus()) else cpus[0], period=1)
    # The link goes first: then the program is off at once, and only the event is slow to go.
    link.slow.append(fd)
    link.fds.append(link_perf_event(prog_fd, fd, spec.cookies[0] if spec.cookies else 0))


def _sampling(spec: Attach, prog_fd: int, context: AttachContext, link: Link) -> None:
    params = spec.params
    pid = effective_pid(spec, context)
    cpus = online_cpus()
    for cpu in cpus[:1] if params.get("one_cpu") else cpus:
        try:
            fd = open_event(
                params.get("type", TYPE_SOFTWARE),
                params.get("config", 0),
                pid=pid or -1,
                cpu=cpu,
                period=params.get("sample_period", 0),
                frequency=params.get("sample_freq", 0),
                inherit=bool(pid),
            )
        except OSError as error:
            raise _frequency_error(spec, error) or error from None
        _add(spec, link, prog_fd, fd)


def _watchpoint(spec: Attach, prog_fd: int, context: AttachContext, link: Link) -> None:
    """Breakpoints of a process are per thread; those of the whole machine per CPU."""
    mode = spec.params.get("mode", 0)
    length = 8 if mode & _EXECUTE else spec.params.get("length", 0)
    pid = effective_pid(spec, context)
    failure: OSError | None = None
    for tid, cpu in _threads(pid) if pid else ((-1, cpu) for cpu in online_cpus()):
        try:
            fd = open_event(
                TYPE_BREAKPOINT,
                0,
                pid=tid,
                cpu=cpu,
                period=1,
                inherit=True,
                bp_type=mode,
                config1=spec.params.get("address", 0),
                config2=length,
            )
        except OSError as error:
            failure = error  # a thread that just ended is no failure of the whole
            continue
        _add(spec, link, prog_fd, fd)
    if not link.fds:
        raise failure or AttachError(spec.probe, "the process has ended", errno.ESRCH)


def _threads(pid: int) -> Iterator[tuple[int, int]]:
    try:
        for name in os.listdir(f"/proc/{pid}/task"):
            yield int(name), -1
    except OSError:
        return


def _add(spec: Attach, link: Link, prog_fd: int, fd: int) -> None:
    try:
        link.fds.append(link_perf_event(prog_fd, fd, spec.cookies[0] if spec.cookies else 0))
    finally:
        os.close(fd)  # the link holds the event


def _frequency_error(spec: Attach, error: OSError) -> AttachError | None:
    wanted = spec.params.get("sample_freq", 0)
    if error.errno != errno.EINVAL or not wanted:
        return None
    try:
        with open("/proc/sys/kernel/perf_event_max_sample_rate") as file:
            limit = int(file.read())
    except (OSError, ValueError):
        return None
    if wanted <= limit:
        return None
    return AttachError(
        spec.probe,
        f"{wanted} Hz is over the kernel's limit of {limit} Hz",
        errno.EINVAL,
        hint="see /proc/sys/kernel/perf_event_max_sample_rate",
    )


KINDS: Final[dict[str, Callable[[Attach, int, AttachContext, Link], None]]] = {
    "perf_tracepoint": _tracepoint,
    "perf_event": _sampling,
    "watchpoint": _watchpoint,
}
