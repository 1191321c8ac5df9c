"""The corpus of hostile bundles: each is refused, for the reason that it is in the corpus for."""

from __future__ import annotations

import re

import pytest

from bpfseal.signer.bundle import Bundle, BundleError, SealRequest, decode, encode
from bpfseal.signer.check import check
from bpfseal.signer.identity import Identity
from bpfseal.signer.kernel_ids import Kernel
from bpfseal.signer.policy import Decision, Policy, decide
from bpfseal.signer.refusal import Refusal
from tests.hostile import instructions, maps, metadata, programs
from tests.hostile.case import KERNEL, POLICY, Case
from tests.signer_analysis.kit import bundle

WHO = Identity(uid=1000, gid=1000)
SYMBOLS = {"vfs_read": (instructions.VFS_READ,), "commit_creds": (0xFFFFFFFF81000000,)}
STRICTER = {
    "policy-enforceable": Policy.parse(
        b'[[rule]]\nuid = 1000\nprobes = "*"\nclasses = ["map", "basic"]\nmap_types = "*"\nenforceable = true\n'
    ),
    "policy-syscalls": Policy.parse(
        b'[[rule]]\nuid = 1000\nprobes = "tracepoint:syscalls:*"\nclasses = "map"\nmap_types = "*"\n'
    ),
}
GROUPS = {"instruction": instructions, "map": maps, "program": programs, "metadata": metadata}
CORPUS = [pytest.param(case, id=f"{group}-{case.name}") for group, m in GROUPS.items() for case in m.CASES]


def judge(data: bytes, policy: Policy = POLICY) -> Decision:
    """As the helper does it, with a kernel that does not depend on this machine."""
    findings = check(decode(data), kernel=Kernel(lambda: KERNEL), symbols=lambda name: SYMBOLS.get(name, ()))
    return decide(policy, WHO, findings, SealRequest(bundle=data))


@pytest.mark.parametrize("policy", [POLICY, STRICTER["policy-syscalls"]])
def test_the_bundle_that_the_corpus_departs_from_is_allowed(policy: Policy) -> None:
    assert judge(encode(bundle()), policy).allowed


def test_the_guard_that_the_corpus_departs_from_is_allowed() -> None:
    good = instructions.guarded(instructions.guard(10) + instructions._BODY + instructions.RETURN)
    assert judge(encode(good), STRICTER["policy-enforceable"]).allowed


def test_names_are_unique_and_many() -> None:
    names = [param.id for param in CORPUS]
    assert len(set(names)) == len(names) >= 90


@pytest.mark.parametrize("case", CORPUS)
def test_refused_for_its_reason(case: Case) -> None:
    built = case.build()
    data = encode(built) if isinstance(built, Bundle) else built
    if case.rule.startswith("policy"):
        decision = judge(data, STRICTER.get(case.rule, POLICY))
        assert not decision.allowed
        assert any(case.reason in reason for reason in decision.reasons), decision.reasons
    elif case.rule == "decode":
        with pytest.raises(BundleError, match=re.escape(case.reason)):
            judge(data)
    else:
        with pytest.raises(Refusal, match=re.escape(case.reason)) as refused:
            judge(data)
        assert refused.value.rule == case.rule
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 300
