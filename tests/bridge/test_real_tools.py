"""Real tools on kernels that require signatures: each refused by itself and working under `bpfseal exec`, with a record
in the audit log for each program. What docs/compatibility.md says of them is printed by `python -m
tests.bridge.test_real_tools KERNEL`.

Tools that are not installed are left out. bcc needs headers (BCC_KERNEL_SOURCE) and minutes for its compiler.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfseal.runtime import vm
from tests.vm.pool import or_skip

HERE = Path(__file__).parent
PASSED_ON = ("BCC_KERNEL_SOURCE", "BPFSEAL_TEST_BPFTRACE", "BPFSEAL_TEST_BPFTOOL", "BPFSEAL_TEST_CORE")
# A machine for each: words of what the battery calls its tools. Of bcc's, each of which keeps a compiler busy for
# minutes there, two.
PARTS = {
    "tracers": ("bpftrace", "functions of programs", "static Go", "systemd"),
    "objects": ("bpftool", "ip link", "tc filter"),
    "xdp-tools": ("xdp-", "xdpdump"),
    "libbpf-tools": ("libbpf-tools",),
    "bcc": ("bcc, smallest", "bcc opensnoop"),
}
GO_LIBRARY = Path("/usr/share/gocode/src/github.com/cilium/ebpf")
POLICY = """\
version = 1
[[rule]]
name = "tools"
uid = 0
probes = "*"
classes = "*"
kfuncs = "*"
variables = "*"
map_types = "*"
sleepable = true
existing_maps = true
require_source = true
max_map_bytes = "4GiB"
per_minute = 0
"""


def objects(folder: Path) -> Path:
    """The compiled programs of this directory; that in Go only where Debian's compiler and library for it are. Raises
    FileNotFoundError without clang."""
    for source in (HERE / "objects").glob("*.bpf.c"):
        command = ["clang", "-g", "-O2", "-target", "bpf", "-c", str(source), "-o", str(folder / f"{source.stem}.o")]
        subprocess.run(command, check=True)
    if shutil.which("go") and GO_LIBRARY.exists():
        env = {
            "CGO_ENABLED": "0",
            "GO111MODULE": "off",
            "GOPATH": "/usr/share/gocode",
            "GOCACHE": str(folder / "cache"),
        }
        command = ["go", "build", "-o", str(folder / "probe"), str(HERE / "objects" / "probe.go")]
        subprocess.run(command, check=True, env=os.environ | env)
    return folder


def rows(kernel: str, folder: Path, *tools: str) -> Iterator[dict[str, Any]]:
    """What the battery says in a machine that enforces."""
    env = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    with vm.boot(kernel, memory="3G", keep_tmp=True, limit=1500) as machine:
        machine.run(["sh", "-c", f"mkdir -p /etc/bpfseal && cat > /etc/bpfseal/policy.toml <<'END'\n{POLICY}END"])
        vm.enforce(machine)
        command = [sys.executable, str(HERE / "battery.py"), str(folder), *tools]
        done = machine.run(command, timeout=1300, env=env)
    assert done.status == 0, done.stderr
    for line in done.stdout.decode().splitlines():
        yield json.loads(line)


@pytest.mark.vm
@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kernel", ["6.18", "7.3"])
def test_refused_alone_and_working_under_exec(kernel: str, part: str, tmp_path: Path) -> None:
    if shutil.which("clang") is None:
        pytest.skip("no clang here")
    folder = objects(tmp_path)
    found = list(or_skip(kernel, lambda: list(rows(kernel, folder, *PARTS[part]))))
    tried = [row for row in found if "skipped" not in row]
    if not tried:
        pytest.skip("; ".join(sorted({row["skipped"] for row in found})))
    for row in tried:
        said = json.dumps(row)  # all of it
        assert not row["alone"], said
        assert row["exec"], said
        assert row["loaded"] > 0, said
        assert row["audited"] >= row["loaded"], said


def main() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for row in rows(sys.argv[1], objects(Path(folder)), *sys.argv[2:]):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
