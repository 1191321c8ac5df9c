"""Results of test and bench probes, as bpftrace writes them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bpfseal.runtime.trials import Result

_GREEN, _RED, _PLAIN = "\033[32m", "\033[31m", "\033[0m"
_NAME, _TIME, _RUNS = "Benchmark", "Time(ns)", "Iterations"


def json_line(mode: str, result: Result) -> str:
    """One result as a line of JSON. A benchmark that failed has none."""
    data: dict[str, Any]
    if mode == "test":
        data = {"duration": result.ns, "passed": not result.failed, "output": result.output}
    elif result.failed:
        return ""
    else:
        data = {"average": result.ns, "iters": result.runs}
    kind = "test_result" if mode == "test" else "benchmark_result"
    return json.dumps({"type": kind, "data": {result.name: data}}) + "\n"


def test_lines(results: list[Result], total: int, *, last: bool, colour: bool) -> str:
    """The lines of the latest result, with the headline before the first and the summary behind the last. What a test
    wrote is shown when it failed."""

    def mark(text: str, bad: bool = False) -> str:
        return f"{_RED if bad else _GREEN}{text}{_PLAIN}" if colour else text

    result, lines = results[-1], []
    if len(results) == 1:
        lines.append(f"{mark('[==========]')} Running {total} tests.")
    lines.append(f"{mark('[ RUN      ]')} {result.name}")
    if result.failed:
        lines += [line for line in result.output.split("\n") if line]
    verdict = mark("[  FAILED  ]", True) if result.failed else mark("[       OK ]")
    lines.append(f"{verdict} {result.name} ({_duration(result.ns)})")
    if last:
        failed = [r.name for r in results if r.failed]
        lines.append(f"{mark('[==========]')} {_tests(len(results))} ran.")
        lines.append(f"{mark('[  PASSED  ]')} {_tests(len(results) - len(failed))}.")
        if failed:
            lines.append(f"{mark('[  FAILED  ]', True)} {_tests(len(failed))}, listed below:")
            lines += [f"{mark('[  FAILED  ]', True)} {name}" for name in failed]
    return "".join(line + "\n" for line in lines)


def bench_lines(results: list[Result]) -> str:
    """The line of the latest result, with the headline before the first."""
    result, lines = results[-1], []
    if len(results) == 1:
        lines.append(f"{_NAME:<41}{_TIME:<15}{_RUNS}")
        lines.append("-" * 66)
    lines.append(f"{result.name:<41}" + ("failed" if result.failed else f"{result.ns:<15}{result.runs}"))
    return "".join(line + "\n" for line in lines)


def _tests(number: int) -> str:
    return f"{number} test{'s' if number != 1 else ''}"


def _duration(ns: int) -> str:
    for unit, size in (("s", 1_000_000_000), ("ms", 1_000_000), ("μs", 1_000)):
        if ns >= size:
            return f"{ns // size} {unit}"
    return f"{ns} ns"
