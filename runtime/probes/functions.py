"""Functions of the kernel and its modules: /proc/kallsyms, what ftrace lists, what BTF knows."""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from functools import cached_property
from typing import TYPE_CHECKING, Final

from bpfseal.errors import BpfsealError

if TYPE_CHECKING:
    from bpfseal.runtime.probes.world import World

# Tracing these has brought machines down although the kernel lets one (see kprobe_multi_test.c of its selftests).
_DANGEROUS: Final = frozenset(("arch_cpu_idle", "default_idle", "bpf_dispatcher_xdp_func"))
_DANGEROUS_START: Final = ("rcu_", "__ftrace_invalid_address__")
_SAFE: Final = rf"(?!{'|'.join(_DANGEROUS_START)}|(?:{'|'.join(_DANGEROUS)})(?!\S)|\S*\.part\.)"
# One expression over the whole text: 60,000 lines take 20 ms, a loop in Python takes five times that.
_SYMBOL: Final = re.compile(rf"^\S+ [tTwW] {_SAFE}([^\s.]+)(?:[ \t]+\[([^\]\n]+)\])?$", re.MULTILINE)
_FORBIDDEN_LINE: Final = re.compile(r"^\S+\t(\S+)(?:[ \t]+\[([^\]\n]+)\])?", re.MULTILINE)
_KALLSYMS: Final = "/proc/kallsyms"
_FORBIDDEN: Final = "/sys/kernel/debug/kprobes/blacklist"


_FILE: list[str] = []


def list_functions_by(path: str) -> None:
    """Take the functions that can be traced from a file in the form of available_filter_functions
    (--traceable-functions), from now on, in this process. Raises ProbeError."""
    from bpfseal.runtime.probes import ProbeError

    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            _FILE[:] = [file.read()]
    except OSError as error:
        raise ProbeError(f"cannot read the traceable functions from {path}: {error.strerror}") from None


def listed_by_file() -> bool:
    """Whether a file says what can be traced."""
    return bool(_FILE)


class KernelFunctions:
    """Read on demand; each source once."""

    def __init__(self, world: World) -> None:
        self._world = world

    def address(self, name: str) -> int | None:
        """Address of a symbol, None when there is none or addresses are hidden (kernel.kptr_restrict)."""
        found = re.search(rb"^([0-9a-f]+) \S " + re.escape(name.encode()) + rb"(?:\t.*)?$", self._kallsyms, re.M)
        return (int(found[1], 16) or None) if found is not None else None

    def has(self, function: str, module: str | None) -> bool:
        """Whether there is such a function that may be probed; in `module`, "" for the kernel itself, None anywhere."""
        if module is not None:
            return function in self.traceable.get(module, ())
        if self.listed_by_ftrace:
            return function in self.names or self._is_other_name(function)
        return re.search(rb" [tTwW] " + re.escape(function.encode()) + rb"(?:\t|$)", self._kallsyms, re.M) is not None

    def _is_other_name(self, function: str) -> bool:
        """Whether `function` is another name for one that is listed: ftrace gives one name for each place, and system
        calls without arguments have three (`__SYS_STUB0` in arch/x86/include/asm/syscall_wrapper.h)."""
        if not (address := self.address(function)):
            return False
        there = re.findall(rb"^0*%x [tTwW] (\S+)$" % address, self._kallsyms, re.M)
        return any(name.decode() in self.names for name in there)

    @cached_property
    def traceable(self) -> dict[str, set[str]]:
        """Names of what can be probed, by module, "" for the kernel itself.

        That is ftrace's list; where it may not be read, every function of the symbol table that has a plain name: the
        kernel then decides when the probe is attached. What kprobes may not touch is left out of either.
        """
        if self._listed is not None:
            found = _by_module(self._listed)
        else:
            found = {"": set()}
            for name, module in _SYMBOL.findall(self._kallsyms.decode("utf-8", "replace")):
                found.setdefault(module, set()).add(name)
        for name, module in self._forbidden:
            found.get(module, set()).discard(name)
        return found

    @cached_property
    def names(self) -> set[str]:
        """Names of all that can be probed, whatever module they are in."""
        return set().union(*self.traceable.values())

    @cached_property
    def listed_by_ftrace(self) -> bool:
        """Whether `traceable` is ftrace's own list."""
        return self._listed is not None

    @cached_property
    def _listed(self) -> str | None:
        if _FILE:
            return _FILE[0]
        try:
            return self._world.tracefs.traceable_functions()
        except BpfsealError:
            return None

    @cached_property
    def _forbidden(self) -> list[tuple[str, str]]:
        """(function, module) of the kernel's own list; nothing where debugfs is not mounted."""
        try:
            with open(_FORBIDDEN, encoding="utf-8", errors="replace") as file:
                return _FORBIDDEN_LINE.findall(file.read())
        except OSError:
            return []

    def modules(self) -> list[str]:
        """Names of the loaded modules."""
        try:
            with open("/proc/modules") as file:
                return [line.split(" ", 1)[0] for line in file]
        except OSError:
            return []

    @cached_property
    def _kallsyms(self) -> bytes:
        """The whole file; empty where it cannot be read. The kernel takes 80 ms to write it (7 MB)."""
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


def _by_module(text: str) -> dict[str, set[str]]:
    """The safe ones of "FUNCTION [MODULE]" lines. Most have no module: those are sorted out by whole sets, which for
    60,000 lines takes a tenth of the time that an expression over the text takes."""
    lines = text.split("\n")
    in_modules = [line for line in lines if line[-1:] == "]"]
    plain = set(lines)
    plain.difference_update(in_modules, _DANGEROUS, ("",))
    for start in _DANGEROUS_START:
        plain.difference_update(_lines_with("\n" + start, text))
    plain.difference_update(_lines_with(".part.", text))
    found = {"": plain}
    for line in in_modules:
        name, _, module = line[:-1].partition("[")
        if safe(name := name.rstrip()):
            found.setdefault(module, set()).add(name)
    return found


def _lines_with(part: str, text: str) -> list[str]:
    """The lines behind or around each `part`, which begins with a newline or has none."""
    found, at = [], 0
    text = f"\n{text}\n"
    while (at := text.find(part, at)) >= 0:
        end = text.index("\n", at + 1)
        found.append(text[text.rindex("\n", 0, at + 1) + 1 : end])
        at = end
    return found


def safe_names(names: list[str]) -> list[str]:
    """Those of sorted names that are `safe`. (Names with dots are none of BTF's.)"""
    found = list(names)
    for start in _DANGEROUS_START:
        del found[bisect_left(found, start) : bisect_left(found, start + "\x7f")]
    return [name for name in found if name not in _DANGEROUS]


def safe(name: str) -> bool:
    """Whether tracing a function is not known to hang machines."""
    return name not in _DANGEROUS and not name.startswith(_DANGEROUS_START) and ".part." not in name
