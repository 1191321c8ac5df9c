"""What the kernel wants of a user who traces, beside a policy that allows it."""

from __future__ import annotations

TRACEFS = "/sys/kernel/tracing"

# Numbers of include/uapi/linux/capability.h. Programs that trace take both (is_perfmon_prog_type and the checks of
# bpf_prog_load in kernel/bpf/syscall.c); who has CAP_SYS_ADMIN has them as well (bpf_capable, perfmon_capable).
_NEEDED = {39: "CAP_BPF", 38: "CAP_PERFMON"}
_ADMIN = 21


def lacking() -> list[str]:
    """Names of the capabilities that this process would need to trace and has not."""
    with open("/proc/self/status") as file:
        held = next((int(line.split()[1], 16) for line in file if line.startswith("CapEff:")), 0)
    if held >> _ADMIN & 1:
        return []
    return [name for number, name in _NEEDED.items() if not held >> number & 1]
