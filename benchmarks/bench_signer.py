"""The signing helper: seals per second, latency with 32 clients, memory, start-up. Prints one line per figure.

    python benchmarks/bench_signer.py [--seconds 5] [--program TEXT] [--folder DIR]

The helper is the real one, confined, with analysis, policy and an audit log that is synced to the file system of
--folder; the bundle is a real one-liner's. One thing is forced: it signs (as for ABI 2) whether or not this kernel
verifies, because on one that does not it would sign nothing and look better than it is. The load comes from one process
that only moves bytes. Rates are given per second and per second of the helper's own processor time: the second is what
one core gives, the first is less where the load has to share it.
"""

from __future__ import annotations

import argparse
import os
import random
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ONE_LINER = "tracepoint:syscalls:sys_enter_openat { @[comm] = count(); }"
POLICY = """
version = 1
[[rule]]
name = "root"
uid = 0
probes = "*"
classes = ["basic", "time", "identity", "map", "output", "read-kernel", "read-user"]
map_types = "*"
per_minute = 0
"""
CLIENTS = 32


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def say(what: str, value: str) -> None:
    print(f"{what:<58} {value}", flush=True)


def serve(family: str, folder: str) -> None:
    """The system's helper, but for its keys: of `family`, in no ring, and used whatever the kernel can do."""
    from bpfseal.signer import start
    from bpfseal.signer.abi import Abi
    from bpfseal.signer.keys import Keys, SoftKey
    from bpfseal.signer.system import Settings

    def keys(root: str, life: int) -> tuple[Keys, Abi, str]:
        made = Keys(SoftKey.generate("ec"), family, life, ring=False)
        return made, Abi(2, None, "", can_verify=True), "ephemeral"

    start.make_keys = keys
    settings = Settings(f"{folder}/run/signer.sock", f"{folder}/policy.toml", f"{folder}/log/audit.jsonl")
    start.system(settings)


@contextmanager
def helper(family: str, parent: str) -> Iterator[tuple[str, int]]:
    """Socket and pid of such a helper."""
    folder = tempfile.mkdtemp(prefix="bpfseal-bench-", dir=parent)
    os.chmod(folder, 0o755)
    Path(folder, "run").mkdir(mode=0o755)
    Path(folder, "policy.toml").write_text(POLICY)
    command = [sys.executable, __file__, "--serve", family, "--folder", folder]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    path = f"{folder}/run/signer.sock"
    try:
        for _ in range(500):
            with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(path)
                break
            time.sleep(0.02)
        yield path, child.pid
    finally:
        child.terminate()
        child.wait()
        shutil.rmtree(folder)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Client:
    """One connection with one request at a time; latencies in ms."""

    def __init__(self, path: str, request: bytes) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        self.request = request
        self.due = 0.0
        self.begun = 0.0
        self.left = 0

    def ask(self) -> None:
        self.begun = time.perf_counter()
        self.sock.sendall(self.request)

    def read(self) -> float:
        """Latency if the reply is complete, else 0."""
        from bpfseal.signer.protocol import HEADER, decode_reply

        data = self.sock.recv(1 << 18)
        if not data:
            raise SystemExit("the helper closed the connection")
        if not self.left:
            self.left = HEADER.size + HEADER.unpack_from(data)[0]
            if b"sealed" not in data[:32]:
                raise SystemExit(f"not sealed: {decode_reply(data[HEADER.size :])}")
        self.left -= len(data)
        return 0.0 if self.left else (time.perf_counter() - self.begun) * 1e3


def drive(path: str, request: bytes, clients: int, seconds: float, pause: float) -> tuple[list[float], float]:
    """Latencies in ms of `clients` connections, each asking again after a pause; wall time.

    Pauses are random, exponential with mean `pause`: clients with one rhythm would, after the first delay, knock
    together for ever, and their wait for each other would be taken for the helper's."""
    draw = random.Random(1).expovariate
    selector = selectors.DefaultSelector()
    everyone = [Client(path, request) for _ in range(clients)]
    begin = time.perf_counter()
    for client in everyone:
        selector.register(client.sock, selectors.EVENT_READ, client)
        client.due = begin + (draw(1 / pause) if pause else 0.0)
    times: list[float] = []
    waiting = everyone
    while (now := time.perf_counter()) < begin + seconds:
        for client in [c for c in waiting if c.due <= now]:
            waiting = [c for c in waiting if c is not client]
            client.ask()
        first = min((c.due for c in waiting), default=now + 1)
        for key, _ in selector.select(max(0.0, min(first, begin + seconds) - time.perf_counter())):
            if took := key.data.read():
                times.append(took)
                if pause:
                    key.data.due = time.perf_counter() + draw(1 / pause)
                    waiting.append(key.data)
                else:
                    key.data.ask()
    wall = time.perf_counter() - begin
    for client in everyone:
        client.sock.close()
    return times, wall


def throughput(family: str, bundle: bytes, seconds: float, folder: str) -> None:
    from bpfseal.signer import protocol
    from bpfseal.signer.bundle import SealRequest
    from bpfseal.signer.client import connect

    request = protocol.frame(protocol.Seal(request=SealRequest(bundle=bundle)))
    name = {"ec": "P-256", "rsa": "RSA-2048"}[family]
    with helper(family, folder) as (path, pid):
        drive(path, request, 4, 0.5, 0)
        for clients in (1, CLIENTS):
            before = cpu_seconds(pid)
            times, wall = drive(path, request, clients, seconds, 0)
            used = cpu_seconds(pid) - before
            say(
                f"{name}, {clients} client{'s' * (clients > 1)} as fast as it goes",
                f"{len(times) / wall:.0f} seals/s, {len(times) / max(used, 0.01):.0f} per CPU second "
                f"({used / wall:.0%} of one), "
                f"p50 {percentile(times, 0.5):.2f} ms, p99 {percentile(times, 0.99):.2f} ms",
            )
        times, wall = drive(path, request, CLIENTS, seconds, 0.1)
        say(
            f"{name}, {CLIENTS} clients, ten requests a second each",
            f"{len(times) / wall:.0f} seals/s, "
            f"p50 {percentile(times, 0.5):.2f} ms, p99 {percentile(times, 0.99):.2f} ms",
        )
        with connect(path=path) as client:
            state = client.status()
            say(f"{name}, resident memory afterwards", f"{state.rss_kib / 1024:.1f} MiB")
            assert dict(state.totals)["internal_errors"] == 0


def start_up(folder: str, rounds: int = 21) -> None:
    from bpfseal.signer.client import start_private

    times = []
    with tempfile.TemporaryDirectory(dir=folder) as log:
        for _ in range(rounds):
            begin = time.perf_counter()
            with start_private(audit=f"{log}/log/audit.jsonl") as client:
                client.hello()
                times.append((time.perf_counter() - begin) * 1e3)
    say("start to ready, private helper (best, median)", f"{min(times):.0f} ms, {statistics.median(times):.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--program", default=ONE_LINER, help=f"what to seal (default: {ONE_LINER})")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the audit log goes")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.folder)
        return
    from bpfseal.runtime.build import Request, build

    say("load average of this machine", " ".join(f"{value:.1f}" for value in os.getloadavg()))
    start_up(options.folder)
    bundle = build(Request(text=options.program)).data
    for family in ("ec", "rsa"):
        throughput(family, bundle, options.seconds, options.folder)
    say("load average of this machine", " ".join(f"{value:.1f}" for value in os.getloadavg()))


if __name__ == "__main__":
    main()
