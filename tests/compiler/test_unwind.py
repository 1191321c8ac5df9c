"""dw_ustack(): tables as readelf has them, walks through frames of every kind, files that make no sense."""

from __future__ import annotations

import bisect
import io
import os
import platform
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bpfseal.compiler import unwind
from bpfseal.errors import BpfsealError
from bpfseal.runtime.elf import Elf
from bpfseal.runtime.unwind_tables import _ROW, _Table, rows
from tests.compiler.harness import checked, compiled

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="only on x86-64"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc"),
]

PROGRAM = r"""
#include <alloca.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define APART __attribute__((noinline, noclone))
static volatile int sink;
APART void leaf(void) { getppid(); sink++; }
APART void aligned(int n) {
    char room[64] __attribute__((aligned(64)));
    memset(room, n, sizeof room);
    sink += room[n & 31];
    leaf();
    sink++;
}
APART void dynamic(int n) {
    char *room = alloca(n + 16);
    memset(room, n, n + 16);
    sink += room[n];
    aligned(n);
    sink++;
}
APART int compare(const void *a, const void *b) { dynamic(*(int *)a & 15); return *(int *)a - *(int *)b; }
APART void sort(void) { int two[2] = {2, 1}; qsort(two, 2, sizeof *two, compare); sink++; }
APART void handler(int n) { sort(); sink++; }
APART void raiser(void) { raise(SIGUSR1); sink++; }
APART void deep(int n) { if (n) deep(n - 1); else leaf(); sink++; }
int main(int argc, char **argv) {
    signal(SIGUSR1, handler);
    if (argc > 1) deep(atoi(argv[1])); else raiser();
    return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unwind")
    (folder / "frames.c").write_text(PROGRAM)
    flags = ["-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls", "-o"]
    subprocess.run(["gcc", *flags, folder / "frames", folder / "frames.c"], check=True)
    return folder / "frames"


def trace(text: str, *, pid: int = 0, command: str | None = None, dwarf_pids: tuple[int, ...] = ()) -> str:
    """What a script prints until the target ends."""
    from bpfseal.runtime.load import seal_locally
    from bpfseal.runtime.render.resolve import Resolver
    from bpfseal.runtime.render.text_output import TextOutput
    from bpfseal.runtime.session import Session
    from bpfseal.runtime.sink import OutputSink

    bundle = checked(compiled(text, config={"unstable_dw_ustack": "enable", "show_debug_info": False}))
    file = io.StringIO()
    with Session(bundle, seal_locally(bundle), pid=pid, command=command, dwarf_pids=dwarf_pids) as session:
        output = TextOutput(file, Resolver(session).text, quiet=True)
        session.start(OutputSink(output))
        session.run(timeout=20)
        for contents in session.maps.all_contents():
            output.map(contents)
        output.flush()
    return file.getvalue()


@pytest.mark.host
@pytest.mark.usefixtures("host")
class TestWalks:
    POINT = "tracepoint:syscalls:sys_enter_getppid /pid == cpid/"

    def test_frames_of_every_kind(self, program: Path) -> None:
        """Frames with the stack pointer, with the frame pointer, aligned ones, a library's, a signal handler's."""
        found = trace(f'{self.POINT} {{ printf("%s\\n", dw_ustack()); }}', command=str(program))
        names = [line.strip().partition("+")[0] for line in found.splitlines() if line.strip()]
        mine = [n for n in names if n in PROGRAM]
        assert mine == ["getppid", *"leaf aligned dynamic compare sort handler raise raiser main".split()]
        assert names[-1] == "_start"

    def test_depth(self, program: Path) -> None:
        found = trace(
            f"{self.POINT} {{ @ = len(dw_ustack); @many = len(dw_ustack(400)); @few[len(dw_ustack(3))] = count(); }}",
            command=f"{program} 300",
        )
        assert "@: 127\n" in found
        assert "@few[3]: 1\n" in found
        assert 302 < int(found.split("@many: ")[1].split()[0]) < 312

    def test_as_keys(self, program: Path) -> None:
        """The same way is the same key, another way another."""
        found = trace(f"{self.POINT} {{ @[dw_ustack(perf, 2)] = count(); }}", command=f"{program} 0")
        assert found.count("leaf+") == 1
        assert found.count("getppid+") == 1
        assert "]: 1\n" in found

    def test_a_process_that_runs(self) -> None:
        """And others, of which nothing is known: a message, and no frames."""
        with subprocess.Popen(
            ["sh", "-c", "read line; while true; do sleep 0.05; done"], stdin=subprocess.PIPE
        ) as target:
            assert target.stdin is not None
            target.stdin.write(b"\n")
            target.stdin.flush()
            found = trace(
                f"tracepoint:syscalls:sys_exit_wait4 /pid == {target.pid}/ {{ @[dw_ustack] = count(); @n++; }} "
                "i:ms:50 { @none[len(dw_ustack)] = count(); if (@n > 2) { exit(); } }",
                pid=target.pid,
            )
            target.kill()
        assert "wait4" in found
        assert "__libc_start_call_main+" in found
        assert "@none[0]: " in found

    def test_a_child_that_never_begins(self, tmp_path: Path) -> None:
        """Its loader ends it, since a library is missing."""
        (tmp_path / "lib.c").write_text("int f(void) { return 0; }")
        (tmp_path / "main.c").write_text("int f(void); int main(void) { return f(); }")
        subprocess.run(["gcc", "-shared", "-o", tmp_path / "libf.so", tmp_path / "lib.c"], check=True)
        subprocess.run(["gcc", "-o", tmp_path / "main", tmp_path / "main.c", "-L", tmp_path, "-lf"], check=True)
        os.unlink(tmp_path / "libf.so")
        found = trace("begin { @ = 1; } i:s:99 { @x[dw_ustack] = count(); }", command=str(tmp_path / "main"))
        assert found == "@: 1\n"

    def test_no_target(self) -> None:
        with pytest.raises(BpfsealError, match="dw_ustack requires a target process"):
            trace("tracepoint:syscalls:sys_enter_getppid { @[dw_ustack] = count(); }")


class TestTables:
    def test_as_readelf_has_them(self, program: Path) -> None:
        """Every row of the tables that readelf makes: frame address, frame pointer, outermost."""
        if shutil.which("readelf") is None:
            pytest.skip("needs readelf")
        for path in (program, Path(os.path.realpath("/bin/sh"))):
            seen = 0
            made = list(_ROW.iter_unpack(rows(Elf(str(path)))))
            starts = [row[0] for row in made]
            assert starts == sorted(set(starts))
            text = subprocess.run(["readelf", "-wF", path], capture_output=True, text=True, check=True).stdout
            columns: list[str] = []
            for line in text.splitlines():
                if line.strip().startswith("LOC"):
                    columns = line.split()[1:]
                row = re.match(r"([0-9a-f]{16}) (.*)$", line)
                if row is None or not columns or "FDE" in line or "CIE" in line:
                    continue
                cells = dict(zip(columns, row[2].split(), strict=False))
                frame = re.match(r"(rsp|rbp)\+(\d+)$", cells["CFA"])
                address = int(row[1], 16)
                if not address or frame is None:
                    continue
                _, kind, base, base_at, frame_at, _ = made[bisect.bisect_right(starts, address) - 1]
                if cells.get("ra") == "u":
                    assert kind == unwind.END
                    continue
                seen += 1
                assert (kind, frame_at) == (unwind.STACK if frame[1] == "rsp" else unwind.FRAME, int(frame[2]))
                if (saved := cells.get("rbp", "u")).startswith("c"):
                    assert (base, base_at) == (unwind.CFA, int(saved[1:]))
                elif saved == "u":
                    assert base == unwind.SAME
            assert seen > 20

    def test_others(self, tmp_path: Path) -> None:
        source = tmp_path / "bare.c"
        source.write_text("int f(void) { return 1; }")
        flags = ["-c", "-fno-asynchronous-unwind-tables", "-o", str(tmp_path / "bare.o")]
        subprocess.run(["gcc", *flags, source], check=True)
        assert rows(Elf(str(tmp_path / "bare.o"))) == b""

    def test_damaged(self, program: Path) -> None:
        """Whatever the bytes are: rows, or fewer of them."""
        elf = Elf(str(program))
        section = elf.section(".eh_frame")
        assert section is not None
        data = elf.contents(section)
        dice = random.Random(8)
        for _ in range(400):
            changed = bytearray(data)
            for _ in range(dice.randrange(1, 12)):
                changed[dice.randrange(len(changed))] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
            assert len(_Table(bytes(changed), section.address).rows()) < 10_000 * unwind.ROW
            _Table(dice.randbytes(dice.randrange(200)), dice.randrange(1 << 40)).rows()
            _Table(bytes(changed[: dice.randrange(len(changed))]), 0).rows()
