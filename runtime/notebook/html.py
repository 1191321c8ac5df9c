"""A snapshot as HTML: badge, events, then each map in the form that suits it.

Everything that comes from the traced world is escaped here or in the modules that draw; colours are those of the front
end's theme where it has them. No script is needed to read the page, only to zoom into flame graphs.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from bpfseal.runtime.notebook import charts
from bpfseal.runtime.notebook.data import Seal, Snapshot
from bpfseal.runtime.notebook.flame import flame_graph
from bpfseal.runtime.values import StackValue

if TYPE_CHECKING:
    from bpfseal.runtime.maps import MapContents
    from bpfseal.runtime.records.lookup import Lookup

LINES = 100
ROWS = 25
_CHARTS = 12
_LINE = 2000  # characters of a line that are shown

# Front ends have opinions of their own on tables and texts in outputs, in rules of whatever rank.
STYLE = """<style>
.bpfseal{font:13px/1.4 var(--jp-ui-font-family,system-ui,sans-serif);color:var(--jp-ui-font-color1,inherit)}
div.bpfseal .events{display:flex;flex-direction:column-reverse;max-height:22em;overflow:auto;margin:.4em 0;
 background:var(--jp-layout-color2,rgba(128,128,128,.12))}
div.bpfseal pre{font:12px/1.35 var(--jp-code-font-family,monospace);margin:0;padding:.4em .6em;
 background:none!important;color:inherit;white-space:pre;overflow:visible}
