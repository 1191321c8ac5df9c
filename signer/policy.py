"""Who may have what signed: rules in TOML, first match that grants everything wins, otherwise no.

A rule names people (uid, gid, cgroup, executable) and grants them attributes of bundles. docs/policy.md describes
every key. `decide` compares a rule with the Findings of a checked bundle and says everything that it does not grant,
not only the first.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from typing import Final

from msgspec import Struct

from bpfseal.signer import helpers as known
from bpfseal.signer.bundle import SealRequest
from bpfseal.signer.check import Findings
from bpfseal.signer.identity import Identity
from bpfseal.signer.limits import MAX_MAPS, MAX_PROGRAMS
from bpfseal.signer.policy_rule import Patterns, PolicyError, Rule

SETTLE_NS: Final = 200_000_000

__all__ = ["Decision", "Patterns", "Policy", "PolicyError", "PolicyFile", "Rule", "decide", "explain"]


class Decision(Struct, frozen=True):
    """allowed or not; `rule` that decided ("" if none was for this identity); `reasons` for a refusal, notes
    otherwise; `lifetime` in seconds and seals `per_minute` that the rule grants."""

    allowed: bool
    rule: str
    reasons: tuple[str, ...] = ()
    lifetime: int = 0
    per_minute: int = 0


class Policy(Struct, frozen=True):
    """Rules in the order of the file. `digest`: sha256 of the text, for audit records."""

    rules: tuple[Rule, ...]
    digest: str
    path: str = ""

    def max_insns(self, who: Identity) -> int:
        """The most instructions that any rule for `who` grants: what is over need not be analysed."""
        return max((rule.max_insns for rule in self.rules if not rule.matches(who)), default=0)

    @classmethod
    def parse(cls, data: bytes, path: str = "policy") -> Policy:
        """The policy of TOML text. Raises PolicyError with the line of what is wrong."""
        from bpfseal.signer.policy_read import read_rules

        return cls(read_rules(data, path), hashlib.sha256(data).hexdigest(), path)

    @classmethod
    def default_private(cls, uid: int, *, unsafe: bool = False) -> Policy:
        """What the private helper of one user signs: everything that tracing needs. What changes other programs'
        behaviour (writes, overrides, signals) only with `unsafe`, which the user gives on the command line."""
        classes = frozenset(known.CLASSES) - {"control"}
        if not unsafe:
            classes -= {"write-user", "override", "signal"}
        rule = Rule(
            name="private-unsafe" if unsafe else "private",
            uid=frozenset({uid}),
            probes=Patterns(["*"]),
            classes=classes,
            kfuncs=Patterns(["*"] if unsafe else _TRACING_KFUNCS),
            variables=Patterns(["*"]),
            map_types=frozenset(known.MAP_TYPE_BY_NAME),
            sleepable=True,
            existing_maps=True,
            max_programs=MAX_PROGRAMS,
            max_insns=1_000_000,
            max_maps=MAX_MAPS,
            max_map_bytes=8 << 30,
            max_targets=1 << 16,
            lifetime=3600,
            per_minute=0,
        )
        return cls((rule,), hashlib.sha256(repr(rule).encode()).hexdigest(), "(private)")


# Kernel functions that look and do not touch; kfunc sets of the verifier's tracing types in kernel/bpf/helpers.c.
_TRACING_KFUNCS: Final = (
    *("bpf_iter_*", "bpf_task_*", "bpf_cgroup_*", "bpf_dynptr_*", "bpf_copy_from_user_*", "bpf_probe_read_*"),
    *("bpf_str*", "bpf_rcu_*", "bpf_cpumask_*", "bpf_get_*", "bpf_map_sum_elem_count", "bpf_path_d_path"),
    *("bpf_rdonly_cast", "bpf_cast_to_kern_ctx", "bpf_session_*", "bpf_wq_*", "bpf_obj_*", "bpf_kfunc_common_test"),
    *("bpf_put_file", "bpf_put_mem", "bpf_cpu_time_counter*", "bpf_preempt_*", "bpf_local_irq_*", "bpf_strn*"),
)


def decide(policy: Policy, who: Identity, findings: Findings, request: SealRequest) -> Decision:
    """The first rule for `who` that grants everything; else a refusal with the reasons of every rule for `who`."""
    reasons: list[str] = []
    first = ""
    for rule in policy.rules:
        if rule.matches(who):
            continue
        objections = rule.objections(findings, request)
        if not objections:
            return Decision(True, rule.name, _notes(findings), rule.lifetime, rule.per_minute)
        first = first or rule.name
        reasons += [f"rule {rule.name}: {reason}" for reason in objections]
    if not first:
        reasons = [f"no rule is for uid {who.uid}"]
    return Decision(False, first, tuple(reasons[:64]))


def _notes(findings: Findings) -> tuple[str, ...]:
    loose = [p for p in findings.programs if not p.enforceable and p.targets[0].partition(":")[0] in _KERNEL_TARGETS]
    return tuple(f"{p.name}: target {p.targets[0]} is not enforceable after signing" for p in loose[:8])


_KERNEL_TARGETS: Final = frozenset(("kprobe", "kretprobe", "tracepoint", "rawtracepoint", "none"))


def explain(policy: Policy, who: Identity, findings: Findings, request: SealRequest) -> list[str]:
    """One line for each rule in order, saying what it makes of the request: for people who write policies."""
    lines: list[str] = []
    for rule in policy.rules:
        if reason := rule.matches(who):
            lines.append(f"line {rule.line}: rule {rule.name} {reason}")
        elif objections := rule.objections(findings, request):
            lines += [f"line {rule.line}: rule {rule.name}: {objection}" for objection in objections]
        else:
            lines.append(f"line {rule.line}: rule {rule.name} allows it")
            break
    else:
        lines.append("refused: no rule allows it")
    return lines


class PolicyFile:
    """A policy file that is read again when it changes; a new one that is wrong leaves the old one in force.

    A change counts once the file has been left alone for SETTLE_NS.
    `trouble` is the PolicyError of the newest text, None if that text is in force. The file must be a regular one
    that belongs to root or to this user and that nobody else can write, in a directory of the same kind; it is opened
    once, and what is checked is what is read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.trouble: PolicyError | None = None
        self._policy: Policy | None = None
        self._seen: tuple[int, ...] = ()

    def current(self) -> Policy:
        """The policy in force; one stat(2) when nothing changed. Raises PolicyError only as long as there never was
        a good one."""
        try:
            found = os.stat(self.path, follow_symlinks=False)
        except OSError as error:
            self._seen, self.trouble = (), PolicyError(f"{self.path}: {error.strerror}")
        else:
            if (seen := _marks(found)) != self._seen and not (self._policy and _is_hot(found)):
                self._seen = seen
                self._load()
        if self._policy is None:
            raise self.trouble or PolicyError(f"{self.path}: not read")
        return self._policy

    def _load(self) -> None:
        try:
            self._policy, self.trouble = Policy.parse(_read_guarded(self.path), self.path), None
        except PolicyError as error:
            self.trouble = error


