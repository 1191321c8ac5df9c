"""Enforcement in test kernels: what guest_enforce.py observed, judged here. Never on the running kernel."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from bpfseal.runtime import vm
from tests.vm.pool import or_skip

Steps = dict[str, dict[str, Any]]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("6.18", marks=pytest.mark.vm),
        pytest.param("7.2", marks=[pytest.mark.vm, pytest.mark.slow]),
        pytest.param("7.3", marks=pytest.mark.vm),
    ],
)
def seen(request: pytest.FixtureRequest) -> Steps:
    with or_skip(request.param, lambda: vm.boot(request.param, limit=900)) as machine:
        done = machine.run([sys.executable, "-m", "tests.loader.guest_enforce"], timeout=800)
    steps = [json.loads(line) for line in done.stdout.decode().splitlines() if line.startswith("{")]
    assert done.status == 0, done.stderr.decode(errors="replace")
    for step in steps:
        assert "trouble" not in step, step["trouble"]
    return {step["step"]: step for step in steps}


def test_refuses_to_lock_its_own_user_out(seen: Steps) -> None:
    """Without a helper nothing could be loaded any more: not turned on, and what is on stays as it is."""
    assert seen["off at first"]["status"] == 3
    for step in ("no helper", "on without helper"):
        assert seen[step]["status"] == 1
        assert "nobody could load a BPF program any more" in seen[step]["error"]
        assert "--start-helper" in seen[step]["hint"]


def test_audit_mode_refuses_nothing_and_tells(seen: Steps) -> None:
    assert seen["audit"]["status"] == 0, seen["audit"]["error"]
    assert (seen["unsigned in audit"]["direct"], seen["unsigned in audit"]["loader"]) == ("loaded", "loaded")
    told = [(d["program"], d["verdict"], d["reason"]) for d in seen["log of audit"]["decisions"]]
    assert told == [
        ("bpfseal_loader", "allowed", ""),
        ("direct", "would be refused", "not signed"),
        ("bpfseal_loader", "would be refused", "not signed"),
    ]


def test_unsigned_programs_are_refused(seen: Steps) -> None:
    assert (seen["unsigned before"]["direct"], seen["unsigned before"]["loader"]) == ("loaded", "loaded")
    assert seen["on"]["status"] == 0, seen["on"]["error"]
    status = json.loads(seen["status on"]["out"])
    assert status["mode"] == "enforce"
    assert len(status["keyrings"]) == 1
    assert (seen["unsigned"]["direct"], seen["unsigned"]["loader"]) == ("EPERM", "EPERM")


def test_a_ring_of_the_attackers_own_is_refused(seen: Steps) -> None:
    """A good signature, verified by the kernel against a ring that anybody can make; and other names for rings."""
    rings = seen["own ring"]
    assert rings["serial"] == "EPERM"
    for name in ("session", "process", "builtin", "secondary", "platform"):
        assert rings[name] in ("EPERM", "ENOKEY", "EINVAL"), name


def test_what_the_helper_sealed_loads_and_counts(seen: Steps) -> None:
    assert seen["signed"]["signed"] == "counted 500"


def test_other_tools_are_refused(seen: Steps) -> None:
    assert "NOT available" in seen["other tool"]["bpftool"]


def test_decisions_are_logged(seen: Steps) -> None:
    decisions = seen["log"]["decisions"]
    verdicts = {(d["comm"], d["verdict"], d["reason"]) for d in decisions}
    assert ("bpftool", "refused", "not signed") in verdicts
    assert any(d["reason"] == "keyring is not on the list" and d["keyring"] for d in decisions)
    assert any(d["verdict"] == "allowed" and d["keyring"] for d in decisions)
    assert all(d["uid"] == 0 and d["pid"] > 1 for d in decisions)
    assert seen["log command"]["status"] == 0, seen["log command"]["error"]
    assert " refused raw_tracepoint direct by python" in seen["log command"]["out"]


def test_decisions_are_kept_in_the_audit_log(seen: Steps) -> None:
    (record,) = seen["log command"]["kept"]
    assert record["uid"] == 0
    assert ("direct", "refused", "not signed") in {
        (d["program"], d["verdict"], d["reason"]) for d in record["decisions"]
    }


def test_a_dead_helpers_keyring_is_forgotten_and_a_new_one_taken(seen: Steps) -> None:
    assert seen["kill helper"]["rings"] == 0
    assert seen["still on"]["direct"] == "EPERM"
    assert "no keyring is on the list" in seen["still on"]["out"]
    assert seen["handed over"]["status"] == 0, seen["handed over"]["error"]
    assert seen["handed over"]["signed"] == "counted 500"


def test_it_ends_by_itself(seen: Steps) -> None:
    assert seen["for"]["status"] == 0
    assert seen["within time"]["direct"] == "EPERM"
    assert seen["after time"]["direct"] == "loaded"
    assert seen["after time"]["status"] == 3


def test_rings_of_the_system_by_choice(seen: Steps) -> None:
    """Listed, they count; signatures that they do not verify are the kernel's to refuse."""
    step = seen["system rings"]
    assert step["status"] == 0, step["error"]
    assert [ring["serial"] for ring in step["state"]["keyrings"] if not ring["helper"]] == ["builtin"]
    assert step["rings"]["serial"] == "EPERM"
    assert step["rings"]["builtin"] in ("ENOKEY", "EKEYREJECTED")


