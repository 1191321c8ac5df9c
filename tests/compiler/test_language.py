"""What programs do on the running kernel: program, expected output."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.compiler.harness import run

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host")]

COMM = Path("/proc/self/comm").read_text().strip()
PID = os.getpid()

# Body of BEGIN (exit() is added), expected lines.
CASES = [
    # integers
    ('printf("%d %d %d\\n", 1, -2, 3 * 4);', "1 -2 12\n"),
    ('$a = 7; $b = 2; printf("%d %d %d %d\\n", $a + $b, $a - $b, $a / $b, $a % $b);', "9 5 3 1\n"),
    ('$a = (uint64)1; printf("%ld %d\\n", $a << 40, ($a << 40) >> 38);', "1099511627776 4\n"),
    ('$a = 12; $b = 10; printf("%d %d %d %d\\n", $a & $b, $a | $b, $a ^ $b, ~$a);', "8 14 6 -13\n"),
    ('$a = -1; printf("%d %d\\n", (uint8)$a, (int16)$a);', "255 -1\n"),
    ('$a = (int8)-3; printf("%d\\n", (int64)$a);', "-3\n"),
    (
        "$a = 5; print($a > 3); print($a < 3); print($a == 5 && $a != 6); print($a == 4 || !($a == 5));",
        "true\nfalse\ntrue\nfalse\n",
    ),
    ("$a = -5; print($a < 0); $b = (uint64)5; print($b < 10);", "true\ntrue\n"),
    ("$a = 5; print($a++); print(++$a); print($a--); print(--$a);", "5\n7\n7\n5\n"),
    ("$a = 1; $a += 4; $a *= 3; $a -= 1; $a /= 2; $a <<= 1; print($a);", "14\n"),
    ("$a = 3; print($a > 2 ? 10 : 20); print($a > 5 ? 10 : 20);", "10\n20\n"),
    ("$a = 0; print($a == 0 || 5 / $a > 3);", "true\n"),
    # control
    ("$i = 0; while ($i < 5) { if ($i == 3) { break; } print($i); $i++; }", "0\n1\n2\n"),
    ("$i = 0; while ($i < 4) { $i++; if ($i == 2) { continue; } print($i); }", "1\n3\n4\n"),
    ("for ($i : 0..4) { print($i); }", "0\n1\n2\n3\n"),
    ("for ($i : 2..8) { if ($i == 3) { continue; } if ($i == 6) { break; } print($i); }", "2\n4\n5\n"),
    ("$n = 0; for ($i : 0..100000) { $n += $i; } print($n);", "4999950000\n"),
    ("unroll(3) { @u++; } print(@u + 0);", "3\n@u: 3\n"),
    ("if (1 == 2) { print(1); } else if (2 == 2) { print(2); } else { print(3); }", "2\n"),
    # strings
    ('$s = "hello"; print($s); print(strlen($s)); printf("%s|\\n", $s);', "hello\n5\nhello|\n"),
    (
        '$s = "abc"; print($s == "abc"); print($s == "abd"); print($s != "ab"); print($s == "abcd");',
        "true\nfalse\ntrue\nfalse\n",
    ),
    ('$s = "abcdef"; print(strncmp($s, "abcxyz", 3)); print(strncmp($s, "abcxyz", 4));', "0\n1\n"),
    ('$a = "one"; $b = "one"; print($a == $b); $b = "two"; print($a == $b);', "true\nfalse\n"),
    ('$s = comm; print(strcontains($s, "zzz")); print(strcontains("haystack" , "st"));', "false\ntrue\n"),
    ('$s = "haystack"; $n = "st"; print(strstr($s, $n)); $n = "xx"; print(strstr($s, $n));', "3\n-1\n"),
    ('$s = "ab"; $t = "cd"; print(str_concat($s, $t));', "abcd\n"),
    ('$s = "hello\\0test"; print(strcontains($s, "test")); print($s == "hello"); print($s);', "false\ntrue\nhello\n"),
    ('$s = "abc"; print($s[0]); $i = (uint64)2; print($s[$i]);', "97\n99\n"),
    (
        "$e = 2; print(strerror($e)); $e = 9999; print(strerror($e)); $e = -42; print(strerror($e));",
        "No such file or directory\n9999\n-42\n",
    ),
    ("$n = 0; print(syscall_name($n)); $s = 9; print(signal_name($s));", "read\nKilled\n"),
    ('printf("%s %s\\n", probe, probetype);', "begin special\n"),
    # tuples, records
    ('$t = (1, "ab", 3); print($t); print($t.1); print($t.2);', "(1, ab, 3)\nab\n3\n"),
    ('@t = (1, (2, "x")); print(@t.1.1);', "x\n@t: (1, (2, x))\n"),
    ('print((1, "a") == (1, "a")); print((1, "a") == (1, "b"));', "true\nfalse\n"),
    # maps
    (
        "@a = 5; @b[1] = 6; @c[1, 2] = 7; print(@a); print(@b[1]); print(@c[1, 2]); print(@b[9]);",
        "@a: 5\n6\n7\n0\n@a: 5\n@b[1]: 6\n@c[1, 2]: 7\n",
    ),
    (
        '@s = "abc"; @s = "x"; print(@s); @m["k"] = "v"; print(@m["k"]); print(@m["none"]);',
        "@s: x\nv\n\n@m[k]: v\n@s: x\n",
    ),
    ("@a[1] = 1; @a[1]++; ++@a[1]; print(@a[1]--); print(@a[1]); @n++; print(@n);", "3\n2\n@n: 1\n@a[1]: 2\n@n: 1\n"),
    ("@a = 0; @b = 1; delete(@b);", "@a: 0\n"),
    (
        '@["nine chars"] = 1; $s = "ten"; @[$s]++; @["ten"]++; print(@["ten"]); delete(@, "nine chars");',
        "2\n@[ten]: 2\n",
    ),
    (
        '@c["a", (int8)1] = count(); @s["twelve chars"] = sum(4); for ($kv : @c) { print($kv); }',
        "((a, 1), 1)\n@c[a, 1]: 1\n@s[twelve chars]: 4\n",
    ),
    (
        "@a[1] = 1; @a[2] = 2; delete(@a[1]); print(has_key(@a, 1)); print(has_key(@a, 2)); print(len(@a));",
        "false\ntrue\n1\n@a[2]: 2\n",
    ),
    ("@a[1] = 10; $x = 0; if (find(@a, 1, $x)) { print($x); }", "10\n@a[1]: 10\n"),
    ("@x[1] = 2; @x[2] = 3; @x[3] = 4; $sum = 0; for ($kv : @x) { $sum += $kv.1; } print($sum); clear(@x);", "9\n"),
    ("@x[1] = 2; for ($kv : @x) { print($kv); print($kv.0); print($kv.1); }", "(1, 2)\n1\n2\n@x[1]: 2\n"),
    (
        '@x["abc", 5] = (1, "def"); for ($kv : @x) { print($kv.0.0); print($kv.1.1); }',
        "abc\ndef\n@x[abc, 5]: (1, def)\n",
    ),
    (
        "@x[1] = 1; @x[2] = 2; $n = 0; for ($kv : @x) { $n++; if ($n == 1) { break; } } print($n); clear(@x);",
        "1\n",
    ),
    (
        "@x[1] = 1; @y[5] = 1; for ($a : @x) { for ($b : @y) { print(($a.0, $b.0)); } } clear(@x); clear(@y);",
        "(1, 5)\n",
    ),
    ("@c[1] = count(); @c[1] = count(); for ($kv : @c) { print($kv.1); }", "2\n@c[1]: 2\n"),
    # aggregations
    (
        "@c = count(); @c = count(); @s = sum(5); @s = sum(7); @s = sum(-2); print(@c); print(@s);",
        "@c: 2\n@s: 10\n@c: 2\n@s: 10\n",
    ),
    ("@mi = min(5); @mi = min(-3); @mi = min(9); @ma = max(5); @ma = max(-3); @ma = max(9);", "@ma: 9\n@mi: -3\n"),
    ("@mi[1] = min(-5); @ma[1] = max(-5); print(@mi[1]); print(@ma[1]);", "-5\n-5\n@ma[1]: -5\n@mi[1]: -5\n"),
    (
        "@a = avg(2); @a = avg(4); @b[1] = avg(-3); @b[1] = avg(-5); print(@a); print(@b[1]);",
        "@a: 3\n-4\n@a: 3\n@b[1]: -4\n",
    ),
    (
        "@s = stats(2); @s = stats(4); @t[1] = stats(10);",
        "@s: { .count = 2, .average = 3, .total = 6 }\n@t[1]: { .count = 1, .average = 10, .total = 10 }\n",
    ),
    ("@c = count(); clear(@c); @d[1] = count(); zero(@d);", "@d[1]: 0\n"),
    # functions
    (
        "print(bswap((uint32)0x01020304)); print(bswap((uint16)0x0102)); print(bswap((uint64)1));",
        "67305985\n513\n72057594037927936\n",
    ),
    ('print(ntop(0x0100007f)); print(ntop(pton("::1"))); print(ntop(pton("1.2.3.4")));', "127.0.0.1\n::1\n1.2.3.4\n"),
    ('$x = 3; printf("%r %r\\n", buf("abcdef", 2), buf("abcdef", $x));', "ab abc\n"),
    (
        "print(nsecs > 0); print(elapsed < 60000000000); print(nsecs(monotonic) > 0); print(jiffies > 0);",
        "true\ntrue\ntrue\ntrue\n",
    ),
    ("print(cpu < ncpus); print(rand < 4294967296); print(numaid < 1024);", "true\ntrue\ntrue\n"),
    ("print(curtask.pid == tid); print(curtask.tgid == pid); print(curtask.comm == comm);", "true\ntrue\ntrue\n"),
    ("print(curtask.parent.pid == ppid);", "true\n"),
    (
        "$t = curtask; print($t.pid == tid); $p = (struct task_struct *)(uint64)$t; print($p.pid == tid);",
        "true\ntrue\n",
    ),
    ("print(len(kstack) > 0); print(len(kstack(2)) <= 2);", "true\ntrue\n"),
    ('print(strftime("%Y", nsecs) );', None),
]


@pytest.mark.parametrize(("body", "expected"), CASES, ids=range(len(CASES)))
def test_begin(body: str, expected: str | None) -> None:
    found = run(f"BEGIN {{ {body} exit(); }}")
    if expected is None:
        assert found.strip().isdigit()
    else:
        assert found.replace("\n\n", "\n") == expected.replace("\n\n", "\n")


def test_identity() -> None:
    found = run('BEGIN { printf("%s %d %d %d %d\\n", comm, pid, tid, uid, gid); exit(); }')
    assert found == f"{COMM} {PID} {PID} {os.getuid()} {os.getgid()}\n"


def test_function() -> None:
    found = run(
        "fn twice($x : int64) : int64 { return $x * 2; } "
        "fn pick($a : int64) : int64 { if ($a > 3) { return 1; } return 2; } "
        "BEGIN { print(twice(twice(5))); print(pick(4)); print(pick(2)); exit(); }"
    )
    assert found == "20\n1\n2\n"


def test_histogram() -> None:
    found = run(
        "BEGIN { @h = hist(-1); @h = hist(0); @h = hist(1); @h = hist(2); @h = hist(3); @h = hist(1000); exit(); }"
    )
    lines = [line.split("|")[0].split() for line in found.splitlines()[1:] if "|" in line]
    assert [line[-1] for line in lines] == ["1", "1", "1", "2", "0", "0", "0", "0", "0", "0", "0", "1"][: len(lines)]
    assert lines[0][:-1] == ["(...,", "0)"]


def test_linear_histogram() -> None:
    found = run("BEGIN { for ($i : -5..25) { @h = lhist($i, 0, 20, 5); @k[1] = lhist($i, 0, 20, 5); } exit(); }")
    counts = [line.split("|")[0].split()[-1] for line in found.splitlines() if "|" in line]
    assert counts == ["5", "5", "5", "5", "5", "5"] * 2


def read_files(count: int) -> None:
    for _ in range(count):
        with open("/proc/self/comm", "rb") as file:
            file.read()


def test_system_calls() -> None:
    """Only the calls of the traced kind, each once, with their arguments."""
    found = run(
        f"tracepoint:syscalls:sys_enter_openat /pid == {PID}/ {{ @[str(args.filename, 63)] = count(); }} "
        f"tracepoint:syscalls:sys_exit_openat /pid == {PID} && args.ret >= 0/ {{ @ret = count(); }}",
        act=lambda: read_files(100),
    )
    assert "@[/proc/self/comm]: 100\n" in found
    assert int(found.split("@ret: ")[1]) >= 100


def test_name_in_system_calls() -> None:
    """Programs on system calls read the thread's name where the kernel has it, others have it copied: all the same."""
    other = COMM[:-1] + "?"
    found = run(
        f't:syscalls:sys_enter_openat /pid == {PID} && comm == "{COMM}"/ {{ @same = count(); @[comm] = count(); '
        f'@tuple[comm, 1] = count(); $c = comm; if ($c == comm && $c != "{other}") {{ @kept = count(); }} }} '
        f't:syscalls:sys_enter_openat /comm == "{other}" || (pid == {PID} && strncmp(comm, "{other}", 15) == 0)/ '
        "{ @wrong = count(); }",
        act=lambda: read_files(40),
    )
    assert f"@[{COMM}]: 40\n" in found
    assert "@kept: 40\n" in found
    assert "@same: 40\n" in found
    assert f"@tuple[{COMM}, 1]: 40\n" in found
    assert "@wrong" not in found


@pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("gcc") is None, reason="needs gcc on x86-64")
def test_32_bit_system_calls(tmp_path: Path) -> None:
    """Their numbers mean others: 20 is getpid() there and writev() here. Neither is counted."""
    (tmp_path / "old.c").write_text(
        'int main(void) { for (long i = 0, r; i < 50; i++) asm volatile("int $0x80" : "=a"(r) : "a"(20L) : "memory"); }'
    )
    subprocess.run(["gcc", "-O1", "-o", tmp_path / "old", tmp_path / "old.c"], check=True)
    found = run(
        "t:syscalls:sys_enter_writev,t:syscalls:sys_enter_getpid,t:syscalls:sys_exit_writev "
        '/comm == "old"/ { @[probe] = count(); } '
        't:syscalls:sys_enter_exit_group /comm == "old"/ { @end = count(); }',
        act=lambda: subprocess.run([tmp_path / "old"], check=False),  # type: ignore[arg-type,return-value]
    )
    assert found == "@end: 1\n"


def test_predicates_with_effects_on_system_calls() -> None:
    found = run(
        f"t:syscalls:sys_enter_openat /pid == {PID} && @n++ < 5/ {{ @ = count(); }} "
        f"t:syscalls:sys_enter_openat /pid == {PID} && 10 / (pid - {PID} + 2) == 5/ {{ @five = count(); }}",
        act=lambda: read_files(12),
    )
    assert found == "@: 5\n@five: 12\n@n: 12\n"


