"""A short run of the dispatcher's fuzzer; `python -m tests.fuzz.fuzz_dispatch` goes on from here."""

from __future__ import annotations

import pytest

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
