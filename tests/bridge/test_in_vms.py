"""Tools that know nothing of signatures on kernels that require them: refused by themselves, working under
`bpfseal exec`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bpfseal.runtime import vm
from tests.vm.pool import or_skip


@pytest.mark.vm
@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["6.18", "7.3"])
def test_tools_work_where_signatures_are_required(kernel: str, compiled: Callable[[str], str]) -> None:
    if shutil.which("bpftrace") is None:
        pytest.skip("no bpftrace here")
    with or_skip(kernel, lambda: vm.boot(kernel, keep_tmp=True, limit=1500)) as machine:
        vm.enforce(machine)
        script = str(Path(__file__).parent / "guest.sh")
        done = machine.run(["sh", script, compiled("tool")], timeout=1200)
    parts = re.split(r"=== (.+)\n", done.stdout.decode(errors="replace"))
    seen = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert "end" in seen, done.stdout

    assert "Error loading program" in seen["bpftrace alone"]
    assert "began" not in seen["bpftrace alone"]
    assert "began\n" in seen["bpftrace"]
    assert re.search(r"@reads: [1-9]", seen["bpftrace"])
    assert re.search(r"@opens: [1-9]", seen["bpftrace"])
    assert "loaded program vfs_read, type 2" in seen["bpftrace"]

    assert seen["tool alone"] == "load: Operation not permitted\n"
    assert seen["tool"] == "value 15, cloexec 1\n"

    assert re.search(r"seal .*vfs_read.*// program of bpftrace\[", seen["audit"])
    assert re.search(r"seal .*sealed.*// program of tool\[", seen["audit"])
    assert "refused" in seen["decisions"]
    assert "allowed syscall bpfseal_loader" in seen["decisions"]
