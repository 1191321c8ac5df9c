"""Where a bundle was made and where it can run: the kernel by its type information, files by their contents."""

from __future__ import annotations

import hashlib
import os
import re

from bpfseal.errors import BpfsealError
from bpfseal.signer.bundle import Bundle
from bpfseal.signer.sealed_file import FileId, KernelId, SealedFile

VMLINUX = "/sys/kernel/btf/vmlinux"
_MAX_BTF = 64 << 20
# Words whose values are addresses or numbers of one boot.
_OF_A_BOOT = re.compile(
    r"\b(kaddr|percpu_kaddr|cgroupid|watchpoint|asyncwatchpoint|w|aw)\b\s*[(:]|\b0x[0-9a-f]{12,16}\b"
)


class WrongPlace(BpfsealError):
    """A file that was made for another kernel or other files."""


def btf_digest(path: str = VMLINUX) -> bytes:
    """sha256 of a kernel's type information, empty where there is none. Raises BpfsealError for a file that was named
    and cannot be read."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BTF + 1)
    except OSError as error:
        if path == VMLINUX:
            return b""
        raise BpfsealError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > _MAX_BTF:
        raise BpfsealError(f"{path} is too long to be type information")
    return hashlib.sha256(data).digest()


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def this_kernel(*, boot: bool = False) -> KernelId:
    """The running kernel. `boot`: with this boot's id."""
    system = os.uname()
    return KernelId(release=system.release, machine=system.machine, btf=btf_digest(), boot=boot_id() if boot else "")


def needs_this_boot(source: str) -> bool:
    """Whether a script has values of this boot in it: addresses of symbols, ids of cgroups. Comments count too, which
    costs a file that could have lived longer."""
    return _OF_A_BOOT.search(source) is not None


def files_of(bundle: Bundle) -> tuple[FileId, ...]:
    """The files whose offsets are in the bundle. Raises BpfsealError for one that cannot be read."""
    paths = {
        attach.target
        for program in bundle.programs
        for attach in program.attach
        if attach.kind in ("uprobe", "uprobe_multi", "usdt") and attach.target.startswith("/")
    }
    return tuple(FileId(path=path, sha256=_digest(path)) for path in sorted(paths))


def _digest(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise BpfsealError(f"cannot read {path}: {error.strerror}") from None


def demand(file: SealedFile) -> None:
    """Raises WrongPlace unless the file can run here."""
    kernel, here = file.kernel, this_kernel(boot=bool(file.kernel.boot))
    if kernel.machine != here.machine:
        raise WrongPlace(f"it was built for {kernel.machine}, this is {here.machine}")
    if file.bound and kernel.btf != here.btf:
        same = " (another build of it)" if kernel.release == here.release else ""
        raise WrongPlace(
            f"it was built for kernel {kernel.release}, and this is {here.release}{same}: their types differ",
            hint="build it on this kernel, or with this kernel's type information",
        )
    if kernel.boot and kernel.boot != here.boot:
        raise WrongPlace("it holds addresses or ids of another boot of a machine", hint="build it again")
    for target in file.files:
        if _digest(target.path) != target.sha256:
            raise WrongPlace(
                f"it was built for another {target.path}: offsets in it would be wrong", hint="build it again"
            )
