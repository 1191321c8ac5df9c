"""Addresses to names, of the kernel and of processes: bcc's symbol tables, and what is known of processes that have
ended. Without libbcc (Debian: libbpfcc) addresses print as numbers, and that is said once.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import TYPE_CHECKING

from bpfseal.errors import BpfsealError
from bpfseal.runtime.symbol_process import SymbolProcess

if TYPE_CHECKING:
    from bpfseal.runtime.mappings import Mappings


@cache
def _tell(trouble: str) -> None:
    sys.stderr.write(f"bpfseal: note: no symbols: {trouble}\n")


class Symbols:
    """Resolves kernel and user addresses; caches one symbol table per process."""

    def __init__(
        self,
        *,
        demangle: bool = True,
        mappings: Mappings | None = None,
        program: str = "",
        process: SymbolProcess | None = None,
    ) -> None:
        """`mappings`: of processes that may have ended by now. `program`: the file that others ran which have ended, if
        its addresses are fixed. `process`: bcc's tables, if they are being read already."""
        self._mappings = mappings
        self._demangle = demangle
        self._process = process or SymbolProcess()
        self._known: dict[tuple[int, int], tuple[str, int, str]] = {}
        self._program = program

    def close(self) -> None:
        """End the process that reads the tables; what was looked up stays."""
        self._process.close()

    def resolve(self, address: int, pid: int = -1) -> tuple[str, int, str]:
        """(name, offset into it, module) of an address; pid -1 for the kernel. Name "" when unknown."""
        if (pid, address) not in self._known:
            self.prepare([address], pid)
        return self._known[pid, address]

    def prepare(self, addresses: list[int], pid: int = -1) -> None:
        """Look all of them up at once: a question to another process takes longer than the answer."""
        new = [address for address in dict.fromkeys(addresses) if (pid, address) not in self._known]
        if not new:
            return
        found = self._process.look_up(pid, new, demangle=self._demangle)
        if self._process.trouble:
            _tell(self._process.trouble)
        for address, one in zip(new, found or [("", 0, "")] * len(new), strict=True):
            self._known[pid, address] = one if one[0] or pid < 0 else self._elsewhere(address, pid) or one

    def _elsewhere(self, address: int, pid: int) -> tuple[str, int, str] | None:
        """Of a process that has ended, as a rule."""
        found = self._from_file(address, pid) if self._mappings is not None else None
        if (found is None or not found[0]) and self._program and not os.path.exists(f"/proc/{pid}"):
            return self._in_program(address, self._program) or found
        return found

    def _from_file(self, address: int, pid: int) -> tuple[str, int, str]:
        assert self._mappings is not None
        name, offset, module = self._mappings.resolve(pid, address)
        if name and self._demangle:
            from bpfseal.runtime.demangle import demangle

            name = demangle(name) or name
        return name, offset, module

    def _in_program(self, address: int, path: str) -> tuple[str, int, str] | None:
        from bpfseal.runtime.elf import EXEC, Elf

        try:
            elf = Elf(path)
        except (OSError, BpfsealError):
            return None
        symbol = elf.function_at(address) if elf.type == EXEC else None
        return (symbol.name, address - symbol.address, path) if symbol is not None else None

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
    if mode != "raw":
        symbols.prepare(frames, -1 if space == "kernel" else pid)
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
