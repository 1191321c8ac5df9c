"""Text of the values that need a look-up: stacks, symbols, times, cgroup paths."""

from __future__ import annotations

import os
import time
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from bpfseal.runtime.session_events import OF_THE_KERNEL, shows_addresses
from bpfseal.runtime.values import CgroupPathValue, StackValue, SymbolValue, TimestampValue

if TYPE_CHECKING:
    from bpfseal.runtime.session import Session
    from bpfseal.runtime.symbol_process import SymbolProcess
    from bpfseal.runtime.symbols import Symbols


class Resolver:
    """Looks values up in a session's stack maps and in symbol tables, which are read when first needed."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._symbols: Symbols | None = None
        self._process: SymbolProcess | None = None  # gets ready while the session does
        kernel = shows_addresses(session.reader, OF_THE_KERNEL)
        if kernel or shows_addresses(session.reader):
            from bpfseal.runtime.symbol_process import SymbolProcess

            self._process = SymbolProcess()
            self._process.start(kernel=kernel)
        self._cgroups: dict[tuple[int, str], str] = {}
        self._since: dict[str, int] = {}

    @property
    def symbols(self) -> Symbols:
        if self._symbols is None:
            from bpfseal.runtime.symbols import Symbols

            demangle = bool(self._session.reader.config.get("cpp_demangle", True))
            self._symbols = Symbols(
                demangle=demangle,
                mappings=self._session.mappings,
                program=self._program(),
                process=self._process,
            )
        return self._symbols

    def close(self) -> None:
        """End what reads symbol tables; whatever is looked up later starts it again."""
        for user in (self._process, self._symbols):
            if user is not None:
                user.close()

    def _program(self) -> str:
        """With cache_user_symbols = per_program: the one file that user probes are on. It gives names when a process is
        gone."""
        if self._session.reader.config.get("cache_user_symbols") != "per_program":
            return ""
        parts = [name.partition(":") for name in self._session.reader.probes]
        files = {rest.rpartition(":")[0] for kind, _, rest in parts if kind in ("uprobe", "uretprobe")}
        return files.pop() if len(files) == 1 else ""

    def text(self, value: Any) -> str:
        match value:
            case StackValue():
                from bpfseal.runtime.symbols import stack_text

                if value.mode == "build_id":
                    pairs = self._session.build_id_frames(value)
                    return "\n" + "".join(f"{name} 0x{at:x}\n" if name else f"{at:x}\n" for name, at in pairs)
                frames = self._session.stack_frames(value)
                return stack_text(self.symbols, value.space, value.mode, frames, value.pid)
            case SymbolValue(space="kernel"):
                return self.symbols.kernel(value.address)
            case SymbolValue():
                return self.symbols.user(value.address, value.pid)
            case TimestampValue():
                return self._timestamp(value)
            case CgroupPathValue():
                return self._cgroup(value)
        raise ValueError(f"no text for {value!r}")

    def frames(self, stack: StackValue) -> list[str]:
        """Names of a stack's functions, innermost first, without offsets."""
        addresses = self._session.stack_frames(stack)
        self.symbols.prepare(addresses, -1 if stack.space == "kernel" else stack.pid)
        if stack.space == "kernel":
            return [self.symbols.kernel(address) for address in addresses]
        return [self.symbols.user(address, stack.pid) for address in addresses]

    def _timestamp(self, value: TimestampValue) -> str:
        """strftime with bpftrace's %f, %k and %l: micro-, nano- and milliseconds as so many digits."""
        format = self._session.strftime_format(value.format)
        seconds, rest = divmod(self._start(value.clock) + value.nanoseconds, 1_000_000_000)
        if not seconds:
            return "(?)"
        format = format.replace("%f", f"{rest // 1000:06d}").replace("%k", f"{rest:09d}")
        return time.strftime(format.replace("%l", f"{rest // 1_000_000:03d}"), time.localtime(seconds))

    def _start(self, clock: str) -> int:
        """When a clock was zero, ns since 1970; looked at once, so that equal times stay equal. Clocks other than that
        since the boot, and that of atomic time, count from 1970 or from a start of their own."""
        if clock not in self._since:
            number = {"boot": time.CLOCK_BOOTTIME, "tai": time.CLOCK_TAI}.get(clock)
            away = 0
            if number is not None:
                away = time.clock_gettime_ns(time.CLOCK_REALTIME) - time.clock_gettime_ns(number)
            self._since[clock] = away
        return self._since[clock]

    def _cgroup(self, value: CgroupPathValue) -> str:
        """Paths of a cgroup below the mounts whose names match the value's filter; its id is its directory's inode
        number."""
        formats = self._session.reader.formats
        pattern = formats[value.mount].decode("utf-8", "surrogateescape") if value.mount < len(formats) else ""
        found = self._cgroups.get((value.id, pattern))
        if found is None:
            # A hierarchy that is mounted in several places is told once.
            paths = {
                f"{name}:{path}": None
                for name, root in cgroup_roots()
                if fnmatchcase(name, pattern or "*") and (path := find_cgroup(root, value.id))
            }
            found = self._cgroups[value.id, pattern] = ",".join(paths)
        return found


def cgroup_roots(mounts: str = "/proc/mounts") -> list[tuple[str, str]]:
    """(name, folder) of the cgroup hierarchies: version 2 under the name "unified", then version 1 by the names of
    their folders."""
    unified, old = [], []
    with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            folder, kind = line.split(" ")[1:3]
            if kind == "cgroup2":
                unified.append(("unified", folder))
            elif kind == "cgroup":
                old.append((os.path.basename(folder), folder))
    return [(name, folder) for name, folder in (*unified, *sorted(old)) if os.path.isdir(folder)]


def find_cgroup(root: str, identity: int) -> str:
    """Path below `root` of the folder whose inode number is `identity`; "/" for `root` itself, "" for none."""
    for folder, _, _ in os.walk(root):
        try:
            if os.stat(folder).st_ino == identity:
                return folder.removeprefix(root) or "/"
        except OSError:
            continue  # it went away meanwhile
    return ""
