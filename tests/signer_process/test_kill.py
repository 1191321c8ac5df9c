"""kill -9 at random points under load: no signature without a record, no unreadable log, clients told in time."""

from __future__ import annotations

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from bpfseal.signer import audit_read
from bpfseal.signer.client import SignerClient, SignerError

from .conftest import Helper, running, small_bundle
from .zygote import Zygote


class Load:
    """Clients that seal until their helper is gone, and remember every record number they got a seal for."""

    def __init__(self, helper: Helper, clients: int) -> None:
        self.seen: list[tuple[int, str]] = []
        self.trouble: list[str] = []
        self.stopped: list[float] = []
        self._helper = helper
        self.threads = [threading.Thread(target=self._work) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def _work(self) -> None:
        try:
            with self._helper.client() as client:
                self._seal(client)
        except SignerError as error:
            if "lost the signing helper" not in error.message and "no signing helper" not in error.message:
                self.trouble.append(error.message)
        self.stopped.append(time.monotonic())

    def _seal(self, client: SignerClient) -> None:
        from bpfseal.signer import bundle as wire

        while True:
            sealed = client.seal(small_bundle())
            self.seen.append((sealed.record, wire.digest(sealed.loader + sealed.metadata)))

    def join(self) -> float:
        """When the last client was done."""
        for thread in self.threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self.threads)
        return max(self.stopped)


def kill_under_load(
    helper: Helper, pid: int, clients: int, chance: random.Random, limit: float = 2.5
) -> set[tuple[int, str]]:
    """The seals that clients got before their helper was killed. All know of it `limit` seconds later: 2 in truth, and
    what 32 threads of one interpreter need to say so."""
    load = Load(helper, clients)
    time.sleep(chance.random() * 0.25)
    os.kill(pid, 9)
    killed = time.monotonic()
    assert load.join() - killed < limit
    assert load.trouble == []
    return set(load.seen)


def judge(helper: Helper, seen: set[tuple[int, str]]) -> None:
    report = audit_read.verify(str(helper.audit))
    assert report.good, report.findings
    recorded = {(r["seq"], r["sealed"]) for r in audit_read.records(str(helper.audit)) if r["event"] == "seal"}
    assert seen
    assert seen <= recorded


def test_kills_under_load() -> None:
    chance = random.Random(7)
    seen: set[tuple[int, str]] = set()
    with running() as helper:
        for _ in range(8):
            seen |= kill_under_load(helper, helper.pid, 8, chance)
            helper.process.wait()
            assert helper.process.stderr is not None
            helper.process.stderr.close()
            helper.start()
            assert helper.process.poll() is None
        judge(helper, seen)


def fifty_kills(number: int) -> int:
    """Of one helper with a log of its own, so that reading it stays quick. How many seals were seen."""
    chance = random.Random()
    seen: set[tuple[int, str]] = set()
    with running() as helper:
        helper.process.kill()
        helper.process.wait()
        zygote = Zygote(helper)
        try:
            for _ in range(50):
                seen |= kill_under_load(helper, zygote.start(), 8, chance, 6)
        finally:
            zygote.close()
        judge(helper, seen)
    print(f"50 kills ({number}), {len(seen)} seals, all recorded", flush=True)
    return len(seen)


@pytest.mark.slow
def test_a_thousand_kills_under_load() -> None:
    """Four helpers at a time with eight clients each: most of a kill is waiting."""
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(fifty_kills, range(20)))


def test_what_is_recorded_is_sent_before_the_helper_ends() -> None:
    """SIGTERM under load: no seal is on disk that its client did not get."""
    for _ in range(4):
        with running() as helper:
            load = Load(helper, 8)
            time.sleep(0.3)
            helper.process.terminate()
            load.join()
            assert load.trouble == []
            recorded = {record["seq"] for record in audit_read.records(str(helper.audit)) if record["event"] == "seal"}
            assert {record for record, _ in load.seen} == recorded
            assert recorded


def test_client_killed_at_random_points() -> None:
    """The helper outlives its clients, whatever they were in the middle of."""
    chance = random.Random(8)
    with running() as helper:
        for _ in range(40):
            child = os.fork()
            if child == 0:
                with helper.client() as client:
                    while True:
                        client.seal(small_bundle())
            time.sleep(chance.random() * 0.05)
            os.kill(child, 9)
            os.waitpid(child, 0)
        with helper.client() as client:
            assert client.seal(small_bundle()).record
            assert dict(client.status().totals)["internal_errors"] == 0
        assert audit_read.verify(str(helper.audit)).good
