"""Jupyter of users who are not root, with a real system helper: what they need, and what they are told."""

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

from tests.notebook.cells import Seen, seen_in
from tests.signer_process.conftest import Helper, running

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("bpf_permitted")]

ROOT = Path(__file__).parents[2]
USER, STRANGER = 20001, 20003

POLICY = f"""
version = 1

[[rule]]
name = "analysts"
uid = {USER}
probes = ["begin", "end", "interval:*", "tracepoint:*", "rawtracepoint:*"]
classes = ["basic", "time", "identity", "map", "output", "read-user"]
map_types = "*"
per_minute = 0
"""

BOTH = ("bpf", "perfmon")


@pytest.fixture(scope="module")
def helper() -> Iterator[Helper]:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv(1) to become other users")
    with running(POLICY) as one:
        one.env["python"] = python(one)
        if not one.env["python"]:
            pytest.skip("there is no Python with IPython and bpfseal that other users may run")
        yield one


def python(helper: Helper) -> str:
    """An interpreter like this one that other users may run: a virtual environment is often root's alone."""
    version = f"import sys, IPython, pandas, bpfseal; assert sys.version_info[:2] == {sys.version_info[:2]}"
    for found in (sys.executable, shutil.which("python3", path="/usr/bin:/bin")):
        # By way of a shell, for who starts other programs as that user.
        if found and as_user(helper, "sh", "-c", 'exec "$0" -c "$1"', found, version).returncode == 0:
            return found
    return ""


def as_user(
    helper: Helper, *command: str, uid: int = USER, capabilities: tuple[str, ...] = (), group: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a command as `uid` with these ambient capabilities and no others. Group 0 may connect to the helper."""
    home = helper.folder / f"home-{uid}"
    if not home.exists():
        home.mkdir()
        os.chown(home, uid, uid)
    rights = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    become = ["setpriv", f"--reuid={uid}", f"--regid={group}", "--clear-groups"]
    become += [f"--inh-caps={rights}", f"--ambient-caps={rights}", f"--bounding-set={rights}"]
    folders = [str(ROOT / "src"), str(ROOT), *(folder for folder in sys.path if folder.endswith("-packages"))]
    environment = {
        "PATH": "/usr/bin:/bin", "HOME": str(home), "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": ":".join(folders), "PYTHONDONTWRITEBYTECODE": "1", "BPFSEAL_SOCKET": helper.socket,
    }  # fmt: skip
    return subprocess.run(
        [*become, *command], capture_output=True, text=True, check=False, timeout=300, env=environment, cwd=home
    )


def run_cells(helper: Helper, *cells: str, **who: Any) -> list[Seen]:
    done = as_user(helper, helper.env["python"], "-m", "tests.notebook.cells", *cells, **who)
    seen = seen_in(done.stdout)
    assert len(seen) == len(cells), done.stdout + done.stderr
    return seen


def records(helper: Helper) -> list[dict[str, Any]]:
    return [json.loads(line) for line in helper.audit.read_text().splitlines()]


TICKS = "%%bpfseal --for 400ms\ninterval:ms:50 { @ticks = count(); @who[uid] = count(); }"


def test_two_capabilities_are_enough(helper: Helper) -> None:
    (seen,) = run_cells(helper, TICKS, capabilities=BOTH)
    assert seen["error"] is None, seen
    assert seen["maps"]["@ticks"][0][1] > 0
    assert seen["seal"]["signed_by"] == "system helper"
    assert "sealed by the system helper" in seen["html"]
    (record,) = [r for r in records(helper) if r["event"] == "seal" and r["uid"] == USER]
    assert record["seq"] == seen["seal"]["record"]
    assert record["rule"] == "analysts"


@pytest.mark.parametrize(
    ("held", "missing", "not_missing"),
    [
        ((), ["CAP_BPF", "CAP_PERFMON"], []),
        pytest.param(("bpf",), ["CAP_PERFMON"], ["CAP_BPF"], marks=pytest.mark.slow),
        pytest.param(("perfmon",), ["CAP_BPF"], ["CAP_PERFMON"], marks=pytest.mark.slow),
    ],
)
def test_what_is_missing_is_named(
    helper: Helper, held: tuple[str, ...], missing: list[str], not_missing: list[str]
) -> None:
    (seen,) = run_cells(helper, TICKS, capabilities=held)
    assert seen["kind"] == "TraceFailed", seen
    assert f"uid {USER}" in seen["out"]
    lacks = seen["out"].partition("lacks ")[2].partition(":")[0]
    assert all(name in lacks for name in missing), seen["out"]
    assert not any(name in lacks for name in not_missing), seen["out"]
    assert "Traceback" not in seen["out"]


@pytest.mark.slow
def test_policy_decides(helper: Helper) -> None:
    """What the user may load, she may not have signed."""
    (stacks,) = run_cells(helper, "%bpfseal BEGIN { @[kstack] = count(); exit(); }", capabilities=BOTH)
    (nobody,) = run_cells(helper, "%bpfseal BEGIN { exit(); }", capabilities=BOTH, uid=STRANGER)
    assert "rule analysts" in stacks["out"]
    assert f"no rule is for uid {STRANGER}" in nobody["out"]
    assert "lacks" not in stacks["out"] + nobody["out"]


@pytest.mark.slow
def test_who_may_not_connect_has_a_private_helper(helper: Helper) -> None:
    (seen,) = run_cells(helper, "%bpfseal BEGIN { @ = uid; exit(); }", capabilities=BOTH, group=USER)
    assert seen["error"] is None, seen
    assert seen["maps"] == {"@": [[None, USER]]}
    assert seen["seal"]["signed_by"] == "private helper"


@pytest.mark.slow
def test_tracefs_is_named(helper: Helper) -> None:
    """Capabilities do not open what only root may read."""
    (seen,) = run_cells(
        helper, "%bpfseal --for 300ms tracepoint:sched:sched_switch { @ = count(); }", capabilities=BOTH
    )
    if seen["error"] is None:
        pytest.skip("tracefs is open to everybody here")
    assert "/sys/kernel/tracing" in seen["out"]
    assert "remount" in seen["out"]
    assert "lacks" not in seen["out"]


@pytest.mark.slow
def test_a_notebook_executed_by_jupyter(helper: Helper) -> None:
    """The whole chain without root: `jupyter execute`, its kernel, the helper's socket, the Linux kernel."""
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    as_user(helper, "true")
    path = helper.folder / f"home-{USER}" / "mine.ipynb"
    cells = ["%load_ext bpfseal\nimport os; os.getuid()", TICKS]
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), path)
    os.chown(path, USER, USER)
    execute = "from nbclient.cli import main; main()"
    done = as_user(helper, helper.env["python"], "-c", execute, "--inplace", str(path), capabilities=BOTH)
    assert done.returncode == 0, done.stderr
    first, second = nbformat.read(path, as_version=4).cells
    assert first.outputs[0].data["text/plain"] == str(USER)
    shown = "".join(output.data.get("text/html", "") for output in second.outputs if "data" in output)
    assert "sealed by the system helper" in shown
    assert "@ticks" in shown
