"""Probes on network interfaces: XDP and tc, both as links (tcx is Linux 6.6)."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Final

from bpfseal.runtime import bpf_link
from bpfseal.runtime.attach import AttachContext, AttachError, Link
from bpfseal.signer.bundle import Attach


def _index(spec: Attach) -> int:
    try:
        return socket.if_nametoindex(spec.target)
    except OSError:
        raise AttachError(spec.probe, f"no network interface {spec.target!r}", errno.ENODEV) from None


def _xdp(spec: Attach, prog_fd: int, context: AttachContext, link: Link) -> None:
    link.fds.append(bpf_link.link_xdp(prog_fd, _index(spec), spec.params.get("flags", 0)))


def _tc(spec: Attach, prog_fd: int, context: AttachContext, link: Link) -> None:
    link.fds.append(bpf_link.link_tcx(prog_fd, _index(spec), egress=bool(spec.params.get("egress"))))


KINDS: Final[dict[str, Callable[[Attach, int, AttachContext, Link], None]]] = {"xdp": _xdp, "tc": _tc}
