"""xdp and tc: packets of one network interface."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from bpfseal.runtime.probes import Provider, select
from bpfseal.runtime.probes.world import World

if TYPE_CHECKING:
    from bpfseal.dsl.env import Args, AttachSpec, Point
    from bpfseal.dsl.types import Type

_WAYS: Final = ("egress", "ingress")
# Hardware types, include/uapi/linux/if_arp.h, whose packets start with an Ethernet header: ETHER, LOOPBACK. All others
# of which packets can be had (tunnels, tun, wireguard) start with IP.
_ETHERNET: Final = (1, 772)

# Fields in the order in which they are listed; names of types as in the language.
_FIELDS: Final = (
    ("uint32", "len"),
    ("uint32", "ifindex"),
    ("mac_address", "smac"),
    ("mac_address", "dmac"),
    ("uint16", "vlan"),
    ("uint16", "ethertype"),
    ("uint16", "family"),
    ("inet", "saddr"),
    ("inet", "daddr"),
    ("uint8", "proto"),
    ("uint8", "ttl"),
    ("uint16", "sport"),
    ("uint16", "dport"),
    ("uint8", "tcp_flags"),
)


def _interfaces() -> list[str]:
    import socket

    return sorted(name for _, name in socket.if_nameindex())


def ethernet(interface: str) -> bool:
    """Whether packets of an interface start with an Ethernet header; asked of the kernel by SIOCGIFHWADDR, since sysfs
    may show another network namespace. True for one that is gone."""
    import fcntl
    import socket
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x8x", interface.encode("utf-8", "surrogateescape")[:15], 0)
        try:
            answer = fcntl.ioctl(any_socket.fileno(), 0x8927, request)
        except OSError:
            return True
    (kind,) = struct.unpack_from("=H", answer, 16)
    return kind in _ETHERNET


def _expand(world: World, spec: AttachSpec) -> Sequence[Point]:
    from bpfseal.dsl.env import Point

    found = []
    for interface in select(spec.parts[0], _interfaces()):
        if spec.kind == "xdp":
            found.append(Point("xdp", f"xdp:{interface}", function=interface))
        else:
            params = (("egress", int(spec.parts[1] == "egress")),)
            found.append(Point("tc", f"tc:{interface}:{spec.parts[1]}", function=interface, params=params))
    return found


def _args(world: World, point: Point) -> Args:
    from bpfseal.dsl.env import Args
    from bpfseal.dsl.types import Field, Inet, Int, Mac, RecordInfo, size_of

    types: dict[str, Type] = {"mac_address": Mac(), "inet": Inet()}
    types |= {f"uint{bits}": Int(bits, False) for bits in (8, 16, 32)}
    fields, offset = [], 0
    for number, (type, name) in enumerate(_FIELDS):
        fields.append(Field(name, types[type], offset, argument=number))
        offset = (offset + size_of(types[type]) + 7) & -8
    record = RecordInfo("packet", offset, tuple(fields))
    return Args(record, "packet", None, {"ethernet": int(ethernet(point.function))})


def _names(world: World, kind: str, pattern: str) -> Iterable[str]:
    names = _interfaces()
    return names if kind == "xdp" else [f"{name}:{way}" for name in names for way in _WAYS]


def _describe(world: World, kind: str, name: str) -> Iterable[str]:
    return [f"{type} {field}" for type, field in _FIELDS]


PROVIDER = Provider(_expand, _args, _names, _describe)
