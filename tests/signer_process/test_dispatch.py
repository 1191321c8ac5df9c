"""A short run of the dispatcher's fuzzer (`python tests/fuzz/fuzz_dispatch.py` goes on from here), and its fairness."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfseal.signer import protocol
from bpfseal.signer.identity import Identity
from bpfseal.signer.server import BATCH
from tests.fuzz import fuzz_dispatch


@pytest.mark.parametrize("runs", [3000, pytest.param(300_000, marks=pytest.mark.slow)])
def test_dispatcher(runs: int) -> None:
    seen = fuzz_dispatch.run(runs, seed=1)
    assert seen.wrong == []
    assert seen.slowest < 2
    assert seen.messages >= runs
    # A campaign that never gets anything signed, or nothing refused, tests nothing.
    for reply in ("SealReply", "Refused", "Verdict", "Failed", "Done", "StatusReply"):
        assert seen.replies[reply] > 20, reply


def test_the_oracle_is_not_blind() -> None:
    """Bundles that the policy refuses are found by the oracle as well."""
    verdicts = [fuzz_dispatch.within_policy(fuzz_dispatch.wire.encode(bundle)) for bundle in fuzz_dispatch.seeds()]
    assert verdicts[0] == ""
    assert "sys_enter_kill" in verdicts[1]
    assert any(verdict == "" for verdict in verdicts[2:])
    assert any(verdict for verdict in verdicts[2:])


def test_who_cost_the_least_is_answered_first(tmp_path: Path) -> None:
    """More requests of an expensive user than one turn takes do not keep a cheap one waiting."""
    campaign = fuzz_dispatch.Campaign(tmp_path, real=True)
    server, service = campaign.server, campaign.service
    before = set(server._connections)
    lines = [campaign.connect() for _ in range(2 * BATCH + 1)]
    connections = list(server._connections - before)
    users = [1001] * 2 * BATCH + [1002]
    service.users[1001].cpu_ns, service.users[1002].cpu_ns = 10**9, 10**6
    server._queue = [(c, protocol.Hello(), Identity(uid, uid)) for c, uid in zip(connections, users, strict=True)]
    server._answer()
    waiting = [who.uid for _, _, who in server._queue]
    assert len(waiting) >= BATCH + 1
    assert 1002 not in waiting
    while server._queue:
        server._answer()
    assert all(line.read() for line in lines)
    assert campaign.finish().wrong == []


def test_a_turn_ends_when_its_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long is answered alone, and what it kept waiting comes next, the cheap user's first."""
    monkeypatch.setattr("bpfseal.signer.service.TURN_NS", 0)
    campaign = fuzz_dispatch.Campaign(tmp_path, real=True)
    server, service = campaign.server, campaign.service
    before = set(server._connections)
    lines = [campaign.connect() for _ in range(4)]
    connections = list(server._connections - before)
    service.users[1001].cpu_ns, service.users[1002].cpu_ns = 10**9, 10**6
    users = [1001, 1001, 1002, 1001]
    server._queue = [(c, protocol.Hello(), Identity(uid, uid)) for c, uid in zip(connections, users, strict=True)]
    left = []
    while server._queue:
        server._answer()
        left.append([who.uid for _, _, who in server._queue])
    assert left == [[1001, 1001, 1001], [1001, 1001], [1001], []]
    assert all(line.read() for line in lines)
    assert campaign.finish().wrong == []
