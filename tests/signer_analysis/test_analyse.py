"""What the analysis finds in programs whose answer is known."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfseal.signer import helpers as known
from bpfseal.signer.analyse import Facts, analyse
from bpfseal.signer.bundle import Attach, MapSpec
from bpfseal.signer.cfg import split
from bpfseal.signer.check import check
from bpfseal.signer.insn import decode
from bpfseal.signer.kernel_ids import Kernel
from bpfseal.signer.refusal import Refusal
from tests.hostile.case import IDS, KERNEL
from tests.signer_analysis.kit import (
    ARRAY,
    EXIT,
    HASH,
    RETURN,
    RING,
    U8,
    U16,
    U32,
    add,
    addi,
    atomic,
    bundle,
    call,
    callsub,
    ja,
    jeqi,
    kfunc,
    ld64,
    ldfunc,
    ldmap,
    ldvalue,
    ldx,
    lookup,
    mov,
    movi,
    program,
    raw,
    stx,
)
from tests.signer_analysis.kit import st as put
from tests.signer_analysis.kit import st as store

SECOND = HASH.__class__(name="second", type=1, key_size=8, value_size=8, max_entries=8)


def facts(insns: bytes, *, packets: bool = False) -> Facts:
    return analyse(decode(insns), (HASH, ARRAY, RING, SECOND), Kernel(lambda: KERNEL), packets=packets)


def maps(insns: bytes) -> dict[int, tuple[str, ...]]:
    return dict(facts(insns).found.maps)


def test_look_up_and_count() -> None:
    found = facts(lookup() + jeqi(0, 0, 2) + movi(1, 1) + atomic(0, 0, 1, 0) + RETURN)
    assert found.found.helpers == ("map_lookup_elem",)
    assert found.found.maps == ((0, ("read", "write")),)
    assert (found.found.insns, found.found.subprograms) == (11, 0)
    assert found.classes == {"map"}


def test_a_look_up_alone_is_no_write() -> None:
    assert maps(lookup() + jeqi(0, 0, 1) + ldx(1, 0) + RETURN) == {0: ("read",)}


def test_direct_access_reads_and_stores_write() -> None:
    assert maps(ldvalue(1, 1, 8) + ldx(2, 1) + RETURN) == {1: ("read",)}
    assert maps(ldvalue(1, 1, 8) + store(1, 0, 1) + RETURN) == {1: ("read", "write")}


def test_the_stack_is_followed_step_by_step() -> None:
    spill = lookup(0) + stx(10, -16, 0) + lookup(3) + jeqi(0, 0, 3) + stx(10, -16, 0) + ldx(1, 10, -16) + store(1, 0, 1)
    assert maps(spill + RETURN) == {0: ("read",), 3: ("read", "write")}


def test_where_paths_meet_both_count() -> None:
    either = mov(6, 1) + ldmap(1, 0) + jeqi(6, 0, 2) + ldmap(1, 3) + mov(2, 10) + call("map_delete_elem") + RETURN
    assert maps(either) == {0: ("delete",), 3: ("delete",)}


def test_a_loop_settles() -> None:
    code = ldvalue(6, 1) + movi(7, 0) + store(6, 0, 1) + addi(7, 1) + raw(0xA5, 7, 0, -3, 10) + RETURN
    assert maps(code) == {1: ("read", "write")}


def test_a_pointer_moved_round_a_loop_is_still_told() -> None:
    code = mov(1, 10) + addi(1, -512) + movi(7, 0) + store(1, 0, 0) + addi(1, 8) + addi(7, 1)
    assert maps(code + raw(0xA5, 7, 0, -4, 64) + RETURN) == {}


def test_operations_of_helpers() -> None:
    output = mov(2, 10) + movi(3, 8) + movi(4, 0) + ldmap(1, 2) + call("ringbuf_output")
    assert maps(output + RETURN) == {2: ("output",)}
    assert maps(mov(1, 1) + ldmap(2, 2) + call("perf_event_output") + RETURN) == {2: ("output",)}
    storage = ldmap(1, 0) + call("task_storage_get") + jeqi(0, 0, 1) + store(0, 0, 1) + RETURN
    assert maps(storage) == {0: ("read", "write")}


def test_helpers_that_write_memory_write_values() -> None:
    code = lookup() + jeqi(0, 0, 4) + mov(1, 0) + movi(2, 8) + movi(3, 0) + call("probe_read_user") + RETURN
    found = facts(code)
    assert found.found.maps == ((0, ("read", "write")),)
    assert found.classes == {"map", "read-user"}
    compare = lookup() + jeqi(0, 0, 4) + mov(1, 0) + movi(2, 8) + mov(3, 10) + call("strncmp") + RETURN
    assert maps(compare) == {0: ("read",)}


def test_dynptr_on_a_value_is_a_write() -> None:
    code = ldvalue(1, 1) + movi(2, 8) + movi(3, 0) + mov(4, 10) + addi(4, -16) + call("dynptr_from_mem") + RETURN
    assert maps(code) == {1: ("read", "write")}


def test_maps_in_maps_stand_for_what_is_in_them() -> None:
    """And for those of each kind: what is done to an inner map is done to the outer one."""
    outer = existing(12)

    def ops(code: bytes) -> tuple[str, ...]:
        found = analyse(decode(code), (outer,), Kernel(lambda: KERNEL)).found.maps
        return found[0][1]

    inner = lookup(0) + jeqi(0, 0, 20) + mov(1, 0) + mov(2, 10) + addi(2, -8)
    filler = raw(0x05, 0, 0, 0) * 18  # so that every jump goes to the end
    assert ops(lookup(0) + RETURN) == ("read",)

    def after(code: bytes) -> tuple[str, ...]:
        return ops(inner + (code + filler)[: 8 * 17] + RETURN)

    assert after(call("map_lookup_elem")) == ("read",)
    assert after(call("map_delete_elem")) == ("delete", "read")
    assert after(call("map_lookup_elem") + jeqi(0, 0, 1) + store(0, 0, 1)) == ("read", "write")
    assert after(movi(3, 8) + movi(4, 0) + call("ringbuf_output")) == ("output", "read")
    # the callback gets the inner map, its keys and its values
    each = lookup(0) + jeqi(0, 0, 6) + mov(1, 0) + ldfunc(2, 6) + movi(3, 0) + movi(4, 0) + call("for_each_map_elem")
    assert ops(each + RETURN + store(3, 0, 1) + RETURN) == ("iterate", "read", "write")
    assert ops(each + RETURN + mov(2, 2) + call("map_delete_elem") + RETURN) == ("delete", "iterate", "read")
    # what is not a map of maps has no maps in it, whatever the client says
    for kind in (1, 2, 14, 15):
        with pytest.raises(Refusal, match="cannot tell which map"):
            analyse(decode(inner + (call("map_lookup_elem") + filler)[: 8 * 17] + RETURN), (existing(kind),), Kernel())


def test_calls_that_libbpf_puts_where_something_is_missing() -> None:
    """What is behind them counts, all the same."""
    for number in (195896080, 2001000000, 2001000999, 2002000007):
        poison = raw(0x85, imm=number)
        found = facts(movi(1, 1) + jeqi(1, 1, 1) + poison + lookup() + RETURN)
        assert found.found.maps == ((0, ("read",)),)
        assert found.found.helpers == ("map_lookup_elem",)
        # in place of a map's address
        assert maps(poison + poison + call("map_lookup_elem") + RETURN) == {}
    for number in (195895999, 195897000, 2000999999, 2001001000, 2003000000, 9999):
        with pytest.raises(Refusal, match=f"unknown helper {number}"):
            facts(raw(0x85, imm=number) + RETURN)
    with pytest.raises(Refusal, match="cannot tell which map"):
        facts(movi(1, 1) + call("map_lookup_elem") + raw(0x85, imm=195896080) + RETURN)


def test_members_of_kernel_objects_in_maps_are_kernel_memory() -> None:
    code = lookup(0) + jeqi(0, 0, 2) + ldx(1, 0) + RETURN
    for kind, classes in ((1, {"map"}), (15, {"map", "read-kernel"}), (17, {"map", "read-kernel"})):
        assert analyse(decode(code), (existing(kind),), Kernel()).classes == classes


def existing(kind: int) -> MapSpec:
    return MapSpec(name="m.7", type=kind, key_size=8, value_size=4, max_entries=1, id=7)


def test_subprograms_pass_pointers_both_ways() -> None:
    there = lookup() + jeqi(0, 0, 2) + mov(1, 0) + callsub(2) + RETURN + store(1, 0, 1) + RETURN
    assert maps(there) == {0: ("read", "write")}
    back = lookup() + jeqi(0, 0, 3) + mov(1, 0) + callsub(3) + store(0, 0, 1) + RETURN + mov(0, 1) + EXIT
    assert maps(back) == {0: ("read", "write")}
    assert facts(back).found.subprograms == 1
    assert facts(back).starts == (0, 12)


def test_callbacks_get_what_the_kernel_gives_them() -> None:
    each = ldmap(1, 3) + ldfunc(2, 6) + movi(3, 0) + movi(4, 0) + call("for_each_map_elem") + RETURN
    assert maps(each + store(3, 0, 1) + RETURN) == {3: ("iterate", "write")}
    assert maps(each + ldx(3, 3) + RETURN) == {3: ("iterate",)}
    assert maps(each + mov(2, 2) + call("map_delete_elem") + RETURN) == {3: ("delete", "iterate")}
    loop = ldvalue(0, 1) + stx(10, -8, 0) + mov(3, 10) + addi(3, -8) + movi(1, 4) + ldfunc(2, 5) + movi(4, 0)
    loop += call("loop") + RETURN
    assert maps(loop + ldx(2, 2) + store(2, 0, 1) + RETURN) == {1: ("read", "write")}
    assert maps(loop + ldx(2, 2, -8) + store(2, 0, 1) + RETURN) == {1: ("read",)}


def test_an_unknown_stack_offset_gives_anything_on_any_stack() -> None:
    code = lookup(0) + stx(10, -16, 0) + lookup(3) + stx(10, -24, 0) + call("get_prandom_u32") + mov(1, 10) + add(1, 0)
    assert maps(code + ldx(2, 1, -24) + store(2, 0, 1) + RETURN) == {0: ("read", "write"), 3: ("read", "write")}


def test_a_scattered_store_can_be_read_back_anywhere() -> None:
    code = lookup(3) + mov(7, 0) + call("get_prandom_u32") + mov(1, 10) + add(1, 0) + stx(1, -64, 7)
    assert maps(code + ldx(2, 10, -32) + store(2, 0, 1) + RETURN) == {3: ("read", "write")}


def test_exchanged_pointers_are_followed() -> None:
    code = lookup(3) + stx(10, -16, 0) + movi(1, 0) + mov(2, 10) + atomic(2, -16, 1, 0xE1) + store(1, 0, 1) + RETURN
    assert maps(code) == {3: ("read", "write")}
    acquire = lookup(3) + stx(10, -16, 0) + mov(2, 10) + raw(0xDB, 1, 2, -16, 0x100) + store(1, 0, 1) + RETURN
    assert maps(acquire) == {3: ("read", "write")}


def test_kfuncs_by_name_and_by_what_they_write() -> None:
    into = ldvalue(1, 1) + movi(2, 0) + kfunc(IDS["bpf_copy_from_user_str"]) + RETURN
    found = facts(into)
    assert found.found.kfuncs == ("bpf_copy_from_user_str",)
    assert found.classes == {"read-user"}
    assert found.found.maps == ((1, ("read", "write")),)
    out_of = movi(1, 0) + ldvalue(2, 1) + kfunc(IDS["bpf_copy_from_user_str"]) + RETURN
    assert maps(out_of) == {1: ("read",)}


def test_direct_reads_of_kernel_memory_are_seen() -> None:
    chase = ldx(2, 1, 8) + ldx(3, 2, 16) + RETURN
    assert facts(chase).classes == {"read-kernel"}
    assert facts(chase, packets=True).classes == {"read-packet"}
    assert facts(ldx(2, 1, 8) + RETURN).classes == set()
    index = lookup() + jeqi(0, 0, 4) + ldx(3, 0) + raw(0x57, 3, imm=7) + add(0, 3) + ldx(4, 0) + RETURN
    assert facts(index).classes == {"map"}


@pytest.mark.parametrize(
    ("code", "classes"),
    [
        (ldx(2, 1, 76, U32) + ldx(3, 2, 12, U16), {"read-packet"}),
        (call("skb_load_bytes"), {"read-packet"}),
        (call("xdp_load_bytes"), {"read-packet"}),
        (call("skb_store_bytes"), {"network"}),
        # a store to the packet, to the context, through a pointer that may be the packet's, an atomic one
        (ldx(2, 1, 76, U32) + put(2, 0, 1, U8), {"network"}),
        (ldx(2, 1, 76, U32) + stx(2, 0, 1), {"network"}),
        (put(1, 8, 1, U32), {"network"}),
        (ldx(2, 1, 76, U32) + jeqi(2, 0, 1) + mov(2, 10) + put(2, 0, 1), {"network"}),
        (ldx(2, 1, 76, U32) + movi(3, 1) + atomic(2, 0, 3, 0), {"network"}),
        (mov(2, 10) + raw(0x07, 2, imm=-8) + put(2, 0, 1), set()),
    ],
)
def test_reading_packets_and_changing_them_are_told_apart(code: bytes, classes: set[str]) -> None:
    assert facts(code + RETURN, packets=True).classes == classes


def test_kernel_variables_are_named() -> None:
    assert facts(ld64(1, IDS["jiffies"], 3) + ldx(2, 1) + RETURN).variables == ("jiffies",)


def test_time_is_linear() -> None:
    piece = lookup() + jeqi(0, 0, 2) + movi(1, 1) + atomic(0, 0, 1, 0)
    small, large = (_seconds(mov(6, 1) + piece * n + RETURN) for n in (1000, 10_000))
    assert large < 40 * small


def test_sets_that_do_not_settle_are_refused_in_time() -> None:
    # A value wanders through 60 slots, one for each trip round a loop whose 4,000 blocks run in reverse order: every
    # trip changes the state of every block.
    blocks, slots = 4000, 60
    rotate = b"".join(ldx(3, 10, -8 * i - 8) + stx(10, -8 * i, 3) for i in range(1, slots))
    length = len(rotate) // 8
    start = ldvalue(0, 1) + stx(10, -8 * slots, 0) + ja(length + blocks + 2)
    again = jeqi(1, 0, blocks + 1) + RETURN
    chain = ja(-length - 4) + ja(-2) * (blocks - 1)
    code = start + rotate + again + chain
    began = time.process_time()
    with pytest.raises(Refusal, match="do not settle"):
        facts(code)
    assert time.process_time() - began < 3


def _seconds(insns: bytes) -> float:
    best = 1e9
    for _ in range(3):
        began = time.process_time()
        facts(insns)
        best = min(best, time.process_time() - began)
    return best


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_decodable_program_ends_in_facts_or_a_refusal(data: st.DataObject) -> None:
    pieces = [
        *(EXIT, RETURN, movi(0, 0), mov(6, 1), addi(1, -8), mov(1, 10), ldx(1, 10, -8), stx(10, -8, 1), ldx(2, 1)),
        *(ldmap(1, 0), ldmap(2, 2), ldvalue(0, 1), stx(1, 0, 2), atomic(1, 0, 2, 0), call("map_lookup_elem"), lookup()),
        *(call("loop"), call("for_each_map_elem"), kfunc(IDS["bpf_copy_from_user_str"]), add(1, 2), raw(0x20, imm=4)),
        *(raw(0x8D, 1), call("timer_set_callback"), call("find_vma"), raw(0xE5, off=-1)),
    ]
    offsets = st.integers(-6, 6)
    jumps = [None, None, None, ja, callsub, lambda off: jeqi(0, 0, off), lambda off: ldfunc(2, off)]
    code = b""
    for _ in range(data.draw(st.integers(1, 14))):
        jump = data.draw(st.sampled_from(jumps))
        code += data.draw(st.sampled_from(pieces)) if jump is None else jump(data.draw(offsets))
    try:
        found = facts(code + RETURN)
    except Refusal:
        return
    assert found.found.insns == len(code) // 8 + 2
    assert split(decode(code + RETURN)).starts == list(found.starts)


def test_many_stack_addresses_stay_cheap() -> None:
    # r1 may be any of 60 stack addresses, and moves and is loaded through 100,000 times.
    fan = b"".join(jeqi(6, i, 0) + mov(1, 10) + addi(1, -8 * i - 8) + jeqi(7, i, 3 * (60 - i)) for i in range(60))
    code = ldx(6, 1) + ldx(7, 1, 8) + fan + (addi(1, 8) + addi(1, -8) + ldx(2, 1) + stx(1, 0, 10)) * 50_000 + RETURN
    began = time.process_time()
    assert maps(code) == {}
    assert time.process_time() - began < 5


def test_a_record_stays_small() -> None:
    attach = Attach(kind="kprobe_multi", probe="k", symbols=tuple("f" * 4000 for _ in range(1000)))
    one = program(type=known.KPROBE, expected_attach_type=known.KPROBE_MULTI, attach=(attach,))
    found = check(bundle(*[one] * 64), kernel=Kernel(lambda: KERNEL))
    assert len(json.dumps(found.record())) < 200_000
