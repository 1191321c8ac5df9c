"""Functions of the kernel and its modules: /proc/kallsyms, what ftrace lists, what BTF knows."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Final

from bpfseal.errors import BpfsealError

if TYPE_CHECKING:
    from bpfseal.runtime.probes.world import World

# Tracing these has brought machines down although the kernel lets one (see kprobe_multi_test.c of its selftests).
_DANGEROUS: Final = frozenset(("arch_cpu_idle", "default_idle", "bpf_dispatcher_xdp_func"))
_DANGEROUS_START: Final = ("rcu_", "__ftrace_invalid_address__")
_KALLSYMS: Final = "/proc/kallsyms"


class KernelFunctions:
    """Read on demand; each source once."""

    def __init__(self, world: World) -> None:
        self._world = world

    def address(self, name: str) -> int | None:
        """Address of a symbol, None when there is none or addresses are hidden (kernel.kptr_restrict)."""
        data = self._kallsyms
        needle = f" {name}\n".encode()
        module = f" {name}\t[".encode()
        at = data.find(needle)
        if at < 0:
            at = data.find(module)
        if at < 0:
            return None
        start = data.rfind(b"\n", 0, at) + 1
        return int(data[start : data.index(b" ", start)], 16) or None

    @cached_property
    def symbols(self) -> list[tuple[str, str]]:
        """(function, module or "") of every text symbol, as they stand in memory."""
        found = []
        for line in self._kallsyms.decode("utf-8", "replace").split("\n"):
            parts = line.split()
            if len(parts) >= 3 and parts[1] in "tTwW":
                found.append((parts[2], parts[3][1:-1] if len(parts) > 3 else ""))
        return found

    @cached_property
    def traceable(self) -> dict[tuple[str, str], None]:
        """(function, module or "") of what can be probed, in the order of the source.

        That is ftrace's list; where it may not be read, every function that the symbol table and, where there is BTF,
        BTF have: the kernel then decides when the probe is attached.
        """
        listed = None
        try:
            listed = self._world.tracefs.traceable_functions()
        except BpfsealError:
            pass
        if listed is None:
            listed = [pair for pair in self.symbols if "." not in pair[0] or pair[0].endswith(".isra.0")]
        return dict.fromkeys(pair for pair in listed if safe(pair[0]))

    @cached_property
    def listed_by_ftrace(self) -> bool:
        """Whether `traceable` is ftrace's own list."""
        try:
            return self._world.tracefs.traceable_functions() is not None
        except BpfsealError:
            return False

    def modules(self) -> list[str]:
        """Names of the loaded modules."""
        try:
            with open("/proc/modules") as file:
                return [line.split(" ", 1)[0] for line in file]
        except OSError:
            return []

    @cached_property
    def _kallsyms(self) -> bytes:
        """The whole file with every line ended; empty where it cannot be read (7 MB, 25 ms)."""
        try:
            fd = os.open(_KALLSYMS, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return b""
        try:
            chunks = []
            while chunk := os.read(fd, 1 << 20):
                chunks.append(chunk)
            return b"".join(chunks)
        except OSError:
            return b""
        finally:
            os.close(fd)


def safe(name: str) -> bool:
    """Whether tracing a function is not known to hang machines."""
    return name not in _DANGEROUS and not name.startswith(_DANGEROUS_START) and ".part." not in name