def test_exceptions_by_tag(seen: Steps) -> None:
    step = seen["except tag"]
    assert step["status"] == 0, step["error"]
    assert (step["direct"], step["other"], step["loader"]) == ("loaded", "EPERM", "EPERM")
    assert step["state"]["except_tags"] == [step["tag"]]
    assert [(d["program"], d["verdict"], d["reason"]) for d in step["log"]] == [
        ("other", "refused", "not signed"),
        ("direct", "allowed", "its tag is excepted"),
    ]
    assert (step["in audit"], step["signed"], step["pending"]) == ("done", "counted 500", 0)


def test_exceptions_by_cgroup(seen: Steps) -> None:
    step = seen["except cgroup"]
    assert step["status"] == 0, step["error"]
    assert step["found"] == {"tools": "loaded", "tools/inner": "loaded", ".": "EPERM"}
    assert step["everybody"]["status"] == 2
    assert len(step["state"]["except_cgroups"]) == 1


def test_the_guard_refuses_changes_that_the_helper_did_not_see(seen: Steps) -> None:
    assert (seen["unguarded"]["status"], "without the guard" in seen["unguarded"]["error"]) == (1, True)
    assert seen["guard"]["status"] == 0, seen["guard"]["error"]
    attack = {name: result for name, result in seen["attack"].items() if name not in ("step", "seconds")}
    assert attack.pop("open") == "Guarded"
    assert set(attack.values()) == {"EPERM"}
    assert len(attack) == 14
    state = seen["guarded status"]["state"]
    assert (state["mode"], state["guard"], seen["guarded status"]["log"]) == ("enforce", True, 0)
    assert state["changes_refused"] >= len(attack) - 1  # `direct` is no change
    changed = seen["changed by the helper"]
    assert (changed["status"], "logging only, guarded" in changed["out"]) == (0, True), changed["error"]
    assert seen["off through the helper"]["out"] == "enforcement is off\n", seen["off through the helper"]["error"]
    assert seen["kill the guard's helper"]["out"] == "enforcement is off\n"


def test_off_leaves_nothing(seen: Steps) -> None:
    assert seen["off"]["out"] == "enforcement is off\n"
    assert seen["off again"]["out"] == "enforcement was off\n"
    left = seen["nothing left"]
    assert (left["pins"], left["programs"], left["direct"]) == (False, [], "loaded")
