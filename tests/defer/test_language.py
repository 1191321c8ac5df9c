"""What can stand in a deferred block and around it, on the running kernel."""

from __future__ import annotations

import contextlib
import os

import pytest

from tests.compiler.harness import run

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("task_work")]

NAME = "/nowhere/" + "x" * 30
PROBE = f'tracepoint:syscalls:sys_enter_openat /pid == {os.getpid()} && str(args.filename, 64) == "{NAME}"/'


def opens() -> None:
    for _ in range(3):
        with contextlib.suppress(FileNotFoundError):
            os.open(NAME, os.O_RDONLY)


@pytest.mark.parametrize(
    ("body", "printed"),
    [
        ("$t = curtask; defer { @ = $t->tgid == pid && $t.real_parent.tgid == ppid(); }", "@: true\n"),
        (
            "$k = kstack(2); $u = ustack(2); $l = len(ustack(2)); defer { @ = len($u) == $l; @k = len($k); }",
            "@: true\n@k: 2\n",
        ),
        ('@m["a"] = 1; @m["b"] = 2; $n = 5; defer { for ($kv : @m) { @[$kv.0, $n + $kv.1] = 1; } clear(@m); }', "both"),
        (
            f"""@m["{NAME}"] = 1; @m["b"] = 2; $f = args.filename; $keep = "{NAME}";
                defer {{
                    $s = str($f, 64);
                    print($keep);
                    for ($kv : @m) {{ if ($kv.0 == $s && $s == $keep) {{ @found = 1; }} }}
                    clear(@m);
                }}""",
            f"{NAME}\n" * 3 + "@found: 1\n",
        ),
        (
            """@m[1] = 1; $n = 1;
                defer { $sum = 0; for ($kv : @m) { for ($i : 0..3) { $sum += $n; } } @ = $sum; clear(@m); }""",
            "@: 3\n",
        ),
        ("for ($i : 0..3) { if ($i == 1) { defer { @ = $i; } } }", "@: 1\n"),
        ("defer { $i = 0; while ($i < 5) { $i++; if ($i == 4) { break; } } @ = $i; }", "@: 4\n"),
        ("defer { if (pid) { @ = 1; return; } @ = 2; }", "@: 1\n"),
        ("defer { @c = count(); @s = sum(2); @a = avg(4); @x = max(7); @h = lhist(1, 0, 4, 2); }", "aggregates"),
        ("$p = probe; defer { @[$p == probe, probe] = count(); }", "probe"),
        ('$f = args.filename; defer { @ = strlen(str($f)); @b = strcontains(str($f), "where"); }', "@: 39\n@b: true\n"),
        ("$f = args.filename; defer { @[str_concat(str($f, 9), comm)] = 1; }", "concat"),
        ("$f = args.filename; defer { $p = (int8 *)$f; @ = ($p[0], *($p + 1)); }", "@: (47, 110)\n"),
        ("$x = (1, comm, 2); defer { @ = $x.0 + $x.2; @ok = $x.1 == comm; }", "@: 3\n@ok: true\n"),
    ],
)
def test_bodies(body: str, printed: str) -> None:
    found = run(f"{PROBE} {{ {body} }}", act=opens)
    match printed:
        case "both":
            assert sorted(found.splitlines()) == ["@[a, 6]: 1", "@[b, 7]: 1"]
        case "aggregates":
            for line in ("@c: 3", "@s: 6", "@a: 4", "@x: 7"):
                assert line in found.splitlines(), found
            assert "[0, 2)" in found
            assert " 3 |" in found
        case "probe":
            assert found == "@[true, tracepoint:syscalls:sys_enter_openat]: 3\n"
        case "concat":
            assert found.startswith("@[/nowhere")
        case _:
            assert found == printed


def test_functions_defer_with_their_arguments() -> None:
    text = f"fn later($n: uint64) : void {{ defer {{ @[$n] = count(); }} }} {PROBE} {{ later(3); later(4); }}"
    assert sorted(run(text, act=opens).splitlines()) == ["@[3]: 3", "@[4]: 3"]


@pytest.mark.parametrize("size", [4096, 65536])
def test_large_strings(size: int) -> None:
    text = f"{PROBE} {{ $f = args.filename; defer {{ @[strlen(str($f))] = count(); print(str($f)); }} }}"
    assert run(text, config={"max_strlen": size}, act=opens) == f"{NAME}\n" * 3 + "@[39]: 3\n"


def test_many_points() -> None:
    """One block for several points: it tells which one it came from."""
    text = (
        "tracepoint:syscalls:sys_enter_openat, tracepoint:syscalls:sys_enter_getppid "
        f"/pid == {os.getpid()}/ {{ $p = probe; defer {{ @[$p] = count(); }} }}"
    )

    def act() -> None:
        opens()
        for _ in range(5):
            os.getppid()

    lines = dict(line[2:].split("]: ") for line in run(text, act=act).splitlines())
    assert lines["tracepoint:syscalls:sys_enter_getppid"] == "5"
    assert int(lines["tracepoint:syscalls:sys_enter_openat"]) >= 3
