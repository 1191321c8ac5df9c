"""From a request to a signed loader: decode → check → policy → emit → sign, with what the audit log shall say of it.

This is the only place where something of a client's ends up under a signature, and what is signed is a `Loader`
that was emitted here from a checked bundle, never bytes that came in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from msgspec import Struct, field

from bpfseal.errors import BpfsealError
from bpfseal.signer import bundle as wire
from bpfseal.signer import loader, protocol
from bpfseal.signer.abi import Abi
from bpfseal.signer.bundle import Bundle, SealedBundle, SealRequest
from bpfseal.signer.check import Symbols, check
from bpfseal.signer.identity import Identity
from bpfseal.signer.kernel_ids import Kernel
from bpfseal.signer.keys import Keys, Leaf
from bpfseal.signer.loader import Loader, Terms
from bpfseal.signer.policy import Decision, Policy, decide
from bpfseal.signer.refusal import Refusal

DEFAULT_LIFETIME = 60


class Outcome(Struct):
    """What became of a request: the reply, and the record that has to be on disk before it leaves."""

    reply: protocol.Reply
    event: str
    record: dict[str, Any] = field(default_factory=dict)
    allowed: bool = False


class Examined(Struct, frozen=True):
    """A request after analysis and policy: a decision about a bundle, or the refusal of bytes or bytecode."""

    record: dict[str, Any]
    bundle: Bundle | None = None
    decision: Decision | None = None
    trouble: BpfsealError | None = None

    @property
    def allowed(self) -> bool:
        return self.decision is not None and self.decision.allowed


def examine(
    policy: Policy,
    who: Identity,
    request: SealRequest,
    symbols: Symbols | None = None,
    kernel: Kernel | None = None,
) -> Examined:
    """Decode, analyse, decide. `symbols` lets guards be compared with the functions they stand for, `kernel` is what
    ids are looked up in (default: the running one). Never raises for what a client sent."""
    record: dict[str, Any] = {"bundle": wire.digest(request.bundle), "bytes": len(request.bundle)}
    try:
        most = policy.max_insns(who)
        if not most:  # strangers are not worth an analysis
            raise Refusal("policy", f"no rule is for uid {who.uid}")
        bundle = wire.decode(request.bundle)
        findings = check(bundle, kernel=kernel, symbols=symbols, max_insns=most)
        record |= findings.record()
        if bundle.source:
            record["source"] = bundle.source
        decision = decide(policy, who, findings, request)
    except BpfsealError as error:
        return Examined(record, trouble=error)
    record["rule"] = decision.rule
    if decision.reasons:
        record["reasons"] = list(decision.reasons)
    return Examined(record, bundle, decision)


def verdict(examined: Examined) -> protocol.Verdict:
    if examined.decision is not None:
        return protocol.Verdict(
            allowed=examined.allowed, rule=examined.decision.rule, reasons=tuple(examined.decision.reasons)
        )
    rule = examined.trouble.rule if isinstance(examined.trouble, Refusal) else "bundle"
    return protocol.Verdict(allowed=False, rule=rule, reasons=(str(examined.trouble),))


def refused(examined: Examined, number: int) -> Outcome:
    """The answer to a request that is not sealed."""
    said = verdict(examined)
    message = said.reasons[0] if said.reasons else "policy does not allow this"
    hint = examined.trouble.hint or "" if examined.trouble else ""
    examined.record["reasons"] = list(said.reasons)
    reply = protocol.Refused(message=message, rule=said.rule, reasons=said.reasons, hint=hint, record=number)
    return Outcome(reply, "refuse", examined.record | {"rule": said.rule})


class Sealer:
    """Seals what was examined and allowed. Knows the kernel's ABI and the keys, nothing of sockets or files."""

    def __init__(
        self,
        keys: Keys,
        abi: Abi,
        *,
        bind_tgid: bool,
        boot_ns: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    ) -> None:
        self.keys = keys
        self.abi = abi
        self._bind_tgid = bind_tgid
        self._boot_ns = boot_ns

    def seal(self, who: Identity, request: SealRequest, examined: Examined, number: int) -> Outcome:
        """Emit and sign. `number` is the sequence number the record will have. Raises BpfsealError (a loader that
        cannot be emitted, revoked keys); then nothing was signed."""
        bundle, decision = examined.bundle, examined.decision
        if bundle is None or decision is None or not decision.allowed:
            raise BpfsealError("not allowed")
        if request.file:
            raise BpfsealError("this helper seals for running processes, not for files", hint="bpfseal seal --key")
        leaf = self.keys.leaf()
        deadline = self._deadline(leaf, request, decision)
        terms = Terms(
            abi=self.abi.version,
            uid=who.uid,
            tgid=who.pid if self._bind_tgid else None,
            deadline_ns=deadline,
            excl=self.abi.excl,
            record=number,
        )
        emitted = loader.emit(bundle, terms)
        signature = self._sign(leaf, emitted, self.abi.version)
        sealed = SealedBundle(
            loader=emitted.insns,
            metadata=emitted.metadata,
            signature=signature,
            abi=self.abi.version,
            keyring=self.keys.rings.leaf if self.keys.rings and self.abi.version else 0,
            certificate=leaf.id,
            record=number,
            ctx_size=emitted.ctx_size,
            deadline_ns=deadline,
        )
        record = examined.record | {
            "sealed": wire.digest(emitted.insns + emitted.metadata),
            "key": leaf.id.hex(),
            "abi": self.abi.version,
            "deadline_ns": deadline,
            "bound_to_process": self._bind_tgid,
        }
        reply = protocol.SealReply(sealed=sealed, rule=decision.rule, notes=tuple(decision.reasons))
        return Outcome(reply, "seal", record, allowed=True)

    def _deadline(self, leaf: Leaf, request: SealRequest, decision: Decision) -> int:
        """Boot time, ns: what was asked for, at most what policy grants, never past the leaf's own end."""
        granted = decision.lifetime or DEFAULT_LIFETIME
        seconds = min(request.lifetime, granted) if request.lifetime > 0 else min(DEFAULT_LIFETIME, granted)
        return min(self._boot_ns() + seconds * 1_000_000_000, leaf.until_ns)

    def _sign(self, leaf: Leaf, emitted: Loader, abi: int) -> bytes:
        """The one signing call. A kernel that does not verify gets no signature to mistake for something."""
        return leaf.sign(emitted.signed_bytes(abi)) if abi else b""
