"""The table against the checker and the reference."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bpfseal.dsl import table_docs
from bpfseal.dsl.check import calls
from bpfseal.dsl.table import AGGREGATES, BUILTINS, CONFIG, FUNCTIONS, names, near

REFERENCE = Path(__file__).parents[2] / "docs" / "language.md"


def test_every_function_has_a_rule() -> None:
    assert FUNCTIONS.keys() == calls.RULES.keys()


def test_names_are_unique_but_for_callable_builtins() -> None:
    assert set(BUILTINS) & set(FUNCTIONS) <= {"comm", "pid", "tid"}
    assert not set(AGGREGATES) & (set(FUNCTIONS) | set(BUILTINS))


@pytest.mark.parametrize("spec", [*FUNCTIONS.values(), *AGGREGATES.values()], ids=lambda s: s.name)
def test_rows_are_complete(spec: table_docs.FunctionSpec) -> None:
    assert spec.doc.endswith(".")
    assert all(spec.name + "(" in s for s in spec.signatures)
    assert spec.typed
    assert spec.mode in ("sync", "async", "compile")
    assert bool(spec.action) == (spec.mode == "async") or spec.name == "skboutput"


@pytest.mark.parametrize("spec", [*FUNCTIONS.values(), *AGGREGATES.values()], ids=lambda s: s.name)
def test_signatures_agree_with_the_numbers_of_arguments(spec: table_docs.FunctionSpec) -> None:
    least, most = 99, 0
    for signature in spec.signatures:
        inside = signature[signature.index("(") + 1 : signature.rindex(")")]
        if "..." in inside:
            assert spec.arguments[1] == -1 or spec.name == "debugf"
            return
        parts = len([p for p in inside.split(",") if p.strip(" []")])
        # "[mode, ] [int limit]" are two that may be missing, "char[6] address" and "@map[key]" are none
        optional = len(re.findall(r"(?:^|\s)\[", inside))
        parts = max(parts, optional)
        least, most = min(least, parts - optional), max(most, parts)
    assert (least, most) == spec.arguments


def test_the_reference_is_up_to_date() -> None:
    text = REFERENCE.read_text()
    for name, section in table_docs.sections().items():
        assert section in text, f"run python -m bpfseal.dsl.table_docs docs/language.md (section {name})"


def test_the_reference_names_everything() -> None:
    text = REFERENCE.read_text()
    for name in (*names(), *CONFIG):
        assert f"`{name}`" in text or f"{name}(" in text or re.fullmatch(r"arg\d+", name), name


def test_near() -> None:
    assert near("prinf", names())[0] == "printf"
    assert near("qqqqqq", names()) == []
