"""Programs whose result decides something: which are shown to let everything go on."""

from __future__ import annotations

import pytest

from bpfseal.signer import helpers as known
from bpfseal.signer.bundle import BUNDLE_VERSION, Attach, Attributes, Bundle, ProgramSpec, SealRequest
from bpfseal.signer.cfg import split
from bpfseal.signer.check import check
from bpfseal.signer.identity import Identity
from bpfseal.signer.insn import decode
from bpfseal.signer.kernel_ids import Kernel
from bpfseal.signer.policy import Policy, decide
from bpfseal.signer.verdict import decides
from tests.hostile.case import KERNEL
from tests.signer_analysis.kit import (
    EXIT,
    RETURN,
    U32,
    call,
    callsub,
    ja,
    jeqi,
    ld64,
    ldx,
    mov,
    movi,
    raw,
    st,
    stx,
)

FAKE = Kernel(lambda: KERNEL)
LSM, XDP, TC = known.LSM, known.XDP, known.SCHED_CLS
RANDOM = call("get_prandom_u32")


def found(type: int, code: bytes) -> bool:
    insns = decode(code)
    return decides(type, insns, split(insns))


PASS = movi(0, 2) + EXIT
NEUTRAL = [
    (LSM, RETURN),
    (XDP, PASS),
    (TC, RETURN),
    (TC, movi(0, -1) + EXIT),
    (TC, raw(0xB4, 0, imm=-1) + EXIT),  # w0 = -1
    (LSM, raw(0xB4, 0) + EXIT),
    (XDP, ld64(0, 2) + EXIT),
    # both ways, one exit
    (XDP, RANDOM + jeqi(0, 0, 2) + movi(0, 2) + ja(1) + movi(0, 2) + EXIT),
    # kept in a register, on the stack, over a call
    (XDP, movi(6, 2) + RANDOM + mov(0, 6) + EXIT),
    (XDP, movi(6, 2) + stx(10, -8, 6) + ldx(0, 10, -8) + EXIT),
    # a loop
    (LSM, movi(6, 0) + RANDOM + jeqi(0, 0, -2) + mov(0, 6) + EXIT),
    # what a subprogram returns is not the program's result
    (LSM, callsub(2) + movi(0, 0) + EXIT + movi(0, 7) + EXIT),
]
DECIDING = [
    (LSM, movi(0, -1) + EXIT),
    (XDP, movi(0, 1) + EXIT),
    (XDP, RETURN),
    (TC, movi(0, 2) + EXIT),
    (LSM, RANDOM + EXIT),
    (XDP, RANDOM + jeqi(0, 0, 2) + movi(0, 2) + ja(1) + movi(0, 1) + EXIT),
    (XDP, RANDOM + jeqi(0, 0, 2) + PASS + movi(0, 1) + EXIT),
    (LSM, ldx(0, 1, 0) + EXIT),
    (LSM, mov(0, 1) + EXIT),
    # half of a word, the word overlapped, written through another register, by a call
    (XDP, movi(6, 2) + stx(10, -8, 6, U32) + ldx(0, 10, -8) + EXIT),
    (XDP, movi(6, 2) + stx(10, -8, 6) + st(10, -4, 1, U32) + ldx(0, 10, -8) + EXIT),
    (XDP, movi(6, 2) + stx(10, -8, 6) + mov(2, 10) + raw(0x07, 2, imm=-8) + st(2, 0, 1) + ldx(0, 10, -8) + EXIT),
    (XDP, movi(6, 2) + stx(10, -8, 6) + RANDOM + ldx(0, 10, -8) + EXIT),
    # a register that a call changes
    (XDP, movi(3, 2) + RANDOM + mov(0, 3) + EXIT),
    (LSM, movi(0, 0) + RANDOM + EXIT),
    (LSM, callsub(1) + EXIT + RETURN),
    # changed in a loop
    (LSM, movi(6, 0) + RANDOM + raw(0x07, 6, imm=1) + jeqi(0, 0, -3) + mov(0, 6) + EXIT),
    # arithmetic is not followed
    (LSM, movi(0, 1) + raw(0x17, 0, imm=1) + EXIT),
    # compared and exchanged, fetched
    (LSM, movi(0, 0) + movi(1, 0) + stx(10, -8, 1) + raw(0xDB, 10, 1, -8, 0xF1) + EXIT),
]


@pytest.mark.parametrize(("type", "code"), NEUTRAL)
def test_lets_everything_go_on(type: int, code: bytes) -> None:
    assert not found(type, code)


@pytest.mark.parametrize(("type", "code"), DECIDING)
def test_may_decide(type: int, code: bytes) -> None:
    assert found(type, code)


@pytest.mark.parametrize("type", [known.TRACEPOINT, known.KPROBE, known.TRACING, known.PERF_EVENT])
def test_other_types_decide_nothing(type: int) -> None:
    assert not found(type, movi(0, 1) + EXIT)


def packet_program(type: int, attach: Attach, code: bytes, attach_type: int) -> Bundle:
    spec = ProgramSpec(
        name="p",
        type=type,
        expected_attach_type=attach_type,
        insns=code,
        declared=Attributes(insns=len(code) // 8),
        attach=(attach,),
    )
    return Bundle(version=BUNDLE_VERSION, programs=(spec,), maps=(), source="x")


@pytest.mark.parametrize(
    ("type", "attach", "passing", "dropping", "attach_type"),
    [
        (XDP, Attach(kind="xdp", probe="xdp:lo", target="lo"), 2, 1, known.ATTACH_XDP),
        (TC, Attach(kind="tc", probe="tc:lo:ingress", target="lo"), -1, 2, known.TCX_INGRESS),
    ],
)
def test_policy_grants_looking_and_deciding_apart(
    type: int, attach: Attach, passing: int, dropping: int, attach_type: int
) -> None:
    rule = "version = 1\n[[rule]]\nuid = 0\nprobes = ['{kind}:lo*']\nclasses = ['read-packet'{more}]\n"
    for more, verdicts in (("", (True, False)), (", 'override'", (True, True))):
        policy = Policy.parse(rule.format(kind=attach.kind, more=more).encode())
        for result, allowed in zip((passing, dropping), verdicts, strict=True):
            code = movi(0, result) + EXIT
            findings = check(packet_program(type, attach, code, attach_type), kernel=FAKE)
            decision = decide(policy, Identity(uid=0, gid=0, pid=1), findings, SealRequest(bundle=b""))
            assert decision.allowed == allowed, decision
            assert allowed or "override" in " ".join(decision.reasons)


def test_built_in_policy_needs_unsafe() -> None:
    attach = Attach(kind="xdp", probe="xdp:lo", target="lo")
    findings = check(packet_program(XDP, attach, movi(0, 1) + EXIT, known.ATTACH_XDP), kernel=FAKE)
    for unsafe in (False, True):
        policy = Policy.default_private(0, unsafe=unsafe)
        assert decide(policy, Identity(uid=0, gid=0, pid=1), findings, SealRequest(bundle=b"")).allowed == unsafe
