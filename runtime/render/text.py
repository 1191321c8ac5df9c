"""Values as text, the way bpftrace writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bpfseal.compiler.layout import Shape
from bpfseal.runtime.render.printf import buffer_text
from bpfseal.runtime.values import CgroupPathValue, EnumValue, Fields, Pointer, StackValue, SymbolValue, TimestampValue


class TextValues:
    """Renders decoded values. `symbols` turns stacks, symbols, times and cgroups into text."""

    def __init__(self, resolve: Callable[[Any], str]) -> None:
        """`resolve` gets a StackValue, SymbolValue, TimestampValue or CgroupPathValue."""
        self._resolve = resolve

    def text(self, value: Any, shape: Shape | None = None) -> str:
        """One value. Strings stay as they are; `shape` is not needed but makes text of plain ints typed."""
        match value:
            case bool():
                return "true" if value else "false"
            case EnumValue():
                return value.name or str(int(value))
            case Pointer():
                return f"0x{int(value):x}"
            case int():
                return str(value)
            case str():
                return value
            case bytes():
                return buffer_text(value)
            case Fields():
                return "{ " + ", ".join(f".{name} = {self.text(v)}" for name, v in value.items()) + " }"
            case tuple():
                inner = ", ".join(self.text(v) for v in value)
                return f"({inner})"
            case list():
                return "[" + ",".join(self.text(v) for v in value) + "]"
            case None:
                return ""
            case StackValue() | SymbolValue() | TimestampValue() | CgroupPathValue():
                return self._resolve(value)
        return str(value)

    def key(self, key: Any) -> str:
        """A map's key between brackets: parts of a tuple side by side."""
        if isinstance(key, tuple):
            return ", ".join(self.text(part) for part in key)
        return self.text(key)
