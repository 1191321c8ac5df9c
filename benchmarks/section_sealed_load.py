"""Loading: a sealed bundle against the same one without signature and helper."""

from __future__ import annotations

import statistics
import time

from measure import Row, Section, rounds

PROGRAM = 'tracepoint:syscalls:sys_enter_openat { @[comm] = count(); printf("%d\\n", pid); }'


def section() -> Section:
    from bpfseal.runtime.build import Request, build
    from bpfseal.runtime.load import load, seal_locally
    from bpfseal.signer.client import connect

    built = build(Request(text=PROGRAM))
    plain: list[float] = []
    sealed: list[float] = []
    sealing: list[float] = []
    with connect() as client:
        client.hello()
        load(built.bundle, client.seal(built.data)).close()
        load(built.bundle, seal_locally(built.bundle)).close()
        for _ in range(rounds(20)):
            start = time.perf_counter()
            local = seal_locally(built.bundle)
            load(built.bundle, local).close()
            plain.append(1000 * (time.perf_counter() - start))
            start = time.perf_counter()
            bundle = client.seal(built.data)
            sealing.append(1000 * (time.perf_counter() - start))
            load(built.bundle, bundle).close()
            sealed.append(1000 * (time.perf_counter() - start))
        abi = bundle.abi
    return Section(
        "Sealed load",
        "A one-liner loaded by the same process in turn: without helper, and sealed by a running private helper. "
        + (
            "This kernel verifies signatures."
            if abi
            else "This kernel does not verify signatures: the helper analyses, decides and records, and signs nothing."
        ),
        [
            Row("load without helper", "ms", statistics.median(plain), raw={"ours": plain}),
            Row("seal and load", "ms", statistics.median(sealed), raw={"ours": sealed}),
            Row("of that: seal", "ms", statistics.median(sealing), raw={"ours": sealing}),
            Row("sealed over plain", "ms", statistics.median(sealed) - statistics.median(plain), goal="≤ 2"),
        ],
    )  # fmt: skip
