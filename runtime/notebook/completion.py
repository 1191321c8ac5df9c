"""Completion in cells and lines of bpfseal: options, probes, builtins, functions, maps, variables and fields."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from bpfseal.errors import BpfsealError

_MOST = 500
_START = re.compile(r"^(%%bpfseal\b[^\n]*\n|(?:[^\n]*[=(]\s*)?%bpfseal\s)", re.M)
_WORD = re.compile(r"[@$]?\w*\Z")
_FIELD = re.compile(r"\bargs(?:\.|->)(\w*)\Z")
_OPTION = re.compile(r"(?:^|\s)(--?[\w-]*)\Z")
_POINT = re.compile(r"(?:^|[},/]|\*/)\s*([^\s{}/,;\"()]*)\Z")
_PATH = re.compile(r"(?:^|[\s},])((?:uprobe|uretprobe|usdt|ur?|U):[^\s{},;\"()]*)\Z")
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|/\*.*?\*/', re.S)
_VALUE = re.compile(r"(?:^|\s)(--signing|--doc|-l|--list)(?:\s+|=)(\S*)\Z")
_PYTHON = re.compile(r"\$\{[^}]*\Z")
_FILES = frozenset(("uprobe", "uretprobe", "usdt", "u", "ur", "U"))


def within(before: str) -> bool:
    """Whether the text of a cell up to the cursor ends in words of bpfseal, and not of Python."""
    if before.rpartition("\n")[2].startswith("%%bpfseal "):
        return True
    start = _last_start(before)
    if start is None or (not start[0].startswith("%%") and "\n" in before[start.end() :]):
        return False
    return not _PYTHON.search(before[start.end() :])


def _last_start(before: str) -> re.Match[str] | None:
    starts = list(_START.finditer(before))
    return starts[-1] if starts else None


def complete(before: str) -> tuple[str, list[tuple[str, str]]]:
    """(fragment, [(completion, kind)]) for the text of a cell up to the cursor; nothing outside of bpfseal's."""
    if not within(before):
        return "", []
    line = before.rpartition("\n")[2]
    if line.startswith("%%bpfseal "):
        return _arguments(line)
    start = _last_start(before)
    assert start is not None
    program = before[start.end() :]
    if not start[0].startswith("%%") and "{" not in program:
        fragment, found = _arguments(program)
        if found:
            return fragment, found
    bare = _STRING.sub(lambda m: " " * len(m[0]), program)
    if bare.count('"') % 2:
        return "", []
    if bare.count("{") <= bare.count("}"):
        point = _PATH.search(bare) or _POINT.search(bare)
        return (point[1], _probes(point[1])) if point else ("", [])
    field = _FIELD.search(bare)
    if field:
        return field[1], [(name, "field") for name in _fields(bare) if name.startswith(field[1])]
    word = _WORD.search(bare)
    fragment = word[0] if word else ""
    return fragment, _names(fragment, bare)


def _arguments(line: str) -> tuple[str, list[tuple[str, str]]]:
    """Options and their values."""
    value = _VALUE.search(line)
    if value is None:
        option = _OPTION.search(line)
        return (option[1], _options(option[1])) if option else ("", [])
    name, fragment = value.groups()
    if name in ("-l", "--list"):
        return fragment, _probes(fragment)
    if name == "--signing":
        words = ["auto", "require", "off"]
    else:
        from bpfseal.dsl.table import CONFIG
        from bpfseal.dsl.table import names as known

        words = sorted({*known(), *CONFIG})
    return fragment, [(word, "value") for word in words if word.startswith(fragment)]


def _options(fragment: str) -> list[tuple[str, str]]:
    from bpfseal.runtime.notebook.magics import parser

    known = parser()._option_string_actions
    return [(name, "option") for name in sorted(known) if name.startswith(fragment) and name not in ("-h", "--help")]


