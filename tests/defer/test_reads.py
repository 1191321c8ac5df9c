"""Text that is not in memory: a plain read in the probe fails, the deferred one returns it, every time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.defer import kit

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("task_work")]


@pytest.mark.parametrize("how", ["openat", "fault"])
def test_some(pageout: str, tmp_path: Path, how: str) -> None:
    """From a tracepoint, and from a perf event with interrupts off."""
    found = kit.trace(kit.both_reads("", how), f"{pageout} {how} 300 {kit.page(tmp_path)}")
    assert found.gone == 300
    assert found.maps == {"@plain": {"": 300}, "@later": {kit.TEXT: 300}}
    assert found.account == {"scheduled": 300, "run": 300, "dropped": 0, "cancelled": 0, "kernel_threads": 0}


@pytest.mark.slow
def test_ten_thousand(pageout: str, tmp_path: Path) -> None:
    """Resume and signal mode, from a tracepoint and from a perf event."""
    kit.page(Path(pageout).parent)
    done = subprocess.run(
        [sys.executable, "-m", "tests.defer.measure", str(Path(pageout).parent), "10000"],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(e["how"], e["mode"]) for e in entries] == [
        ("openat", "resume"),
        ("openat", "(signal)"),
        ("fault", "resume"),
        ("fault", "(signal)"),
    ]
    judge(entries, 10_000)


def judge(entries: list[dict[str, Any]], rounds: int) -> None:
    """What `measure` found must be nothing but success."""
    for entry in entries:
        assert entry["gone"] == rounds, entry
        assert entry["plain"] == {"": rounds}, entry
        assert entry["later"] == {kit.TEXT: rounds}, entry
        account = {"scheduled": rounds, "run": rounds, "dropped": 0, "cancelled": 0, "kernel_threads": 0}
        assert entry["account"] == account, entry


@pytest.mark.slow
def test_samples(pageout: str, tmp_path: Path) -> None:
    """From the timer's interrupt: how many samples there are is up to the machine, but none is without its text."""
    found = kit.trace(kit.both_reads("", "spin"), f"{pageout} spin 3000 {kit.page(tmp_path)}")
    assert found.gone == 3000
    plain, later = found.maps["@plain"], found.maps["@later"]
    assert later == {kit.TEXT: found.account["run"]}
    assert found.account["scheduled"] == found.account["run"] > 100
    # A second sample of the same round may find the page that the first has brought in.
    assert plain[""] > found.account["run"] // 2


def test_what_a_block_can_read(pageout: str, tmp_path: Path) -> None:
    """Structures, members through pointers, buffers, arrays of strings, and addresses of unknown kind."""
    content = bytearray(4096)
    content[0:8] = (7).to_bytes(4, "little") + (8).to_bytes(4, "little")
    content[8:16] = (kit.BASE + 64).to_bytes(8, "little")
    content[16:32] = b"a name".ljust(16, b"\0")
    content[64:72] = (9).to_bytes(4, "little") + bytes(4)
    content[128:152] = b"".join(at.to_bytes(8, "little") for at in (kit.BASE + 16, kit.BASE + 160, 0))
    content[160:166] = b"second"
    script = f"""
        struct thing {{ uint32 a; uint32 b; struct thing *next; char name[16]; }}
        {kit.CALL} {{
            $t = (struct thing *)args.filename;
            $bare = (uint64)args.filename;
            @now[$t->a] = count();
            defer {{
                printf("%d %d %d %s", $t->a, $t->b, $t->next->a, $t->name);
                printf("%rx", buf($t, 8));
                printf("%s", str($bare + 16));
                $w = (uint64 *)($bare + 64);
                printf("%d %d", *$w, $w[0]);
                join((char **)($bare + 128));
                @name[$t->name] = count();
            }}
        }}"""
    found = kit.trace(script, f"{pageout} openat 1 {kit.page(tmp_path, bytes(content))}")
    assert found.gone == 1, found.err
    assert found.maps["@now"] == {"0": 1}
    assert found.maps["@name"] == {"a name": 1}
    assert [text.rstrip("\n") for text in found.printed] == [
        "7 8 9 a name",
        r"\x07\x00\x00\x00\x08\x00\x00\x00",
        "a name",
        "9 9",
        "a name second",
    ]


def test_the_users_stack(pageout: str, tmp_path: Path) -> None:
    """Frames that are not in memory: the kernel's own walk ends at the first, the deferred one brings them in."""
    content = bytearray(4096)
    frames = {0: (96, 0x111111), 96: (128, 0x222222), 128: (-kit.BASE, 0x333333)}
    for at, (following, address) in frames.items():
        content[at : at + 16] = (kit.BASE + following).to_bytes(8, "little") + address.to_bytes(8, "little")
    script = (
        f"{kit.CALL} {{ $s = ustack(raw); @now[$s] = count(); @frames = len(ustack(raw)); "
        "defer { @later[ustack(raw)] = count(); @most[ustack(raw, 2)] = count(); @kept[$s] = count(); "
        "@deep = len(ustack(raw)); } }"
    )
    found = kit.trace(script, f"{pageout} stack 20 {kit.page(tmp_path, bytes(content))}")
    assert found.gone == 20, found.err
    ((now, times),) = found.maps["@now"].items()
    assert times == 20
    (here,) = now.split()
    assert [key.split() for key in found.maps["@later"]] == [[here, "111111", "222222", "333333"]]
    assert [key.split() for key in found.maps["@most"]] == [[here, "111111"]]
    assert found.maps["@kept"] == {now: 20}
    assert (found.maps["@frames"], found.maps["@deep"]) == (1, 4)


def test_paths(tmp_path: Path) -> None:
    """path() from any probe: across mounts, of files, the executable, the working directory; pipes have none."""
    script = """
        tracepoint:syscalls:sys_enter_read /comm == "cat"/ {
            $fd = args.fd;
            defer {
                $file = path(curtask.files.fdt.fd[$fd].f_path);
                @[$file, path(curtask.mm.exe_file.f_path), path(curtask.fs.pwd)] = count();
            }
        }"""
    folder = tmp_path / "a folder" / ("b" * 200)
    folder.mkdir(parents=True)
    (folder / "file").write_text("text")
    (tmp_path / "run.sh").write_text(f"cd '{folder}' && cat file /proc/self/stat | cat > /dev/null")
    found = kit.trace(script, f"/bin/sh {tmp_path}/run.sh")
    assert found.account["run"] == found.account["scheduled"] > 0, found.err
    seen = [key.split(",") for key in found.maps["@"]]
    here = [words for words in seen if words[2] == str(folder)]
    files = {re.sub(r"\d+", "N", words[0]) if "/proc/" in words[0] else words[0] for words in here}
    assert {str(folder / "file"), "/proc/N/stat", ""} <= files
    assert {words[1] for words in here} == {os.path.realpath("/bin/cat")}