def _is_hot(found: os.stat_result) -> bool:
    """Whether the file was written a moment ago: half of a policy can be a good policy, one without its denials."""
    return 0 <= time.time_ns() - found.st_mtime_ns < SETTLE_NS


def _marks(found: os.stat_result) -> tuple[int, ...]:
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_mode, found.st_uid


def _read_guarded(path: str) -> bytes:
    """Bytes of a policy file that only root or this user could have written. Raises PolicyError."""
    try:
        folder = os.stat(os.path.dirname(os.path.abspath(path)))
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        reason = "is a symbolic link" if os.path.islink(path) else error.strerror
        raise PolicyError(f"{path}: {reason}") from None
    with open(file, "rb") as stream:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise PolicyError(f"{path}: is not a regular file")
        for what, entry in (("", found), ("its directory ", folder)):
            if entry.st_uid not in (0, os.geteuid()):
                raise PolicyError(f"{path}: {what}belongs to uid {entry.st_uid}", hint="it must belong to root")
            if entry.st_mode & 0o022 and not (what and entry.st_mode & stat.S_ISVTX):
                mode = stat.S_IMODE(entry.st_mode)
                raise PolicyError(f"{path}: {what}can be written by others (mode {mode:04o})", hint="chmod go-w")
        return stream.read((1 << 20) + 1)
