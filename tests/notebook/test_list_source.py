"""`bpfseal --list-source`: programs as text, in colours where somebody reads them."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bpfseal.runtime.source_command import for_terminal

PROGRAM = 'BEGIN {\n\tprintf("%s\\n", comm); // why ü\n}\n'
COMMAND = [sys.executable, "-m", "bpfseal", "--list-source"]
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def on_a_terminal(*arguments: str, **environment: str) -> str:
    controller, terminal = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    try:
        done = subprocess.run(
            [*COMMAND, *arguments], stdout=terminal, env={**clean, "TERM": "xterm", **environment}, check=False
        )
        os.close(terminal)
        data = b""
        while piece := _read(controller):
            data += piece
    finally:
        os.close(controller)
    assert done.returncode == 0
    return data.decode().replace("\r\n", "\n")


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:  # EIO: nobody has the other end any more
        return b""


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "some.bt"
    path.write_text(PROGRAM)
    return str(path)


def test_into_a_pipe_it_is_what_it_was(script: str) -> None:
    for arguments in ([script], ["-e", PROGRAM], ["-"]):
        done = subprocess.run([*COMMAND, *arguments], input=PROGRAM.encode(), capture_output=True, check=True)
        assert done.stdout.decode() == PROGRAM


def test_on_a_terminal_it_has_colours(script: str) -> None:
    pytest.importorskip("pygments", reason="pygments is not installed")
    shown = on_a_terminal(script)
    assert _COLOUR.sub("", shown) == PROGRAM
    places = {word: _COLOUR.findall(shown[: shown.index(word)])[-1] for word in ("BEGIN", "printf", "// why")}
    assert len(set(places.values())) == 3, places
    for setting in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert on_a_terminal(script, **setting) == PROGRAM


def test_a_script_cannot_control_the_terminal() -> None:
    nasty = "BEGIN { /* \x1b[2J\x9b */ }"
    assert for_terminal(nasty, colour=False) == "BEGIN { /* \\x1b[2J\\x9b */ }\n"
    assert "\x1b[2J" not in for_terminal(nasty, colour=True)
    assert "\x9b" not in for_terminal(nasty, colour=True)
    assert for_terminal(nasty, colour=False, raw=True) == nasty + "\n"


@pytest.mark.parametrize(("arguments", "said"), [([], "which program"), (["/nonexistent.bt"], "No such file")])
def test_mistakes_are_one_line(arguments: list[str], said: str) -> None:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
