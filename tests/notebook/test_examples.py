"""The example notebooks, executed by a real Jupyter kernel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bpfseal.runtime.notebook import html as page

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("bpf_permitted")]

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"


def execute(path: Path, tmp_path: Path) -> Any:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=180, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env={**os.environ, "IPYTHONDIR": str(tmp_path)})
    return notebook


def html(notebook: Any) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.data.get("text/html", "") for output in outputs if "data" in output)


def test_syscall_latency(tmp_path: Path) -> None:
    shown = html(execute(FOLDER / "syscall_latency.ipynb", tmp_path))
    assert "@ns[getdents64]" in shown
    assert "<rect" in shown
    assert "audit record" in shown


def test_file_opens(tmp_path: Path) -> None:
    notebook = execute(FOLDER / "file_opens.ipynb", tmp_path)
    shown = html(notebook)
    assert "/etc/hostname" in shown
    # One display that was refreshed: not one output per refresh.
    live = next(cell for cell in notebook.cells if cell.cell_type == "code" and "--live" in cell.source)
    assert [output.output_type for output in live.outputs] == ["display_data"]
    assert ">done<" in live.outputs[0].data["text/html"]


def test_off_cpu(tmp_path: Path) -> None:
    shown = html(execute(FOLDER / "off_cpu.ipynb", tmp_path))
    assert 'aria-label="flame graph"' in shown
    assert "__schedule" in shown


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_committed_outputs_are_whole(path: Path) -> None:
    """Each example is committed with the outputs of one run from top to bottom, none of them an error."""
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert "error" not in kinds
    assert any(cell.outputs for cell in code)
    # Of this version: tools/notebook-outputs.py, when what is shown has changed.
    assert page.STYLE in html(notebook)
