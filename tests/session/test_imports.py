"""Start-up is a feature: what a cached one-liner imports. Not how long that takes, which depends on the machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.host

# What brings milliseconds along and has no business before the first event.
HEAVY = {
    "argparse", "ast", "bcc", "bz2", "cryptography", "dataclasses", "difflib", "dis", "elftools", "gettext",
    "inspect", "json", "lark", "llvmlite", "logging", "lzma", "numpy", "pathlib", "pkcs11", "platform", "random",
    "rich", "shlex", "shutil", "subprocess", "tempfile", "urllib",
}  # fmt: skip
OWN = {"bpfseal.dsl", "bpfseal.compiler.build", "bpfseal.compiler.llvm", "bpfseal.signer.server", "bpfseal.signer.keys"}

ONE_LINER = """
import sys
from bpfseal.runtime.cli import main
status = main(["-q", "-e", 'BEGIN { @a = count(); printf("x"); exit(); }'])
print("\\n".join(["", *(name for name, module in sys.modules.items() if module is not None)]))
"""


def modules() -> set[str]:
    done = subprocess.run([sys.executable, "-c", ONE_LINER], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


def test_cached_one_liner_imports_little() -> None:
    modules()  # fills the cache
    found = modules()
    roots = {name.partition(".")[0] for name in found}
    assert not roots & HEAVY
    assert not found & OWN
    assert "bpfseal.runtime.session" in found
    assert len(found) < 200
