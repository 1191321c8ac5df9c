"""Programs are compiled for the running machine; those marked `host` are loaded and run there."""

from __future__ import annotations

import pytest

from tests.compiler.harness import why_not


@pytest.fixture(scope="session")
def host() -> None:
    if reason := why_not():
        pytest.skip(reason)
