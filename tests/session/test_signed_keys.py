"""Keys of the sizes that everyday scripts have go through the helper."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.host
def test_strings_of_the_default_length_as_keys() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    program = "tracepoint:syscalls:sys_enter_openat { @[comm, str(args.filename)] = count(); exit(); }"
    done = subprocess.run(
        [sys.executable, "-m", "bpfseal", "-q", "-e", program, "-c", "/bin/cat /etc/hostname"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "]: " in done.stdout
