"""Source text, spans and diagnostics: every message points at its text with a caret."""

from __future__ import annotations

from bisect import bisect_right

from bpfseal.dsl.node import Node
from bpfseal.errors import BpfsealError


class Span(Node, frozen=True):
    """Half-open range of character offsets into `Source.text` of the source numbered `source`.

    `via` is the call site of the macro whose expansion the text belongs to, with its own `via` for macros in macros.
    """

    start: int
    end: int
    source: int = 0
    via: Span | None = None


NOWHERE = Span(0, 0, -1)


class Source:
    """One text with a name for messages: a file name, "stdin", "command line" or "stdlib/NAME"."""

    __slots__ = ("_starts", "name", "text")

    def __init__(self, text: str, name: str) -> None:
        self.text = text
        self.name = name
        self._starts: list[int] = []

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source) and (self.text, self.name) == (other.text, other.name)

    def __hash__(self) -> int:
        return hash((self.text, self.name))

    def __repr__(self) -> str:
        return f"Source(name={self.name!r}, text={self.text!r})"

    def position(self, offset: int) -> tuple[int, int]:
        """1-based (line, column) of a character offset."""
        if not self._starts:
            self._starts.append(0)
            self._starts.extend(i + 1 for i, c in enumerate(self.text) if c == "\n")
        line = bisect_right(self._starts, offset) - 1
        return line + 1, offset - self._starts[line] + 1

    def line(self, number: int) -> str:
        """Text of the 1-based line `number` without its newline."""
        self.position(0)
        start = self._starts[number - 1]
        end = self.text.find("\n", start)
        return self.text[start : end if end >= 0 else len(self.text)]


class Diagnostic(Node, frozen=True):
    """One finding. `severity` is "error", "warning" or "note"; `hint` says what would be right."""

    severity: str
    message: str
    span: Span
    hint: str | None = None
    # macro call sites and the like, outermost last
    trail: tuple[tuple[str, Span], ...] = ()


class DslError(BpfsealError):
    """The script is wrong. `diagnostics` holds at least one error; `render()` shows all with carets."""

    def __init__(self, diagnostics: list[Diagnostic], sources: list[Source]) -> None:
        self.diagnostics = diagnostics
        self.sources = sources
        super().__init__(diagnostics[0].message if diagnostics else "error in the script")

    def render(self) -> str:
        return "\n".join(render(d, self.sources) for d in self.diagnostics)


def render(diagnostic: Diagnostic, sources: list[Source]) -> str:
    """`NAME:LINE:COL-COL: SEVERITY: MESSAGE`, the source line, a caret line, the hint. The second column is the one
    behind the text, as bpftrace counts.

    A tab before the caret stays a tab, so that the caret stands under its text in any terminal.
    """
    span = diagnostic.span
    if not 0 <= span.source < len(sources):
        head = f"{diagnostic.severity.upper()}: {diagnostic.message}"
        return head + (f"\nHINT: {diagnostic.hint}" if diagnostic.hint else "")
    source = sources[span.source]
    line, column = source.position(span.start)
    text = source.line(line)
    width = max(1, min(span.end, span.start + len(text) - column + 1) - span.start)
    lines = [f"{source.name}:{line}:{column}-{column + width}: {diagnostic.severity.upper()}: {diagnostic.message}"]
    if len(text) <= 400:
        pad = "".join("\t" if c == "\t" else " " for c in text[: column - 1])
        lines += [text, pad + "~" * width]
    else:
        start = max(0, column - 40)
        lines += [text[start : start + 160], " " * (column - 1 - start) + "~" * min(width, 120)]
    if diagnostic.hint:
        lines.append(f"HINT: {diagnostic.hint}")
    trail = list(diagnostic.trail)
    while span.via is not None:
        span = span.via
        trail.append(("expanded from", Span(span.start, span.end, span.source)))
    for message, at in trail:
        lines.append(render(Diagnostic("note", message, at), sources))
    return "\n".join(lines)
