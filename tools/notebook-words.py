"""Writes the language's words into JupyterLab's extension, which is JavaScript and cannot ask the tables."""

from __future__ import annotations

import json
import re
from pathlib import Path

from bpfseal.dsl.table import AGGREGATES, BUILTINS, FUNCTIONS
from bpfseal.runtime.notebook import lexer

FILE = Path(__file__).parents[1] / "runtime/notebook/labextension/static/remoteEntry.js"


def line() -> str:
    """The statement as it stands in the file."""
    words = {
        "keywords": sorted(lexer.KEYWORDS),
        "types": sorted(lexer.TYPES),
        "probes": sorted(lexer.PROBES),
        "functions": sorted({*FUNCTIONS, *AGGREGATES}),
        "builtins": sorted(BUILTINS),
    }
    rows = [f"    {name}: {json.dumps(' '.join(some))}.split(' ')," for name, some in words.items()]
    return "const WORDS = {\n" + "\n".join(rows) + "\n  };"


if __name__ == "__main__":
    text = FILE.read_text()
    FILE.write_text(re.sub(r"const WORDS = \{.*?\};", lambda _: line(), text, count=1, flags=re.S))
