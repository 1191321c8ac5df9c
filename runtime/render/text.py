"""Values as text, the way bpftrace writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bpfseal.compiler.layout import Shape
from bpfseal.runtime.render.printf import buffer_text
from bpfseal.runtime.values import (
    CgroupPathValue,
    EnumValue,
    Fields,
    Pointer,
    StackValue,
    SymbolValue,
    TimestampValue,
    UserId,
)

# C0 and C1 controls but tab and newline; bytes that are no UTF-8 (U+DC80 and up), which some terminals take as C1.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}
_CONTROLS |= {0xDC00 + byte: f"\\x{byte:02x}" for byte in range(128, 256)}


def visible(text: str) -> str:
    """`text` with everything that could control a terminal as \\xNN."""
    return text if text.isprintable() else text.translate(_CONTROLS)


class TextValues:
    """Renders decoded values. `resolve` turns stacks, symbols, times and cgroups into text."""

    def __init__(self, resolve: Callable[[Any], str], clean: Callable[[str], str] | None = None) -> None:
        """`resolve` gets a StackValue, SymbolValue, TimestampValue or CgroupPathValue; `clean` every text that comes
        from the traced world."""
        self._clean = clean
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
            case UserId():
                return value.name
            case int():
                if shape is not None and shape.kind == "ptr":  # taken from a record with others, as plain numbers
                    return f"0x{int(value):x}"
                return str(value)
            case str():
                return value if self._clean is None else self._clean(value)
            case bytes():
                return buffer_text(value)
            case Fields():
                if not value:
                    return "{}"
                return "{ " + ", ".join(f".{name} = {self.text(v)}" for name, v in value.items()) + " }"
            case tuple():
                inner = ", ".join(self.text(v) for v in value)
                return f"({inner})"
            case list():
                return "[" + ",".join(self.text(v) for v in value) + "]"
            case None:
                return "null"
            case StackValue() | SymbolValue() | TimestampValue() | CgroupPathValue():
                text = self._resolve(value)
                return text if self._clean is None else self._clean(text)
        return str(value)

    def key(self, key: Any) -> str:
        """A map's key between brackets: parts of a tuple side by side."""
        if isinstance(key, tuple):
            return ", ".join(self.text(part) for part in key)
        return self.text(key)
