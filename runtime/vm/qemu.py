"""QEMU and virtiofsd: where they are, and the command lines that boot a Debian cloud kernel.

Facts the command line rests on: Debian's cloud kernels have CONFIG_VIRTIO_PCI, CONFIG_VIRTIO_FS and
CONFIG_VIRTIO_CONSOLE built in, so a kernel alone (no initramfs) can mount a virtiofs root and talk over a
virtio-serial port. vhost-user devices need guest memory that is shared with the daemon.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bpfseal.runtime.vm.result import VmUnavailable

__all__ = ["accelerator", "find_qemu", "find_virtiofsd", "kernel_command_line", "qemu_arguments", "virtiofsd_arguments"]

_VIRTIOFSD = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd")
# capability comes first by itself; the rest is the order of Debian's CONFIG_LSM without those that need a
# policy to be of any use. `bpf` must be there for enforcement.
LSM = "landlock,lockdown,yama,integrity,apparmor,bpf,ipe"

# Everything TCG can do, but for what it does slowly: without ERMS, libc and kernel copy with ordinary moves
# rather than `rep movsb`, which is emulated byte by byte (starting Python takes 1.2 s instead of 2.2 s);
# AVX string functions cost a little more of the same; five-level page tables one more step per TLB miss.
_TCG_CPU = "max,la57=off,erms=off,avx=off,avx2=off"


def find_qemu() -> str:
    """Path of qemu-system-x86_64. Raises VmUnavailable with the package to install."""
    path = shutil.which("qemu-system-x86_64")
    if path is None:
        raise VmUnavailable("qemu-system-x86_64 is not installed", hint="install it: apt-get install qemu-system-x86")
    return path


def find_virtiofsd() -> str:
    """Path of virtiofsd, which Debian keeps off the PATH. Raises VmUnavailable with the package to install."""
    for path in (*_VIRTIOFSD, shutil.which("virtiofsd")):
        if path and os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    raise VmUnavailable(
        "virtiofsd is not installed",
        hint="install it: apt-get install qemu-system-common (Debian 12) or virtiofsd (Debian 13)",
    )


def virtiofsd_arguments(path: str, export: str, *, privileged: bool) -> list[str]:
    """The daemon serving `export`; the keeper adds the listening socket.

    There are two programs of this name: the one in C that came with QEMU up to 7.2, and its successor in Rust.
    Without privilege the daemon runs in a user namespace where it cannot make more namespaces: there, chroot.
    """
    sandbox = "namespace" if privileged else "chroot"
    try:
        usage = subprocess.run(
            [path, "--help"], capture_output=True, text=True, errors="replace", timeout=30, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VmUnavailable(f"{path} does not run: {error}") from None
    if "--shared-dir" in usage:
        arguments = [path, "--shared-dir", export, "--cache=auto", f"--sandbox={sandbox}", "--log-level=error"]
        if "--no-announce-submounts" in usage:
            # an announced submount is an automount point in the guest, and below an overlay that is EREMOTE
            arguments.append("--no-announce-submounts")
        return arguments
    return [path, "-o", f"source={export},cache=auto,sandbox={sandbox},log_level=err"]


def accelerator() -> str:
    """`kvm` where it can run a stock kernel, else `tcg`. BPFSEAL_VM_ACCEL overrides.

    An openable /dev/kvm is not enough: in a guest of some clouds it belongs to a paravirtual back end that
    runs only kernels built for it. Real hardware support shows as the CPU flag vmx or svm.
    """
    wanted = os.environ.get("BPFSEAL_VM_ACCEL", "auto")
    if wanted in ("kvm", "tcg"):
        return wanted
    if wanted != "auto":
        raise VmUnavailable(f"BPFSEAL_VM_ACCEL={wanted}: known are auto, kvm, tcg")
    try:
        flags = next(
            line.split() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")
        )
    except (OSError, StopIteration):
        return "tcg"
    usable = ("vmx" in flags or "svm" in flags) and os.access("/dev/kvm", os.R_OK | os.W_OK)
    return "kvm" if usable else "tcg"


def kernel_command_line(extra: str = "") -> str:
    """Parameters for the kernel. `extra` may hold any: what the kernel does not know, process 1 ignores.

    (The kernel hands such words to process 1 as arguments, and `name=value` as its environment. The latter
    is how the agent's interpreter is named.)
    """
    guest = Path(__file__).resolve().parent / "guest"
    init = guest / "init.sh"
    if not os.access(init, os.X_OK):
        raise VmUnavailable(f"{init} is not executable, so the test kernel cannot start it")
    parameters = [
        "root=root rootfstype=virtiofs rw",
        _quoted(f"init={init}"),
        _quoted(f"bpfseal_python={os.path.realpath(sys.executable)}"),
        _quoted(f"bpfseal_agent={guest / 'init.py'}"),
        # the guest's kernel dies → QEMU ends, at once and with a status of its own
        "panic=-1 oops=panic",
        "console=ttyS0",
        f"lsm={LSM}",
        # no machine to tend: no watchdog false alarms under emulation, no probing of what is not there
        "nowatchdog tsc=reliable no_timer_check edd=off",
        extra,
    ]
    line = " ".join(part for part in parameters if part)
    if len(line) > 2047:  # COMMAND_LINE_SIZE of x86 is 2048
        raise VmUnavailable(f"the kernel command line has {len(line)} characters; at most 2047 are possible")
    return line


def _quoted(parameter: str) -> str:
    return f'"{parameter}"' if " " in parameter else parameter


def qemu_arguments(
    *,
    qemu: str,
    accel: str,
    kernel: Path,
    memory_mib: int,
    cpus: int,
    console_fd: int,
    agent_fd: int,
    append: str,
) -> list[str]:
    """The machine, all but the file system's chardev `fs`, which the keeper adds."""
    cpu = "host" if accel == "kvm" else _TCG_CPU
    return [
        qemu,
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", "q35", "-accel", "kvm" if accel == "kvm" else "tcg,thread=multi", "-cpu", cpu),
        *("-m", f"{memory_mib}M", "-smp", str(cpus)),
        *("-object", f"memory-backend-memfd,id=ram,size={memory_mib}M,share=on"),
        *("-numa", "node,memdev=ram"),
        *("-device", "vhost-user-fs-pci,chardev=fs,tag=root,queue-size=1024"),
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"file,id=console,path=/proc/self/fd/{console_fd},append=on"),
        *("-serial", "chardev:console"),
        *("-chardev", f"socket,id=agent,fd={agent_fd}"),
        *("-device", "virtserialport,chardev=agent,name=bpfseal.agent"),
        *("-kernel", str(kernel), "-append", append),
    ]
