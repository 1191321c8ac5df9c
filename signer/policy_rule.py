"""`Rule`: one rule of a policy, and what it objects to in a bundle."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from bpfseal.errors import BpfsealError
from bpfseal.signer import helpers as known
from bpfseal.signer.bundle import SealRequest
from bpfseal.signer.check import Findings, ProgramFindings
from bpfseal.signer.filter import SHARED, all_names
from bpfseal.signer.identity import Identity


class PolicyError(BpfsealError):
    """A policy that is not in force because something in it is wrong; the message begins with FILE:LINE."""

    status = 2


class Patterns:
    """A list of shell patterns, compiled once: `*` matches anything, `/` and `:` included."""

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self.patterns = tuple(patterns)
        self._match = re.compile("|".join(map(fnmatch.translate, self.patterns)) or r"(?!)").match

    def match(self, text: str) -> bool:
        return self._match(text) is not None

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patterns) and other.patterns == self.patterns

    def __hash__(self) -> int:
        return hash(self.patterns)

    def __repr__(self) -> str:
        return f"Patterns({self.patterns!r})"


_NONE: Final = Patterns()


class Rule(Struct, frozen=True):
    """One rule. Empty identity fields match anyone; a rule without any needs `anyone`.

    lifetime     longest life of a seal in seconds
    per_minute   seals for one uid in a minute under this rule, 0 for no limit
    existing_maps  programs may use maps that exist already, which the client names
    enforceable  every target must be part of the signed load or guarded by address
    """

    name: str
    line: int = 0
    anyone: bool = False
    uid: frozenset[int] = frozenset()
    gid: frozenset[int] = frozenset()
    cgroup: Patterns = _NONE
    exe: Patterns = _NONE
    exe_sha256: frozenset[str] = frozenset()
    exe_verity: frozenset[str] = frozenset()
    probes: Patterns = _NONE
    deny_probes: Patterns = _NONE
    classes: frozenset[str] = frozenset()
    helpers: frozenset[str] = frozenset()
    kfuncs: Patterns = _NONE
    variables: Patterns = _NONE
    map_types: frozenset[str] = frozenset()
    sleepable: bool = False
    existing_maps: bool = False
    enforceable: bool = False
    require_source: bool = False
    max_programs: int = 1024
    max_insns: int = 65536
    max_maps: int = 64
    max_map_bytes: int = 256 << 20
    max_targets: int = 4096
    lifetime: int = 300
    per_minute: int = 60

    def matches(self, who: Identity) -> str:
        """Empty if the rule is for `who`, else why it is not."""
        if self.uid and who.uid not in self.uid:
            return f"is not for uid {who.uid}"
        if self.gid and who.gid not in self.gid and self.gid.isdisjoint(who.groups):
            return f"is for other groups than those of uid {who.uid}"
        if self.cgroup and not self.cgroup.match(who.cgroup_path):
            return f"is not for cgroup {who.cgroup_path or 'unknown'}"
        if self.exe and not (who.exe and self.exe.match(who.exe)):
            return f"is not for executable {who.exe or 'unknown'}"
        if self.exe_sha256 and who.exe_sha256 not in self.exe_sha256:
            return "is for executables with another sha256"
        if self.exe_verity and (who.exe_verity or "").removeprefix("sha256:") not in self.exe_verity:
            return "is for executables with another fs-verity digest"
        return ""

    def objections(self, findings: Findings, request: SealRequest) -> list[str]:
        """Everything in a bundle that the rule does not grant, one line each."""
        found: list[str] = []
        targets = sum(len(p.targets) for p in findings.programs)
        for what, count, limit in (
            ("programs", len(findings.programs), self.max_programs),
            ("instructions", findings.insns, self.max_insns),
            ("maps", len(findings.maps), self.max_maps),
            ("bytes of maps", findings.map_bytes, self.max_map_bytes),
            ("targets", targets, self.max_targets),
            ("seconds of life", request.lifetime, self.lifetime),
        ):
            if count > limit:
                found.append(f"{count} {what}, {limit} allowed")
        if self.require_source and not findings.source:
            found.append("source text is required")
        for map_ in findings.maps:
            if map_.id and not self.existing_maps:
                found.append(f"map {map_.name}: existing maps are not granted")
            if map_.type not in self.map_types:
                found.append(f"map {map_.name}: type {map_.type} is not granted")
            for name in sorted(map_.classes - self.classes):
                found.append(f"map {map_.name}: values need class {name}, which is not granted")
        for program in findings.programs:
            found += [f"{program.name}: {reason}" for reason in self._program(program)]
        return found

    def _program(self, program: ProgramFindings) -> Iterable[str]:
        explained: set[str] = set()
        for name in program.attributes.helpers:
            needs = known.HELPER_BY_NAME[name].classes
            explained.update(needs)
            if name not in self.helpers and not self.classes.issuperset(needs):
                yield f"helper {name} ({', '.join(needs)}) is not granted"
        for name in program.attributes.kfuncs:
            if not self.kfuncs.match(name):
                yield f"kfunc {name} is not granted"
        for name in sorted(program.classes - explained - self.classes):
            yield f"class {name} is not granted"
        for name in program.variables:
            if not self.variables.match(name):
                yield f"kernel variable {name} is not granted"
        if program.sleepable and not self.sleepable:
            yield "sleepable programs are not granted"
        if self.enforceable and not program.enforceable:
            yield f"target {program.targets[0]} is not enforceable: not part of the load, not guarded by address"
        yield from self._targets(program)

    def _targets(self, program: ProgramFindings) -> Iterable[str]:
        """At most eight refused targets by name."""
        refused = 0
        for target in program.targets:
            reason = self._target(target, program.type)
            refused += bool(reason)
            if reason and refused <= 8:
                yield f"probe {target} {reason}"
        if refused > 8:
            yield f"{refused - 8} more probes are not granted"

    def _target(self, target: str, type: str) -> str:
        """Why a target is not granted, empty if it is."""
        provider, _, rest = target.partition(":")
        forms = [target]
        wider = ""
        parts: tuple[str, ...] = ()
        if provider in ("fentry", "fexit", "fmod_ret"):
            forms.append(f"{provider}:{rest.partition(':')[2]}")
        elif provider == "rawtracepoint" and rest in SHARED:
            parts = all_names(rest)
        elif rest.startswith("syscalls:") and type != "tracepoint":
            wider = "rawtracepoint:" + "_".join(rest.removeprefix("syscalls:").split("_")[:2])
        if self.deny_probes and any(map(self.deny_probes.match, (*forms, *parts))):
            return "is denied"
        granted = self.probes.match
        if any(map(granted, forms)) or (wider and granted(wider)) or (parts and all(map(granted, parts))):
            return ""
        return "is not granted"
