"""Probes of the kinds test and bench, and what chooses among a script's probes."""

from __future__ import annotations

import json

import pytest

from .conftest import trace

pytestmark = pytest.mark.host


def test_results_of_tests() -> None:
    program = """
        begin { printf("first\\n") }
        test:good { @a = 1; }
        test:returns { printf("said\\n"); return 1; }
        test:exits { exit(3); }
        test:leaves { exit(); }
        test:reports { errorf("wrong"); }
        end { printf("last\\n") }
    """
    done = trace(program, "--test")
    assert done.status == 1
    lines = done.out.splitlines()
    assert lines[0] == "[==========] Running 5 tests."
    verdicts = {line.split()[-3]: "OK" in line for line in lines if line.endswith("s)")}
    assert verdicts == {"good": True, "returns": False, "exits": False, "leaves": True, "reports": False}
    assert "said" in lines, "what a failed test wrote"
    assert "first" not in lines, "what a passed test wrote"
    assert "[  PASSED  ] 2 tests." in lines
    assert lines.index("last") > lines.index("[  FAILED  ] 3 tests, listed below:")


def test_tests_that_pass() -> None:
    done = trace('test:one { print(1); } test:two { } interval:ms:1 { printf("never"); exit(5); }', "--mode", "test")
    assert done.status == 0
    assert "[  PASSED  ] 2 tests." in done.out
    assert "never" not in done.out


def test_results_as_json() -> None:
    done = trace("test:a { print(7); } test:b { return 2; }", "--test", "-f", "json")
    results = [json.loads(line) for line in done.out.splitlines()]
    assert [r["type"] for r in results] == ["test_result", "test_result"]
    assert results[0]["data"]["a"]["passed"] is True
    assert results[0]["data"]["a"]["output"] == "7\n"
    assert results[1]["data"]["b"]["passed"] is False


def test_benchmarks() -> None:
    done = trace("bench:a { @ = count(); } bench:skipped { return 1; } bench:b { @x++; }", "--bench")
    assert done.status == 0
    head, line, *rows = done.out.splitlines()[:4]
    assert head.split() == ["Benchmark", "Time(ns)", "Iterations"]
    assert set(line) == {"-"}
    assert [row.split()[0] for row in rows] == ["a", "b"]
    for row in rows:
        _, ns, runs = row.split()
        assert int(ns) > 0
        assert int(ns) * int(runs) >= 500_000, "it was repeated until there was something to measure"


def test_benchmarks_as_json() -> None:
    done = trace("bench:a { @ = count(); }", "--mode", "bench", "-f", "json")
    (result,) = map(json.loads, done.out.splitlines())
    assert result["type"] == "benchmark_result"
    assert result["data"]["a"]["iters"] > 1
    assert result["data"]["a"]["average"] > 0


def test_a_benchmark_that_fails() -> None:
    done = trace('bench:a { errorf("no"); }', "--bench")
    assert done.status == 1
    assert "failed" in done.out


@pytest.mark.parametrize("kind", ["test", "bench"])
def test_they_do_not_run_in_a_trace(kind: str) -> None:
    alone = trace(f"{kind}:a {{ print(1); }}")
    assert alone.status == 1
    assert f"No probes attached; use --{kind} to run {kind} probes." in alone.err
    beside = trace(f'begin {{ printf("here\\n"); }} {kind}:a {{ printf("there\\n"); }}')
    assert (beside.status, beside.out.split()) == (0, ["here"])


def test_names_are_told_apart() -> None:
    assert "there is another test probe with the name 'a'" in trace("test:a { } test:a { }", "--test").err


def test_probe_filter() -> None:
    program = """
        begin { printf("begin\\n"); }
        interval:ms:10 { printf("bad\\n"); exit(); }
        interval:ms:20, interval:ms:5 { printf("good\\n"); exit(); }
    """
    done = trace(program, "--probe-filter", ":(20|30)$")
    assert done.out.split() == ["begin", "good"]
    nothing = trace("interval:ms:10 { exit(); }", "--probe-filter", "nosuch")
    assert nothing.status == 1
    assert "No probes to attach" in nothing.err.splitlines()
    assert "Invalid --probe-filter regex" in trace("begin { }", "--probe-filter", "[x").err


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("@a = count(); zero(@a);", "@a: 0"),
        ("@a = sum(5); clear(@a);", ""),
        ("@a = 5; zero(@a);", "@a: 0"),
        ("@a = 5; clear(@a);", ""),
        ("@a[1] = max(5); zero(@a);", "@a[1]: 0"),
        ("@a = avg(5); zero(@a);", "@a: 0"),
        ("@a[1] = stats(5); zero(@a);", "@a[1]: { .count = 0, .average = 0, .total = 0 }"),
        ("@a = hist(5); zero(@a);", "@a:"),
        ("@a[1] = lhist(5, 0, 10, 1); zero(@a);", "@a[1]:"),
        ("@a[1] = hist(5); clear(@a);", ""),
        ("@a = hist(5); zero(@a); clear(@a);", ""),
    ],
)
def test_zeroed_and_cleared_maps(program: str, text: str) -> None:
    assert trace(f"begin {{ {program} exit(); }}").out.strip() == text
