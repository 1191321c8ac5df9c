"""Runs tools by themselves and under `bpfseal exec`. What a test makes carries a name of its own; at its end nothing
with it may be left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.loader.conftest import bpf_permitted, suffix

__all__ = ["bpf_permitted", "suffix"]

ROOT = Path(__file__).parent.parent.parent
EXEC = [sys.executable, "-m", "bpfseal", "exec"]


@dataclass(frozen=True)
class Bridge:
    """`run(COMMAND, OPTIONS…)`; `audit` is the log of the private helper that the runs start."""

    env: dict[str, str]
    audit: Path

    def run(self, command: list[str], *options: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*EXEC, *options, "--", *command],
            capture_output=True, text=True, timeout=timeout, env=self.env, cwd=ROOT, check=False,
        )  # fmt: skip

    def start(self, command: list[str], *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*EXEC, *options, "--", *command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.env, cwd=ROOT,
        )  # fmt: skip

    def records(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.audit.read_text().splitlines()]
        return [line for line in lines if line["event"] == event]


@pytest.fixture
def bridge(tmp_path: Path, bpf_permitted: None) -> Bridge:
    audit = tmp_path / "audit" / "audit.jsonl"
    env = os.environ | {
        "BPFSEAL_SOCKET": str(tmp_path / "none"),  # no system's helper
        "BPFSEAL_AUDIT": str(audit),
        "PYTHONPATH": f"{ROOT}/src:{ROOT}",
    }
    return Bridge(env, audit)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The program made of a C file of this directory."""
    import shutil

    compiler = shutil.which("gcc") or shutil.which("cc")

    def build(name: str) -> str:
        if compiler is None:
            pytest.skip("no C compiler")
        out = tmp_path_factory.mktemp("tools") / name
        source = Path(__file__).parent / f"{name}.c"
        subprocess.run([compiler, "-O1", "-Wall", "-pthread", "-o", str(out), str(source)], check=True)
        return str(out)

    return build