div.bpfseal .head{display:flex;flex-wrap:wrap;gap:.6em;align-items:center;margin:.2em 0}
div.bpfseal .pill{border:1px solid;border-radius:1em;padding:0 .6em;font-size:12px}
div.bpfseal .good{color:#1a7f37}div.bpfseal .so{color:#9a6700}div.bpfseal .bad{color:#cf222e}
div.bpfseal .dim{opacity:.7}
div.bpfseal h4{margin:.6em 0 .2em;font:600 13px var(--jp-code-font-family,monospace)}
div.bpfseal table{border-collapse:collapse;margin:.2em 0}
div.bpfseal table td{padding:1px .8em 1px 0;text-align:left!important;border:0;background:none;
 font:12px/1.4 var(--jp-code-font-family,monospace)}
div.bpfseal table td.n{text-align:right!important}
div.bpfseal .bar{display:inline-block;height:.8em;background:#4c8bf5;border-radius:1px}
div.bpfseal progress{width:12em;height:.9em}
div.bpfseal svg text{font:11px var(--jp-code-font-family,monospace);fill:currentColor}
</style>"""


def page(shot: Snapshot) -> str:
    """The whole of a snapshot."""
    parts = [STYLE, '<div class="bpfseal">', head(shot)]
    if shot.trouble:
        parts.append(f'<pre class="bad">{text(shot.trouble)}</pre>')
    for warning in shot.warnings:
        parts.append(f'<pre class="so">{text(warning)}</pre>')
    parts.append(_events(shot))
    lookup = shot.recording.lookup
    if lookup is not None:
        parts += [map_html(contents, lookup) for _, contents in sorted(shot.contents.items())]
    parts.append("</div>")
    return "".join(parts)


def text(raw: str) -> str:
    """Any text as HTML: bytes that are no UTF-8 as replacement characters, controls (but newline and tab) visible."""
    shown = raw.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return escape("".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in shown))


def head(shot: Snapshot) -> str:
    """Name, state, progress and signature of a trace."""
    parts = ['<div class="head">', _state(shot.name, shot.state, shot.seconds, len(shot.entries) + shot.dropped)]
    if shot.state == "running" and shot.planned:
        parts.append(progress(shot.seconds, shot.planned))
    if shot.recording.lost_events:
        parts.append(f'<span class="pill bad">{shot.recording.lost_events} events lost</span>')
    if shot.dropped:
        parts.append(f'<span class="pill so">the oldest {shot.dropped} events were let go</span>')
    parts += [badge(shot.seal), "</div>"]
    return "".join(parts)


def _state(name: str, state: str, seconds: float, events: int) -> str:
    kind = {"running": "so", "done": "good", "failed": "bad"}.get(state, "dim")
    return (
        f'<b>{text(name)}</b><span class="pill {kind}">{state}</span>'
        f'<span class="dim">{seconds:.1f} s · {events} event{"s" if events != 1 else ""}</span>'
    )


def progress(seconds: float, planned: float) -> str:
    """How much of its time a trace has had."""
    done = min(seconds / planned, 1.0)
    return f'<progress max="1" value="{done:.3f}"></progress><span class="dim">of {planned:g} s</span>'


def bar(name: str, seconds: float, planned: float, events: int) -> str:
    """The line that is shown while a cell waits for its trace."""
    known = _state(name, "running", seconds, events)
    return f'{STYLE}<div class="bpfseal"><div class="head">{known}{progress(seconds, planned)}</div></div>'


def badge(seal: Seal) -> str:
    """Who signed, with what, and whether the kernel looked."""
    if not seal.certificate:
        return f'<span class="pill bad" title="{text(seal.why)}">not signed</span>'
    verified = "verified by the kernel" if seal.verified else "not verified by the kernel"
    why = f": {seal.why}" if seal.why else ""
    return (
        f'<span class="pill {"good" if seal.verified else "so"}" title="{text(verified + why)}&#10;certificate sha256 '
        f'{seal.certificate}">sealed by the {text(seal.signed_by)} · {verified}</span>'
        f'<span class="dim">certificate <code>{seal.certificate[:16]}…</code> · audit record {seal.record}</span>'
    )


def _events(shot: Snapshot) -> str:
    if not shot.entries:
        return ""
    last = shot.entries[-LINES:]
    lines = "".join(shot.recording.text(entry) for entry in last).split("\n")
    shown = "\n".join(line[:_LINE] for line in lines[-LINES - 1 :])
    hidden = len(shot.entries) - len(last)
    note = f'<div class="dim">the last {len(last)} of {hidden + len(last)} events</div>' if hidden else ""
    # In reverse the box is scrolled to its end, where the newest are, without a script.
    return f'{note}<div class="events"><pre>{text(shown)}</pre></div>'


def map_html(contents: MapContents, lookup: Lookup) -> str:
    """One map: flame graph, chart, or a table with bars, the largest first."""
    name = text(contents.name)
    items = contents.items
    if not items:
        return f'<h4>{name}</h4><div class="dim">empty</div>'
    if contents.kind in ("hist", "lhist", "tseries"):
        parts = [
            f"<h4>{name}{_key(key, lookup)}</h4>{_chart(contents, value)}" for key, value in items[-_CHARTS:][::-1]
        ]
        if len(items) > _CHARTS:
            parts.append(f'<div class="dim">and {len(items) - _CHARTS} smaller ones</div>')
        return "".join(parts)
    if _is_stacks(items) and contents.kind in ("count", "sum", "auto", "int", "avg", "max", "min"):
        return f"<h4>{name}</h4>{flame_graph(contents.name, _folded(items, lookup))}"
    return f"<h4>{name}</h4>{_table(contents, lookup)}"


def _chart(contents: MapContents, value: Any) -> str:
    if contents.kind == "tseries":
        return charts.series(value)
    return charts.histogram(value, log=contents.kind == "hist")


def _key(key: Any, lookup: Lookup) -> str:
    return "" if key is None else f"[{text(lookup.key(key))}]"


def _is_stacks(items: list[tuple[Any, Any]]) -> bool:
    key, value = items[0]
    parts = key if isinstance(key, tuple) else (key,)
    return isinstance(value, int) and any(isinstance(part, StackValue) for part in parts)


def _folded(items: list[tuple[Any, Any]], lookup: Lookup) -> list[tuple[tuple[str, ...], int]]:
    """(frames, value) of each stack, outermost first; other parts of the key stand at the root, user code below the
    kernel's."""
    folded = []
    for key, value in items:
        parts = key if isinstance(key, tuple) else (key,)
        stacks = [part for part in parts if isinstance(part, StackValue)]
        labels = tuple(lookup.text(part) for part in parts if not isinstance(part, StackValue))
        frames: tuple[str, ...] = ()
        for stack in sorted(stacks, key=lambda s: s.space != "user"):
            frames += tuple(reversed(lookup.frames(stack))) or ("[no stack]",)
        folded.append((labels + frames, int(value)))
    return folded


def _table(contents: MapContents, lookup: Lookup) -> str:
    items = contents.items[-ROWS:][::-1]
    shape = contents.layout.value
    numbers = [abs(_weight(value)) for _, value in items]
    largest = max(numbers, default=0)
    rows = []
    for (key, value), number in zip(items, numbers, strict=True):
        width = int(140 * number / largest) if largest else 0
        keys = "" if key is None else f"<td>{text(_key_text(contents, key, lookup))}</td>"
        bar = f'<td><span class="bar" style="width:{width}px"></span></td>' if len(items) > 1 and width else ""
        rows.append(f'<tr>{keys}<td class="n">{text(lookup.text(value, shape))}</td>{bar}</tr>')
    more = len(contents.items) - len(items)
    note = f'<div class="dim">and {more} more</div>' if more else ""
    return f"<table>{''.join(rows)}</table>{note}"


def _key_text(contents: MapContents, key: Any, lookup: Lookup) -> str:
    shape = contents.layout.key
    if shape is not None and shape.kind == "tuple" and isinstance(key, tuple):
        return ", ".join(lookup.text(part, m.shape) for part, m in zip(key, shape.members, strict=True))
    return lookup.key(key) if isinstance(key, tuple) else lookup.text(key, shape)


def _weight(value: Any) -> int | float:
    if isinstance(value, int | float):
        return value
    if isinstance(value, dict) and isinstance(value.get("average"), int):
        return int(value["average"])
    return 0
