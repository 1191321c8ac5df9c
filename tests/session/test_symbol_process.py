"""bcc's symbol tables are read by a process of their own, which comes and goes with the trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bpfseal.runtime import symbol_process
from bpfseal.runtime.symbol_process import SymbolProcess
from bpfseal.runtime.symbols import Symbols

from .conftest import trace

pytestmark = pytest.mark.host


@pytest.fixture
def process() -> Iterator[SymbolProcess]:
    process = SymbolProcess()
    found = process.look_up(os.getpid(), [address()], demangle=True)
    if process.trouble:
        pytest.skip(process.trouble)
    assert found
    assert found[0][0] in ("getpid", "__getpid")
    yield process
    process.close()


def address() -> int:
    """Of getpid() in this process."""
    import ctypes

    return ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value or 0


def servers() -> set[int]:
    """Children of this process that are symbol servers."""
    found = set()
    for task in os.listdir("/proc/self/task"):
        for pid in Path(f"/proc/self/task/{task}/children").read_text().split():
            if is_server(int(pid)):
                found.add(int(pid))
    return found


def is_server(pid: int) -> bool:
    """One that has just been started has no command line for a moment: the kernel replaces its memory first."""
    for _ in range(200):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_text()
            if line or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return "symbol_server" in line
        except OSError:
            return False
        time.sleep(0.01)
    return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_libbcc_is_not_in_the_tracer(process: SymbolProcess) -> None:
    """Before 0.33 it closes descriptors that are not its own."""
    assert process.look_up(-1, [1 << 63], demangle=True)
    assert "libbcc" not in Path("/proc/self/maps").read_text()


def test_the_server_has_nothing_that_it_could_close(process: SymbolProcess) -> None:
    (server,) = servers()
    held = {name: os.readlink(f"/proc/{server}/fd/{name}") for name in os.listdir(f"/proc/{server}/fd")}
    # What bcc opens itself are roots and files of processes that it was asked about.
    assert {name for name, target in held.items() if not os.path.exists(target)} <= {"0"}
    assert held["0"].startswith("socket:")
    assert held["1"] == held["2"] == os.devnull


def test_one_that_dies_is_started_again(process: SymbolProcess) -> None:
    (first,) = servers()
    os.kill(first, signal.SIGKILL)
    assert gone(first)
    found = process.look_up(os.getpid(), [address()], demangle=True)
    assert found
    assert found[0][0] in ("getpid", "__getpid")
    (second,) = servers()
    assert second != first


def test_none_is_left_by_close_or_forgetting(process: SymbolProcess) -> None:
    (first,) = servers()
    process.close()
    assert not servers()
    process.start()
    other = SymbolProcess()
    other.start(kernel=True)
    assert len(servers()) == 2
    del other
    assert len(servers()) == 1
    process.close()
    process.close()
    assert not servers()
    assert gone(first)


def test_none_is_left_by_kill_9() -> None:
    code = (
        "from bpfseal.runtime.symbol_process import SymbolProcess; import time\n"
        "process = SymbolProcess(); process.start(kernel=True)\n"
        "print(process._end.peek()[2][1], flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as tracer:
        assert tracer.stdout is not None
        server = int(tracer.stdout.readline())
        assert is_server(server)
        tracer.kill()
        assert gone(server)


def test_ctrl_c_is_not_for_the_server() -> None:
    process = SymbolProcess()
    process.start()
    try:
        for server in servers():
            assert os.getpgid(server) != os.getpgid(0)
    finally:
        process.close()


def test_many_threads_ask_one_server(process: SymbolProcess) -> None:
    names: list[str] = []

    def ask() -> None:
        for _ in range(50):
            found = process.look_up(os.getpid(), [address()] * 20, demangle=True)
            names.extend(one[0] for one in found or [])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == 8 * 50 * 20
    assert set(names) <= {"getpid", "__getpid"}
    assert len(servers()) == 1


def test_a_forked_process_has_one_of_its_own(process: SymbolProcess) -> None:
    """And leaves ours alone when it ends."""
    (mine,) = servers()
    child = os.fork()
    if child == 0:
        found = process.look_up(os.getpid(), [address()], demangle=True)
        good = bool(found) and servers() and mine not in servers()
        process.close()
        os._exit(0 if good and not servers() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert servers() == {mine}
    assert process.look_up(os.getpid(), [address()], demangle=True)
    assert servers() == {mine}


def test_without_the_library_addresses_are_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Said once, however many addresses there are."""
    script = tmp_path / "symbol_server.py"
    source = Path(symbol_process._SERVER).read_text()
    script.write_text(source.replace('"libbcc.so.0"', '"libnosuch.so.0"'))
    monkeypatch.setattr(symbol_process, "_SERVER", str(script))
    symbols = Symbols()
    for _ in range(2):
        assert symbols.user(address(), os.getpid()) == f"0x{address():x}"
        assert symbols.kernel(0xFFFFFFFF81000000) == "0xffffffff81000000"
    assert capfd.readouterr().err.count("install libbpfcc") == 1
    assert not servers()


def test_one_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert Symbols().user(address(), os.getpid()) == f"0x{address():x}"
    assert capfd.readouterr().err == (
        "bpfseal: note: no symbols: cannot start /nowhere/python: No such file or directory\n"
    )


def test_one_that_cannot_be_watched(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Short of descriptors, say: it is not left alone."""

    def short(*_: object) -> int:
        raise OSError(24, "Too many open files", "pidfd_open")

    monkeypatch.setattr(symbol_process, "syscall", short)
    assert Symbols().user(address(), os.getpid()) == f"0x{address():x}"
    assert "no symbols: cannot start pidfd_open: Too many open files" in capfd.readouterr().err
    assert not servers()


def test_a_server_that_always_dies_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "symbol_server.py"
    script.write_text("import socket; socket.socket(fileno=0).sendall(b'1')")
    monkeypatch.setattr(symbol_process, "_SERVER", str(script))
    assert Symbols().user(address(), os.getpid()) == f"0x{address():x}"


def test_a_trace_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that is still getting ready."""
    mark = f"test-{os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setenv("BPFSEAL_TEST_MARK", mark)
    for program in ("BEGIN { exit(); @ = kstack; }", "BEGIN { print(ksym(0)); print(usym(0)); exit(); }"):
        assert trace(program).status == 0
        assert not with_environment(mark.encode())


def with_environment(mark: bytes) -> list[bytes]:
    """Command lines of other processes which have this in their environment."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with suppress(OSError):
                if mark in Path(f"/proc/{name}/environ").read_bytes():
                    found.append(Path(f"/proc/{name}/cmdline").read_bytes())
    return found
