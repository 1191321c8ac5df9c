"""`bpfseal --info`: features as the test runner of bpftrace reads them; `bpfseal doctor` is for people."""

from __future__ import annotations

import os
import sys

from bpfseal import __version__

# What is printed → helper function in `enum bpf_func_id`.
_HELPERS = {
    "probe_read_kernel": "probe_read_kernel",
    "dpath": "d_path",
    "send_signal": "send_signal",
    "get_func_ip": "get_func_ip",
    "get_tai_ns": "ktime_get_tai_ns",
    "jiffies64": "jiffies64",
    "lookup_percpu_elem": "map_lookup_percpu_elem",
    "skboutput": "skb_output",
    "loop": "loop",
}
# What is printed → a kernel function that is there only with the feature.
_FUNCTIONS = {
    "kprobe_multi": "kprobe_multi_link_handler",
    "uprobe_multi": "uprobe_multi_link_handler",
    "kprobe_session": "bpf_session_is_return",
}


def main() -> int:
    """Print; status 0."""
    from bpfseal.compiler.kernel import KernelTypes
    from bpfseal.errors import BpfsealError

    try:
        types: KernelTypes | None = KernelTypes()
    except BpfsealError:
        types = None
    write = sys.stdout.write
    name = os.uname()
    write(f"System\n  OS: {name.sysname} {name.release} {name.version}\n  Arch: {name.machine}\n\n")
    write(f"Build\n  version: v{__version__}\n  bcc library path resolution: yes\n  libdw (DWARF support): yes\n")
    write(f"  dwunwind (DWARF stack unwinding): {_yes(name.machine == 'x86_64')}\n")
    write("  blazesym (advanced symbolization): no\n\nKernel helpers\n")
    for label, helper in _HELPERS.items():
        there = types is not None and types.constant(f"BPF_FUNC_{helper}") is not None
        write(f"  {label}: {_yes(there)}\n")
    write(f"  Loop support: {_yes(types is not None)}\n\nKernel features\n  btf: {_yes(types is not None)}\n")
    write(f"  module btf: {_yes(len(_modules()) > 0)}\n\nProbe types\n")
    has = {label: _function(types, function) for label, function in _FUNCTIONS.items()}
    has["kprobe_session"] = has["kprobe_session"] and has["kprobe_multi"]
    for label, there in has.items():
        write(f"  {label}: {_yes(there)}\n")
    write(f"  iter: {_yes(_function(types, 'bpf_iter_task'))}\n")
    write(f"  fentry: {_yes(_fentry())}\n")
    return 0


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _modules() -> list[str]:
    try:
        return [name for name in os.listdir("/sys/kernel/btf") if name != "vmlinux"]
    except OSError:
        return []


def _function(types: object, name: str) -> bool:
    from bpfseal.signer import btf as raw
    from bpfseal.signer.btf import Btf

    return types is not None and bool(Btf.vmlinux().find(name, raw.FUNC))


def _fentry() -> bool:
    """Whether an fentry program loads: lockdown refuses it on some kernels that are built with it."""
    import struct

    from bpfseal.errors import BpfsealError
    from bpfseal.signer import btf as raw
    from bpfseal.signer.bpf import prog_load
    from bpfseal.signer.btf import Btf

    exit_zero = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)
    try:
        target = Btf.vmlinux().find("vfs_read", raw.FUNC)
        os.close(prog_load(26, exit_zero, expected_attach_type=24, attach_btf_id=target))
    except (OSError, BpfsealError):
        return False
    return True
