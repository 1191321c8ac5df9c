"""docs/threats.md: every threat has a row, and every test that a row names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
COUNTS = {"F": 19, "S": 7, "T": 11, "R": 5, "I": 6, "D": 8, "E": 7, "P": 5, "G": 17}
ROWS = {
    row[0]: row[1]
    for row in re.findall(r"^\| ([A-Z]\d+) \| .* \| (.*) \|$", (ROOT / "docs/threats.md").read_text(), re.MULTILINE)
}


def test_every_threat_has_a_row() -> None:
    assert set(ROWS) == {f"{letter}{n}" for letter, count in COUNTS.items() for n in range(1, count + 1)}


def test_every_row_names_tests_that_exist() -> None:
    for name, text in ROWS.items():
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
        same = re.match(r"as ([A-Z]\d+)", text)
        assert named or (same and same[1] in ROWS) or "**not covered**" in text, name
        for path, function in named:
            source = (ROOT / "tests" / path).read_text()
            assert re.search(rf"^def {function}\(", source, re.MULTILINE), f"{name}: {path}::{function}"
