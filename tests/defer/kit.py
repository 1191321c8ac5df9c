"""Traces of `pageout`, a program that shows probes text which is not in memory, through the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TEXT = "/nowhere/the-path"
BASE = 0x600000000000  # where pageout.c maps its file
SOURCE = Path(__file__).parent / "pageout.c"

# What pageout marks its own system calls and register contents with.
CALL = "tracepoint:syscalls:sys_enter_openat /(int32)args.dfd == -12345/"
FAULT = 'software:page-faults:1 /usermode == 1 && reg("r13") == 0x5ea1ed0000000001/'
SAMPLE = 'profile:hz:997 /usermode == 1 && reg("r13") == 0x5ea1ed0000000001/'


def build(folder: Path) -> str:
    """Path of the program, or why there is none."""
    target = folder / "pageout"
    command = ["cc", "-O1", "-Wall", "-Werror", "-pthread", "-o", str(target), str(SOURCE)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    if done.returncode:
        raise RuntimeError(done.stderr)
    return str(target)


def page(folder: Path, content: bytes = TEXT.encode() + b"\0") -> str:
    """A file of one page that is on disk."""
    import os

    path = folder / "page"
    with open(path, "wb") as file:
        file.write(content.ljust(4096, b"\0"))
        file.flush()
        os.fsync(file.fileno())
    return str(path)


@dataclass
class Outcome:
    """What a trace and its program said. `account` is the line about deferred blocks; `gone` the rounds before which
    the page was not in memory."""

    status: int
    maps: dict[str, Any] = field(default_factory=dict)
    account: dict[str, int] = field(default_factory=dict)
    printed: list[str] = field(default_factory=list)
    gone: int = -1
    err: str = ""


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "bpfseal", *words]


def parse(status: int, out: str, err: str) -> Outcome:
    found = Outcome(status, err=err)
    for line in out.splitlines():
        if match := re.fullmatch(r"gone (\d+)", line):
            found.gone = int(match[1])
        if not line.startswith("{"):
            continue
        entry: Mapping[str, Any] = json.loads(line)
        if entry["type"] == "deferred":
            found.account = dict(entry["data"])
        elif entry["type"] in ("map", "stats", "hist"):
            found.maps.update(entry["data"])
        elif entry["type"] in ("printf", "value", "join"):
            found.printed.append(entry["data"])
    return found


def trace(script: str, program: str = "", *options: str, timeout: float = 300) -> Outcome:
    """Run a script for the time of a program, or until it exits."""
    words = ["-q", "-f", "json", *options, "-e", script, *(["-c", program] if program else [])]
    done = subprocess.run(command(*words), capture_output=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL)
    return parse(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def whole(account: Mapping[str, int]) -> bool:
    """Whether everything that was scheduled is accounted for."""
    return account["scheduled"] == account["run"] + account["dropped"] + account["cancelled"]


def both_reads(mode: str, how: str) -> str:
    """A script that reads pageout's text at once (@plain) and later (@later). `mode`: "" or "(signal)"; `how`: a mode
    of pageout."""
    body = f"@plain[str($p, 64)] = count(); defer{mode} {{ @later[str($p, 64)] = count(); }}"
    if how == "openat":
        return f"{CALL} {{ $p = args.filename; {body} }}"
    probe = FAULT if how == "fault" else SAMPLE
    return f'{probe} {{ $p = uptr((char *)reg("r12")); {body} }}'
