"""What a command under `bpfseal exec` waits for before it runs."""

from __future__ import annotations

import subprocess
import sys

from tests.bridge.conftest import ROOT

# Each of these takes longer to import than everything that has to happen before a command is started.
SLOW = {
    "typing",
    "enum",
    "re",
    "contextlib",
    "collections",
    "functools",
    "dataclasses",
    "subprocess",
    "ctypes",
    "struct",
    "importlib",
    "msgspec",
    "signal",
}


def test_a_command_waits_for_no_slow_module() -> None:
    """Without site, which brings some of them along where packages are installed to be worked on."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n"
        "from bpfseal.runtime import cli; cli.main(['exec', '--help'])\n"
        "import bpfseal.runtime.bridge.supervisor; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "bpfseal.runtime.bridge.filter" in modules
    assert not modules & SLOW
