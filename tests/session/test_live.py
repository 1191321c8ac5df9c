"""--live on a terminal that the test holds, and --heatmap."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import command, trace, wait_until

pytest.importorskip("rich")
pytestmark = pytest.mark.host

SEQUENCE = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|[()][A-Z0-9]|[=>])")
MARK = "the_end_of_a_long_title"
PROGRAM = (
    'BEGIN { printf("hello\\x1b[31m\\n"); } interval:ms:20 { @n++; @by["a\\x1b[2J"] = count(); @h = hist(@n); } '
    f"// {'.' * 60} {MARK}\n END {{ @end = 1; }}"
)


class Terminal:
    """A trace with a terminal of a given size as its stdout; `data` is what it has written."""

    def __init__(self, rows: int, columns: int, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self.resize(rows, columns)
        self.process = subprocess.Popen(
            command("-q", *arguments),
            stdout=slave,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "TERM": "xterm-256color"},
        )
        os.close(slave)
        os.set_blocking(self._master, False)
        self.data = ""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self) -> str:
        try:
            while part := os.read(self._master, 1 << 16):
                self.data += part.decode("utf-8", "replace")
        except OSError:  # nothing now, or the end
            pass
        return SEQUENCE.sub("", self.data)

    def sees(self, pattern: str, seconds: float = 90) -> bool:
        return wait_until(lambda: re.search(pattern, self.read()), seconds)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        os.close(self._master)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for one in opened:
        one.close()


def test_live_shows_maps_and_gives_the_terminal_back(terminals: list[Terminal]) -> None:
    one = Terminal(30, 80, "--live", "-e", PROGRAM)
    terminals.append(one)
    assert one.sees(r"@n\s+\d+\s+\d"), one.data[-2000:]  # with a rate
    for pattern in (r"@by  1 key", r"in all", r"[▁▂▃▄▅▆▇█]"):
        assert one.sees(pattern), one.data[-2000:]
    assert one.sees(r"hello\\x1b\[31m")  # what is printed is shown, and cannot control the terminal
    assert "\x1b[?1049h" in one.data
    assert "\x1b[2J" not in one.data.split("\x1b[?1049h", 1)[1]
    one.process.send_signal(signal.SIGINT)
    assert wait_until(lambda: one.process.poll() is not None, 90)
    text = one.read()
    assert one.process.returncode == 0
    # The screen of before is back, and the maps are printed as always.
    after = one.data.rpartition("\x1b[?1049l")[2]
    assert "@end: 1" in after
    assert "@by[a\\x1b[2J]: " in after
    assert "Traceback" not in text


def test_live_follows_the_size_of_the_terminal(terminals: list[Terminal]) -> None:
    one = Terminal(24, 60, "--live", "-e", PROGRAM)
    terminals.append(one)
    assert one.sees(r"BEGIN .*…")
    assert MARK not in one.read()
    one.resize(40, 230)
    one.process.send_signal(signal.SIGWINCH)
    assert one.sees(MARK)
    one.resize(5, 20)
    time.sleep(1.2)
    assert one.process.poll() is None  # however small
    one.process.send_signal(signal.SIGTERM)
    assert wait_until(lambda: one.process.poll() is not None, 90)
    assert one.process.returncode == 0


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_suspended_the_shell_has_its_screen(terminals: list[Terminal]) -> None:
    """Ctrl-Z, and fg."""
    one = Terminal(24, 80, "--live", "-e", PROGRAM)
    terminals.append(one)
    assert one.sees(r"@n\s+\d+\s+\d")
    one.process.send_signal(signal.SIGTSTP)
    assert wait_until(lambda: state(one.process.pid) == "T", 60)
    one.read()
    assert one.data.endswith("\x1b[?1049l\x1b[?25h")
    one.data = ""
    one.process.send_signal(signal.SIGCONT)
    assert one.sees(r"@n\s+\d+\s+\d")
    assert one.data.startswith("\x1b[?1049h\x1b[?25l")
    one.process.send_signal(signal.SIGINT)
    assert wait_until(lambda: one.process.poll() is not None, 90)
    one.read()
    assert one.process.returncode == 0
    assert "@end: 1" in one.data.rpartition("\x1b[?1049l")[2]


def test_second_ctrl_c_gives_the_terminal_back(terminals: list[Terminal]) -> None:
    """While the first one's end takes its time: END waits for a command."""
    program = 'BEGIN { @x = 1; } END { system("sleep 20"); }'
    one = Terminal(24, 60, "--live", "--unsafe", "-e", program)
    terminals.append(one)
    assert one.sees(r"@x")
    one.process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert one.process.poll() is None
    one.process.send_signal(signal.SIGINT)
    assert wait_until(lambda: one.process.poll() is not None, 90)
    one.read()
    assert one.process.returncode == 128 + signal.SIGINT
    assert one.data.rpartition("\x1b[?1049h")[2].count("\x1b[?1049l") >= 1


def test_live_without_a_terminal_is_one_error() -> None:
    done = trace("BEGIN { exit(); }", "--live")
    assert (done.status, done.err.splitlines()[0]) == (1, "ERROR: --live needs a terminal")


def test_rich_is_imported_for_live_alone() -> None:
    program = (
        "import sys; from bpfseal.runtime.cli import main; main(['-q', '-e', 'BEGIN { exit(); }']); "
        "sys.exit('rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=180).returncode == 0


def test_heatmap(tmp_path: Path) -> None:
    path = tmp_path / "heat.svg"
    program = "interval:ms:10 { @n++; @lat = hist(@n * 1000); @l[1] = lhist(@n, 0, 50, 5); if (@n == 60) { exit(); } }"
    done = trace(program, "--heatmap", str(path))
    assert done.status == 0, done.err
    root = xml.etree.ElementTree.parse(path).getroot()
    space = "{http://www.w3.org/2000/svg}"
    titles = [title.text or "" for title in root.iter(f"{space}title")]
    # Every event is in one cell: each histogram has 60.
    counts = [int(text.rpartition(" ")[2]) for text in titles]
    assert sum(counts) == 120
    texts = {text.text for text in root.iter(f"{space}text")}
    assert {"@lat", "@l", "[512, 1K)", "[32K, 64K)", "[0, 5)", "[50, ...)"} <= texts


def test_heatmap_of_nothing_is_one_error(tmp_path: Path) -> None:
    done = trace("BEGIN { @x = 1; exit(); }", "--heatmap", str(tmp_path / "x.svg"))
    assert done.status == 1
    assert done.err.splitlines()[0] == "ERROR: nothing to draw: no histogram has a value"
