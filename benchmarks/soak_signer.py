"""A long life of the signing helper: a million seals and a thousand rotations, or as many as are asked for. Fails if it
grows, keeps keys or descriptors, or if the log is not whole in the end.

    python benchmarks/soak_signer.py [--seals 1000000] [--rotations 1000] [--folder DIR]

The helper is that of bench_signer.py: its keys are in no keyring (`tests/signer_process/test_vm.py` rotates a thousand
that are). A line every half minute.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from typing import TYPE_CHECKING

import bench_signer

if TYPE_CHECKING:
    from bpfseal.signer.client import SignerClient

GROWTH_KIB = 5 * 1024
KEYS = 2


def measure(admin: SignerClient, pid: int) -> tuple[int, int]:
    """Resident KiB and descriptors of the helper."""
    return admin.status().rss_kib, len(os.listdir(f"/proc/{pid}/fd"))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seals", type=int, default=1_000_000)
    parser.add_argument("--rotations", type=int, default=1000)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the audit log goes")
    options = parser.parse_args()
    from bpfseal.runtime.build import Request, build
    from bpfseal.signer import protocol
    from bpfseal.signer.audit_read import verify
    from bpfseal.signer.bundle import SealRequest
    from bpfseal.signer.client import connect

    bundle = build(Request(text=bench_signer.ONE_LINER)).data
    request = protocol.frame(protocol.Seal(request=SealRequest(bundle=bundle)))
    trouble = []
    with bench_signer.helper("ec", options.folder) as (path, pid):
        log = f"{os.path.dirname(os.path.dirname(path))}/log/audit.jsonl"
        with connect(path=path) as admin:
            seals = rotations = most_keys = 0
            begin = told = time.monotonic()
            first = (0, 0)
            while seals < options.seals or rotations < options.rotations:
                # Both come to their ends together.
                while rotations < options.rotations and rotations * options.seals <= seals * options.rotations:
                    admin.rotate()
                    rotations += 1
                most_keys = max(most_keys, len(admin.keys().keys))
                pause = options.seals / max(options.rotations, 1) / 1000
                seals += len(bench_signer.drive(path, request, bench_signer.CLIENTS, min(max(pause, 0.2), 2), 0)[0])
                now = measure(admin, pid)
                if first == (0, 0) and seals >= options.seals / 20:
                    first = now
                if time.monotonic() > told + 30:
                    told = time.monotonic()
                    state = f"{seals:,} seals, {rotations} rotations, {now[0]} KiB, {now[1]} descriptors"
                    print(f"{told - begin:.0f} s: {state}", flush=True)
            time.sleep(1)  # the last connections are closed by then
            now = measure(admin, pid)
            if now[0] > first[0] + GROWTH_KIB:
                trouble.append(f"it grew from {first[0]} to {now[0]} KiB")
            if now[1] > first[1]:
                trouble.append(f"descriptors went from {first[1]} to {now[1]}")
            if most_keys > KEYS:
                trouble.append(f"{most_keys} keys at once")
            totals = dict(admin.status().totals)
        report = verify(log)
        if not report.good:
            trouble.append(f"the log: {report.findings[:3]}")
        print(
            f"{seals:,} seals seen, {totals}, {rotations} rotations, {time.monotonic() - begin:.0f} s; "
            f"{first[0]} → {now[0]} KiB, {now[1]} descriptors, {most_keys} keys at most; {report.records:,} records"
        )
    for line in trouble:
        print(f"FAILED: {line}", file=sys.stderr)
    return int(bool(trouble))


if __name__ == "__main__":
    sys.exit(main())
