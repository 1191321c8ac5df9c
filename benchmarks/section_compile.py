"""Compiling: what each stage takes, over scripts of 1 to 200 probes. Ours alone: the reference does not tell."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise

from measure import Row, Section, rounds


def program(probes: int) -> str:
    return "\n".join(
        f"tracepoint:syscalls:sys_enter_openat /pid == {n}/ "
        f'{{ @m{n % 8}[comm, {n}] = count(); printf("%d %s\\n", pid, comm); }}'
        for n in range(1, probes + 1)
    )


def stages(text: str) -> dict[str, float]:
    """Seconds of CPU of each stage."""
    from bpfseal import compiler
    from bpfseal.dsl.check import check
    from bpfseal.dsl.env import Target
    from bpfseal.dsl.expand import expand
    from bpfseal.dsl.parse import parse
    from bpfseal.runtime.environment import RealEnvironment
    from bpfseal.signer.bundle import encode

    at = [time.process_time()]
    script = parse(text, "bench")
    at.append(time.process_time())
    typed = check(expand(script, params=(), named={}), RealEnvironment(Target(pid=0, command="", unsafe=False)), {})
    at.append(time.process_time())
    bundle = compiler.compile(typed)
    at.append(time.process_time())
    encode(bundle)
    at.append(time.process_time())
    names = ("parse", "check", "compile", "encode")
    return {name: after - before for name, (before, after) in zip(names, pairwise(at), strict=True)}


def section() -> Section:
    stages(program(1))  # imports
    rows = []
    for probes in (1, 10, 50, 200):
        runs = [stages(program(probes)) for _ in range(rounds(3))]
        for stage in runs[0]:
            values = [1000 * run[stage] for run in runs]
            rows.append(Row(f"{probes} probes: {stage}", "ms CPU", statistics.median(values), raw={"ours": values}))
    return Section(
        "Compile stages",
        "CPU time in a process that has imported everything. `check` includes looking the attach points up.",
        rows,
    )
