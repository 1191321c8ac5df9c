"""What a trace writes, on this kernel: as text, as JSON, into files, to terminals."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import command, trace, wait_until

pytestmark = pytest.mark.host

# program → what it writes, as bpftrace 0.27 does for the same program
TEXT = {
    # an array of characters that is full was not cut; a string that max_strlen cuts was
    "struct f { char s[4]; } BEGIN { $c = (uint32)0x64636261; print(((struct f *)&$c).s); exit(); }": "abcd\n\n\n",
    "config = { max_strlen = 4 } BEGIN { $c = 0x6867666564636261; print(str((uint8 *)&$c)); exit(); }": "abcd..\n\n\n",
    'BEGIN { printf("%d %s %x\\n", 7, "seven", 255); exit(); }': "7 seven ff\n\n\n",
    "BEGIN { @a = 1; exit(); }": "\n\n@a: 1\n",
    'BEGIN { @b[1, "x"] = count(); exit(); }': "\n\n@b[1, x]: 1\n",
    "BEGIN { @s = stats(4); exit(); }": "\n\n@s: { .count = 1, .average = 4, .total = 4 }\n",
    'BEGIN { @t[1] = (1, "x", true); exit(); }': "\n\n@t[1]: (1, x, true)\n",
    "BEGIN { @h = hist(5); exit(); }": f"\n\n@h:\n[4, 8)                 1 |{'@' * 52}|\n\n",
    "BEGIN { print((1, 2)); exit(); }": "(1, 2)\n\n\n",
    "BEGIN { @o[1] = sum(-5); @o[2] = sum(7); print(@o, 1); clear(@o); exit(); }": "@o[2]: 7\n\n\n",
    "BEGIN { @o[1] = 40; @o[2] = 80; print(@o, 0, 10); exit(); }": "@o[1]: 4\n@o[2]: 8\n\n\n@o[1]: 40\n@o[2]: 80\n",
    "BEGIN { @z[1] = 4; zero(@z); exit(); }": "\n\n@z[1]: 0\n",
    'BEGIN { exit(); } END { printf("end\\n"); }': "end\n\n\n",
    'BEGIN { printf("a\\n"); exit(); printf("b\\n"); }': "a\n\n\n",
    "BEGIN { @ = lhist(5, 0, 10, 1); exit(); }": f"\n\n@:\n[5]                    1 |{'@' * 52}|\n\n",
    "BEGIN { @ = lhist(5000, 0, 10240, 1024); exit(); }": f"\n\n@:\n[4K, 5K)               1 |{'@' * 52}|\n\n",
    "BEGIN { @ = hist(1000, 2); exit(); }": f"\n\n@:\n[896, 1024)            1 |{'@' * 52}|\n\n",
    "BEGIN { @h[1] = hist(3); zero(@h); exit(); }": "\n\n@h[1]:\n\n",
    "BEGIN { @c = count(); zero(@c); exit(); }": "\n\n@c: 0\n",
    "BEGIN { @s = stats(4); zero(@s); exit(); }": "\n\n@s: { .count = 0, .average = 0, .total = 0 }\n",
    "BEGIN { @n = 4; clear(@n); exit(); }": "\n\n",
    "BEGIN { print(@x); if (pid == 0) { @x = 1; } exit(); }": "@x: 0\n\n\n",
    "BEGIN { print(@x); if (pid == 0) { @x = hist(1); } exit(); }": "\n\n",
    "BEGIN { @t = stats(100); print(@t, 0, 10); clear(@t); exit(); }": (
        "@t: { .count = 1, .average = 10, .total = 100 }\n\n\n"
    ),
    'BEGIN { @s[5] = "b"; @s[3] = "z"; @s[4] = "a"; exit(); }': "\n\n@s[3]: z\n@s[4]: a\n@s[5]: b\n",
    'BEGIN { print(username); printf("%s|", username); @[username] = 1; exit(); }': "root\nroot|\n\n@[root]: 1\n",
    'BEGIN { print(usym(0)); print(ksym(0)); printf("%s %p", usym(0), 0); exit(); }': "0\n0\n0 0\n\n",
    'BEGIN { printf("%05d|%-05d|%+05d|%.3d|% d|%5s", -42, 42, 42, 5, 5, (1, 2)); exit(); }': (
        "00-42|42000|00+42|5|5|    (1, 2)\n\n"
    ),
    'BEGIN { printf("%#x %#o %d %hhd %lx %s", 255, 8, 4294967297, 300, 4294967297, (int8*)4096); exit(); }': (
        "0xff 010 1 44 100000001 0x1000\n\n"
    ),
    "BEGIN { @x = tseries(1, 1s, 4); zero(@x); exit(); }": "\n\n@x:\n<no data>\n",
    "BEGIN { @x = -1; @y = (uint64)-1; exit(); }": "\n\n@x: -1\n@y: 18446744073709551615\n",
    "BEGIN { @e = lhist(-5, 0, 10, 3); @e = lhist(9, 0, 10, 3); exit(); }": (
        f"\n\n@e:\n(..., 0)               1 |{'@' * 52}|\n"
        + "".join(f"{label:<16}{0:>8} |{' ' * 52}|\n" for label in ("[0, 3)", "[3, 6)", "[6, 9)"))
        + f"[9, ...)               1 |{'@' * 52}|\n\n"
    ),
}


@pytest.mark.parametrize("program", TEXT)
def test_text(program: str) -> None:
    done = trace(program)
    assert (done.status, done.out) == (0, TEXT[program])


def test_messages_of_macros_name_the_calls() -> None:
    done = trace('macro bad() { errorf("no"); } macro worse() { bad() } BEGIN { worse(); assert(false, "why"); }')
    assert done.status == 1
    lines = [line for line in done.err.splitlines() if " ERROR: " in line]
    assert lines == [
        "stdin:1:15-27: ERROR: no",
        "stdin:1:47-52: ERROR: expanded from",
        "stdin:1:63-70: ERROR: expanded from",
        "stdlib/base.bt:6:5-37: ERROR: assert failed: why",
        "stdin:1:72-92: ERROR: expanded from",
    ]


def test_json_lines() -> None:
    done = trace(
        'BEGIN { @a = 1; @h = hist(5); @m[1, "x"] = 2; printf("q\\"\\n"); print((1, "a")); exit(); }', "-f", "json"
    )
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert lines == [
        {"type": "printf", "data": 'q"\n'},
        {"type": "value", "data": [1, "a"]},
        {"type": "map", "data": {"@a": 1}},
        {"type": "hist", "data": {"@h": [{"min": 4, "max": 7, "count": 1}]}},
        {"type": "map", "data": {"@m": {"1,x": 2}}},
    ]


def test_output_file(tmp_path: Path) -> None:
    target = tmp_path / "out"
    done = trace('BEGIN { printf("x\\n"); @ = 3; exit(); }', "-o", str(target))
    assert (done.status, done.out) == (0, "")
    assert target.read_text() == "x\n\n\n@: 3\n"


def test_output_file_that_cannot_be_made() -> None:
    done = trace("BEGIN { exit(); }", "-o", "/nowhere/out")
    assert done.status == 1
    assert "No such file or directory" in done.err
    assert "Traceback" not in done.err


def test_full_disk_is_reported() -> None:
    done = trace('BEGIN { printf("x\\n"); exit(); }', "-o", "/dev/full")
    assert done.status == 1
    assert done.err.splitlines()[-1] == "ERROR: cannot write to /dev/full: No space left on device"


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors(closed: str) -> None:
    """Nothing that the trace opens may end up as its stdout."""
    line = " ".join(f"'{part}'" for part in command("-q", "-e", 'BEGIN { printf("x"); exit(); }'))
    assert subprocess.run(["sh", "-c", f"{line} {closed}"], timeout=60, check=False).returncode == 0


def test_broken_pipe_is_quiet() -> None:
    """As a program that lets SIGPIPE end it; no message, at once."""
    program = 'interval:ms:10 { printf("x\\n"); }'
    with subprocess.Popen(command("-q", "-e", program), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"x\n"
        process.stdout.close()
        assert process.wait(30) == -13
        assert process.stderr.read() == b""


def test_strings_of_all_bytes_reach_a_pipe_unchanged(tmp_path: Path) -> None:
    """Not UTF-8, control characters: a file name is bytes, and so is the output."""
    name = bytes(sorted(set(range(1, 256)) - {ord("/")}))
    read = tmp_path / "read"
    with open(read, "wb") as out:
        process = subprocess.Popen(
            command(
                "-q", "-e",
                "BEGIN { printf(\"ready\\n\"); } tracepoint:syscalls:sys_enter_openat /pid == $1/ "
                "{ $s = str(args.filename); "
                'if (strncmp($s, "\\x01\\x02\\x03", 3) == 0) { printf("%s", $s); exit(); } }',
                str(os.getpid()),
            ),
            stdout=out,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while read.read_bytes() != b"ready\n" and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(OSError, match=r"No such file|too long"):
            os.open(name, os.O_RDONLY)
        assert process.wait(30) == 0
    assert read.read_bytes() == b"ready\n" + name + b"\n\n"


def on_terminal(*arguments: str) -> bytes:
    """What a trace writes when a terminal is its stdout."""
    master, slave = pty.openpty()
    process = subprocess.Popen(command("-q", *arguments), stdout=slave, stderr=subprocess.DEVNULL)
    os.close(slave)
    data = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # EIO: the last one with the terminal open is gone
            break
        if not part:
            break
        data += part
    os.close(master)
    process.wait(30)
    return data.replace(b"\r\n", b"\n")


ESCAPE = 'BEGIN { $s = "a\\x1b[31m\\x07"; printf("\\x1b[1m%s\\n", $s); @["\\x9b1"] = 1; exit(); }'


def test_traced_data_does_not_control_a_terminal() -> None:
    """The script's own format may; what comes from outside may not."""
    assert on_terminal("-e", ESCAPE) == b"\x1b[1ma\\x1b[31m\\x07\n\n\n@[\\x9b1]: 1\n"


