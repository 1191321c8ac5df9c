"""The badge on kernels that verify and require signatures; one kernel of each ABI."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from bpfseal.runtime import vm
from tests.notebook.cells import Seen, seen_in
from tests.vm.pool import or_skip

ROOT = Path(__file__).parents[2]
USER, GROUP = 20001, 20002

RULE = f"""
[[rule]]
name = "analysts"
uid = {USER}
probes = ["begin", "end", "interval:*", "tracepoint:*"]
classes = ["basic", "time", "identity", "map", "output", "read-user"]
map_types = "*"
"""

TRACE = "%bpfseal --signing require BEGIN { @a = 7; exit(); }"
UNSIGNED = "%bpfseal --signing off BEGIN { @a = 7; exit(); }"
EVENTS = "%%bpfseal --for 3s\ntracepoint:sched:sched_switch { @switches = count(); }"


def run_cells(machine: Any, *cells: str, before: tuple[str, ...] = (), home: str = "/root") -> list[Seen]:
    environment = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "HOME": home, "IPYTHONDIR": f"{home}/ipython"}
    command = ["env", *(f"{name}={value}" for name, value in environment.items())]
    done = machine.run([*command, *before, sys.executable, "-m", "tests.notebook.cells", *cells], timeout=900)
    seen = seen_in(done.stdout.decode(errors="replace"))
    assert len(seen) == len(cells), done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
    return seen


def badge(seen: Seen) -> str:
    found = re.search(r'<span class="pill [a-z]+" title="[^"]*">([^<]*(?:sealed|signed)[^<]*)</span>', seen["html"])
    assert found is not None, seen["html"]
    return found[0]


@pytest.mark.vm
@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["6.18", "7.3"])
def test_the_badge_is_what_the_kernel_has_verified(kernel: str) -> None:
    policy = (ROOT / "signer" / "default-policy.toml").read_text() + RULE
    as_user = ("setpriv", f"--reuid={USER}", "--regid=0", f"--groups={GROUP}")
    rights = tuple(f"--{kind}=-all,+bpf,+perfmon" for kind in ("inh-caps", "ambient-caps", "bounding-set"))
    with or_skip(kernel, lambda: vm.boot(kernel, keep_tmp=True, limit=2400)) as machine:
        # The guest's files are its own to change: another user is to reach this Python, wherever it is.
        places = {Path(sys.executable).resolve(), Path(sys.executable).absolute(), ROOT / "src"}
        machine.run(["chmod", "a+x", *{str(folder) for place in places for folder in place.parents}], timeout=300)
        (private,) = run_cells(machine, TRACE)
        machine.run(
            ["sh", "-c", "mkdir -p /etc/bpfseal && cat > /etc/bpfseal/policy.toml"], input=policy.encode(), timeout=300
        )
        vm.enforce(machine, timeout=600)
        system, unsigned, foreign = run_cells(
            machine, TRACE, UNSIGNED, TRACE.replace("require", "require --policy /etc/bpfseal/policy.toml")
        )
        # Root alone may read tracefs until root says otherwise, as the message says.
        machine.run(["mount", "-o", f"remount,mode=750,gid={GROUP}", "/sys/kernel/tracing"], timeout=300)
        home = f"/home/{USER}"
        machine.run(["install", "-d", "-o", str(USER), home], timeout=300)
        mine, events = run_cells(machine, TRACE, EVENTS, before=(*as_user, *rights), home=home)
        log = machine.run(["cat", "/var/log/bpfseal/audit.jsonl"], timeout=300).stdout.decode().splitlines()
    sealed = {record["seq"]: record for record in map(json.loads, log) if record["event"] == "seal"}

    for seen, who in ((private, "private helper"), (system, "system helper"), (mine, "system helper")):
        assert seen["error"] is None, seen
        assert seen["maps"] == {"@a": [[None, 7]]}
        assert seen["seal"]["verified"]
        assert seen["seal"]["why"] == ""
        assert (seen["seal"]["signed_by"], len(seen["seal"]["certificate"])) == (who, 64)
        assert f">sealed by the {who} · verified by the kernel</span>" in badge(seen)
        assert 'class="pill good"' in badge(seen)
        assert seen["seal"]["certificate"][:16] in seen["html"]
    assert (sealed[system["seal"]["record"]]["uid"], sealed[mine["seal"]["record"]]["uid"]) == (0, USER)
    # Not signed, or signed by whom nobody trusts: the kernel says no, and the cell says so.
    for refused in (unsigned, foreign):
        assert refused["kind"] == "TraceFailed"
        assert "EPERM" in refused["out"]
    assert "does it require signatures" in unsigned["out"]
    assert events["error"] is None, events
    assert events["maps"]["@switches"][0][1] > 0
