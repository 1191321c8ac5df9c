"""Text of values that only a live session can explain: stacks, symbols, times; answers outlive the session."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from bpfseal.compiler.layout import Shape
from bpfseal.runtime.render.text import TextValues
from bpfseal.runtime.values import CgroupPathValue, StackValue, SymbolValue, TimestampValue

if TYPE_CHECKING:
    from bpfseal.runtime.session import Session

_NEEDS = frozenset({"kstack", "ustack", "ksym", "usym", "cgroup_path"})
Located = StackValue | SymbolValue | TimestampValue | CgroupPathValue


def needs_session(shape: Shape | None) -> bool:
    """Whether values of this shape, or parts of them, are looked up in the session."""
    if shape is None:
        return False
    return shape.kind in _NEEDS or needs_session(shape.element) or any(needs_session(m.shape) for m in shape.members)


class Lookup:
    """`text` may be called from any thread, while the session is open and afterwards; what was never asked for while
    it was open reads as "?" then."""

    def __init__(self, session: Session) -> None:
        from bpfseal.runtime.render.resolve import Resolver

        self._resolver: Resolver | None = Resolver(session)
        # Formats of times are with the program's layout, which outlives the session.
        self._time = self._resolver.text
        self._known: dict[Located, str] = {}
        self._clocks: dict[str, int] = {}
        self._lock = threading.Lock()
        self._values = TextValues(self.located)

    def located(self, value: Located) -> str:
        if isinstance(value, TimestampValue):
            return str(self._time(value))
        with self._lock:
            text = self._known.get(value)
            if text is None:
                text = "?" if self._resolver is None else self._resolver.text(value)
                self._known[value] = text
            return text

    def text(self, value: Any, shape: Shape | None = None) -> str:
        """A value as the command line writes it; user ids that came from `username` by name."""
        if shape is not None and shape.name == "username" and isinstance(value, int):
            return username(value)
        return self._values.text(value, shape)

    def key(self, key: Any) -> str:
        return self._values.key(key)

    def frames(self, stack: StackValue) -> tuple[str, ...]:
        """Names of a stack's functions, innermost first, without offsets."""
        lines = (line.strip() for line in self.located(stack).split("\n"))
        return tuple(line.partition("+")[0] for line in lines if line)

    def clock_offset(self, clock: str) -> int:
        """Nanoseconds between 1970 and the beginning of a clock: by the difference when it was first asked for, so that
        a time stays the same time."""
        import time

        clocks = {"boot": time.CLOCK_BOOTTIME, "tai": getattr(time, "CLOCK_TAI", time.CLOCK_REALTIME)}
        if clock not in clocks:
            return 0
        away = time.clock_gettime_ns(time.CLOCK_REALTIME) - time.clock_gettime_ns(clocks[clock])
        return self._clocks.setdefault(clock, away)

    def learn(self, values: Iterable[Any]) -> None:
        """Look up everything in `values` (nested as decoded) now."""
        for value in values:
            if isinstance(value, Located):
                self.located(value)
            elif isinstance(value, tuple | list):
                self.learn(value)
            elif isinstance(value, dict):
                self.learn(value.values())

    def close(self) -> None:
        """Forget the session. `learn` what is to be kept before."""
        with self._lock:
            if self._resolver is not None:
                self._resolver.close()
                self._resolver = None


def username(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)
