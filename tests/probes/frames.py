"""Packets made byte by byte, and what is in them; a pair of interfaces to send them over."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

MAC_A, MAC_B = bytes.fromhex("02000000000a"), bytes.fromhex("02000000000b")
FOUR = socket.inet_aton("10.77.0.2") + socket.inet_aton("10.77.0.1")
SIX = socket.inet_pton(socket.AF_INET6, "fd77::2") + socket.inet_pton(socket.AF_INET6, "fd77::1")


def ethernet(kind: int, payload: bytes, *tags: tuple[int, int]) -> bytes:
    """A frame from B to A; `tags` are (type, VLAN)."""
    return MAC_A + MAC_B + b"".join(struct.pack(">HH", *tag) for tag in tags) + struct.pack(">H", kind) + payload


def ipv4(protocol: int, payload: bytes, *, options: bytes = b"", fragment: int = 0, ttl: int = 64) -> bytes:
    words = 5 + len(options) // 4
    length = 4 * words + len(payload)
    return struct.pack(">BBHHHBBH", 0x40 | words, 0, length, 7, fragment, ttl, protocol, 0) + FOUR + options + payload


def ipv6(protocol: int, payload: bytes, hops: int = 64) -> bytes:
    return struct.pack(">IHBB", 0x60000000, len(payload), protocol, hops) + SIX + payload


def udp(source: int, target: int, data: bytes = b"data") -> bytes:
    return struct.pack(">HHHH", source, target, 8 + len(data), 0) + data


def tcp(source: int, target: int, flags: int) -> bytes:
    return struct.pack(">HHIIBBHHH", source, target, 1, 2, 0x50, flags, 1024, 0, 0)


@dataclass(frozen=True)
class Frame:
    """`fields`: vlan, ethertype, family, source, target, protocol, ttl, ports, TCP flags as probes show them."""

    name: str
    data: bytes
    fields: tuple[int | str, ...]


V4, V6 = (2, "10.77.0.2", "10.77.0.1"), (10, "fd77::2", "fd77::1")
NONE = (0, "::", "::")
HOP = struct.pack(">BBHI", 17, 0, 0x0104, 0)  # hop-by-hop options, UDP behind them
DESTINATION = struct.pack(">BB", 44, 1) + bytes(14)
AUTHENTICATION = struct.pack(">BBHIII", 6, 4, 0, 1, 1, 0) + bytes(8)


def fragment6(following: int, offset: int) -> bytes:
    return struct.pack(">BBHI", following, 0, offset << 3 | 1, 9)


FRAMES = (
    Frame("udp", ethernet(0x800, ipv4(17, udp(5000, 53))), (0, 0x800, *V4, 17, 64, 5000, 53, 0)),
    Frame("tcp", ethernet(0x800, ipv4(6, tcp(40000, 443, 0x12), ttl=3)), (0, 0x800, *V4, 6, 3, 40000, 443, 0x12)),
    Frame("options", ethernet(0x800, ipv4(17, udp(1, 2), options=b"\1" * 40)), (0, 0x800, *V4, 17, 64, 1, 2, 0)),
    Frame("icmp", ethernet(0x800, ipv4(1, b"\10\0\0\0abcd")), (0, 0x800, *V4, 1, 64, 0, 0, 0)),
    Frame("fragment", ethernet(0x800, ipv4(17, udp(1, 2), fragment=100)), (0, 0x800, *V4, 17, 64, 0, 0, 0)),
    Frame("first", ethernet(0x800, ipv4(17, udp(1, 2), fragment=0x2000)), (0, 0x800, *V4, 17, 64, 1, 2, 0)),
    Frame("udp6", ethernet(0x86DD, ipv6(17, udp(6000, 5353))), (0, 0x86DD, *V6, 17, 64, 6000, 5353, 0)),
    Frame("hop", ethernet(0x86DD, ipv6(0, HOP + udp(7, 8))), (0, 0x86DD, *V6, 17, 64, 7, 8, 0)),
    Frame(
        "chain",
        ethernet(0x86DD, ipv6(60, DESTINATION + fragment6(51, 0) + AUTHENTICATION + tcp(9, 10, 2))),
        (0, 0x86DD, *V6, 6, 64, 9, 10, 2),
    ),
    Frame("later6", ethernet(0x86DD, ipv6(44, fragment6(17, 5) + udp(7, 8))), (0, 0x86DD, *V6, 17, 64, 0, 0, 0)),
    Frame("arp", ethernet(0x806, bytes(28)), (0, 0x806, *NONE, 0, 0, 0, 0, 0)),
    Frame("vlan", ethernet(0x800, ipv4(17, udp(1, 2)), (0x8100, 0x6007)), (7, 0x800, *V4, 17, 64, 1, 2, 0)),
    Frame(
        "nested",
        ethernet(0x86DD, ipv6(17, udp(3, 4)), (0x88A8, 100), (0x8100, 200)),
        (100, 0x86DD, *V6, 17, 64, 3, 4, 0),
    ),
    Frame("cut", ethernet(0x800, ipv4(17, udp(1, 2)))[:24], (0, 0x800, *NONE, 0, 0, 0, 0, 0)),
    Frame("cut6", ethernet(0x86DD, ipv6(6, tcp(1, 2, 3))[:47]), (0, 0x86DD, *V6, 6, 64, 1, 2, 0)),
    Frame("large", ethernet(0x800, ipv4(17, udp(1, 9, bytes(range(256)) * 5))), (0, 0x800, *V4, 17, 64, 1, 9, 0)),
)

PRINT = (
    'printf("%d %d %d %s %s %d %d %d %d %d\\n", args.vlan, args.ethertype, args.family, args.saddr, args.daddr, '
    "args.proto, args.ttl, args.sport, args.dport, args.tcp_flags)"
)


def expected(frames: Sequence[Frame] = FRAMES) -> list[str]:
    """Lines that PRINT gives for them."""
    return [" ".join(map(str, frame.fields)) for frame in frames]


_SEND = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
    sender.bind((sys.argv[1], 0))
    for line in sys.stdin:
        sender.send(bytes.fromhex(line))
"""


