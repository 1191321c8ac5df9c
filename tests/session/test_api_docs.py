"""The examples of docs/api.md, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.host

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
FENCED = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
EXAMPLES = [(TEXT[: match.start()].count("\n") + 2, match[1]) for match in FENCED.finditer(TEXT)]


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 8


@pytest.mark.parametrize(("line", "code"), EXAMPLES, ids=[f"line {line}" for line, _ in EXAMPLES])
def test_example(line: int, code: str) -> None:
    for library in ("numpy", "pandas", "polars", "pyarrow"):
        if library in code or ("arrow()" in code and library == "pyarrow"):
            pytest.importorskip(library)
    # Line numbers in a traceback are those of the document.
    exec(compile("\n" * (line - 1) + code, "docs/api.md", "exec"), {"__name__": "example"})
