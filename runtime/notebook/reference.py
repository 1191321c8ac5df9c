"""Listings of probes and the documentation of the language's names, as objects that show themselves."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bpfseal.errors import BpfsealError


class Listing(Sequence[str]):
    """Lines of a listing: a sequence of probes; shown as text, the first `shown` lines of it."""

    shown = 200

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def __getitem__(self, index: int | slice) -> str | list[str]:  # type: ignore[override]
        return self._lines[index]

    def __len__(self) -> int:
        return len(self._lines)

    def __repr__(self) -> str:
        more = len(self) - self.shown
        tail = [f"… and {more} more"] if more > 0 else []
        return "\n".join([*self._lines[: self.shown], *tail]) or "no probe matches"


class Help:
    """The documentation of one name."""

    def __init__(self, title: str, heads: tuple[str, ...], doc: str, notes: tuple[str, ...]) -> None:
        self.title = title
        self.heads = heads
        self.doc = doc
        self.notes = notes

    @classmethod
    def of(cls, name: str) -> Help:
        """Raises BpfsealError for a name that the language does not have."""
        from bpfseal.dsl.table import AGGREGATES, BUILTINS, CONFIG, FUNCTIONS, names, near

        name = name.strip().removesuffix("()")
        probes: frozenset[str] = frozenset()
        notes: list[str] = []
        if name in FUNCTIONS or name in AGGREGATES:
            function = FUNCTIONS.get(name) or AGGREGATES[name]
            probes, heads, doc = function.probes, function.signatures, function.doc
            if name in AGGREGATES:
                notes.append("Assigned to a map.")
            if function.mode == "async":
                notes.append("Asynchronous: done by the reader when the event arrives.")
            if function.mode == "compile":
                notes.append("Done at compile time.")
            if function.unsafe:
                notes.append("Needs --unsafe.")
        elif name in BUILTINS:
            builtin = BUILTINS[name]
            probes, doc = builtin.probes, builtin.doc
            heads = (f"{builtin.type} {name}" if builtin.type is not None else name,)
        elif name in CONFIG:
            config = CONFIG[name]
            heads, doc = (f"config = {{ {name} = {config.default} }}",), config.doc
            if config.choices:
                notes.append("Values: " + ", ".join(map(str, config.choices)) + ".")
        else:
            close = near(name, [*names(), *CONFIG])
            raise BpfsealError(
                f"the language has no {name!r}", hint=f"did you mean {', '.join(close)}?" if close else None
            )
        if probes:
            notes.append("In " + ", ".join(sorted(probes)) + ".")
        return cls(name, tuple(heads), doc, tuple(notes))

    def __repr__(self) -> str:
        return "\n".join([*self.heads, f"    {self.doc}", *(f"    {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        heads = "<br>".join(f"<code>{escape(head)}</code>" for head in self.heads)
        notes = " ".join(escape(note) for note in self.notes)
        return f'<div>{heads}<div style="margin-left:2em">{escape(self.doc)} <i>{notes}</i></div></div>'
