"""Names of columns: a record has offsets and shapes, the names stand in the program's text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_LAST_NAME = re.compile(r"([A-Za-z_]\w*)\W*\Z")
_WRAPPED = re.compile(
    r"\s*(?:str|buf|ntop|kstr|ustr|ksym|usym|strftime|macaddr|path|kstack|ustack|strerror)\s*\((.*)\)\s*\Z", re.S
)
_CALL = re.compile(r"\s*@?([A-Za-z_]\w*)\s*(?=[(\[])")
_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|/\*.*?\*/|[\[({]|[\])}]|,|[^"\[({\])},/]+|/', re.S)


def split_arguments(text: str, start: int) -> list[str]:
    """The arguments between the bracket at `start` and the one that closes it, at the top level."""
    depth, parts, current = 0, [], ""
    for match in _TOKEN.finditer(text, start):
        token = match[0]
        if token in "[({":
            depth += 1
            if depth == 1:
                continue
        elif token in "])}":
            depth -= 1
            if depth == 0:
                parts.append(current)
                return [part.strip() for part in parts] if parts != [""] else []
        elif token == "," and depth == 1:
            parts.append(current)
            current = ""
            continue
        elif token.startswith(("//", "/*")):
            continue
        current += token
    return []


def short(expression: str) -> str:
    """The name a person would give a column of this expression; "" when there is none."""
    wrapped = _WRAPPED.match(expression)
    if wrapped:
        arguments = split_arguments(f"({wrapped[1]})", 0)
        names = [name for name in map(short, arguments) if name]
        if names:
            return names[-1] if expression.lstrip().startswith(("strftime", "ntop")) else names[0]
        return expression.strip().partition("(")[0].strip()
    called = _CALL.match(expression)
    if called and _ends_with(expression, called.end()):
        return called[1]
    if re.fullmatch(r"[\d.\s]+|\"[^\"]*\"", expression):
        return ""
    match = _LAST_NAME.search(re.sub(r"\[[^\]]*\]\s*\Z", "", expression))
    return match[1] if match else ""


def _ends_with(text: str, start: int) -> bool:
    """Whether the bracket at `start` closes at the very end."""
    depth = 0
    for match in _TOKEN.finditer(text, start):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(match[0], 0)
        if depth == 0:
            return not text[match.end() :].strip()
    return False


def unique(names: Iterable[str], stem: str) -> list[str]:
    """Every name once: the nameless are `stem` and their number, repeated ones get a number behind."""
    made: list[str] = []
    for number, name in enumerate(names):
        name = name or f"{stem}{number}"
        base, again = name, 2
        while name in made:
            name, again = f"{base}_{again}", again + 1
        made.append(name)
    return made


def of_call(source: str, where: str, count: int, *, format: bool) -> list[str]:
    """Names for the `count` values of the call at `where` ("name:line:columns"); `format`: it has one in front."""
    found: list[str] = []
    place = re.search(r":(\d+):(\d+)(?:-\d+)?\Z", where)
    if place:
        lines = source.split("\n")
        line, column = int(place[1]), int(place[2])
        if line <= len(lines):
            offset = sum(len(text) + 1 for text in lines[: line - 1]) + column - 1
            call = re.compile(r"(?:printf|print|errorf|warnf)\s*(?=\()").match(source, offset)
            if call:
                found = [short(part) for part in split_arguments(source, call.end())[1 if format else 0 :]]
    if len(found) != count:
        found = [""] * count
    return unique(found, "arg" if format else "value")


def of_map(source: str, name: str, count: int) -> list[str]:
    """Names for the `count` parts of the keys of map `name`, from where it is first written."""
    for start in _uses(source, name):
        parts = split_arguments(source, start)
        if len(parts) == 1 and count > 1 and parts[0].startswith("("):
            parts = split_arguments(parts[0], 0)
        if len(parts) == count:
            names = [short(part) for part in parts]
            return unique(names, "key") if count > 1 else [names[0] or "key"]
    return unique([""] * count, "key") if count > 1 else ["key"]


def _uses(source: str, name: str) -> Iterator[int]:
    for match in re.finditer(re.escape(name) + r"\s*(?=\[)", source):
        yield match.end()
