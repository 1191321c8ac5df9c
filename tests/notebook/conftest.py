"""A real IPython shell in this process, with the extension loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from bpfseal.runtime import bpf

pytest.importorskip("IPython", reason="IPython is not installed: pip install 'bpfseal[notebook]'")
pytest.importorskip("pandas", reason="pandas is not installed: pip install 'bpfseal[notebook]'")


@pytest.fixture(scope="session")
def bpf_permitted() -> None:
    try:
        os.close(bpf.map_create(bpf.MAP_ARRAY, 4, 8, 1))
    except OSError as error:
        pytest.skip(f"bpf(2) is not permitted here: {error.strerror}")


@pytest.fixture(scope="module")
def ipython() -> Iterator[Any]:
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(config=config)
    shell.run_line_magic("load_ext", "bpfseal")
    yield shell
    shell.run_line_magic("unload_ext", "bpfseal")
    InteractiveShell.clear_instance()


class Cell:
    """One cell that has run."""

    def __init__(self, shell: Any, text: str) -> None:
        from IPython.utils.capture import capture_output

        with capture_output() as captured:
            done = shell.run_cell(text)
        self.value = done.result
        self.error = done.error_before_exec or done.error_in_exec
        self.out = captured.stdout
        self.err = captured.stderr
        self.displayed = captured.outputs


@pytest.fixture
def cell(ipython: Any) -> Any:
    """Run a cell; traces that it leaves behind are stopped after the test."""
    yield lambda text: Cell(ipython, text)
    ipython.bpfseal_magics.close()
