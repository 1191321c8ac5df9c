"""Probes put into code: kprobes and uprobes through their PMUs and through multi links.

The PMUs "kprobe" and "uprobe" make one probe per perf event, held by its descriptor, where writing to tracefs would
leave it behind (kernel/events/core.c, perf_kprobe, perf_uprobe).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from bpfseal.runtime import bpf_link
from bpfseal.runtime.attach import AttachContext, AttachError, Link, effective_pid
from bpfseal.runtime.attach.perf import online_cpus, open_event
from bpfseal.signer.bundle import Attach
from bpfseal.signer.syscall import address_of

_SEMAPHORE_SHIFT: Final = 32  # PERF_UPROBE_REF_CTR_OFFSET_SHIFT; the file says the same in format/ref_ctr_offset
_DEVICES: Final = "/sys/bus/event_source/devices"


@lru_cache(maxsize=4)
def _pmu(name: str) -> tuple[int, int]:
    """(perf event type, bit of `config` that makes a return probe) of a dynamic PMU. Raises OSError."""
    with open(f"{_DEVICES}/{name}/type") as file:
        number = int(file.read())
    with open(f"{_DEVICES}/{name}/format/retprobe") as file:
        bit = int(file.read().strip().removeprefix("config:"))
    return number, bit


def _kprobe(spec: Attach, prog_fd: int, context: AttachContext, link: Link) -> None:
    try:
        type, bit = _pmu("kprobe")
    except (OSError, ValueError):
        raise AttachError(spec.probe, "this kernel has no kprobes", errno.EOPNOTSUPP) from None
    name = spec.target.encode() + b"\0"
    fd = open_event(
        type,
        1 << bit if spec.params.get("retprobe") else 0,
        cpu=online_cpus()[0],
        config1=address_of(name) if spec.target else 0,
        config2=spec.params.get("offset", 0) if spec.target else spec.params.get("address", 0),
    )
    _link(spec, prog_fd, fd, link)


def _kprobe_multi(spec: Attach, prog_fd: int, context: AttachContext, link: Link) -> None:
    link.fds.append(
        bpf_link.link_kprobe_multi(
            prog_fd,
            symbols=spec.symbols,
            addresses=() if spec.symbols else spec.offsets,
            cookies=spec.cookies,
            retprobe=bool(spec.params.get("retprobe")),
            session=bool(spec.params.get("session")),
        )
    )


def _uprobe(spec: Attach, prog_fd: int, context: AttachContext, link: Link) -> None:
    try:
        type, bit = _pmu("uprobe")
    except (OSError, ValueError):
        raise AttachError(spec.probe, "this kernel has no uprobes", errno.EOPNOTSUPP) from None
    path = os.fsencode(spec.target) + b"\0"
    pid = effective_pid(spec, context)
    fd = open_event(
        type,
        (1 << bit if spec.params.get("retprobe") else 0) | spec.params.get("semaphore", 0) << _SEMAPHORE_SHIFT,
        pid=pid or -1,
        cpu=-1 if pid else online_cpus()[0],
        config1=address_of(path),
        config2=spec.params.get("offset", 0),
    )
    _link(spec, prog_fd, fd, link)


def _uprobe_multi(spec: Attach, prog_fd: int, context: AttachContext, link: Link) -> None:
    semaphore = spec.params.get("semaphore", 0)
    link.fds.append(
        bpf_link.link_uprobe_multi(
            prog_fd,
            spec.target,
            spec.offsets,
            semaphores=[semaphore] * len(spec.offsets) if semaphore else (),
            cookies=spec.cookies,
            pid=effective_pid(spec, context),
            retprobe=bool(spec.params.get("retprobe")),
            session=bool(spec.params.get("session")),
        )
    )


def _link(spec: Attach, prog_fd: int, fd: int, link: Link) -> None:
    try:
        link.fds.append(bpf_link.link_perf_event(prog_fd, fd, spec.cookies[0] if spec.cookies else 0))
    finally:
        os.close(fd)  # the link holds the event


KINDS: Final[dict[str, Callable[[Attach, int, AttachContext, Link], None]]] = {
    "kprobe": _kprobe,
    "kprobe_multi": _kprobe_multi,
    "uprobe": _uprobe,
    "usdt": _uprobe,
    "uprobe_multi": _uprobe_multi,
}
