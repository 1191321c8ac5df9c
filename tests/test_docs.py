"""What the documents name exists, and what exists is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bpfseal.runtime.cli import COMMANDS
from bpfseal.runtime.help import text

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_every_document_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for document in (ROOT / "docs").glob("*.md"):
        assert f"docs/{document.name}" in readme, document.name


def test_the_manual_page_names_commands_and_options() -> None:
    page = (ROOT / "docs" / "man" / "bpfseal.1").read_text()
    for command in COMMANDS:
        assert re.search(rf"^\.(It|Nm|Cm) .*\b{command}\b", page, re.M), command
    tracing = text(COMMANDS).partition("TRACING")[2].partition("COMMANDS")[0]
    for option in re.findall(r"^    (--?[a-z][a-z-]*)", tracing, re.M):
        name = option[1:]  # mdoc's Fl writes the first dash
        assert re.search(rf"\bFl {re.escape(name)}\b", page), option
