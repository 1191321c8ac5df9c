"""The house's borders: which package may import what. The table is the design; a new arrow has to be argued there."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("dsl", "compiler", "signer", "runtime")

# Runs as the guest's first process, where bpfseal cannot be imported yet: relative imports of its own folder only.
GUEST = ROOT / "runtime" / "vm" / "guest"

# What a package may import of ours: a package name allows all of it, a dotted name just that module.
MAY = {
    "dsl": {"dsl"},
    "compiler": {"compiler", "dsl", "signer.bundle", "signer.btf", "signer.insn", "signer.helpers", "signer.syscall"},
    # The read side of a bundle and the one audit/policy tooling live in the signer; nothing of the client does.
    "signer": {"signer"},
    "runtime": {"runtime", "compiler", "dsl", "signer"},
}
# What a package may import of others' beside the standard library.
LIBRARIES = {
    "dsl": {"lark", "msgspec", "pycparser"},
    "compiler": {"lark", "llvmlite", "elftools", "msgspec"},
    "signer": {"cryptography", "msgspec", "pkcs11"},
}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names of everything a file imports, function bodies included, TYPE_CHECKING blocks too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            if node.module.startswith("bpfseal"):
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level and not (node.level == 1 and path.parent == GUEST):
            raise AssertionError(f"{path}: relative import; say bpfseal.… so that borders can be read")
    return found


def allowed(package: str, name: str) -> bool:
    if name in ("bpfseal", "bpfseal.__version__") or name.startswith("bpfseal.errors"):
        return True
    inner = name.removeprefix("bpfseal.")
    return any(inner == may or inner.startswith(may + ".") for may in MAY[package]) or any(
        # "from bpfseal.signer import bundle" names the package on the way to an allowed module
        may.startswith(inner + ".")
        for may in MAY[package]
    )


@pytest.mark.parametrize("package", OURS)
def test_no_arrow_points_backwards(package: str) -> None:
    bad = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(package)
        for name in sorted(imports(path))
        if (name == "bpfseal" or name.startswith("bpfseal.")) and not allowed(package, name)
    ]
    assert not bad


@pytest.mark.parametrize("package", sorted(LIBRARIES))
def test_only_its_own_libraries(package: str) -> None:
    known = set(sys.stdlib_module_names) | LIBRARIES[package] | {"bpfseal"}
    bad = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(package)
        for name in sorted(imports(path))
        if name.split(".")[0] not in known
    ]
    assert not bad


def test_every_package_is_there() -> None:
    assert all(modules(package) for package in OURS)