def test_many_system_calls() -> None:
    """A wildcard is one program that knows which call it was."""
    found = run(f"tracepoint:syscalls:sys_enter_* /pid == {PID}/ {{ @[probe] = count(); }}", act=lambda: read_files(50))
    assert "@[tracepoint:syscalls:sys_enter_openat]: 50\n" in found


def test_tracepoint_fields() -> None:
    found = run(
        f"tracepoint:sched:sched_switch /args.prev_pid == {PID}/ {{ @[args.prev_comm, args.prev_pid] = count(); }}",
        act=lambda: [__import__("time").sleep(0.001) for _ in range(20)],  # type: ignore[arg-type,return-value]
    )
    assert f"@[{COMM}, {PID}]: " in found


def test_raw_tracepoint() -> None:
    found = run(
        f"rawtracepoint:sched_switch /args.prev.pid == {PID}/ {{ @[args.prev.comm] = count(); }}",
        act=lambda: [__import__("time").sleep(0.001) for _ in range(20)],  # type: ignore[arg-type,return-value]
    )
    assert f"@[{COMM}]: " in found


def test_interval_and_end() -> None:
    found = run("interval:ms:10 { @n++; if (@n == 3) { exit(); } } END { print(@n >= 3); }", maps=False)
    assert found == "true\n"


