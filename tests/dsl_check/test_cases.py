"""The tables errors.cases and types.cases: programs and what the checker says of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .kit import HERE, checked, errors, variable


def _errors() -> Iterator[tuple[str, str, str]]:
    for paragraph in (HERE / "errors.cases").read_text().split("\n\n"):
        lines = [line for line in paragraph.splitlines() if line and not line.startswith("#")]
        if lines:
            program = "\n".join(line for line in lines if line[:2] not in ("! ", "^ "))
            yield program, *(next(line[2:] for line in lines if line[:2] == mark) for mark in ("! ", "^ "))


def _types() -> Iterator[tuple[str, str]]:
    for line in (HERE / "types.cases").read_text().splitlines():
        if line and not line.startswith("#"):
            type, _, program = line.partition(" | ")
            yield program, type


@pytest.mark.parametrize(("program", "message", "text"), list(_errors()), ids=lambda value: str(value)[:60])
def test_errors(program: str, message: str, text: str) -> None:
    found = errors(program)
    matching = [e for e in found if message in e.message]
    assert matching, [e.message for e in found]
    assert text in [program[e.span.start : e.span.end] for e in matching]


@pytest.mark.parametrize(("program", "type"), list(_types()), ids=lambda value: str(value)[:60])
def test_types(program: str, type: str) -> None:
    assert str(variable(checked(program), "x").type) == type


def test_there_are_many() -> None:
    assert len(list(_errors())) + len(list(_types())) >= 500
