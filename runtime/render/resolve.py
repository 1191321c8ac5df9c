"""Text of the values that need a look-up: stacks, symbols, times, cgroup paths."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from bpfseal.runtime.values import CgroupPathValue, StackValue, SymbolValue, TimestampValue

if TYPE_CHECKING:
    from bpfseal.runtime.session import Session
    from bpfseal.runtime.symbols import Symbols


class Resolver:
    """Looks values up in a session's stack maps and in symbol tables, which are read when first needed."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._symbols: Symbols | None = None
        self._cgroups: dict[int, str] = {}

    @property
    def symbols(self) -> Symbols:
        if self._symbols is None:
            from bpfseal.runtime.symbols import Symbols

            self._symbols = Symbols(demangle=bool(self._session.reader.config.get("cpp_demangle", True)))
        return self._symbols

    def text(self, value: Any) -> str:
        match value:
            case StackValue():
                from bpfseal.runtime.symbols import stack_text

                frames = self._session.stack_frames(value)
                return stack_text(self.symbols, value.space, value.mode, frames, value.pid)
            case SymbolValue(space="kernel"):
                return self.symbols.kernel(value.address)
            case SymbolValue():
                return self.symbols.user(value.address, value.pid)
            case TimestampValue():
                return self._timestamp(value)
            case CgroupPathValue():
                return self._cgroup(value.id)
        raise ValueError(f"no text for {value!r}")

    def _timestamp(self, value: TimestampValue) -> str:
        """strftime with %f for microseconds; clocks other than boot count from their own start."""
        format = self._session.strftime_format(value.format)
        now = time.clock_gettime_ns(time.CLOCK_REALTIME)
        match value.clock:
            case "boot":
                base = now - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            case "tai":
                base = now - time.clock_gettime_ns(time.CLOCK_TAI)
            case _:
                base = 0
        nanoseconds = base + value.nanoseconds
        seconds, rest = divmod(nanoseconds, 1_000_000_000)
        return time.strftime(format.replace("%f", f"{rest // 1000:06d}"), time.localtime(seconds))

    def _cgroup(self, identity: int) -> str:
        """Path of a cgroup below the unified hierarchy's mount; its id is its directory's inode number."""
        found = self._cgroups.get(identity)
        if found is None:
            found = self._cgroups[identity] = _find_cgroup(identity)
        return found


def _find_cgroup(identity: int) -> str:
    for root in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
        if not os.path.isdir(root):
            continue
        for folder, _, _ in os.walk(root):
            if os.stat(folder).st_ino == identity:
                return f"{os.path.basename(root)}:{folder.removeprefix(root) or '/'}"
    return ""
