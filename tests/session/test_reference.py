"""Output held against the reference's, run side by side: each program of reference.cases, as text and as JSON.

The reference is what BPFSEAL_BENCH_BPFTRACE says ("chroot /some/root bpftrace"), or `bpftrace` on PATH, if it is of the
version that the language follows.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import command

# Each is started four times.
pytestmark = [pytest.mark.host, pytest.mark.slow]

LINES = Path(__file__).with_name("reference.cases").read_text().splitlines()
CASES = [line for line in LINES if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def reference() -> list[str]:
    words = shlex.split(os.environ.get("BPFSEAL_BENCH_BPFTRACE", "")) or ["bpftrace"]
    if shutil.which(words[0]) is None:
        pytest.skip("no bpftrace here")
    version = subprocess.run([*words, "--version"], capture_output=True, text=True, check=False).stdout
    if not re.match(r"bpftrace v0\.27", version):
        pytest.skip(f"no bpftrace 0.27 here, but {version.strip() or 'none'}")
    return words


def test_there_are_cases() -> None:
    assert len(CASES) > 60


@pytest.mark.parametrize("body", CASES)
def test_same_output(body: str, reference: list[str]) -> None:
    program = f"config = {{ unstable_tseries = enable }} BEGIN {{ {body} exit(); }}"
    for format in ("text", "json"):
        ours, theirs = (
            subprocess.run([*words, "-f", format, "-e", program], capture_output=True, timeout=180, check=False)
            for words in (command("-q"), [*reference, "-q"])
        )
        assert ours.stdout == theirs.stdout, (theirs.stderr, ours.stderr)
        assert ours.returncode == theirs.returncode
        assert ours.stdout or b"ERROR" not in theirs.stderr  # a program that both refuse shows nothing
