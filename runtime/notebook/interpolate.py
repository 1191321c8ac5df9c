"""`${expression}` in a program: values of the notebook, as literals of the tracing language.

"${" means nothing in the language itself ($name and $1 are its own variables), so that a program is never changed
unless it asks for it. A value becomes exactly one literal: whatever is in a string, it cannot become code.
Inside strings and comments of the program nothing is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from bpfseal.errors import BpfsealError

_PIECE = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|/\*.*?\*/|\$\{', re.S)
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def interpolate(program: str, evaluate: Callable[[str], Any]) -> str:
    """`program` with each `${expression}` replaced by `literal(evaluate(expression))`. Raises BpfsealError for an
    expression that fails or whose value has no literal."""
    made, at = [], 0
    while match := _PIECE.search(program, at):
        made.append(program[at : match.start()])
        at = match.end()
        if match[0] != "${":
            made.append(match[0])
            continue
        end = _end(program, at)
        expression = program[at:end].strip()
        at = end + 1
        try:
            value = evaluate(expression)
        except Exception as error:
            raise BpfsealError(f"${{{expression}}}: {type(error).__name__}: {error}") from None
        made.append(literal(value, expression))
    return "".join(made) + program[at:]


def _end(program: str, start: int) -> int:
    """Where the bracket closes that opened before `start`: the first one up to which the text is an expression."""
    at = program.find("}", start)
    while at >= 0:
        try:
            compile(program[start:at].strip(), "<${…}>", "eval")
        except (SyntaxError, ValueError):
            at = program.find("}", at + 1)
        else:
            return at
    raise BpfsealError("no Python expression stands between ${ and }: " + program[start : start + 40].split("\n")[0])


def literal(value: Any, name: str = "value") -> str:
    """`value` in the tracing language: bool, int (numpy's too) and str; a string in quotes, whatever is in it. Raises
    BpfsealError for others and for what the language cannot write."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str) and hasattr(value, "__index__"):
        number = value.__index__()
        if not -(1 << 63) <= number < 1 << 64:
            raise BpfsealError(f"${{{name}}}: {number} does not fit into 64 bits")
        return str(number) if number >= 0 else f"({number})"
    if isinstance(value, str):
        return '"' + "".join(_character(c, name) for c in value) + '"'
    raise BpfsealError(f"${{{name}}}: a {type(value).__name__} cannot stand in a program", hint="int, bool and str can")


def _character(character: str, name: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character == "\0":
        raise BpfsealError(f"${{{name}}}: a string in a program cannot contain NUL")
    if ord(character) < 32 or ord(character) == 127:
        return f"\\{ord(character):03o}"
    try:
        character.encode()
    except UnicodeEncodeError:
        raise BpfsealError(f"${{{name}}}: the string is not valid Unicode") from None
    return character