@dataclass(frozen=True)
class Pair:
    """Interface `near` in this namespace, `far` in the network namespace `space`; nothing speaks on them by itself."""

    near: str
    far: str
    space: str

    def send(self, frames: Sequence[bytes]) -> None:
        """From far to near."""
        self._run(["ip", "netns", "exec", self.space], self.far, frames)

    def send_near(self, frames: Sequence[bytes]) -> None:
        """From near to far."""
        self._run([], self.near, frames)

    def _run(self, before: list[str], interface: str, frames: Sequence[bytes]) -> None:
        text = "".join(frame.hex() + "\n" for frame in frames)
        subprocess.run([*before, sys.executable, "-c", _SEND, interface], input=text.encode(), check=True)


def can_pair() -> bool:
    """Whether network namespaces and veth are to be had."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"bps{os.getpid() % 100000}"
    made = subprocess.run(["ip", "link", "add", f"{name}x", "type", "veth", "peer", f"{name}y"], capture_output=True)
    if made.returncode == 0:
        subprocess.run(["ip", "link", "del", f"{name}x"], check=True)
    return made.returncode == 0 and os.path.isdir("/run")


@contextmanager
def pair() -> Iterator[Pair]:
    """A pair of veth interfaces, one end in a namespace of its own, gone afterwards."""
    number = os.getpid() % 100000
    found = Pair(f"bpn{number}", f"bpf{number}", f"bpseal{number}")

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    ip("netns", "add", found.space)
    try:
        ip("link", "add", found.near, "address", MAC_A.hex(":"), "type", "veth", "peer", "name", found.far, "address",
           MAC_B.hex(":"), "netns", found.space)  # fmt: skip
        # Without addresses of IPv6 the kernel sends nothing of its own.
        ip("link", "set", found.near, "addrgenmode", "none", "up")
        ip("-n", found.space, "link", "set", found.far, "addrgenmode", "none", "up")
        yield found
    finally:
        subprocess.run(["ip", "link", "del", found.near], check=False, capture_output=True)
        ip("netns", "del", found.space)
