"""Sealing: rate and latency of a one-liner, and how the time grows with the number of instructions."""

from __future__ import annotations

import statistics
import tempfile
import time

import bench_signer
from measure import Row, Section, rounds, system_helper

SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)


def section() -> Section:
    from bpfseal.runtime.build import Request, build

    folder = tempfile.gettempdir()
    bundle = build(Request(text=bench_signer.ONE_LINER)).data
    rows: list[Row] = []
    for family, name, goal in (("ec", "P-256", "≥ 1,000"), ("rsa", "RSA-2048", "≥ 400")):
        rows += _rate(family, name, goal, bundle, folder)
    with system_helper() as path:
        rows += [_growth(path, size) for size in SIZES]
    return Section(
        "Sealing",
        f"`{bench_signer.ONE_LINER}` by a confined helper with analysis, policy and an audit log that is synced to "
        "disk; it signs whether or not this kernel verifies. Below: one program of as many instructions, by a helper "
        "that signs only where the kernel verifies.",
        rows,
    )


def _rate(family: str, name: str, goal: str, bundle: bytes, folder: str) -> list[Row]:
    from bpfseal.signer import protocol
    from bpfseal.signer.bundle import SealRequest
    from bpfseal.signer.client import connect

    request = protocol.frame(protocol.Seal(request=SealRequest(bundle=bundle)))
    rates, per_cpu, p50, p99 = [], [], [], []
    with bench_signer.helper(family, folder) as (path, pid):
        bench_signer.drive(path, request, 4, 0.5, 0)
        for _ in range(rounds(3)):
            before = bench_signer.cpu_seconds(pid)
            taken, wall = bench_signer.drive(path, request, bench_signer.CLIENTS, 3, 0)
            rates.append(len(taken) / wall)
            per_cpu.append(len(taken) / (bench_signer.cpu_seconds(pid) - before))
            time.sleep(0.3)  # what the clients asked for last, and did not wait for, is done by then
            taken, _ = bench_signer.drive(path, request, bench_signer.CLIENTS, 3, 0.1)
            p50.append(bench_signer.percentile(taken, 0.5))
            p99.append(bench_signer.percentile(taken, 0.99))
        with connect(path=path) as client:
            memory = [client.status().rss_kib / 1024]
    paced = f"{bench_signer.CLIENTS} clients, ten requests a second each"
    return [
        _own(f"{name}, {bench_signer.CLIENTS} clients: seals per second", "1/s", rates, goal),
        _own(f"{name}: seals per second of the helper's CPU", "1/s", per_cpu, goal),
        _own(f"{name}, {paced}: median", "ms", p50),
        _own(f"{name}, {paced}: 99 %", "ms", p99, "≤ 10"),
        _own(f"{name}: resident memory", "MiB", memory, "≤ 60"),
    ]


def _own(what: str, unit: str, values: list[float], goal: str = "") -> Row:
    return Row(what, unit, statistics.median(values), goal=goal, raw={"ours": values})


def _growth(path: str, size: int) -> Row:
    from bpfseal.signer.bundle import BUNDLE_VERSION, Attach, Attributes, Bundle, ProgramSpec, encode
    from bpfseal.signer.client import connect

    # r0 = 0; r0 += 1 …; r0 = 0; exit: with a branch in every eighth place, over the next instruction
    add, jump = bytes.fromhex("0700000001000000"), bytes.fromhex("1500010000000000")
    body = (add * 6 + jump + add) * ((size - 3) // 8) + add * ((size - 3) % 8)
    code = bytes.fromhex("b700000000000000") + body + bytes.fromhex("b700000000000000" + "9500000000000000")
    program = ProgramSpec(
        name="large",
        type=17,
        insns=code,
        declared=Attributes(insns=size),
        attach=(Attach(kind="raw_tracepoint", probe="rawtracepoint:sys_enter", target="sys_enter"),),
    )
    bundle = encode(Bundle(version=BUNDLE_VERSION, programs=(program,), maps=(), source="// large"))
    values = []
    with connect(path=path) as client:
        for _ in range(rounds(3)):
            start = time.perf_counter()
            client.seal(bundle)
            values.append(1000 * (time.perf_counter() - start))
    return _own(f"{size:,} instructions: seal", "ms", values)
