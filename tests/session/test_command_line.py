"""What the command line says without tracing anything: listings, versions, mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bpfseal.runtime.cli import main
from bpfseal.runtime.trials import Result

from .conftest import trace


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(list(arguments))
    found = capsys.readouterr()
    return status, found.out, found.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = said(capsys, "--version")
    assert status == 0
    assert [line.split()[:2] for line in out.splitlines()] == [["bpfseal", "v0.1.0"], ["bpftrace", "v0.27"]]


def test_an_unknown_flag_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = said(capsys, "-idonotexist")
    assert status == 2
    assert "USAGE:" in err.splitlines()


def test_an_unknown_format(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = said(capsys, "-f", "jsonx", "-e", "begin { }")
    assert status == 2
    assert 'ERROR: Invalid output format "jsonx"' in err


@pytest.mark.host
def test_points_of_a_script(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    program = """
        interval:ms:100 { } profile:hz:99 { } hardware:cache-misses:10 { } software:cpu-clock:1000 { }
        tracepoint:sched:sched_switch { } interval:1s { }
    """
    expected = ["interval:ms:", "profile:hz:", "hardware:cache-misses:", "software:cpu-clock:"]
    status, out, _ = said(capsys, "-l", "-e", program)
    assert status == 0
    assert out.split()[:5] == [*expected, "tracepoint:sched:sched_switch"]
    script = tmp_path / "some.bt"
    script.write_text(program)
    assert said(capsys, "-l", str(script))[1] == out


def test_a_listing_of_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = said(capsys, "-l", "nothing_here.bt")
    assert (status, out) == (0, "")
    assert err.startswith("WARNING: It appears that 'nothing_here.bt' is a filename but the file does not exist.")


def test_headers_on_the_command_line_keep_the_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    header = tmp_path / "some.h"
    header.write_text("#define SEVEN 7\nstruct mine { int a; };\n")
    arguments = ("check", "-e", "begin { print(SEVEN + nosuch); }")
    assert said(capsys, *arguments)[0] == 1
    status, _, err = said(capsys, "--include", str(header), "-e", arguments[2])
    assert status == 1
    assert err.startswith("stdin:1:23-29: ERROR: unknown identifier: 'nosuch'")
    assert "SEVEN" in err.splitlines()[1]


@pytest.mark.host
def test_a_parameter_that_was_not_given_is_worth_a_warning() -> None:
    program = "begin { print($1); exit(); }"
    assert "WARNING: positional parameter $1 is empty or not provided" in trace(program).err
    assert trace(program, "--no-warnings").err == ""
    assert trace(program, "5").err == ""


@pytest.mark.host
def test_functions_from_a_file(tmp_path: Path) -> None:
    """--traceable-functions replaces the kernel's own list."""
    listed = tmp_path / "functions"
    listed.write_text("vfs_write\nvfs_open\n")
    program = "begin { exit(); } kprobe:vfs_read { }"
    refused = trace(program, "--traceable-functions", str(listed))
    assert refused.status == 1
    assert "ERROR: No matches for kprobe vfs_read." in refused.err
    assert 'WARNING: vfs_read is not traceable (either non-existing, inlined, or marked as "notrace")' in refused.err
    assert trace(program.replace("read", "open"), "--traceable-functions", str(listed)).status == 0
    forced = trace(program, "--unsafe", "--traceable-functions", str(listed))
    assert forced.status == 0
    assert "WARNING: vfs_read is not traceable" in forced.err
    missing = trace(program, "--traceable-functions", str(tmp_path / "nothing"))
    assert (missing.status, "cannot read the traceable functions" in missing.err) == (1, True)


@pytest.mark.host
def test_a_failed_read_names_the_expression() -> None:
    program = "struct foo { int a; }; begin { $x = 1; $y = ((struct foo *)kptr(8)).a; exit(); }"
    (line,) = trace(program, "-k", "-f", "json").out.splitlines()
    told = json.loads(line)
    assert (told["type"], told["helper"]) == ("helper_error", "probe_read_kernel")
    assert program[told["col"] - 1 :].startswith("(struct foo *)kptr(8)")


def test_words_of_durations() -> None:
    from bpfseal.runtime.render.trials import bench_lines, json_line, test_lines

    slow = Result("slow", False, 2_500_000_000)
    assert "(2 s)" in test_lines([slow], 1, last=True, colour=False)
    assert "\033[32m" in test_lines([slow], 1, last=True, colour=True)
    failed = Result("x", True, 10, output="a\n\nb\n")
    assert test_lines([slow, failed], 2, last=False, colour=False).splitlines()[1:3] == ["a", "b"]
    assert json_line("bench", failed) == ""
    assert bench_lines([slow, failed]).split() == ["x", "failed"]


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["-l", "tracepoint:syscalls:*open*"], ["doctor"]])
def test_a_full_disk_is_one_line(arguments: list[str]) -> None:
    """Also where nothing but text is written."""
    command = [sys.executable, "-m", "bpfseal", *arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "ERROR: No space left on device\n")
