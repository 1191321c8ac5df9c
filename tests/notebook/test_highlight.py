"""Colours: the Pygments lexer over real programs, and JupyterLab's extension against the language's tables."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pygments", reason="pygments is not installed")

ROOT = Path(__file__).parents[2]
EXTENSION = ROOT / "runtime" / "notebook" / "labextension"
PROGRAMS = sorted(
    path for folder in ("examples", "runtime", "tests") for path in (ROOT / folder).rglob("*.bt") if path.is_file()
)


def tokens(text: str) -> list[tuple[Any, str]]:
    from bpfseal.runtime.notebook.lexer import BpfsealLexer

    return list(BpfsealLexer(stripnl=False, ensurenl=False).get_tokens(text))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_real_programs_have_no_errors_and_stay_what_they_are(path: Path) -> None:
    from pygments.token import Error

    text = path.read_text().replace("\r\n", "\n")
    found = tokens(text)
    assert "".join(value for _, value in found) == text
    assert not [value for kind, value in found if kind in Error]


def test_programs_of_the_documents_have_no_errors() -> None:
    """Blocks that say that they are programs; Pygments knows the name by which they say it."""
    from pygments.lexers import get_lexer_by_name
    from pygments.token import Error, Name

    blocks = []
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        blocks += re.findall(r"^```bpfseal\n(.*?)^```", document.read_text(), re.M | re.S)
    assert blocks
    for block in blocks:
        found = tokens(block)
        assert not [value for kind, value in found if kind in Error], block
        assert any(kind in Name.Builtin for kind, _ in found), block
    try:
        lexer = get_lexer_by_name("bpfseal")
    except ValueError:
        pytest.skip("bpfseal is not installed, only on the path: entry points are not registered")
    assert type(lexer).__module__ == "bpfseal.runtime.notebook.lexer"


def test_the_extension_has_the_words_of_the_language() -> None:
    """tools/notebook-words.py writes them; it was forgotten when this fails."""
    spec = importlib.util.spec_from_file_location("notebook_words", ROOT / "tools" / "notebook-words.py")
    assert spec is not None
    assert spec.loader is not None
    words = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(words)
    assert words.line() in words.FILE.read_text()


def test_the_lexer_knows_all_probes() -> None:
    from bpfseal.dsl.points import ALIASES
    from bpfseal.runtime.notebook.lexer import PROBES
    from bpfseal.runtime.probes import MODULES

    without_colon = {"begin", "end", "test", "bench"}
    assert {*MODULES, *ALIASES} - without_colon <= set(PROBES)


def test_the_extension_is_what_its_description_says() -> None:
    package = json.loads((EXTENSION / "package.json").read_text())
    assert package["jupyterlab"]["extension"] is True
    load = EXTENSION / package["jupyterlab"]["_build"]["load"]
    text = load.read_text()
    # What the page asks for by name; a browser finds the rest out in test_browser.py.
    assert f'"{package["jupyterlab"]["_build"]["extension"]}"' in text
    assert "__esModule: true" in text
    install = json.loads((EXTENSION / "install.json").read_text())
    assert install["packageManager"] == "python"
    project = (ROOT / "pyproject.toml").read_text()
    for file in ("package.json", "install.json", "static/remoteEntry.js"):
        assert f"runtime/notebook/labextension/{file}" in project
