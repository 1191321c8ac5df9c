"""Errors as a notebook shows them: the source line with the mark under the place, and no Python traceback."""

from __future__ import annotations

import os
import re
from html import escape
from typing import Any

from bpfseal.dsl.source import Diagnostic, DslError
from bpfseal.errors import BpfsealError
from bpfseal.runtime.notebook import rights

# How the kernel's refusals read: of programs, maps and events, and of files.
_REFUSED = re.compile(r"\bEPERM\b|\bEACCES\b|not permitted|[Pp]ermission denied|may not read tracefs")
_STYLES = {"error": "#cf222e", "warning": "#9a6700", "note": "#57606a"}


class Refused(BpfsealError):
    """Something that a trace cannot do for a cell of Python; IPython prints the message in place of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return text(self).split("\n")


class TraceFailed(BpfsealError):
    """Ends a cell because of `cause`, which has been shown; IPython prints `lines` in place of a traceback."""

    def __init__(self, cause: BpfsealError, *, shown: bool) -> None:
        super().__init__(cause.message, hint=cause.hint, status=cause.status)
        self.cause = cause
        self.lines = [f"bpfseal: error: {cause.message}"] if shown else text(cause).split("\n")

    def _render_traceback_(self) -> list[str]:
        return self.lines


def explained(error: BpfsealError) -> BpfsealError:
    """An error with what this process lacks, where that is the reason: a notebook's server is often started by somebody
    without the rights that tracing takes, and cannot get them afterwards."""
    if not _REFUSED.search(error.message):
        return error
    hints = []
    lacking = rights.lacking()
    if lacking:
        hints.append(
            f"this notebook's kernel (uid {os.geteuid()}) lacks {' and '.join(lacking)}: Jupyter has to be started "
            "with that, for example by AmbientCapabilities= of its systemd unit"
        )
    if "tracefs" in error.message:
        hints.append(
            f"uid {os.geteuid()} may not read {rights.TRACEFS}: `mount -o remount,mode=750,gid=GROUP {rights.TRACEFS}` "
            "opens it for a group"
        )
    if not hints:
        return error
    hint = "; ".join(hints)
    if isinstance(error, DslError):
        first, *others = error.diagnostics
        told = Diagnostic(first.severity, first.message, first.span, hint, first.trail)
        return DslError([told, *others], error.sources)
    return BpfsealError(error.message, hint=hint, status=error.status)


def text(error: BpfsealError) -> str:
    """As on the command line: the place marked where there is one, and the hint."""
    render = getattr(error, "render", None)
    if render is not None:
        return str(render())
    return f"bpfseal: error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else "")


def html(error: BpfsealError) -> str:
    """The same as HTML: the wrong piece of the line stands out, and is underlined as well, for it may be a blank."""
    parts = ['<div class="bpfseal-error" style="font-family:var(--jp-code-font-family,monospace);font-size:12px">']
    diagnostics = getattr(error, "diagnostics", None)
    if diagnostics:
        parts += [_diagnostic(diagnostic, error.sources) for diagnostic in diagnostics]  # type: ignore[attr-defined]
    else:
        parts.append(_head("error", error.message))
        if error.hint:
            parts.append(_hint(error.hint))
    return "".join(parts) + "</div>"


def _diagnostic(diagnostic: Any, sources: list[Any]) -> str:
    span = diagnostic.span
    parts = []
    if 0 <= span.source < len(sources):
        source = sources[span.source]
        line, column = source.position(span.start)
        row = source.line(line)
        width = max(1, min(span.end, span.start + len(row) - column + 1) - span.start)
        start = max(0, column - 120)
        before, wrong = row[start : column - 1], row[column - 1 : column - 1 + width] or " "
        after = row[column - 1 + width : column + width + 120]
        parts.append(_head(diagnostic.severity, diagnostic.message, f"line {line}, column {column}"))
        colour = _STYLES.get(diagnostic.severity, _STYLES["error"])
        mark = "".join("\t" if c == "\t" else " " for c in before) + "~" * len(wrong)
        parts.append(
            f'<pre style="margin:.2em 0 .2em 1em">{escape(before)}<b style="color:{colour};text-decoration:underline '
            f'wavy">{escape(wrong)}</b>{escape(after)}\n<span style="color:{colour}">{mark}</span></pre>'
        )
    else:
        parts.append(_head(diagnostic.severity, diagnostic.message))
    if diagnostic.hint:
        parts.append(_hint(diagnostic.hint))
    for message, _ in diagnostic.trail:
        parts.append(_head("note", message))
    return "".join(parts)


def _head(severity: str, message: str, where: str = "") -> str:
    place = f' <span style="opacity:.7">({escape(where)})</span>' if where else ""
    colour = _STYLES.get(severity, _STYLES["error"])
    return f'<div><b style="color:{colour}">{escape(severity)}</b>: {escape(message)}{place}</div>'


def _hint(hint: str) -> str:
    return f'<div style="opacity:.8">hint: {escape(hint)}</div>'
