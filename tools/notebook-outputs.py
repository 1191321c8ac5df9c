"""Runs the example notebooks from top to bottom in a Jupyter kernel and keeps what they show. Needs root.

python tools/notebook-outputs.py [NOTEBOOK …]
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"


def main(names: list[str]) -> None:
    for path in [Path(name) for name in names] or sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        # When each cell ran is nothing to compare: without it a diff shows what has changed.
        client = NotebookClient(notebook, timeout=180, kernel_name="python3", record_timing=False)
        with tempfile.TemporaryDirectory() as folder:
            client.resources = {"metadata": {"path": folder}}
            client.execute(env={**os.environ, "IPYTHONDIR": folder})
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
        nbformat.write(notebook, path)
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
