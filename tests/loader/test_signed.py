"""Loading signed bundles, and the attacks on it, on kernels that verify. What happens is observed by guest.py inside
the test kernel; here it is judged."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from bpfseal.runtime import vm
from tests.vm.pool import vm72, vm73, vm618

__all__ = ["vm72", "vm73", "vm618"]

KERNELS = {"6.18": 1, "7.2": 1, "7.3": 2}
# 7.2 has the ABI of 6.18; it differs in the member that says "exclusive".
EFFORT = {"6.18": "normal", "7.2": "brief", "7.3": "normal"}
STEP = {"normal": 27, "brief": 145}
CONTEXTS = {"normal": 100, "brief": 20}
METADATA = 384  # bytes, of the bundle whose bits are flipped
Results = dict[str, dict[str, Any]]


def observe(request: pytest.FixtureRequest, kernel: str, *arguments: str, timeout: float) -> Results:
    machine: vm.Machine = request.getfixturevalue(f"vm{kernel.replace('.', '')}")
    done = machine.run([sys.executable, "-m", "tests.loader.guest", *arguments], timeout=timeout)
    lines = [json.loads(line) for line in done.stdout.decode().splitlines() if line.startswith("{")]
    assert done.status == 0, done.stderr.decode(errors="replace")
    for line in lines:
        assert "error" not in line, line["error"]
    return {line["check"]: line for line in lines}


# One kernel of each ABI in every run; 7.2 speaks ABI 1 as 6.18 does.
MARKS = {k: [pytest.mark.vm, *([pytest.mark.slow] if k == "7.2" else [])] for k in KERNELS}


@pytest.fixture(scope="module", params=[pytest.param(k, marks=MARKS[k]) for k in KERNELS])
def seen(request: pytest.FixtureRequest) -> tuple[int, Results]:
    """(signing ABI that this kernel must have, what the guest observed)."""
    return KERNELS[request.param], observe(request, request.param, EFFORT[request.param], timeout=600)


@pytest.fixture
def effort(request: pytest.FixtureRequest, seen: object) -> str:
    return EFFORT[request.node.callspec.params["seen"]]


def errnos(checks: dict[str, dict[str, str]]) -> dict[str, str]:
    return {name: check["errno"] for name, check in checks.items()}


def test_the_abi_is_found(seen: tuple[int, Results]) -> None:
    abi, results = seen
    found = results["which_abi"]
    assert (found["version"], found["why"]) == (abi, "")
    assert (found["excl"] is not None) == (abi == 1)


def test_a_signed_bundle_loads_and_counts(seen: tuple[int, Results]) -> None:
    assert seen[1]["signed_load_counts"]["count"] == 45


def test_a_target_in_a_module_is_found_by_name_and_must_have_the_sealed_id(seen: tuple[int, Results]) -> None:
    check = seen[1]["modules"]
    assert check["loaded"]
    assert (check["wrong"]["stage"], check["wrong"]["errno"]) == ("TARGET", "ENOENT")


def test_the_loader_attaches(seen: tuple[int, Results]) -> None:
    """A BTF-typed tracepoint, fentry, fexit, an LSM hook."""
    check = seen[1]["linked"]
    assert check["links"] == [0, 1, 2, 3]
    assert all(count >= 100 for count in check["counts"]), check


def test_wrong_keys(seen: tuple[int, Results]) -> None:
    checks = {name: seen[1]["other_key"][name] for name in ("foreign", "gone", "junk")}
    assert errnos(checks) == {"foreign": "ENOKEY", "gone": "EINVAL", "junk": "EBADMSG"}


def test_expired_and_revoked_keys(seen: tuple[int, Results]) -> None:
    checks = {name: seen[1]["key_life"][name] for name in ("before", "after", "revoked")}
    assert errnos(checks) == {"before": "none", "after": "EKEYEXPIRED", "revoked": "EKEYREVOKED"}


def test_one_changed_bit_is_refused_with_a_clear_line(seen: tuple[int, Results]) -> None:
    abi, results = seen
    assert results["changed_loader"]["errno"] == "EKEYREJECTED"
    assert results["changed_metadata"]["errno"] == ("EINVAL" if abi == 1 else "EKEYREJECTED")
    assert "not what was sealed" in results["changed_metadata"]["message"] or abi == 2


def test_terms_of_the_seal(seen: tuple[int, Results]) -> None:
    checks = {name: seen[1]["terms"][name] for name in ("deadline", "uid", "tgid")}
    assert errnos(checks) == {"deadline": "EKEYEXPIRED", "uid": "EPERM", "tgid": "ESRCH"}


@pytest.mark.parametrize(
    ("form", "naive", "ours"),
    [
        ("revoked", ["good", "good"], ["good", "EALREADY"]),
        ("deadline", ["good", "good"], "EKEYEXPIRED"),
        ("process", "ran", "ESRCH"),
        ("user", "ran", "EPERM"),
    ],
)
def test_replay(seen: tuple[int, Results], form: str, naive: object, ours: object) -> None:
    assert seen[1]["replay"][form] == {"naive": naive, "ours": ours}


def test_a_map_that_others_can_write_is_refused(seen: tuple[int, Results]) -> None:
    abi, results = seen
    check = results["shared_map"]
    expected = {"naive": "evil", "ours": "run EINVAL"} if abi == 1 else {"naive": "load EPERM", "ours": "load EPERM"}
    assert {name: check[name] for name in expected} == expected


def test_nobody_else_writes_to_the_metadata(seen: tuple[int, Results]) -> None:
    check = seen[1]["exclusive_map"]
    assert (check["write"], check["early_hash"]) == ("EACCES", "EPERM")


def judge_race(abi: int, check: dict[str, dict[str, int]], least: int) -> None:
    if abi == 1:
        assert check["naive"].get("evil", 0) >= 1, "the attack did not work on the naive loader"
    assert "evil" not in check["ours"]
    assert check["ours"]["good"] >= least
    assert check["ours"]["refused"] >= least


def test_a_swapped_slot_gains_nothing(seen: tuple[int, Results]) -> None:
    judge_race(seen[0], seen[1]["swapped_slot"], 3)


def test_random_contexts_change_nothing(seen: tuple[int, Results], effort: str) -> None:
    counts = dict(seen[1]["random_contexts"]["counts"])
    assert counts.pop("refused") > 0
    assert list(counts.values()) == [CONTEXTS[effort] // 2]


def test_failures_leave_nothing(seen: tuple[int, Results]) -> None:
    check = seen[1]["failures_leave_nothing"]
    stages = [["EMFILE", "MAP", i] for i in range(4)] + [["EMFILE", "PROGRAM", i] for i in range(3)]
    assert check["outcomes"] == stages
    assert check["fds"]
    assert check["left"] == []


def judge_flips(abi: int, check: dict[str, Any], loader: int, metadata: int) -> None:
    assert check["loader"] == {"load EKEYREJECTED": loader}
    assert check["metadata"] == {"run EINVAL" if abi == 1 else "load EKEYREJECTED": metadata}
    assert check["changed"] == []


def test_flipped_bits(seen: tuple[int, Results], effort: str) -> None:
    """Some bits of each part; every bit of all in the long run. Flips in fields of the signature that the kernel does
    not look at are accepted: what they load must be what was sealed."""
    check, step = seen[1]["flipped_bits"], STEP[effort]
    loader = sum(check["loader"].values())
    judge_flips(seen[0], check, loader, -(-8 * METADATA // step))
    assert loader >= 8 * 800 // step


@pytest.mark.vm
@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_at_length(request: pytest.FixtureRequest, kernel: str) -> None:
    """Every bit, ten thousand contexts, and a race of minutes."""
    results = observe(request, kernel, "slow", "flipped_bits", "swapped_slot", "random_contexts", timeout=3600)
    abi = KERNELS[kernel]
    flips = results["flipped_bits"]
    judge_flips(abi, flips, sum(flips["loader"].values()), 8 * METADATA)
    assert len(flips["accepted"]) > 0, "some signature bits are known to mean nothing: were they tried?"
    assert sum(flips["loader"].values()) >= 8 * 800
    judge_race(abi, results["swapped_slot"], 100)
    counts = dict(results["random_contexts"]["counts"])
    counts.pop("refused")
    assert list(counts.values()) == [5000]
