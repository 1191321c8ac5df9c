"""Names of addresses: in processes that run, that have ended, in containers, of code that was made at run time."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfseal.runtime.mappings import Mappings
from bpfseal.runtime.symbols import Symbols

from .conftest import Running, trace, wait_until

pytestmark = pytest.mark.host

SOURCE = """
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
/* libc's syscall() has no frame pointer: who calls it is missing in the stack. */
extern "C" __attribute__((noinline)) int leaf(int n)
{
	for (int i = 0; i < n; i++)
		syscall(SYS_getppid);
	return n;
}
namespace deep { struct Thing { static int call(int n); }; }
__attribute__((noinline)) int deep::Thing::call(int n)
{
	return leaf(n) + 1;
}
extern "C" __attribute__((noinline)) int middle(int n) { return deep::Thing::call(n) + 1; }
int main(int count, char **words)
{
	int made = middle(3);
	if (count > 1)
		usleep(1000 * atoi(words[1]));
	return made == 5 ? 0 : 1;
}
"""
STACKS = "tracepoint:syscalls:sys_enter_getppid /pid == cpid/ { @[ustack] = count(); }"
NAMES = r"syscall\+\d+\s+deep::Thing::call\(int\)\+\d+\s+middle\+\d+\s+main\+\d+"


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("symbols")
    (folder / "c.cpp").write_text(SOURCE)
    path = folder / "caller"
    flags = ["-O1", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls", "-static"]
    done = subprocess.run(["g++", *flags, "-o", path, folder / "c.cpp"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no static C library")
    return path


def test_a_process_that_has_ended(caller: Path) -> None:
    """The map is printed after it."""
    done = trace(STACKS, "-c", str(caller))
    assert re.search(NAMES, done.out), done.out + done.err


def test_names_as_in_the_file_without_demangling(caller: Path) -> None:
    done = trace("config = { cpp_demangle = false } " + STACKS, "-c", str(caller))
    assert "_ZN4deep5Thing4callEi+" in done.out


def test_a_process_that_runs(caller: Path) -> None:
    done = trace(STACKS + " interval:ms:500 { print(@); clear(@); }", "-c", f"{caller} 2500")
    assert re.search(NAMES, done.out), done.out + done.err


@pytest.mark.parametrize("milliseconds", [1500])
def test_a_process_with_another_root(caller: Path, tmp_path: Path, milliseconds: int) -> None:
    """Its files are not where it says; it has ended when the map is printed."""
    shutil.copy(caller, tmp_path / "inside")
    done = trace(STACKS, "-c", f"chroot {tmp_path} /inside {milliseconds}")
    assert re.search(NAMES, done.out), done.out + done.err


UP = 'BEGIN { printf("up\\n"); } '
ALL_STACKS = UP + 'tracepoint:syscalls:sys_enter_getppid /comm == "caller"/ { @[ustack] = count(); }'


def test_processes_that_are_no_target_and_have_ended(caller: Path, running: list[Running]) -> None:
    """Started by somebody else while the trace runs, gone when the map is printed."""
    one = Running(ALL_STACKS)
    running.append(one)
    one.begin()
    for _ in range(3):
        assert subprocess.run([caller], check=False).returncode == 0
    done = one.end()
    assert done.out.count("]: 3\n") == len(re.findall(NAMES, done.out)) > 0, done.out + done.err


def test_a_process_that_was_there_before_and_has_ended(tmp_path: Path, running: list[Running]) -> None:
    """Its files were mapped before anybody looked."""
    code = "import os,sys; sys.stdin.readline(); [os.getppid() for _ in range(5)]"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        program = f"tracepoint:syscalls:sys_enter_getppid /pid == {process.pid}/ {{ @[ustack(2)] = count(); }}"
        one = Running(UP + program)
        running.append(one)
        one.begin()
        time.sleep(1)  # where there are very many processes they are looked at in slices
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.close()
        process.wait()
    done = one.end()
    assert re.search(r"^ +\w*getppid\+\d+$", done.out, re.M), done.out + done.err


LATER = """
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
static void *later(void *path)
{
	int n = getchar();
	int (*call)(int) = dlsym(dlopen(path, RTLD_NOW), "from_a_library");
	return (void *)(long)call(n);
}
int main(int count, char **words)
{
	pthread_t thread;
	pthread_create(&thread, 0, later, words[1]);
	return pthread_join(thread, 0);
}
"""
LIBRARY = """
#include <sys/syscall.h>
#include <unistd.h>
__attribute__((noinline)) int leaf(int n) { return syscall(SYS_getppid) + n; }
int from_a_library(int n) { return leaf(n) + 1; }
"""


def test_files_that_another_thread_of_the_target_maps(tmp_path: Path, running: list[Running]) -> None:
    """One that was there before the trace; the process has ended when the map is printed."""
    flags = ["-O1", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"]
    (tmp_path / "later.c").write_text(LATER)
    (tmp_path / "library.c").write_text(LIBRARY)
    path, library = tmp_path / "later", tmp_path / "library.so"
    subprocess.run(["gcc", *flags, "-o", path, tmp_path / "later.c", "-pthread"], check=True)
    subprocess.run(["gcc", *flags, "-shared", "-fPIC", "-o", library, tmp_path / "library.c"], check=True)
    with subprocess.Popen([path, library], stdin=subprocess.PIPE) as process:
        assert wait_until(lambda: len(os.listdir(f"/proc/{process.pid}/task")) == 2)
        one = Running(UP + "tracepoint:syscalls:sys_enter_getppid { @[ustack(3)] = count(); }", "-p", str(process.pid))
        running.append(one)
        one.begin()
        time.sleep(1)
        assert process.stdin is not None
        process.stdin.write(b"xx")
        process.stdin.close()
        process.wait()
    done = one.end(None)
    assert re.search(r"from_a_library\+\d+", done.out), done.out + done.err


FORKS = """
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
__attribute__((noinline)) int leaf(int n) { return syscall(SYS_getppid) + n; }
__attribute__((noinline)) int middle(int n) { return leaf(n) + 1; }
int main(void)
{
	for (int i = 0; i < 3; i++) {
		if (fork() == 0)
			_exit(middle(3) == 0);
		wait(0);
	}
	return 0;
}
"""


@pytest.mark.parametrize("target", [True, False])
def test_processes_that_were_forked_and_mapped_nothing(tmp_path: Path, running: list[Running], target: bool) -> None:
    source, path = tmp_path / "f.c", tmp_path / "forks"
    source.write_text(FORKS)
    subprocess.run(["gcc", "-O1", "-fno-omit-frame-pointer", "-static", "-o", path, source], check=True)
    program = 'tracepoint:syscalls:sys_enter_getppid /comm == "forks"/ { @[ustack(3)] = count(); }'
    if target:
        out = trace(program, "-c", str(path)).out
    else:
        one = Running(UP + program)
        running.append(one)
        one.begin()
        subprocess.run([path], check=True)
        out = one.end().out
    assert re.search(r"middle\+\d+\s+main\+\d+", out), out


JIT = """
import ctypes, mmap, os, sys, time
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("b86e0000000f05c3"))  # mov eax, SYS_getppid; syscall; ret
address = ctypes.addressof(ctypes.c_char.from_buffer(code))
with open(f"/tmp/perf-{os.getpid()}.map", "w") as file:
    file.write(f"{address:x} 1000 made_at_run_time\\n")
