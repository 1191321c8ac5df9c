"""Keys, rings and helpers on kernels that verify. guest.py observes inside the test kernel; here it is judged."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from bpfseal.runtime import vm
from tests.vm.pool import vm73, vm618

__all__ = ["vm73", "vm618"]
ABI = {"vm618": 1, "vm73": 2}
Results = dict[str, dict[str, Any]]


def observe(machine: vm.Machine, *arguments: str) -> Results:
    done = machine.run([sys.executable, "-m", "tests.signer_process.guest", *arguments], timeout=900)
    lines = [json.loads(line) for line in done.stdout.decode().splitlines() if line.startswith("{")]
    assert done.status == 0, done.stderr.decode(errors="replace")
    for line in lines:
        assert "error" not in line, line["error"]
    return {line["check"]: line for line in lines}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=[pytest.mark.vm, pytest.mark.slow]) for name in ABI])
def seen(request: pytest.FixtureRequest) -> tuple[int, Results]:
    return ABI[request.param], observe(request.getfixturevalue(request.param))


def test_a_private_helper_seals_what_the_kernel_verifies(seen: tuple[int, Results]) -> None:
    abi, results = seen
    first = results["first_seal"]
    assert (first["abi"], first["why"], first["load"], first["algorithm"]) == (abi, "", "ok", "ECDSA P-256")
    assert first["listed"] == 4  # two rings, one root, one leaf
    assert first["same ring"]


def test_it_gave_up_everything(seen: tuple[int, Results]) -> None:
    first = seen[1]["first_seal"]
    assert {"no capabilities", "not dumpable", "seccomp filter", "memory locked"} <= set(first["hardening"])
    assert any(word.startswith("Landlock") for word in first["hardening"])
    assert first["locked"]


def test_rotation(seen: tuple[int, Results]) -> None:
    found = seen[1]["rotate"]
    assert found["old"] in ("ENOKEY", "EKEYREVOKED")
    assert (found["new"], found["keys"]) == ("ok", 1)


def test_revocation(seen: tuple[int, Results]) -> None:
    found = seen[1]["revoke"]
    assert found["old"] in ("ENOKEY", "EKEYREVOKED")
    assert (found["told"], found["again"]) == ("all keys are revoked", "ok")


def test_scheduled_rotation_overlaps_and_ends(seen: tuple[int, Results]) -> None:
    found = seen[1]["scheduled_rotation"]
    assert found["switched"] >= 0
    assert found["overlap"] == "ok"
    assert found["ended"] >= 0
    assert found["after"] in ("ENOKEY", "EKEYREVOKED", "EKEYEXPIRED")
    assert (found["new"], found["keys"]) == ("ok", 2)


def test_the_kernel_itself_times_keys_out(seen: tuple[int, Results]) -> None:
    found = seen[1]["timeout_of_the_key"]
    assert (found["before"], found["after"]) == ("ok", "EKEYEXPIRED")


def test_a_clock_set_back_prolongs_nothing(seen: tuple[int, Results]) -> None:
    found = seen[1]["clock_set_back"]
    assert found["rotated"]
    assert found["old"] in ("ENOKEY", "EKEYREVOKED")
    assert found["new"] == "ok"
    assert found["left"] <= 600


def test_root_without_the_ring_can_do_nothing_to_it(seen: tuple[int, Results]) -> None:
    """Not even invalidate it: nobody else has the search right."""
    found = seen[1]["root_without_the_ring"]
    assert len(found["attempts"]) == 16
    assert set(found["attempts"].values()) == {"EACCES"}
    assert found["load"] == "ok"


def test_loading_takes_rights_but_none_over_the_ring(seen: tuple[int, Results]) -> None:
    found = seen[1]["system_helper"]
    assert (found["CAP_BPF"], found["no capability"]) == ("ok", "EPERM")


def test_a_killed_helper_takes_its_ring_along(seen: tuple[int, Results]) -> None:
    found = seen[1]["system_helper"]
    assert found["before"] == "ok"
    assert 0 <= found["seconds"] < 10
    assert found["after"] == "EINVAL"
    assert "lost the signing helper" in found["told"]


def test_replay_after_a_restart(seen: tuple[int, Results]) -> None:
    found = seen[1]["system_helper"]
    assert (found["old"], found["old on the new ring"], found["new"]) == ("EINVAL", "ENOKEY", "ok")
    assert found["log"]


def test_keys_that_are_not_in_the_ring(seen: tuple[int, Results]) -> None:
    """Whoever holds a listed leaf's private key can issue below it, for as long as that leaf is listed: that is no
    more than signing with it. Nothing else gets in, whatever certificates come along."""
    found = {name: value for name, value in seen[1]["foreign_keys"].items() if name not in ("check", "took")}
    assert found == {
        "listed": "ok",
        "listed, embedded": "ok",
        "unlisted": "ENOKEY",
        "unlisted, embedded": "ENOKEY",
        "unlisted, with its root": "ENOKEY",
        "leaf of a leaf": "ok",
        "leaf of a leaf, whole chain": "ok",
        "self-signed": "ENOKEY",
        "leaf of a leaf into the ring": "ENOKEY",
        "leaf of a leaf that is out": "ENOKEY",
    }


def test_two_users_two_answers(seen: tuple[int, Results]) -> None:
    found = seen[1]["two_users"]
    assert (found["1234 openat"], found["1235 kill"]) == ("ok", "ok")
    assert found["1234 kill"].endswith("probe tracepoint:syscalls:sys_enter_kill is not granted")
    assert found["1235 openat"].endswith("probe tracepoint:syscalls:sys_enter_openat is not granted")
    assert (found["seal of another user"], found["seal of another process"]) == ("EPERM", "ESRCH")


def test_roots_of_all_kinds(seen: tuple[int, Results]) -> None:
    assert seen[1]["roots"]["P-384"] == ["file", "ok", "ok"]
    assert seen[1]["roots"]["RSA-2048"] == ["file", "ok", "ok"]
    assert seen[1]["token"]["token"] == ["token", "ok", "ok"]


def test_rsa_leaves(seen: tuple[int, Results]) -> None:
    assert seen[1]["rsa"]["load"] == "ok"


def test_rotations_under_load(seen: tuple[int, Results]) -> None:
    found = seen[1]["rotations_under_load"]
    assert found["failed"] == 0
    assert found["most"] <= 2


def test_nothing_is_left(seen: tuple[int, Results]) -> None:
    found = seen[1]["nothing_left"]
    assert found["left"] == []
    assert 0 <= found["seconds"] < 10


@pytest.mark.vm
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ABI))
def test_a_thousand_rotations(request: pytest.FixtureRequest, name: str) -> None:
    found = observe(request.getfixturevalue(name), "slow", "rotations_under_load")["rotations_under_load"]
    assert (found["failed"], found["most"]) == (0, 1)
