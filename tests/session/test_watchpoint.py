"""unwatch(): a watchpoint that takes itself away."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import trace

pytestmark = [pytest.mark.host, pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")]

WRITES = 150
SOURCE = f"""
#include <unistd.h>
volatile long watched[2] = {{ 1, 2 }}; /* not where exec() itself writes zeros */
int main(void)
{{
	for (int i = 0; i < {WRITES}; i++) {{
		watched[0] = i;
		watched[1] = i;
		usleep(10000);
	}}
	return 0;
}}
"""


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """(a program that writes to two places, address of the first)."""
    folder = tmp_path_factory.mktemp("watch")
    (folder / "w.c").write_text(SOURCE)
    path = folder / "writer"
    done = subprocess.run(
        ["gcc", "-O1", "-static", "-no-pie", "-o", path, folder / "w.c"], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("no static C library")
    symbols = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"^([0-9a-f]+) \w watched$", symbols, re.M)
    assert found
    return str(Path(path)), int(found[1], 16)


def test_unwatch_takes_one_watchpoint_away(writer: tuple[str, int]) -> None:
    path, address = writer
    done = trace(
        f'watchpoint:{address:#x}:8:w /comm == "writer"/ {{ @first++; unwatch({address:#x}); }} '
        f'watchpoint:{address + 8:#x}:8:w /comm == "writer"/ {{ @second++; }}',
        "-c",
        path,
    )
    if "watchpoint" in done.err:
        pytest.skip(done.err)
    counts = dict(re.findall(r"^@(\w+): (\d+)$", done.out, re.M))
    assert int(counts["second"]) == WRITES
    assert 1 <= int(counts["first"]) < WRITES // 2


def test_unwatch_of_nothing_changes_nothing(writer: tuple[str, int]) -> None:
    path, address = writer
    done = trace(f'watchpoint:{address:#x}:8:w /comm == "writer"/ {{ @n++; unwatch(12345); }}', "-c", path)
    if "watchpoint" in done.err:
        pytest.skip(done.err)
    assert f"@n: {WRITES}\n" in done.out
