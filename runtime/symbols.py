"""Addresses to names through bcc's symbol caches (libbcc), loaded when the first address is shown.

bcc comes as a Debian package (python3-bpfcc) and not from PyPI, so it is looked for in Debian's folder too, with the
rest of that folder kept out of the way. Without it addresses print as numbers, and that is said once.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from bpfseal.errors import BpfsealError

if TYPE_CHECKING:
    from bpfseal.runtime.mappings import Mappings

_DEBIAN = "/usr/lib/python3/dist-packages"


@cache
def _bcc() -> Any:
    """The bcc module or None."""
    try:
        import bcc
    except ImportError:
        sys.path.append(_DEBIAN)
        try:
            import bcc
        except (ImportError, OSError):
            sys.stderr.write("bpfseal: note: no symbols: install python3-bpfcc to see names instead of addresses\n")
            return None
        finally:
            sys.path.remove(_DEBIAN)
    except OSError:
        return None
    return bcc


class Symbols:
    """Resolves kernel and user addresses; caches one symbol table per process."""

    def __init__(self, *, demangle: bool = True, mappings: Mappings | None = None, program: str = "") -> None:
        """`mappings`: of processes that may have ended by now. `program`: the file that others ran which have ended, if
        its addresses are fixed."""
        self._mappings = mappings
        self._demangle = demangle
        self._caches: dict[int, Any] = {}
        self._known: dict[tuple[int, int], tuple[str, int, str]] = {}
        self._program = program

    def resolve(self, address: int, pid: int = -1) -> tuple[str, int, str]:
        """(name, offset into it, module) of an address; pid -1 for the kernel. Name "" when unknown."""
        known = self._known.get((pid, address))
        if known is None:
            known = self._known[pid, address] = self._look_up(address, pid)
        return known

    def _from_file(self, address: int, pid: int) -> tuple[str, int, str]:
        assert self._mappings is not None
        name, offset, module = self._mappings.resolve(pid, address)
        if name and self._demangle:
            from bpfseal.runtime.demangle import demangle

            name = demangle(name) or name
        return name, offset, module

    def _look_up(self, address: int, pid: int) -> tuple[str, int, str]:
        name, offset, module = self._find(address, pid)
        if not name and pid >= 0 and self._program and not os.path.exists(f"/proc/{pid}"):
            return self._in_program(address, self._program) or (name, offset, module)
        return name, offset, module

    def _in_program(self, address: int, path: str) -> tuple[str, int, str] | None:
        from bpfseal.runtime.elf import EXEC, Elf

        try:
            elf = Elf(path)
        except (OSError, BpfsealError):
            return None
        symbol = elf.function_at(address) if elf.type == EXEC else None
        return (symbol.name, address - symbol.address, path) if symbol is not None else None

    def _find(self, address: int, pid: int) -> tuple[str, int, str]:
        cache = self._cache(pid)
        if cache is None:
            return self._from_file(address, pid) if self._mappings is not None and pid >= 0 else ("", 0, "")
        name, offset, module = cache.resolve(address, self._demangle)
        if not name and pid >= 0 and self._mappings is not None:
            return self._from_file(address, pid)
        return (
            name.decode("utf-8", "surrogateescape") if name else "",
            int(offset or 0),
            module.decode("utf-8", "surrogateescape") if module else "",
        )

    def _cache(self, pid: int) -> Any:
        if pid not in self._caches:
            bcc = _bcc()
            self._caches[pid] = bcc.SymbolCache(pid) if bcc is not None else None
        return self._caches[pid]

    def kernel(self, address: int, *, offset: bool = False) -> str:
        """ "name" or "name+offset"; an unknown address as 0x…, no address as 0."""
        name, away, _ = self.resolve(address)
        if not name:
            return f"0x{address:x}" if address else "0"
        return f"{name}+{away}" if offset else name

    def user(self, address: int, pid: int, *, offset: bool = False) -> str:
        """As `kernel`, for process `pid`."""
        name, away, _ = self.resolve(address, pid)
        if not name:
            return f"0x{address:x}" if address else "0"
        return f"{name}+{away}" if offset else name


def stack_text(symbols: Symbols, space: str, mode: str, frames: list[int], pid: int) -> str:
    """A stack in one of bpftrace's modes, from the newline in front to the last line's."""
    lines = ["\n"]
    for address in frames:
        if mode == "raw":
            lines.append(f"{address:x}\n")
            continue
        text = symbols.kernel(address, offset=True) if space == "kernel" else symbols.user(address, pid, offset=True)
        if mode == "perf":
            module = ""
            if space == "user":
                name, _, module = symbols.resolve(address, pid)
                module = f" ({module if name and module else '[unknown]'})"
            lines.append(f"\t{address:x} {text}{module}\n")
        else:
            lines.append(f"        {text}\n")
    return "".join(lines)
