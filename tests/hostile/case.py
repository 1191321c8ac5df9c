"""What a case of the hostile corpus is, and the small kernel that its ids refer to."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from bpfseal.signer.btf import Btf
from bpfseal.signer.bundle import Bundle
from bpfseal.signer.policy import Policy
from tests.signer_analysis.kit import BtfWriter


@dataclass(frozen=True)
class Case:
    """A bundle (or bytes that pretend to be one) that must be refused.

    name    what is wrong with it
    build   makes it
    rule    Refusal.rule, "policy" where analysis lets it pass and policy refuses, "decode" for bytes
    reason  must be part of the message
    """

    name: str
    build: Callable[[], Bundle | bytes]
    rule: str
    reason: str


def _kernel() -> tuple[Btf, dict[str, int]]:
    w = BtfWriter()
    ids = {"int": w.int()}
    ids["void*"] = w.add(2)
    const_void = w.add(10)
    ids["const void*"] = w.add(2, third=const_void)
    arguments = struct.pack("<IIII", w.string("dst"), ids["void*"], w.string("src"), ids["const void*"])
    proto = w.add(13, "", ids["int"], 2, arguments)
    for name in ("vfs_read", "vfs_write", "bpf_prog_put", "bpf_lsm_file_open", "bpf_iter_task", "commit_creds"):
        ids[name] = w.add(12, name, proto, 1)
    for name in ("bpf_copy_from_user_str", "bpf_modify_return_test_tp", "bpf_send_signal_task"):
        ids[name] = w.add(12, name, proto, 1)
        w.add(17, "bpf_kfunc", ids[name], tail=struct.pack("<i", -1))
    pointer = w.add(2, third=proto)
    ids["btf_trace_sched_switch"] = w.add(8, "btf_trace_sched_switch", pointer)
    ids["jiffies"] = w.add(14, "jiffies", ids["int"], tail=struct.pack("<I", 1))
    ids["task_struct"] = w.struct("task_struct", 8, ("pid", ids["int"], 0))
    return Btf(w.bytes()), ids


KERNEL, IDS = _kernel()

POLICY = Policy.parse(
    b"""
version = 1
[[rule]]
name = "observers"
uid = 1000
probes = ["tracepoint:*", "kprobe:vfs_*", "fentry:vfs_*", "rawtracepoint:*", "iter:*", "lsm:*"]
deny_probes = ["fentry:*:vfs_write"]
classes = ["basic", "time", "identity", "map", "output", "read-kernel", "read-user"]
kfuncs = ["bpf_copy_from_user_str"]
map_types = ["hash", "array", "percpu_hash", "ringbuf"]
max_map_bytes = "64MiB"
max_insns = 100000
""",
    "hostile.toml",
)
