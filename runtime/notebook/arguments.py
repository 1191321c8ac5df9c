"""The arguments of the magics. A line's options end where the program begins: programs are full of quotes and
brackets, which no argument parser may touch."""

from __future__ import annotations

import argparse
import re

from bpfseal.errors import BpfsealError, UsageError

_WORD = re.compile(r"""\s*((?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"'])+)""")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?\Z")
_UNITS = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration(text: str) -> float:
    """Seconds of "5s", "250ms", "2m", "1h" or "5"."""
    found = _DURATION.match(text)
    if not found or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration, such as 5s or 250ms")
    return float(found[1]) * _UNITS[found[2]]


def name(text: str) -> str:
    """A Python identifier."""
    if not text.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} cannot be the name of a variable")
    return text


def split(line: str, parser: argparse.ArgumentParser) -> tuple[list[str], str]:
    """(words of the options in front, the rest as it stands). Raises UsageError for options that do not exist."""
    known = parser._option_string_actions
    words: list[str] = []
    at = 0
    while match := _WORD.match(line, at):
        word = _plain(match[1])
        if not word.startswith("-") or word == "-":
            break
        at = match.end()
        if word == "--":
            break
        option, equals, _ = word.partition("=")
        action = known.get(option)
        if action is None:
            raise UsageError(f"%bpfseal has no option {option}", hint="%bpfseal? shows them all")
        words.append(word)
        if action.nargs == 0 or equals:
            continue
        value = _WORD.match(line, at)
        if action.nargs == "?" and (value is None or value[1].startswith("-")):
            continue
        if value is None:
            raise UsageError(f"{option} needs a value")
        words.append(_plain(value[1]))
        at = value.end()
    return words, line[at:].strip()


def _plain(word: str) -> str:
    """A word without its quotes."""
    return re.sub(r""""((?:[^"\\]|\\.)*)"|'([^']*)'""", lambda m: m[1] if m[1] is not None else m[2], word)


def parse(words: list[str], parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Raises UsageError, with argparse's words."""
    try:
        return parser.parse_args(words)
    except BpfsealError:
        raise
    except Exception as error:  # IPython's parser raises its own UsageError in place of leaving
        raise UsageError(str(error), hint="%bpfseal? shows all options") from None
