"""The signing helper: seals per second, latency with 32 clients, memory, start-up. Prints one line per figure.

    python benchmarks/bench_signer.py [--seconds 5] [--bundle FILE]

The helper is the real one, with analysis, policy and an audit log that is synced to the file system of --folder. Rates
are given per second of wall time and per second of the helper's own processor time: the clients of this benchmark run
on the same machine and take their share of it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.signer_process.conftest import POLICY, Helper, running, small_bundle

from bpfseal.signer.client import SignerClient, connect, start_private

CLIENTS = 32


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def say(what: str, value: str) -> None:
    print(f"{what:<58} {value}", flush=True)


def start_up(rounds: int = 15) -> None:
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            begin = time.perf_counter()
            with start_private(audit=f"{folder}/log/audit.jsonl") as client:
                client.hello()
                times.append((time.perf_counter() - begin) * 1e3)
    say("start to ready, private helper (best, median)", f"{min(times):.0f} ms, {statistics.median(times):.0f} ms")


def drive(helper: Helper, bundle: bytes, clients: int, seconds: float, pause: float) -> tuple[list[float], float]:
    """Latencies in ms of `clients` connections that ask for `seconds`, waiting `pause` between requests."""
    latencies: list[list[float]] = [[] for _ in range(clients)]
    stop = time.monotonic() + seconds
    children = []
    for _ in range(min(4, clients)):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            share = clients // min(4, clients)
            threads = [
                threading.Thread(target=work, args=(helper.client(), bundle, stop, pause, latencies[n]))
                for n in range(share)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            text = " ".join(f"{value:.3f}" for row in latencies for value in row)
            with os.fdopen(write, "w") as out:
                out.write(text)
            os._exit(0)
        os.close(write)
        children.append((child, read))
    begin = time.monotonic()
    all_of_them: list[float] = []
    for child, read in children:
        with os.fdopen(read) as pipe:
            all_of_them += [float(word) for word in pipe.read().split()]
        os.waitpid(child, 0)
    return all_of_them, time.monotonic() - begin


def work(client: SignerClient, bundle: bytes, stop: float, pause: float, out: list[float]) -> None:
    with client:
        client.hello()
        while time.monotonic() < stop:
            begin = time.perf_counter()
            client.seal(bundle)
            out.append((time.perf_counter() - begin) * 1e3)
            if pause:
                time.sleep(pause)


def throughput(bundle: bytes, seconds: float) -> None:
    with running(POLICY) as helper:
        for clients in (1, 4, CLIENTS):
            before = cpu_seconds(helper.pid)
            times, wall = drive(helper, bundle, clients, seconds, 0)
            used = cpu_seconds(helper.pid) - before
            say(
                f"{clients} clients as fast as they can",
                f"{len(times) / wall:.0f} seals/s, {len(times) / max(used, 0.01):.0f} per CPU second, "
                f"p50 {percentile(times, 0.5):.2f} ms, p99 {percentile(times, 0.99):.2f} ms",
            )
        times, wall = drive(helper, bundle, CLIENTS, seconds, 0.1)
        say(
            f"{CLIENTS} clients, ten requests a second each",
            f"{len(times) / wall:.0f} seals/s, "
            f"p50 {percentile(times, 0.5):.2f} ms, p99 {percentile(times, 0.99):.2f} ms",
        )
        with connect(path=helper.socket) as client:
            state = client.status()
            say("resident memory afterwards", f"{state.rss_kib / 1024:.1f} MiB")
            assert dict(state.totals)["internal_errors"] == 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--bundle", help="canonical bundle to seal (default: a tiny one)")
    options = parser.parse_args()
    bundle = Path(options.bundle).read_bytes() if options.bundle else small_bundle()
    say("load average of this machine", " ".join(f"{value:.1f}" for value in os.getloadavg()))
    start_up()
    throughput(bundle, options.seconds)


if __name__ == "__main__":
    main()
