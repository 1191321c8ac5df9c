"""Probes whose target is named at load time or by name: raw tracepoints, fentry and its family, iterators."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from bpfseal.runtime import bpf_link
from bpfseal.runtime.attach import AttachContext, Link, effective_pid
from bpfseal.signer.bundle import Attach


def _raw_tracepoint(spec: Attach, prog_fd: int, context: AttachContext, link: Link) -> None:
    cookie = spec.cookies[0] if spec.cookies else 0
    link.fds.append(bpf_link.raw_tracepoint_open(prog_fd, spec.target, cookie))


def _trace(spec: Attach, prog_fd: int, context: AttachContext, link: Link) -> None:
    """BPF_RAW_TRACEPOINT_OPEN without a name works for the whole family; only a cookie needs the newer command."""
    if spec.cookies and spec.params.get("type"):
        link.fds.append(bpf_link.link_tracing(prog_fd, spec.params["type"], spec.cookies[0]))
    else:
        link.fds.append(bpf_link.raw_tracepoint_open(prog_fd, None))


def _iter(spec: Attach, prog_fd: int, context: AttachContext, link: Link) -> None:
    """`union bpf_iter_link_info`: {map_fd} for map iterators, {tid, pid, pid_fd} for those over tasks."""
    pid = effective_pid(spec, context)
    info = b""
    if "map" in spec.params and context.map_fd is not None:
        info = struct.pack("<I", context.map_fd(spec.params["map"]))
    elif pid and spec.target.startswith("task"):
        info = struct.pack("<III", 0, pid, 0)
    link.fds.append(bpf_link.link_iter(prog_fd, info))
    link.iterator = bpf_link.iter_create(link.fds[-1])


KINDS: Final[dict[str, Callable[[Attach, int, AttachContext, Link], None]]] = {
    "raw_tracepoint": _raw_tracepoint,
    "trace": _trace,
    "iter": _iter,
}