def test_iterators_end_where_they_end() -> None:
    """exit() of one element is not the end of the others, and its status counts."""
    found = run('iter:task { printf("%s\\n", ctx.task.comm); exit(); }', maps=False)
    assert COMM in found.splitlines()
    assert len(found.splitlines()) > 10


def test_stacks() -> None:
    found = run(
        f"tracepoint:syscalls:sys_enter_openat /pid == {PID}/ {{ @[kstack(3)] = count(); }}", act=lambda: read_files(1)
    )
    assert found.startswith("@[\n")


def test_division_by_zero(capsys: pytest.CaptureFixture[str]) -> None:
    found = run("BEGIN { $x = (uint64)0; print((uint64)5 / $x); exit(); }")
    assert found == "1\n"


def test_scalar_maps_without_a_value_print_as_zero() -> None:
    found = run(
        'BEGIN { print(@n); print(@s); print(@t); print(@a); print(@h); exit(); } END { @n = 1; @s = "x"; '
        '@t = (1, "y"); @a = stats(3); @h = lhist(1, 0, 4, 1); }'
    )
    assert found.startswith("@n: 0\n@s: \n@t: (0, )\n@a: { .count = 0, .average = 0, .total = 0 }\n")
    assert "@h:\n[1]                    1 |@@@" in found