def _probes(fragment: str) -> list[tuple[str, str]]:
    """Probe types, then what the kernel has of a type, a part of the name at a time."""
    from bpfseal.runtime.listing import _QUALIFIED, list_probes
    from bpfseal.runtime.probes import MODULES

    if ":" not in fragment:
        special = ["BEGIN", "END", "begin", "end", "self"]
        kinds = [f"{kind}:" for kind in MODULES if kind not in special]
        return [(name, "probe") for name in sorted({*kinds, *special[:4]}) if name.startswith(fragment)]
    kind, _, path = fragment.partition(":")
    if kind in _FILES and path.startswith("/") and ":" not in path:
        return [(f"{kind}:{name}", "path") for name in _files(path)]
    found: dict[str, None] = {}
    depth = fragment.count(":")
    # A listing takes what is left out to be in front; who is typing has left out what comes behind.
    behind = ":*" * max(_QUALIFIED.get(fragment.partition(":")[0], 0) + 1 - depth, 0)
    try:
        for line in islice(list_probes(f"{fragment}*{behind}"), 50_000):
            parts = line.split(":")
            # tracepoint:sy → the categories first, not thousands of names
            name = ":".join(parts[: depth + 1]) + (":" if len(parts) > depth + 1 else "")
            if name.startswith(fragment):
                found[name] = None
            if len(found) >= _MOST:
                break
    except BpfsealError:
        return []
    return [(name, "probe") for name in found]


def _files(path: str) -> Iterator[str]:
    """Directories and programs whose paths begin so."""
    folder, _, beginning = path.rpartition("/")
    try:
        with os.scandir(folder or "/") as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in found[:5000]:
        if entry.name.startswith(beginning):
            try:
                yield f"{folder}/{entry.name}" + ("/" if entry.is_dir() else ":")
            except OSError:
                continue


def _fields(program: str) -> Iterator[str]:
    """Fields of `args` in the probe that the cursor is in."""
    from bpfseal.runtime.listing import list_probes

    depth, at = 0, len(program) - 1
    while at >= 0:
        depth += {"}": 1, "{": -1}.get(program[at], 0)
        if depth < 0 and program[:at].count("{") == program[:at].count("}"):
            break
        at -= 1
    head = re.split(r"[};]", program[: max(at, 0)])[-1]
    points = [point.strip() for point in re.sub(r"/.*", "", head, flags=re.S).split(",")]
    seen: dict[str, None] = {}
    for point in points:
        if not point:
            continue
        try:
            for line in islice(list_probes(point, verbose=True), 200):
                if line.startswith("    ") and (name := re.search(r"(\w+)(?:\[[^\]]*\])*\s*;?\s*\Z", line)):
                    seen[name[1]] = None
        except BpfsealError:
            continue
    yield from seen


def _names(fragment: str, program: str) -> list[tuple[str, str]]:
    from bpfseal.dsl.table import AGGREGATES, BUILTINS, FUNCTIONS

    if fragment[:1] in ("@", "$"):
        used = {m[0] for m in re.finditer(re.escape(fragment[0]) + r"\w+", program)} - {fragment}
        return [(name, "variable") for name in sorted(used) if name.startswith(fragment)]
    if not fragment:
        return []
    found = [(name, "builtin") for name in BUILTINS if name.startswith(fragment)]
    found += [(f"{name}(", "function") for name in {**FUNCTIONS, **AGGREGATES} if name.startswith(fragment)]
    words = ("if", "else", "while", "for", "unroll", "let", "return", "break", "continue", "sizeof", "offsetof")
    return sorted(found + [(word, "keyword") for word in words if word.startswith(fragment)])


def install(shell: Any) -> None:
    """Hook into IPython's completer."""
    from IPython.core.completer import SimpleCompletion, context_matcher

    @context_matcher(identifier="bpfseal", priority=100)  # type: ignore[untyped-decorator]
    def match(context: Any) -> dict[str, Any]:
        lines = context.full_text.split("\n")
        before = "\n".join([*lines[: context.cursor_line], context.line_with_cursor[: context.cursor_position]])
        fragment, found = complete(before)
        return {
            "completions": [SimpleCompletion(text=text, type=kind) for text, kind in found],
            "matched_fragment": fragment,
            "suppress": bool(found),
            "ordered": True,
        }

    shell.Completer.custom_matchers.append(match)
    shell.bpfseal_matcher = match


def remove(shell: Any) -> None:
    match = getattr(shell, "bpfseal_matcher", None)
    if match is not None and match in shell.Completer.custom_matchers:
        shell.Completer.custom_matchers.remove(match)
