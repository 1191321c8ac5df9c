"""Test machines: stock Debian kernels under QEMU, with this machine's own root file system.

from bpfseal.runtime import vm
result = vm.run("7.3", command=["uname", "-r"])
with vm.boot("6.18") as machine:
    machine.run(["modprobe", "veth"])
"""

from __future__ import annotations

from bpfseal.runtime.vm.boot import boot, enforce, run
from bpfseal.runtime.vm.machine import Machine
from bpfseal.runtime.vm.result import VmError, VmResult, VmTimeout, VmUnavailable

__all__ = ["Machine", "VmError", "VmResult", "VmTimeout", "VmUnavailable", "boot", "enforce", "run"]
