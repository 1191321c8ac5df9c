"""Compiling: what each stage takes, over scripts of 1 to 200 probes. Ours alone: the reference does not tell."""

from __future__ import annotations

import os
import statistics
import time
from itertools import pairwise
from pathlib import Path

from measure import OURS, Row, Section, in_turn, reference, rounds, run, times

FOLDERS = ["/usr/share/bpftrace/tools", "/usr/sbin"]


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


def largest_tool() -> Path | None:
    """The largest script that comes with the reference: from BPFSEAL_BENCH_TOOLS, else from where Debian has them."""
    folders = [os.environ["BPFSEAL_BENCH_TOOLS"]] if "BPFSEAL_BENCH_TOOLS" in os.environ else FOLDERS
    found = [path for folder in folders for path in Path(folder).glob("*.bt")]
    return max(found, key=lambda path: path.stat().st_size, default=None)


def tool_rows(path: Path) -> list[Row]:
    """From exec to exit: text in, bytecode made, nothing loaded."""
    other = reference()
    a, b = in_turn(
        lambda: run([*OURS, "check", str(path)]),
        # By standard input: the reference may live in another root.
        (
            lambda: run(
                ["sh", "-c", 'file=$1; shift; exec "$@" < "$file"', "sh", str(path), *other, "--mode", "codegen", "-"]
            )
        )
        if other
        else None,
        rounds(11),
    )
    if any(r.status for r in b):  # an older one, without that mode
        b = []
    return times(f"{path.name}, {len(path.read_text().splitlines())} lines, compiled", a, b, "0.5")


def section() -> Section:
    stages(program(1))  # imports
    rows = tool_rows(tool) if (tool := largest_tool()) else []
    for probes in (1, 10, 50, 200):
        runs = [stages(program(probes)) for _ in range(rounds(3))]
        for stage in runs[0]:
            values = [1000 * run[stage] for run in runs]
            rows.append(Row(f"{probes} probes: {stage}", "ms CPU", statistics.median(values), raw={"ours": values}))
    return Section(
        "Compile stages",
        "The largest script that comes with the reference, from exec to exit. Then stages: CPU time in a process that "
        "has imported everything; `check` includes looking the attach points up.",
        rows,
    )
