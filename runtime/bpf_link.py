"""bpf(2) for links: how loaded programs come to run. Closing a link's fd detaches it, unless it is pinned.

All functions return the link's fd and raise OSError with the kernel's errno. Attribute layouts: `link_create` and
`raw_tracepoint` in `union bpf_attr` (include/uapi/linux/bpf.h).
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence

from bpfseal.signer.bpf import bpf
from bpfseal.signer.syscall import address_of

# enum bpf_cmd
RAW_TRACEPOINT_OPEN = 17
LINK_CREATE = 28
LINK_UPDATE = 29
ITER_CREATE = 33
LINK_DETACH = 34

# enum bpf_attach_type
TRACE_RAW_TP, TRACE_FENTRY, TRACE_FEXIT, MODIFY_RETURN, LSM_MAC, TRACE_ITER = 23, 24, 25, 26, 27, 28
XDP, PERF_EVENT, TRACE_KPROBE_MULTI, TCX_INGRESS, TCX_EGRESS = 37, 41, 42, 46, 47
TRACE_UPROBE_MULTI, TRACE_KPROBE_SESSION, TRACE_UPROBE_SESSION = 48, 56, 57

F_KPROBE_MULTI_RETURN = 1
F_UPROBE_MULTI_RETURN = 1


def _u64s(values: Sequence[int]) -> bytes:
    return array("Q", values).tobytes()


def _pointers(strings: Sequence[bytes]) -> bytes:
    """Addresses of NUL-terminated strings; the caller keeps `strings` alive."""
    return _u64s([address_of(s) for s in strings])


def link_create(prog_fd: int, target: int, attach_type: int, *, flags: int = 0, tail: bytes = b"") -> int:
    """A link. `target` is an fd, an interface index or 0; `tail` the type's own members, from offset 16."""
    return bpf(LINK_CREATE, struct.pack("<IIII", prog_fd, target, attach_type, flags) + tail)


def link_perf_event(prog_fd: int, perf_fd: int, cookie: int = 0) -> int:
    """Program on a perf event: kprobe, uprobe, tracepoint, hardware or software event."""
    return link_create(prog_fd, perf_fd, PERF_EVENT, tail=struct.pack("<Q", cookie))


def link_kprobe_multi(
    prog_fd: int,
    *,
    symbols: Sequence[str] = (),
    addresses: Sequence[int] = (),
    cookies: Sequence[int] = (),
    retprobe: bool = False,
    session: bool = False,
) -> int:
    """One program on many kernel functions, by name or by address. Cookies, when given, are one for each."""
    names = [s.encode() + b"\0" for s in symbols]
    name_array, address_array, cookie_array = _pointers(names), _u64s(addresses), _u64s(cookies)
    tail = struct.pack(
        "<IIQQQ",
        F_KPROBE_MULTI_RETURN if retprobe else 0,
        len(names) or len(addresses),
        address_of(name_array) if names else 0,
        address_of(address_array) if addresses else 0,
        address_of(cookie_array) if cookies else 0,
    )
    return link_create(prog_fd, 0, TRACE_KPROBE_SESSION if session else TRACE_KPROBE_MULTI, tail=tail)


def link_uprobe_multi(
    prog_fd: int,
    path: str,
    offsets: Sequence[int],
    *,
    semaphores: Sequence[int] = (),
    cookies: Sequence[int] = (),
    pid: int = 0,
    retprobe: bool = False,
    session: bool = False,
) -> int:
    """One program on many places of one file. `offsets`: in the file; `semaphores`: reference counter offsets of USDT
    probes, 0 for none; `pid`: one process only, 0 for all."""
    file = path.encode() + b"\0"
    offset_array, semaphore_array, cookie_array = _u64s(offsets), _u64s(semaphores), _u64s(cookies)
    tail = struct.pack(
        "<QQQQIIII",
        address_of(file),
        address_of(offset_array),
        address_of(semaphore_array) if semaphores else 0,
        address_of(cookie_array) if cookies else 0,
        len(offsets),
        F_UPROBE_MULTI_RETURN if retprobe else 0,
        pid,
        0,
    )
    return link_create(prog_fd, 0, TRACE_UPROBE_SESSION if session else TRACE_UPROBE_MULTI, tail=tail)


def link_tracing(prog_fd: int, attach_type: int, cookie: int = 0) -> int:
    """fentry, fexit, fmod_ret, tp_btf or LSM program on the target it was loaded for."""
    return link_create(prog_fd, 0, attach_type, tail=struct.pack("<QQ", 0, cookie))


def raw_tracepoint_open(prog_fd: int, name: str | None, cookie: int = 0) -> int:
    """Raw tracepoint by name, or with None a tracing or LSM program on the target it was loaded for. A cookie needs
    Linux 6.10."""
    if name is None:
        return bpf(RAW_TRACEPOINT_OPEN, struct.pack("<QIxxxx", 0, prog_fd))
    terminated = name.encode() + b"\0"
    attr = struct.pack("<QIxxxx", address_of(terminated), prog_fd)
    return bpf(RAW_TRACEPOINT_OPEN, attr + struct.pack("<Q", cookie) if cookie else attr)


def link_xdp(prog_fd: int, ifindex: int, flags: int = 0) -> int:
    return link_create(prog_fd, ifindex, XDP, flags=flags)


def link_tcx(prog_fd: int, ifindex: int, *, egress: bool) -> int:
    """Linux 6.6."""
    return link_create(prog_fd, ifindex, TCX_EGRESS if egress else TCX_INGRESS, tail=struct.pack("<QQ", 0, 0))


def link_iter(prog_fd: int, info: bytes = b"") -> int:
    """`info`: union bpf_iter_link_info, e.g. a map fd or a task filter."""
    return link_create(prog_fd, 0, TRACE_ITER, tail=struct.pack("<QIxxxx", address_of(info) if info else 0, len(info)))


def iter_create(link_fd: int) -> int:
    """A file whose reads run the iterator."""
    return bpf(ITER_CREATE, struct.pack("<II", link_fd, 0))


def link_detach(link_fd: int) -> None:
    """Take a link apart although descriptors or pins of it remain (not every link type can)."""
    bpf(LINK_DETACH, struct.pack("<I", link_fd))


def link_update(link_fd: int, prog_fd: int) -> None:
    """Let a link run another program from now on."""
    bpf(LINK_UPDATE, struct.pack("<IIII", link_fd, prog_fd, 0, 0))
