"""The helper's service with fixed rules and a log at a given path, signing whatever this kernel can do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bpfseal.signer.abi import Abi
from bpfseal.signer.audit import AuditLog
from bpfseal.signer.keys import Keys, SoftKey
from bpfseal.signer.policy import Policy
from bpfseal.signer.seal import Sealer
from bpfseal.signer.service import Facts, FixedPolicy, Service
from bpfseal.signer.sync import background_syncs

POLICY = f"""
version = 1
[[rule]]
name = "fuzz"
uid = {os.getuid()}
probes = "tracepoint:syscalls:sys_enter_open*"
classes = ["basic", "map", "output"]
map_types = ["array", "ringbuf"]
max_insns = 64
max_map_bytes = 65536
per_minute = 0
"""


def make_service(log: Path, say: Callable[[str], None] = lambda line: None) -> Service:
    keys = Keys(SoftKey.generate("ec"), "ec", 600, ring=False)
    abi = Abi(2, None, "", can_verify=True)  # so that signing happens, whatever this kernel does
    facts = Facts("system", os.getpid(), "ephemeral", "fuzz")
    policy = FixedPolicy(Policy.parse(POLICY.encode()))
    audit = AuditLog(str(log), segment_bytes=4 << 20, syncs=background_syncs())
    admins = frozenset((os.getuid(),))
    return Service(facts, keys, Sealer(keys, abi, bind_tgid=True), policy, audit, admins=admins, say=say)
