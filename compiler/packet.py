"""Packets: `args` of xdp and tc probes.

Headers are read where they lie, between the context's `data` and `data_end`, each piece behind a test of its bounds;
of a tc packet whose headers are not in one piece (`data_end` is the end of the first fragment) the piece is copied.
Nothing writes to a packet. What a probe uses is read once, when it starts: fields that a packet does not have are
zero. Contexts: `struct xdp_md` and `struct __sk_buff`, include/uapi/linux/bpf.h.
"""

from __future__ import annotations

from typing import Final

from bpfseal.compiler.analysis import nodes
from bpfseal.compiler.gen import Gen, register_type
from bpfseal.compiler.ir import I8, I16, I32, I64, PTR, Value, const
from bpfseal.compiler.memory import Place
from bpfseal.dsl import typed
from bpfseal.dsl.types import Field, is_scalar, size_of

_XDP_DATA, _XDP_END, _XDP_INDEX = 0, 4, 12
_SKB_LENGTH, SKB_TAGGED, SKB_TAG, SKB_TAG_TYPE, _SKB_INDEX, _SKB_DATA, _SKB_END = 0, 20, 24, 28, 40, 76, 80

_ETHERNET: Final = 14
_TAGS: Final = (0x8100, 0x88A8)  # include/uapi/linux/if_ether.h
_MOST_TAGS: Final = 2
_IPV4, _IPV6 = 0x0800, 0x86DD
_AF_INET, _AF_INET6 = 2, 10
_EXTENSIONS: Final = (0, 43, 60, 135)  # hop-by-hop, routing, destination, mobility: next header, length in 8 bytes
_FRAGMENT, _AUTHENTICATION = 44, 51
_MOST_EXTENSIONS: Final = 4
_TCP: Final = 6
_WITH_PORTS: Final = (_TCP, 17, 33, 132, 136)  # TCP, UDP, DCCP, SCTP, UDP-Lite

_FROM_CONTEXT: Final = frozenset({"len", "ifindex"})
_FROM_ETHERNET: Final = frozenset({"ethertype", "vlan", "smac", "dmac"})
_FROM_IP: Final = frozenset({"family", "proto", "ttl", "saddr", "daddr"})
_FROM_TRANSPORT: Final = frozenset({"sport", "dport", "tcp_flags"})


class Packet:
    """The fields of one program: variables of scalars, memory of addresses."""

    def __init__(self) -> None:
        self.slots: dict[str, tuple[str, Value]] = {}
        self.memory: dict[str, Value] = {}


def used_fields(g: Gen, body: object) -> dict[str, Field]:
    """Fields of `args` that a body mentions."""
    assert g.probe is not None
    found: dict[str, Field] = {}
    for node in nodes(body):
        if isinstance(node, typed.ArgField):
            found[node.field.name] = node.field
        elif isinstance(node, typed.Builtin) and node.name == "args" and g.probe.args.fields is not None:
            found |= {field.name: field for field in g.probe.args.fields.fields}
    return found


def prepare(g: Gen, body: object) -> None:
    """Read what the body uses."""
    found = used_fields(g, body)
    names = found.keys() - _FROM_CONTEXT
    if not names:
        return
    g.packet = Packet()
    for name, field in found.items():
        if name in names and is_scalar(field.type):
            type = register_type(field.type)
            g.packet.slots[name] = type, g.fn.slot(type)
        elif name in names:
            size = size_of(field.type)
            g.packet.memory[name] = g.buffer(size)
            g.clear(g.packet.memory[name], size)
    _Reader(g, g.packet, frozenset(names)).read()


