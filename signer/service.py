"""What the helper does with requests, free of sockets: verbs, rights, rates, and the audit log around every decision.

Requests come in batches, those of one turn of the event loop. All of a batch's records are on disk, with one sync,
before any of its replies exist for the outside. Meanwhile the next turns may go on.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from bpfseal.errors import BpfsealError
from bpfseal.signer import protocol, seal
from bpfseal.signer.audit import AuditLog, Checkpointer
from bpfseal.signer.audit_tail import AuditError
from bpfseal.signer.check import Symbols
from bpfseal.signer.identity import Identity
from bpfseal.signer.kernel_ids import Kernel
from bpfseal.signer.keys import Keys
from bpfseal.signer.policy import Policy
from bpfseal.signer.seal import Outcome, Sealer
from bpfseal.signer.users import Users

CHECKPOINT_SECONDS = 60
# Requests of one turn share one sync of the log, which takes as long as one to five of them. But nobody waits long for
# others, and one that takes seconds is a turn by itself.
TURN_NS = 4_000_000
TURNS = 2  # whose records are on their way to the disk: one is being synced, one comes next

Deliver = Callable[[int, protocol.Reply], None]


class PolicySource(Protocol):
    """Where the policy in force comes from (`signer.policy.PolicyFile` or a fixed one)."""

    def current(self) -> Policy: ...


class FixedPolicy(Struct, frozen=True):
    """A policy that does not change."""

    policy: Policy

    def current(self) -> Policy:
        return self.policy


class Facts(Struct, frozen=True):
    """What `status` says that does not change."""

    mode: str
    pid: int
    root: str
    policy_name: str
    hardening: tuple[str, ...] = ()


class Service:
    """Answers requests. `say` reports trouble, `journal` gets the audit log's head at every checkpoint: an anchor
    outside the log."""

    def __init__(
        self,
        facts: Facts,
        keys: Keys,
        sealer: Sealer,
        policy: PolicySource,
        audit: AuditLog,
        *,
        admins: frozenset[int],
        symbols: Symbols | None = None,
        kernel: Kernel | None = None,
        say: Callable[[str], None] = lambda line: None,
        journal: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.facts = facts
        self._keys = keys
        self._sealer = sealer
        self._policy = policy
        self._audit = audit
        self._admins = admins
        self._symbols = symbols
        self._kernel = kernel
        self._say = say
        self._journal = journal
        self.users = Users()
        self._started = self._checkpointed = time.monotonic()
        self._root = Checkpointer(keys.root_certificate, keys.root_sign)
        self._begun = False
        self._policy_in_log = ""
        self.internal_errors = 0

    # Batches -----------------------------------------------------------------------------------------------------

    def handle(self, batch: Sequence[tuple[Identity, protocol.Request]], deliver: Deliver, *, wait: bool = True) -> int:
        """Answer `batch`, or as many from its front as a turn has time for, one at least; how many.

        `deliver` gets the index and the reply of each: before this returns or, unless `wait` and where the log can sync
        in the background, from `collect` when the turn's records are on disk. Never raises for what a client sent."""
        self._keys_tick()
        audited: list[tuple[int, Identity, Callable[[int], Outcome]]] = []
        begin = time.perf_counter_ns()
        end = begin + TURN_NS
        taken = 0
        for index, (who, request) in enumerate(batch):
            if begin > end:
                break
            taken = index + 1
            try:
                if isinstance(request, protocol.Seal):
                    audited.append((index, who, self._prepare_seal(who, request)))
                elif isinstance(request, protocol.Rotate | protocol.Revoke):
                    self._demand_admin(who)
                    audited.append((index, who, self._prepare_keys(request)))
                elif isinstance(request, protocol.Decisions):
                    self._demand_admin(who)
                    audited.append((index, who, partial(_kept, request)))
                else:
                    deliver(index, self._answer(who, request))
            except Exception as error:
                deliver(index, self._failed(error))
            # Elapsed time of the only thread; its CPU clock would be a system call, and a place to lose the CPU.
            self.users[who.uid].cpu_ns += (now := time.perf_counter_ns()) - begin
            begin = now
        if audited:
            self._with_records(audited, deliver, wait)
        return taken

    @property
    def room(self) -> bool:
        """Whether another turn may begin: not while too many wait for the disk."""
        return self._audit.syncs is None or len(self._audit.syncs) < TURNS

    @property
    def synced(self) -> int:
        """What is readable when `collect` has something to do; -1 when it never has."""
        return -1 if self._audit.syncs is None else self._audit.syncs.fileno()

    def collect(self, *, wait: bool = False) -> None:
        """Deliver what has reached the disk; with `wait`, all that is on its way there."""
        if self._audit.syncs is not None:
            self._audit.syncs.collect(wait=wait)

    def _with_records(
        self, work: list[tuple[int, Identity, Callable[[int], Outcome]]], deliver: Deliver, wait: bool
    ) -> None:
        outcomes: list[tuple[int, Identity, Outcome]] = []
        logged = self._begun, self._policy_in_log

        def recorded(error: AuditError | None) -> None:
            if error is None:
                self._deliver(outcomes, deliver)
                return
            self._begun, self._policy_in_log = logged
            failed = protocol.Failed(message=error.message, hint=error.hint or "")
            for index, _, _ in work:
                deliver(index, failed)
            self._say(error.message)

        try:
            with self._audit as log:
                self._begin(log)
                for index, who, act in work:
                    self._tell_suppressed(log, who.uid)
                    outcome = self._act(act, log.next)
                    if outcome.allowed or self.users.may_log_refusal(who.uid):
                        log.add(outcome.event, _who(who) | outcome.record)
                    outcomes.append((index, who, outcome))
                if not wait:
                    log.then(recorded)
        except AuditError as error:
            recorded(error)
            return
        if wait:
            recorded(None)

    def _deliver(self, outcomes: list[tuple[int, Identity, Outcome]], deliver: Deliver) -> None:
        for index, who, outcome in outcomes:
            deliver(index, outcome.reply)
            user = self.users[who.uid]
            if outcome.event == "seal":
                user.sealed += 1
            elif outcome.event == "refuse":
                user.refused += 1

    def _act(self, act: Callable[[int], Outcome], number: int) -> Outcome:
        try:
            return act(number)
        except Exception as error:
            reply = self._failed(error)
            return Outcome(reply, "fail", {"reasons": [reply.message]})

    def _failed(self, error: Exception) -> protocol.Failed:
        """The reply for an error. One that nobody foresaw costs its client the request, not everybody the helper."""
        if isinstance(error, BpfsealError):
            return protocol.Failed(message=error.message, hint=error.hint or "")
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f"{place.tb_frame.f_code.co_qualname}, line {place.tb_lineno}" if place else "?"
        self.internal_errors += 1
        self._say(f"internal error: {type(error).__name__}: {error} ({where})")
        return protocol.Failed(message=f"internal error of the signing helper ({type(error).__name__})")

    def _begin(self, log: AuditLog) -> None:
        """The first record of this helper: who will sign from here on. Later, whenever it changed: by what rules."""
        policy = self._policy.current().digest
        if self._begun:
            if policy != self._policy_in_log:
                log.add("policy", {"policy": policy})
                self._policy_in_log = policy
            return
        self._begun, self._policy_in_log = True, policy
        log.add(
            "start",
            {
                "mode": self.facts.mode,
                "pid": self.facts.pid,
                "abi": self._sealer.abi.version,
                "algorithm": self._keys.algorithm,
                "root": base64.b64encode(self._keys.root_certificate).decode(),
                "root_from": self.facts.root,
                "key": self._keys.current.id.hex(),
                "policy": policy,
                "hardening": list(self.facts.hardening),
            },
        )

    def open(self) -> None:
        """Write the first record now instead of with the first request: a log that cannot be written is told at
        start. Raises AuditError."""
        with self._audit as log:
            self._begin(log)

    # Verbs -------------------------------------------------------------------------------------------------------

    def _prepare_seal(self, who: Identity, request: protocol.Seal) -> Callable[[int], Outcome]:
        examined = seal.examine(self._policy.current(), who, request.request, self._symbols, self._kernel)
        if examined.decision is not None and examined.allowed:
            limit = examined.decision.per_minute
            if limit and not self.users.within_rate(who.uid, examined.decision.rule, limit):
                reason = f"rule {examined.decision.rule} allows {limit} seals a minute"
                late = replace(examined.decision, allowed=False, reasons=(reason,))
                examined = replace(examined, decision=late)
        if not examined.allowed:
            return lambda number: seal.refused(examined, number)
        return lambda number: self._sealer.seal(who, request.request, examined, number)

    def _prepare_keys(self, request: protocol.Rotate | protocol.Revoke) -> Callable[[int], Outcome]:
        def rotate(number: int) -> Outcome:
            try:
                self._keys.rotate()
            except OSError as error:
                raise BpfsealError(f"the kernel did not take a new key: {error.strerror}") from None
            return Outcome(
                protocol.Done(certificate=self._keys.current.id), "rotate", {"key": self._keys.current.id.hex()}
            )

        def revoke(number: int) -> Outcome:
            ids = [leaf.id.hex() for leaf in self._keys.live()]
            self._keys.revoke()
            return Outcome(protocol.Done(), "revoke", {"keys": ids}, allowed=True)

        return rotate if isinstance(request, protocol.Rotate) else revoke

    def _answer(self, who: Identity, request: protocol.Request) -> protocol.Reply:
        keys, abi = self._keys, self._sealer.abi
        match request:
            case protocol.Hello():
                return protocol.Welcome(mode=self.facts.mode, pid=self.facts.pid, abi=abi.version, why=abi.why)
            case protocol.Status():
                return self._status(who)
            case protocol.Certificate():
                return protocol.CertificateReply(leaf=keys.current.certificate, root=keys.root_certificate)
            case protocol.ListKeys():
                return protocol.KeyList(
                    keyring=keys.rings.leaf if keys.rings else 0,
                    keys=tuple(
                        protocol.KeyInfo(
                            certificate=leaf.id,
                            serial=leaf.ring_key,
                            seconds_left=keys.seconds_left(leaf),
                            signing=leaf is keys.current,
                        )
                        for leaf in keys.live()
                    ),
                )
            case protocol.Check(request=wanted, uid=uid, gid=gid, groups=groups):
                if uid != -1:
                    self._demand_admin(who)
                    who = Identity(uid=uid, gid=gid, groups=groups)
                return seal.verdict(seal.examine(self._policy.current(), who, wanted, self._symbols, self._kernel))
        raise BpfsealError("unknown request")

    def _status(self, who: Identity) -> protocol.StatusReply:
        keys, user = self._keys, self.users[who.uid]
        memory = _memory()
        admin = self._is_admin(who)
        return protocol.StatusReply(
            mode=self.facts.mode,
            pid=self.facts.pid,
            abi=self._sealer.abi.version,
            why=self._sealer.abi.why,
            algorithm=keys.algorithm,
            root=self.facts.root,
            keyring=keys.rings.leaf if keys.rings else 0,
            certificate=keys.current.id,
            leaf_seconds=keys.life,
            leaf_left=keys.seconds_left(keys.current),
            revoked=keys.revoked,
            policy=self._policy.current().digest if admin else "",
            policy_trouble=str(getattr(self._policy, "trouble", "") or "") if admin else "",
            audit=self._audit.path if admin else "",
            head=self._audit.next - 1 if admin else 0,
            head_hash=self._audit.head if admin else "",
            sealed=user.sealed,
            refused=user.refused,
            uptime=int(time.monotonic() - self._started),
            rss_kib=memory.get("VmRSS", 0),
            locked_kib=memory.get("VmLck", 0),
            hardening=self.facts.hardening,
            totals=tuple(self._totals().items()) if admin else (),
        )

    def _totals(self) -> dict[str, int]:
        return self.users.totals() | {"internal_errors": self.internal_errors}

    # Rights ----------------------------------------------------------------------------------------

    def _is_admin(self, who: Identity) -> bool:
        return self.facts.mode == "private" or who.uid in self._admins

    def _demand_admin(self, who: Identity) -> None:
        if not self._is_admin(who):
            raise BpfsealError("only an administrator of the signing helper may ask this", hint="run it as root")

    def _tell_suppressed(self, log: AuditLog, uid: int) -> None:
        if count := self.users.end_of_minute(uid):
            log.add("refusals", {"uid": uid, "not_recorded": count})

    def note(self, event: str, uid: int, fields: dict[str, Any]) -> None:
        """A record about something that is not a request, e.g. a message by a process that did not connect."""
        try:
            with self._audit as log:
                self._begin(log)
                if uid >= 0:
                    self._tell_suppressed(log, uid)
                if uid < 0 or self.users.may_log_refusal(uid):
                    log.add(event, fields)
        except AuditError as error:
            self._say(error.message)

    # Time --------------------------------------------------------------------------------------------------------

    def _keys_tick(self) -> None:
        try:
            happened = self._keys.tick()
        except OSError as error:
            self._say(f"key rotation failed: {error.strerror}")
            return
        if happened:
            self.note("rotate", -1, {"key": self._keys.current.id.hex(), "why": happened})

    def tick(self) -> None:
        """To be called every second or so: key lifetimes, checkpoints."""
        self._keys_tick()
        due = time.monotonic() - self._checkpointed >= CHECKPOINT_SECONDS and self._audit.records_since_checkpoint
        if due or self._audit.checkpoint_due():
            self.checkpoint()

    def checkpoint(self) -> None:
        self._checkpointed = time.monotonic()
        self._audit.checkpoint(self._root, self._told)

    def _told(self, error: AuditError | None, seq: int, head: str) -> None:
        if error is not None:
            self._say(error.message)
        else:
            self._journal(f"audit checkpoint: record {seq}, hash {head}")

    def close(self) -> None:
        """Last records, keys out of the kernel."""
        if self._begun and not self._audit.broken:
            try:
                with self._audit as log:
                    log.add("stop", {"pid": self.facts.pid} | self._totals())
            except AuditError as error:
                self._say(error.message)
            else:
                self.checkpoint()
        self._keys.close()
        self._audit.close()


def _kept(request: protocol.Decisions, number: int) -> Outcome:
    told = [msgspec.structs.asdict(decision) for decision in request.decisions]
    return Outcome(protocol.Done(), "decisions", {"decisions": told}, allowed=True)


def _who(who: Identity) -> dict[str, Any]:
    return {"uid": who.uid, "gid": who.gid, "pid": who.pid, "cgroup": who.cgroup_path or str(who.cgroup_id)}


def _memory() -> dict[str, int]:
    """VmRSS and VmLck of this process in KiB."""
    try:
        with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
            pairs = (line.split()[:2] for line in file if line.startswith(("VmRSS:", "VmLck:")))
            return {name[:-1]: int(value) for name, value in pairs}
    except OSError:
        return {}