print(f"{address:x}", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def jit() -> Iterator[tuple[int, int]]:
    """(process, address of code that it has made)."""
    with subprocess.Popen([sys.executable, "-c", JIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline(), 16)
    Path(f"/tmp/perf-{process.pid}.map").unlink(missing_ok=True)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code of x86-64")
def test_code_made_at_run_time(jit: tuple[int, int]) -> None:
    pid, address = jit
    if not Symbols().kernel(0xFFFFFFFF81000000):
        pytest.skip("no libbcc")
    name = Symbols().user(address + 5, pid, offset=True)
    if name.startswith("0x"):
        pytest.skip("no libbpfcc here")
    assert name == "made_at_run_time+5"


def test_a_map_of_a_runtime_that_has_ended(tmp_path: Path) -> None:
    """The file is there longer than the process."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    path = Path(f"/tmp/perf-{pid}.map")
    path.write_text("1000 20 first function\nnonsense\n2000 10 second\n")
    try:
        mappings = Mappings()
        assert mappings.resolve(pid, 0x1004) == ("first function", 4, str(path))
        assert mappings.resolve(pid, 0x1020) == ("", 0, "")
        assert mappings.resolve(pid, 0x2000) == ("second", 0, str(path))
        mappings.close()
    finally:
        path.unlink()


def test_of_ended_processes_the_last_ones_are_kept() -> None:
    """And no more: a machine may start a thousand a second for days."""
    mappings = Mappings()
    try:
        held = set()
        for _ in range(20):
            pid = os.posix_spawn("/bin/true", ["true"], os.environ)
            os.waitpid(pid, 0)
            held.add(pid)
            mappings.read()
        deadline = time.monotonic() + 20
        while not held <= mappings._ended.keys() and time.monotonic() < deadline:
            mappings.read()
        assert held <= mappings._ended.keys()
        assert held <= mappings._by_pid.keys()
        for pid in range(5_000_000, 5_000_000 + 5000):
            mappings._exited(pid)
        assert len(mappings._ended) == 4096
        assert not held & mappings._by_pid.keys()
    finally:
        mappings.close()


FRAMES = """
#include <sys/syscall.h>
/* rbp leads to a frame that returns to 0, and from there to one that returns to 0x77. */
unsigned long chain[] = {0, 0, 0, 0x77, 0, 0x88};
int main(void)
{
	chain[0] = (unsigned long)&chain[2];
	chain[2] = (unsigned long)&chain[4];
	__asm__ volatile("push %%rbp; mov %1, %%rbp; syscall; pop %%rbp" : : "a"(SYS_getppid), "r"(chain)
		: "rcx", "r11", "memory");
}
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code of x86-64")
def test_frames_behind_one_that_is_nowhere(tmp_path: Path) -> None:
    source, path = tmp_path / "f.c", tmp_path / "frames"
    source.write_text(FRAMES)
    subprocess.run(["gcc", "-O1", "-static", "-mno-red-zone", "-o", path, source], check=True)
    program = "tracepoint:syscalls:sys_enter_getppid /pid == cpid/ { print(ustack); print(ustack(raw, 3)); }"
    done = trace(program, "-c", str(path))
    assert re.search(r"^ +main\+\d+\n +0\n +0x77\n +0x88\n\n", done.out, re.M), done.out
    assert re.search(r"^\n[0-9a-f]+\n0\n77\n\n", done.out, re.M), done.out


def test_no_address_is_0_and_unknown_ones_are_numbers() -> None:
    symbols = Symbols()
    assert symbols.user(0, os.getpid()) == symbols.kernel(0) == "0"
    assert symbols.user(1, os.getpid()) == "0x1"
