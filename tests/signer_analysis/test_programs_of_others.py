"""Programs that tools make and our compiler does not: for cgroups, with tail calls, on functions of other programs."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from msgspec.structs import replace

from bpfseal.errors import BpfsealError
from bpfseal.signer import btf as kinds
from bpfseal.signer import helpers as known
from bpfseal.signer import loader_blob as blob
from bpfseal.signer.ahead import AheadSealer
from bpfseal.signer.btf import Btf, BtfError
from bpfseal.signer.bundle import BUNDLE_VERSION, UNDECLARED, Bundle, MapSpec, ProgramSpec
from bpfseal.signer.check import ProgramFindings, check
from bpfseal.signer.kernel_ids import Kernel
from bpfseal.signer.loader import Terms, emit
from bpfseal.signer.program_target import ProgramTarget, program_target
from bpfseal.signer.refusal import Refusal
from tests.hostile.case import KERNEL
from tests.signer_analysis.kit import EXIT, RETURN, U32, call, callsub, jeqi, ldmap, ldx, mov, movi, st

FAKE = Kernel(lambda: KERNEL)
JUMPS = MapSpec(name="jumps", type=3, key_size=4, value_size=4, max_entries=8, id=7)
ONE = movi(0, 1) + EXIT


def bundle(type: int, code: bytes, **more: Any) -> Bundle:
    spec = ProgramSpec(name="p", type=type, insns=code, declared=UNDECLARED, attach=(), **more)
    return Bundle(version=BUNDLE_VERSION, programs=(spec,), maps=(JUMPS,), source="x")


def found(type: int, code: bytes, **more: Any) -> ProgramFindings:
    return check(bundle(type, code, **more), kernel=FAKE).programs[0]


# cgroups

CGROUP = [(type, number) for type, table in known.CGROUP_ATTACH.items() for number in table]
ALWAYS = (known.SOCK_OPS, known.CGROUP_SYSCTL)


@pytest.mark.parametrize(("type", "number"), CGROUP)
def test_of_cgroups_those_that_allow_everything_decide_nothing(type: int, number: int) -> None:
    good = found(type, ONE, expected_attach_type=number)
    assert good.targets == (f"none:{known.PROGRAM_TYPES[type]}",)
    assert not good.enforceable
    assert ("override" in good.classes) == (type in ALWAYS)
    assert "override" in found(type, RETURN, expected_attach_type=number).classes
    # 3 spares a bind() its privilege and marks packets as congesting
    assert "override" in found(type, movi(0, 3) + EXIT, expected_attach_type=number).classes


@pytest.mark.parametrize(("type", "number"), [(8, 2), (9, 0x55), (15, 8), (18, 21), (25, 6), (29, 43), (2, 3), (17, 1)])
def test_attach_types_of_others_are_refused(type: int, number: int) -> None:
    with pytest.raises(Refusal, match="does not fit") as refused:
        found(type, ONE, expected_attach_type=number)
    assert refused.value.rule == "attach-type"


def test_what_they_read_and_change() -> None:
    connect = {"expected_attach_type": 10}
    assert found(known.CGROUP_SOCK_ADDR, ONE, **connect).classes == set()
    changes = st(1, 4, 1, U32) + ONE  # the address that is connected to
    assert found(known.CGROUP_SOCK_ADDR, changes, **connect).classes == {"network"}
    packet = ldx(2, 1, 76, U32) + ldx(0, 2, 0, U32) + ONE  # data of a packet
    assert found(known.CGROUP_SKB, packet).classes == {"read-packet"}


def test_attach_types_are_the_kernels() -> None:
    try:
        btf = Btf.vmlinux()
    except BtfError as error:
        pytest.skip(str(error))
    values = btf.enumerators(btf.find("bpf_attach_type", kinds.ENUM))
    kernel = {value: name.removeprefix("BPF_").lower() for name, value in values}
    for table in known.CGROUP_ATTACH.values():
        for number, name in table.items():
            assert kernel.get(number, name).removeprefix("cgroup_") == name.removeprefix("cgroup_")


# Tail calls

CALL = ldmap(2, 0) + movi(3, 0) + call("tail_call")


def test_tail_calls_are_told() -> None:
    program = found(known.RAW_TRACEPOINT, CALL + RETURN)
    assert program.found.helpers == ("tail_call",)
    assert program.found.maps == ((0, ("read",)),)
    assert program.classes == {"tail-call"}


@pytest.mark.parametrize(
    ("type", "good"), [(known.LSM, RETURN), (known.XDP, movi(0, 2) + EXIT), (known.CGROUP_SKB, ONE)]
)
def test_after_a_tail_call_another_program_decides(type: int, good: bytes) -> None:
    from bpfseal.signer.cfg import split
    from bpfseal.signer.insn import decode
    from bpfseal.signer.verdict import decides

    for code, expected in ((good, False), (CALL + good, True)):
        insns = decode(code)
        assert decides(type, insns, split(insns)) is expected


def test_a_new_program_array_is_refused() -> None:
    """Nothing in a bundle could fill it; whoever has one already does."""
    made = bundle(known.RAW_TRACEPOINT, CALL + RETURN)
    with pytest.raises(Refusal, match="prog_array"):
        check(replace(made, maps=(replace(JUMPS, id=0),)), kernel=FAKE)


def test_the_map_of_a_tail_call_has_to_be_known() -> None:
    with pytest.raises(Refusal, match="cannot tell which map tail_call gets"):
        found(known.RAW_TRACEPOINT, mov(2, 1) + movi(3, 0) + call("tail_call") + RETURN)


def test_a_subprogram_that_jumps_away_returns_a_number() -> None:
    code = callsub(3) + jeqi(0, 0, 1) + movi(0, 0) + EXIT + CALL + RETURN
    assert found(known.RAW_TRACEPOINT, code).found.subprograms == 1


# Functions of other programs


def test_targets_that_are_programs() -> None:
    on = {"attach_btf": "handle", "attach_btf_id": 3, "attach_module": "prog-12@7"}
    fentry = found(known.TRACING, RETURN, expected_attach_type=known.TRACE_FENTRY, **on)
    assert (fentry.targets, fentry.enforceable, fentry.classes) == (("fentry:prog-12:handle",), False, set())
    session = found(known.TRACING, RETURN, expected_attach_type=known.TRACE_FSESSION, **on)
    assert session.targets == ("fentry:prog-12:handle", "fexit:prog-12:handle")
    replaces = found(known.EXT, RETURN, **on)
    assert (replaces.targets, replaces.enforceable) == (("freplace:prog-12:handle",), False)
    assert replaces.classes == {"override"}


def test_what_stands_in_for_a_function_has_arguments_that_nobody_knows() -> None:
    on = {"attach_btf": "handle", "attach_btf_id": 3, "attach_module": "prog-12@7"}
    reads = found(known.EXT, ldx(0, 2, 0) + RETURN, **on)
    assert reads.classes == {"override", "read-packet", "read-kernel"}
    writes = found(known.EXT, st(3, 0, 1) + RETURN, **on)
    assert writes.classes == {"override", "network"}


BAD = [
    (known.EXT, {"attach_module": ""}),
    (known.EXT, {"attach_module": "nf_conntrack"}),
    (known.EXT, {"attach_btf": ""}),
    (known.EXT, {"attach_btf": "a b"}),
    (known.EXT, {"attach_btf_id": 0}),
    (known.EXT, {"attach_module": "prog-0@7"}),
    (known.EXT, {"attach_module": "prog-12"}),
    (known.EXT, {"attach_module": "prog-12@-1"}),
    (known.EXT, {"attach_module": "prog-4294967296@7"}),
    (known.TRACING, {"expected_attach_type": known.MODIFY_RETURN}),
    (known.TRACING, {"expected_attach_type": known.TRACE_RAW_TP}),
    (known.TRACING, {"expected_attach_type": known.TRACE_ITER}),
    (known.LSM, {"expected_attach_type": known.LSM_MAC}),
    (known.XDP, {}),
]


@pytest.mark.parametrize(("type", "fields"), BAD, ids=[f"{t}-{f}" for t, f in BAD])
def test_bad_target_programs_are_refused(type: int, fields: dict[str, Any]) -> None:
    on = {"attach_btf": "handle", "attach_btf_id": 3, "attach_module": "prog-12@7"}
    with pytest.raises(Refusal) as refused:
        found(type, RETURN, **(on | fields))
    assert refused.value.rule == "attach-btf"


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("", None),
        ("nf_conntrack", None),
        ("prog_12", None),
        ("prog-12@7", (12, 7)),
        ("prog-4294967295@0", (2**32 - 1, 0)),
    ],
)
def test_how_programs_are_named(text: str, target: tuple[int, int] | None) -> None:
    assert program_target(text) == (None if target is None else ProgramTarget(*target))


def test_the_descriptor_is_in_what_is_signed() -> None:
    on = {"attach_btf": "handle", "attach_btf_id": 3}
    first, second = (
        emit(bundle(known.EXT, RETURN, attach_module=f"prog-12@{fd}", **on), Terms(abi=2)) for fd in (7, 8)
    )
    assert first.insns == second.insns  # no look-up of a module, nothing is closed
    different = [at for at in range(len(first.metadata)) if first.metadata[at] != second.metadata[at]]
    made = bundle(known.EXT, RETURN, attach_module="prog-12@7", **on)
    _, layout = blob.build(made, 0)
    assert different == [layout.programs_at + blob.P_ATTACH_BTF_OBJ_FD]
    assert struct.unpack_from("<I", first.metadata, different[0]) == (7,)
    assert layout.modules == ()


def test_a_file_cannot_have_another_program_as_target() -> None:
    from unittest.mock import Mock  # for what is not looked at before the refusal

    made = bundle(known.EXT, RETURN, attach_module="prog-12@7", attach_btf="handle", attach_btf_id=3)
    examined = Mock(bundle=replace(made, maps=()), decision=Mock(allowed=True))
    sealer = Mock(spec=AheadSealer, abis=())
    with pytest.raises(BpfsealError, match="p is for another program"):
        AheadSealer.seal(sealer, Mock(), Mock(), examined, 1)