def scalar(g: Gen, field: Field) -> Value:
    """A field that is a number."""
    if field.name == "len":
        return length(g)
    if field.name == "ifindex":
        return g.load_context(g.ctx, _XDP_INDEX if is_xdp(g) else _SKB_INDEX, I32)
    assert g.packet is not None
    type, slot = g.packet.slots[field.name]
    return g.fn.load(type, slot, max(1, int(type[1:]) // 8))


def place(g: Gen, field: Field) -> Place:
    """Where a field that is an address lies."""
    assert g.packet is not None
    return Place("bpf", g.packet.memory[field.name])


def length(g: Gen) -> Value:
    """Bytes of the packet, link layer included, an i32."""
    if not is_xdp(g):
        return g.load_context(g.ctx, _SKB_LENGTH, I32)
    start, end = (g.fn.op(I64, f"ptrtoint {p} to i64") for p in _bounds(g))
    return g.fn.integer(g.fn.binary("sub", end, start), I32)


def is_xdp(g: Gen) -> bool:
    assert g.program is not None
    return g.program.kind == "xdp"


def _bounds(g: Gen) -> tuple[Value, Value]:
    """`data` and `data_end`: 32-bit words of the context that the verifier turns into addresses."""
    at = (_XDP_DATA, _XDP_END) if is_xdp(g) else (_SKB_DATA, _SKB_END)
    start, end = (g.fn.pointer(g.fn.integer(g.load_context(g.ctx, offset, I32), I64)) for offset in at)
    return start, end


def ethernet(g: Gen) -> bool:
    """Whether packets of the interface start with an Ethernet header."""
    assert g.probe is not None
    return bool(g.probe.args.extra.get("ethernet", 1))


def _network_order(value: int) -> Value:
    return const(int.from_bytes(value.to_bytes(2, "big"), "little", signed=True), I16)


class _Reader:
    """Writes the code that goes through the headers; whatever is missing ends it."""

    def __init__(self, g: Gen, packet: Packet, names: frozenset[str]) -> None:
        self.g, self.fn, self.packet, self.names = g, g.fn, packet, names
        self.done = g.fn.fresh("packet")
        self.start, self.end = _bounds(g)
        self.type = g.fn.slot(I16)  # of what follows, in network order
        self.network = g.fn.slot(I64)  # offsets
        self.transport = g.fn.slot(I64)
        self.protocol = g.fn.slot(I8)

    def read(self) -> None:
        if ethernet(self.g):
            self._link()
        else:
            self._version()
        self._set("ethertype", self._swapped(self.fn.load(I16, self.type, 2)))
        if self.names & (_FROM_IP | _FROM_TRANSPORT):
            self._internet()
        self.fn.start(self.done)

    # Pieces

    def _piece(self, offset: Value, size: int) -> Value:
        """`size` bytes of the packet that can be read directly; ends the reading when they are not there."""
        g, fn = self.g, self.fn
        here = fn.index(self.start, offset)
        outside = fn.compare("ugt", fn.add(here, size), self.end)
        inside = fn.fresh("inside")
        if is_xdp(g):
            fn.branch(outside, self.done, inside)
            fn.start(inside)
            return here
        found = fn.slot(PTR)
        copy, copied, after = fn.fresh("copy"), fn.fresh("copied"), fn.fresh("piece")
        fn.branch(outside, copy, inside)
        fn.start(copy)
        room = g.buffer((size + 7) & -8)
        failed = g.helper("skb_load_bytes", g.ctx, offset, room, const(size))
        fn.branch(fn.compare("eq", failed, const(0)), copied, self.done)
        fn.start(copied)
        fn.store(room, found, 8)
        fn.jump(after)
        fn.start(inside)
        fn.store(here, found, 8)
        fn.start(after)
        return fn.load(PTR, found, 8)

    def _swapped(self, value: Value) -> Value:
        self.g.unit.kfuncs.add("i16 @llvm.bswap.i16(i16)")
        return self.fn.op(I16, f"call i16 @llvm.bswap.i16({value})")

    def _word(self, piece: Value, offset: int) -> Value:
        """16 bits, in network order."""
        return self.fn.load(I16, self.fn.add(piece, offset), 2)

    def _byte(self, piece: Value, offset: int) -> Value:
        return self.fn.load(I8, self.fn.add(piece, offset), 1)

    def _set(self, name: str, value: Value) -> None:
        if name in self.packet.slots:
            type, slot = self.packet.slots[name]
            self.fn.store(self.fn.integer(value, type), slot, max(1, int(type[1:]) // 8))

    def _forward(self, slot: Value, distance: Value) -> None:
        self.fn.store(self.fn.binary("add", self.fn.load(I64, slot, 8), distance), slot, 8)

    def _one_of(self, value: Value, wanted: tuple[Value, ...], yes: str, no: str) -> None:
        for constant in wanted:
            other = self.fn.fresh("other")
            self.fn.branch(self.fn.compare("eq", value, constant), yes, other)
            self.fn.start(other)
        self.fn.jump(no)

    # Layers

    def _link(self) -> None:
        """Ethernet, with VLAN tags. Of a tc packet the outermost tag may be beside it (`vlan_tci`)."""
        fn = self.fn
        piece = self._piece(const(0), _ETHERNET)
        for name, offset in (("dmac", 0), ("smac", 6)):
            if name in self.packet.memory:
                self.g.copy(self.packet.memory[name], fn.add(piece, offset), 6, 2)
        fn.store(self._word(piece, 12), self.type, 2)
        fn.store(const(_ETHERNET), self.network, 8)
        tagged = fn.slot(I64)
        if "vlan" in self.names and not is_xdp(self.g):
            beside = self.g.load_context(self.g.ctx, SKB_TAGGED, I32)
            with self.g.when(self.g.truth(beside), "tagged"):
                self._tag(self.g.load_context(self.g.ctx, SKB_TAG, I32))
                fn.store(const(1), tagged, 8)
        plain = fn.fresh("plain")
        for _ in range(_MOST_TAGS):
            tag = fn.fresh("tag")
            self._one_of(fn.load(I16, self.type, 2), tuple(map(_network_order, _TAGS)), tag, plain)
            fn.start(tag)
            piece = self._piece(fn.load(I64, self.network, 8), 4)
            if "vlan" in self.names:
                with self.g.unless(self.g.truth(fn.load(I64, tagged, 8)), "first"):
                    self._tag(fn.integer(self._swapped(self._word(piece, 0)), I32))
                    fn.store(const(1), tagged, 8)
            fn.store(self._word(piece, 2), self.type, 2)
            self._forward(self.network, const(4))
        fn.start(plain)

    def _tag(self, word: Value) -> None:
        self._set("vlan", self.fn.binary("and", word, const(0xFFF, I32)))

    def _version(self) -> None:
        """Without a link layer the first four bits tell."""
        fn = self.fn
        version = fn.binary("lshr", self._byte(self._piece(const(0), 20), 0), const(4, I8))
        for number, type in ((4, _IPV4), (6, _IPV6)):
            with self.g.when(fn.compare("eq", version, const(number, I8)), "version"):
                fn.store(_network_order(type), self.type, 2)

    def _internet(self) -> None:
        fn = self.fn
        four, other, six, transport = (fn.fresh(name) for name in ("ipv4", "other", "ipv6", "transport"))
        type = fn.load(I16, self.type, 2)
        fn.branch(fn.compare("eq", type, _network_order(_IPV4)), four, other)
        fn.start(other)
        fn.branch(fn.compare("eq", type, _network_order(_IPV6)), six, self.done)
        fn.start(four)
        self._version4(transport)
        fn.start(six)
        self._version6(transport)
        fn.start(transport)
        self._set("proto", fn.load(I8, self.protocol, 1))
        if self.names & _FROM_TRANSPORT:
            self._ports()

    def _addresses(self, piece: Value, family: int, first: int, size: int) -> None:
        self._set("family", const(family))
        for name, offset in (("saddr", first), ("daddr", first + size)):
            if name in self.packet.memory:
                target = self.packet.memory[name]
                self.fn.store(const(family), target, 8)
                self.g.copy(self.fn.add(target, 8), self.fn.add(piece, offset), size, 4)

    def _version4(self, transport: str) -> None:
        fn = self.fn
        start = fn.load(I64, self.network, 8)
        piece = self._piece(start, 20)
        self._addresses(piece, _AF_INET, 12, 4)
        self._set("ttl", self._byte(piece, 8))
        fn.store(self._byte(piece, 9), self.protocol, 1)
        words = fn.binary("and", fn.integer(self._byte(piece, 0), I64), const(15))
        fn.store(fn.binary("add", start, fn.binary("shl", words, const(2))), self.transport, 8)
        # Only the first fragment of a packet has the ports.
        self._whole(fn.binary("and", self._word(piece, 6), _network_order(0x1FFF)), transport)

    def _whole(self, fragment: Value, transport: str) -> None:
        later = self.fn.fresh("later")
        self.fn.branch(self.fn.compare("eq", fragment, const(0, I16)), transport, later)
        self.fn.start(later)
        self._set("proto", self.fn.load(I8, self.protocol, 1))
        self.fn.jump(self.done)

    def _version6(self, transport: str) -> None:
        fn = self.fn
        start = fn.load(I64, self.network, 8)
        piece = self._piece(start, 40)
        self._addresses(piece, _AF_INET6, 8, 16)
        self._set("ttl", self._byte(piece, 7))
        fn.store(self._byte(piece, 6), self.protocol, 1)
        fn.store(fn.binary("add", start, const(40)), self.transport, 8)
        if not self.names & (_FROM_TRANSPORT | {"proto"}):
            fn.jump(transport)
            return
        for _ in range(_MOST_EXTENSIONS):
            self._extension(transport)
        fn.jump(transport)

    def _extension(self, transport: str) -> None:
        """One extension header of IPv6, if there is one."""
        fn = self.fn
        kind = fn.load(I8, self.protocol, 1)
        usual, special, fragment, signed, after = (
            fn.fresh(name) for name in ("usual", "special", "fragment", "signed", "after")
        )
        self._one_of(kind, tuple(const(n, I8) for n in map(_byte_constant, _EXTENSIONS)), usual, special)
        fn.start(special)
        other = fn.fresh("other")
        fn.branch(fn.compare("eq", kind, const(_FRAGMENT, I8)), fragment, other)
        fn.start(other)
        fn.branch(fn.compare("eq", kind, const(_AUTHENTICATION, I8)), signed, transport)
        for label, scale, more in ((usual, 3, 1), (signed, 2, 2)):
            fn.start(label)
            piece = self._piece(fn.load(I64, self.transport, 8), 8)
            fn.store(self._byte(piece, 0), self.protocol, 1)
            units = fn.binary("add", fn.integer(self._byte(piece, 1), I64), const(more))
            self._forward(self.transport, fn.binary("shl", units, const(scale)))
            fn.jump(after)
        fn.start(fragment)
        piece = self._piece(fn.load(I64, self.transport, 8), 8)
        fn.store(self._byte(piece, 0), self.protocol, 1)
        self._forward(self.transport, const(8))
        self._whole(fn.binary("and", self._word(piece, 2), _network_order(0xFFF8)), after)
        fn.start(after)

    def _ports(self) -> None:
        fn = self.fn
        kind, start = fn.load(I8, self.protocol, 1), fn.load(I64, self.transport, 8)
        ports = fn.fresh("ports")
        self._one_of(kind, tuple(const(_byte_constant(n), I8) for n in _WITH_PORTS), ports, self.done)
        fn.start(ports)
        piece = self._piece(start, 4)
        for name, offset in (("sport", 0), ("dport", 2)):
            self._set(name, self._swapped(self._word(piece, offset)))
        if "tcp_flags" in self.names:
            inside = fn.fresh("tcp")
            fn.branch(fn.compare("eq", kind, const(_TCP, I8)), inside, self.done)
            fn.start(inside)
            self._set("tcp_flags", self._byte(self._piece(start, 14), 13))


def _byte_constant(number: int) -> int:
    """As LLVM writes an i8."""
    return number - 256 if number > 127 else number
