"""capture(): packets of xdp and tc probes to the client."""

from __future__ import annotations

from typing import Final

from bpfseal.compiler import events
from bpfseal.compiler.gen import Gen
from bpfseal.compiler.ir import I16, I32, I64, Value, const
from bpfseal.compiler.packet import SKB_TAG, SKB_TAG_TYPE, SKB_TAGGED, ethernet, is_xdp, length
from bpfseal.dsl import typed, types
from bpfseal.errors import BpfsealError

_LINK_ETHERNET: Final = 1  # LINKTYPE_ of pcap files
_LINK_RAW: Final = 101


def capture(g: Gen, node: typed.Call) -> None:
    """The packet to the client, in a record as long as it is; one that finds no room is counted as lost."""
    assert g.program is not None
    if g.program.kind not in ("xdp", "tc"):
        raise BpfsealError("capture() is for xdp and tc probes")
    fn, most = g.fn, node.options["snaplen"]
    assert isinstance(most, int)
    link = _LINK_ETHERNET if ethernet(g) else _LINK_RAW
    number, (when, whole, data), _ = events.add_event(
        g, "capture", node.span, types=[types.U64, types.U32, types.Array(types.U8, most)], options={"link": link}
    )
    size = fn.integer(length(g), I64)
    kept = fn.select(fn.compare("ult", size, const(most)), size, const(most))
    record = g.locate(g.reserve_scratch(data + most + 4))
    events.header(g, record, number)
    fn.store(g.helper("ktime_get_boot_ns"), fn.add(record, when), 8)
    fn.store(fn.integer(size, I32), fn.add(record, whole), 4)
    if is_xdp(g) or not ethernet(g):
        _copy(g, 0, kept, most, record, data)
        return
    beside, plain, after = fn.fresh("tagged"), fn.fresh("plain"), fn.fresh("captured")
    fn.branch(g.truth(g.load_context(g.ctx, SKB_TAGGED, I32)), beside, plain)
    fn.start(plain)
    _copy(g, 0, kept, most, record, data)
    fn.jump(after)
    fn.start(beside)
    fn.store(fn.integer(fn.binary("add", size, const(4)), I32), fn.add(record, whole), 4)
    _tagged(g, kept, most, record, data)
    fn.start(after)


def _tagged(g: Gen, kept: Value, most: int, record: Value, data: int) -> None:
    """A packet whose VLAN tag the kernel keeps beside it: the tag goes where it was on the wire."""
    fn, addresses = g.fn, 12
    target = fn.add(record, data)
    g.helper("skb_load_bytes", g.ctx, const(0), target, const(addresses))
    # The type is in network order, the tag in the machine's.
    type, tag = (g.load_context(g.ctx, offset, I32) for offset in (SKB_TAG_TYPE, SKB_TAG))
    fn.store(fn.integer(type, I16), fn.add(target, addresses), 2)
    g.unit.kfuncs.add("i16 @llvm.bswap.i16(i16)")
    swapped = fn.op(I16, f"call i16 @llvm.bswap.i16({fn.integer(tag, I16)})")
    fn.store(swapped, fn.add(target, addresses + 2), 2)
    rest = fn.binary("sub", kept, const(addresses))
    _copy(g, addresses, rest, most - addresses, record, data + addresses + 4)


def _copy(g: Gen, start: int, size: Value, most: int, record: Value, head: int) -> None:
    """Up to `most` bytes of the packet from `start` behind the `head` of the record, and the record to the ring."""
    fn = g.fn
    inside, copied, lost, after = (fn.fresh(name) for name in ("some", "copied", "lost", "sent"))
    # One less is what the verifier can compare from both sides at once; LLVM must not see through it.
    last = g.opaque(fn.binary("sub", size, const(1)))
    fn.branch(fn.compare("ult", last, const(most)), inside, lost)
    fn.start(inside)
    count = fn.binary("add", last, const(1))
    helper = "xdp_load_bytes" if is_xdp(g) else "skb_load_bytes"
    failed = g.helper(helper, g.ctx, const(start), fn.add(record, head), count)
    fn.branch(fn.compare("eq", failed, const(0)), copied, lost)
    fn.start(copied)
    total = fn.binary("add", count, const(head))
    failed = g.helper_on_map("ringbuf_output", g.unit.ring_index(), "output", record, total, const(0))
    fn.branch(fn.compare("eq", failed, const(0)), after, lost)
    fn.start(lost)
    events.count_failure(g, 0)
    fn.start(after)