def test_raw_lets_everything_through() -> None:
    assert on_terminal("--raw", "-e", ESCAPE) == b"\x1b[1ma\x1b[31m\x07\n\n\n@[\x9b1]: 1\n"


def test_json_on_a_terminal_has_no_control_bytes() -> None:
    data = on_terminal("-f", "json", "-e", 'BEGIN { $s = "\\x1b\\x7f\\x9b"; printf("%s", $s); exit(); }')
    assert not set(data) - set(range(32, 127)) - {10}
    assert json.loads(data.splitlines()[-1])["data"][:2] == "\x1b\x7f"


def test_time_join_strftime_cat(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("content\n")
    done = trace(f'BEGIN {{ time("%Y\\n"); cat("{tmp_path}/f"); printf("%s\\n", strftime("%Y", nsecs)); exit(); }}')
    year = time.strftime("%Y")
    assert done.out == f"{year}\ncontent\n{year}\n\n\n"


def test_cat_of_nothing() -> None:
    done = trace('BEGIN { cat("/nowhere"); exit(); }')
    assert "failed to open file '/nowhere' (No such file or directory)" in done.err


def test_join_of_a_process_argv() -> None:
    done = trace(
        "tracepoint:syscalls:sys_enter_execve /pid == cpid/ { join(args.argv); }", "-c", "/bin/sh -c '/bin/echo a b'"
    )
    assert "/bin/echo a b\n" in done.out or "/bin/sh -c /bin/echo a b\n" in done.out


def test_system_needs_unsafe() -> None:
    program = 'BEGIN { system("echo %s", "hi"); exit(); }'
    refused = trace(program)
    assert refused.status == 1
    assert "--unsafe" in refused.err
    assert trace(program, "--unsafe").out == "hi\n\n\n\n"  # bpftrace ends an output with a newline of its own


def test_output_of_commands() -> None:
    """Both streams are one; what failed is told, and what it wrote is shown all the same."""
    commands = 'system("echo b; echo c >&2; exit 3"); printf("d\\n"); system("kill -9 $$");'
    program = f'BEGIN {{ printf("a"); {commands} exit(); }}'
    done = trace(program, "--unsafe")
    assert done.out == "ab\nc\n\nd\n\n\n\n"
    assert done.err == "ERROR: command exited with code 3\nERROR: child process did not exit normally (signal 9)\n"
    done = trace(program, "--unsafe", "-f", "json")
    assert [(line["type"], line["data"]) for line in map(json.loads, done.out.splitlines())] == [
        ("printf", "a"), ("syscall", "b\nc\n"), ("printf", "d\n"), ("syscall", ""),
    ]  # fmt: skip
    assert done.err == "ERROR: command exited with code 3\nERROR: child process did not exit normally (signal 9)\n"


def test_commands_do_not_outlive_the_tracer() -> None:
    seconds = f"60.{os.getpid()}"
    program = f'BEGIN {{ printf("up\\n"); system("exec sleep {seconds}"); }}'
    with subprocess.Popen(command("-q", "--unsafe", "-e", program), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"

        def sleeping() -> bool:
            found = subprocess.run(["pgrep", "-f", f"^sleep {seconds}"], capture_output=True, check=False)
            return found.returncode == 0

        assert wait_until(sleeping, 60)
        process.kill()
        process.wait()
        assert wait_until(lambda: not sleeping(), 60)


def test_kernel_stack() -> None:
    done = trace("BEGIN { @[kstack(3)] = count(); exit(); }")
    lines = done.out.strip().splitlines()
    assert lines[0] == "@["
    assert lines[-1] == "]: 1"
    assert 2 <= len(lines) - 2 + 1 <= 4
    assert all(line.startswith("        ") for line in lines[1:-1])


def test_stacks_as_keys_of_json() -> None:
    """Without the spaces that lines begin with; tabs stay."""
    done = trace("BEGIN { @a[kstack(1)] = 1; @b[kstack(perf, 1), 2] = 1; exit(); }", "-f", "json")
    first, second = (next(iter(next(iter(json.loads(line)["data"].values())))) for line in done.out.splitlines())
    assert re.fullmatch(r"\n\w+\+\d+\n", first), first
    assert re.fullmatch(r"\n\t[0-9a-f]+ \w+\+\d+\n,2", second), second


def test_errors_at_run_time_are_told_with_their_place() -> None:
    program = 'BEGIN { @z = (uint64)0; @x = 4 / @z; errorf("bad %d", 3); warnf("so"); exit(); }'
    done = trace(program)
    assert "WARNING: Divide or modulo by 0 detected." in done.err
    lines = done.err.splitlines()
    underlined = lines[lines.index(program) + 1]
    assert program[underlined.index("~") : underlined.rindex("~") + 1] == "4 / @z"
    at = program.index("errorf") + 1
    assert f"stdin:1:{at}-{at + 19}: ERROR: bad 3" in lines
    assert any(line.endswith("WARNING: so") for line in lines)


def test_begin_output_comes_after_attaching() -> None:
    program = 'BEGIN { printf("x\\n"); exit(); } END { printf("y\\n"); }'
    done = subprocess.run(command("-f", "json", "-e", program), capture_output=True, timeout=60, check=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["type"] for line in lines] == ["attached_probes", "printf", "printf"]
    assert lines[0]["count"] == 2
    quiet = trace(program, "-f", "json")
    assert [json.loads(line)["type"] for line in quiet.out.splitlines()] == ["printf", "printf"]


def test_stacks_by_build_id(tmp_path: Path) -> None:
    """Build id and offset are those of the file, whatever its address in memory."""
    source, program = tmp_path / "p.c", tmp_path / "p"
    source.write_text("__attribute__((noinline)) int work(int n) { return n + 1; }\nint main() { return work(-1); }\n")
    identity = "-Wl,--build-id=0x0123456789abcdef0123456789abcdef01234567"
    subprocess.run(["cc", "-O1", identity, "-o", program, source], check=True)
    done = trace(f"uprobe:{program}:work {{ print(ustack(build_id)); exit(); }}", "-c", str(program))
    assert re.search(r"^0123456789abcdef0123456789abcdef01234567 0x[0-9a-f]+$", done.out, re.MULTILINE), done.err


def test_nothing_happens_between_exit_and_the_end() -> None:
    """clear() is done by the client, and so is exit(): a fast probe runs again before, and what it does is cleared."""
    program = "interval:us:200 { @n++; if (@n > 3) { print(@n); clear(@n); exit(); } }"
    for _ in range(4):
        assert "@n:" not in trace(program).out.partition("\n\n")[2]


def test_names_in_a_program_that_has_ended(tmp_path: Path) -> None:
    """With a cache per program, as long as its addresses are those of its file."""
    source, program = tmp_path / "p.c", tmp_path / "p"
    source.write_text("__attribute__((noinline)) int work(int n) { return n + 1; }\nint main() { return work(-1); }\n")
    subprocess.run(["cc", "-O1", "-no-pie", "-o", program, source], check=True)
    done = trace(
        f"config = {{ cache_user_symbols = PER_PROGRAM }} BEGIN {{ system({json.dumps(str(program))}) }} "
        f"uprobe:{program}:work {{ print(func); print(ustack(2)); exit(); }}",
        "--unsafe",
    )
    lines = [line.strip() for line in done.out.splitlines() if line.strip()]
    assert lines[0] == "work", done.err
    assert lines[1].startswith("work+"), done.out


@pytest.mark.parametrize("locale", ["C", "de_DE.ISO-8859-1", "nonsense"])
def test_output_does_not_depend_on_the_locale(locale: str) -> None:
    done = subprocess.run(
        command("-q", "-e", 'BEGIN { printf("%s é\\n", "ü"); @["ß"] = 1; exit(); }'),
        capture_output=True,
        check=True,
        timeout=60,
        env={**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )
    assert done.stdout == "ü é\n\n\n@[ß]: 1\n".encode()


@pytest.mark.parametrize("buffering", ["none", "line", "full"])
def test_what_is_printed_arrives_while_the_trace_runs(buffering: str) -> None:
    """Nothing waits for a buffer to fill when nothing else is to do; "none" not even for a newline."""
    text = "x" if buffering == "none" else "x\n"
    with subprocess.Popen(
        command("-q", "-B", buffering, "-e", f"interval:ms:20 {{ printf({json.dumps(text)}); }}"),
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 1) == b"x"
        process.terminate()
        rest = process.stdout.read()
    assert rest.endswith(b"\n\n")
    assert process.returncode == 0


@pytest.mark.parametrize("arguments", [[b"-e", b'BEGIN { printf("\xff"); }'], [b"-e", b"BEGIN { exit(); }", b"\xff"]])
def test_a_program_that_is_no_text_is_one_error(arguments: list[bytes]) -> None:
    done = subprocess.run([*command("-q"), *arguments], capture_output=True, check=False, timeout=60)
    assert done.returncode != 0
    assert b"is not UTF-8 text" in done.stderr
    assert b"Traceback" not in done.stderr


def test_empty_statistics_are_a_line_of_json() -> None:
    """As in bpftrace; of other empty maps there is none."""
    emptied = "clear(@s); clear(@a); clear(@h); clear(@c);"
    program = f"BEGIN {{ @s = stats(1); @a[1] = avg(1); @h = hist(1); @c[1] = count(); {emptied} exit(); }}"
    done = trace(program, "-f", "json")
    assert done.out.splitlines() == ['{"type": "stats", "data": {"@a": {}}}', '{"type": "stats", "data": {"@s": {}}}']


def test_maps_of_numbers_are_in_the_order_of_their_values() -> None:
    """Then of their keys, whatever signs and sizes they have."""
    done = trace(
        "BEGIN { @a[-1] = 1; @a[1] = -1; @a[0] = 0; @a[-5] = -1; "
        "@b[(uint64)18446744073709551615] = 2; @b[1] = (uint64)18446744073709551615; @b[0] = 2; "
        "@c[-3] = count(); @c[3] = count(); @c[2] = count(); @c[2] = count(); "
        "@d[-9223372036854775807] = sum(-7); @d[-1] = sum(-7); @d[1] = sum(-7); @d[5] = sum(-8); "
        "@e[(int8)-1] = (int8)-128; @e[(int8)127] = (int8)-128; @e[(int8)-128] = (int8)127; @e[(int8)0] = (int8)0; "
        "exit(); }"
    )
    maps = {
        "a": [(-5, -1), (1, -1), (0, 0), (-1, 1)],
        "b": [(0, 2), (2**64 - 1, 2), (1, 2**64 - 1)],
        "c": [(-3, 1), (3, 1), (2, 2)],
        "d": [(5, -8), (1 - 2**63, -7), (-1, -7), (1, -7)],
        "e": [(-1, -128), (127, -128), (0, 0), (-128, 127)],
    }
    lines = [f"@{name}[{key}]: {value}" for name, items in maps.items() for key, value in items]
    assert done.out.strip().splitlines() == lines, done.err
