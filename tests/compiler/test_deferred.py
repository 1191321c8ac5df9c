"""`defer` on the running kernel: text that a probe cannot read is read later, in the task's own context."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compiler.harness import environment, run, why_not


def has_task_work() -> bool:
    types = environment().world.types
    return types is not None and any(types.kfunc(f"bpf_task_work_schedule_resume{suffix}") for suffix in ("", "_impl"))


pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(bool(why_not()) or not has_task_work(), reason="the kernel has no deferred work (Linux 6.18)"),
]

PID = os.getpid()
ROUNDS = 200


@pytest.fixture
def opener(tmp_path: Path) -> Callable[[], None]:
    """Opens a path that stands in a page which was just dropped from memory, again and again."""
    file = tmp_path / "text"
    file.write_bytes(b"/nowhere/the-path\0".ljust(mmap.PAGESIZE, b"\0"))
    libc = ctypes.CDLL(None, use_errno=True)

    def act() -> None:
        with open(file, "rb") as handle:
            for _ in range(ROUNDS):
                os.fsync(handle.fileno())
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                with mmap.mmap(
                    handle.fileno(), mmap.PAGESIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
                ) as page:
                    place = (ctypes.c_char * 1).from_buffer(page)
                    libc.syscall(257, -100, ctypes.c_void_p(ctypes.addressof(place)), 0)
                    del place

    return act


def counted(found: str) -> int:
    match = re.search(r"@\[/nowhere/the-path\]: (\d+)", found)
    return int(match[1]) if match else 0


@pytest.mark.parametrize("mode", ["defer", "defer(signal)"])
def test_reads_what_is_paged_out(opener: Callable[[], None], mode: str) -> None:
    text = (
        f"tracepoint:syscalls:sys_enter_openat /pid == {PID}/ "
        f"{{ $f = args.filename; {mode} {{ @[str($f, 40)] = count(); }} }}"
    )
    assert counted(run(text, act=opener)) == ROUNDS


def test_a_plain_read_fails(opener: Callable[[], None]) -> None:
    """Else the tests above would show nothing."""
    text = f"tracepoint:syscalls:sys_enter_openat /pid == {PID}/ {{ @[str(args.filename, 40)] = count(); }}"
    assert counted(run(text, act=opener)) < ROUNDS // 2


def test_captures(opener: Callable[[], None]) -> None:
    """Variables of the block come along, of every kind."""
    text = (
        f"tracepoint:syscalls:sys_enter_openat /pid == {PID}/ "
        '{ $f = args.filename; $n = 5; $c = comm; $t = (1, "x"); '
        'defer { if (str($f, 40) == "/nowhere/the-path" && $n == 5 && $c == comm && $t.1 == "x" && pid == tid) '
        "{ @good = count(); } } }"
    )
    assert f"@good: {ROUNDS}\n" in run(text, act=opener)
