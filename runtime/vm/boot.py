"""Deciding what machine it is to be, booting it, and the shortest way to run one command."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bpfseal.runtime.vm import qemu
from bpfseal.runtime.vm.kernels import obtain
from bpfseal.runtime.vm.machine import Machine, Plan
from bpfseal.runtime.vm.result import VmError, VmResult

__all__ = ["BOOT_TIMEOUT", "boot", "enforce", "parse_size", "run"]

BOOT_TIMEOUT = 120.0  # seconds; 5 to 10 are usual under emulation, but the host may be busy
# A guest under KVM is up within two seconds. One that is not, has met a KVM that cannot run it.
_KVM_BOOT_TIMEOUT = 20.0

_kvm_failed = False


def parse_size(text: str) -> int:
    """`2G`, `512M` or a number of MiB → MiB. Raises ValueError."""
    match = re.fullmatch(r"(\d+)([MmGg]?)", text)
    if match is None:
        raise ValueError(f"not a size: {text!r} (try 2G or 1536M)")
    number = int(match[1]) * (1024 if match[2] in "Gg" and match[2] else 1)
    if not 256 <= number <= 1 << 20:
        raise ValueError(f"memory of {text}: 256M is the least that boots")
    return number


def boot(
    kernel: str = "6.18",
    *,
    memory: str | int = "1G",
    cpus: int = 2,
    writable: bool = False,
    shares: Sequence[str | os.PathLike[str]] = (),
    keep_tmp: bool = False,
    parameters: str = "",
    boot_timeout: float = BOOT_TIMEOUT,
    limit: float | None = None,
    console_file: Path | None = None,
    say: Callable[[str], object] | None = None,
) -> Machine:
    """Boot a test kernel with this machine's root file system; returns when commands can be run.

    kernel: a series (`7.3`) or an exact version (`7.3.4`). It is downloaded when it is not in the cache.
    memory: like `2G`, or a number of MiB.
    writable: guest writes reach the host (`--rw`). Otherwise they go to a tmpfs, and the host refuses them.
    shares: host directories that the guest may write to, at the same path.
    keep_tmp: show the host's /tmp (below the overlay) instead of an empty one. Done by itself when the
        working directory, the interpreter or this package live there.
    parameters: more kernel parameters.
    limit: seconds after which the machine is killed whatever it does.

    Raises VmUnavailable when there can be no machine here, VmTimeout, VmError.
    """
    qemu.find_qemu()
    qemu.find_virtiofsd()
    try:
        memory_mib = parse_size(str(memory))
    except ValueError as error:
        raise VmError(str(error), status=2) from None
    needed = [sys.executable, sys.prefix, sys.base_prefix, __file__, os.getcwd()]
    plan = Plan(
        kernel=obtain(kernel, say=say),
        memory_mib=memory_mib,
        cpus=cpus,
        writable=writable,
        shares=tuple(_share(path) for path in shares),
        keep_tmp=keep_tmp or _under_tmp(needed),
        parameters=parameters,
        accel=qemu.accelerator(),
        limit=limit,
    )
    if plan.accel == "kvm" and "BPFSEAL_VM_ACCEL" not in os.environ:
        global _kvm_failed
        if not _kvm_failed:
            try:
                return Machine(plan, boot_timeout=min(boot_timeout, _KVM_BOOT_TIMEOUT), console_file=console_file)
            except VmError as error:
                _kvm_failed = True
                if say:
                    say(f"KVM does not work here, falling back to emulation: {error.message}")
        plan = dataclasses.replace(plan, accel="tcg")
    return Machine(plan, boot_timeout=boot_timeout, console_file=console_file)


def _share(path: str | os.PathLike[str]) -> str:
    resolved = os.path.realpath(path)
    if not os.path.isdir(resolved):
        raise VmError(f"cannot share {os.fspath(path)}: not a directory", status=2)
    if resolved == "/":
        raise VmError("cannot share /: to let the guest write everywhere, make the root writable (--rw)", status=2)
    return resolved


def _under_tmp(paths: Iterable[str | os.PathLike[str]]) -> bool:
    return any(os.path.realpath(path).startswith("/tmp/") for path in paths)


def enforce(machine: Machine, *, timeout: float = 300.0) -> None:
    """Turn on enforcement in the guest, with a signing helper of its own that outlives this call.

    Raises VmError with the reason when that fails.
    """
    command = [sys.executable, "-m", "bpfseal", "enforce", "on", "--start-helper"]
    result = machine.run(command, timeout=timeout)
    if result.status:
        lines = [
            line for line in (result.stderr or result.stdout).decode(errors="replace").splitlines() if line.strip()
        ]
        errors = [line for line in lines if re.search(r"(?i)\berror: ", line)]
        hints = [line for line in lines if line.startswith("HINT: ")]
        reason = (errors or lines or [f"status {result.status}"])[-1].strip().removeprefix("ERROR: ")
        raise VmError(
            f"enforcement could not be turned on in the guest: {reason}",
            hint=hints[-1].removeprefix("HINT: ") if hints else None,
        )


def run(
    kernel: str = "6.18",
    *,
    command: Sequence[str],
    timeout: float = 120.0,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    memory: str | int = "1G",
    input: bytes = b"",
    **options: Any,
) -> VmResult:
    """Boot, run one command, be gone. `timeout` covers both; `options` are those of `boot`."""
    started = time.monotonic()
    with boot(kernel, memory=memory, boot_timeout=timeout, limit=timeout + 10, **options) as machine:
        left = max(1.0, timeout - (time.monotonic() - started))
        return machine.run(command, timeout=left, env=env, cwd=cwd, input=input)
