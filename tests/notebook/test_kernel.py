"""What a real Jupyter kernel does beside running cells: stop, start again, help, complete."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfseal.runtime import bpf_info
from tests.notebook.test_host import _objects

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("bpf_permitted")]


class Kernel:
    """A running kernel; `outputs` are those of the last cell."""

    def __init__(self, manager: Any, client: Any) -> None:
        self.manager = manager
        self.client = client
        self.outputs: list[Any] = []

    def run(self, code: str) -> str:
        """The plain text of all that a cell shows."""
        self.outputs.clear()
        self.client.execute_interactive(code, timeout=120, output_hook=self.outputs.append)
        shown = (output["content"] for output in self.outputs)
        return "".join(one.get("text", "") or one.get("data", {}).get("text/plain", "") for one in shown)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    module = pytest.importorskip("jupyter_client.manager", reason="jupyter_client is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    manager, client = module.start_new_kernel(
        kernel_name="python3", cwd=str(tmp_path), env={**os.environ, "IPYTHONDIR": str(tmp_path)}
    )
    try:
        made = Kernel(manager, client)
        made.run("%load_ext bpfseal")
        yield made
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_the_stop_button(kernel: Kernel) -> None:
    """Jupyter interrupts the whole process group: the trace ends, its helper does not, the data stays."""
    kernel.run(
        "import os, signal, threading, time\n"
        "def stop():\n"
        "    while getattr(get_ipython().user_ns.get('t'), 'state', '') != 'running':\n"
        "        time.sleep(0.05)\n"
        "    time.sleep(0.3)\n"
        "    os.killpg(os.getpgrp(), signal.SIGINT)\n"
        "threading.Thread(target=stop).start()\n"
    )
    shown = kernel.run("%%bpfseal --name t --for 60s\nBEGIN { @begun = 42; } interval:s:50 { @late = 1; }")
    assert "@begun: 42" in shown
    assert "interrupted" in kernel.run("t.state")
    # The kernel goes on, and traces again.
    assert "@again: 7" in kernel.run("%bpfseal BEGIN { @again = 7; exit(); }")
    wrong = kernel.run("%bpfseal BEGIN { @x = nonsense; }")
    assert "nonsense" in wrong
    htmls = [output["content"].get("data", {}).get("text/html", "") for output in kernel.outputs]
    assert any("bpfseal-error" in one for one in htmls)
    errors = [output["content"] for output in kernel.outputs if output["msg_type"] == "error"]
    assert [error["ename"] for error in errors] == ["TraceFailed"]
    assert len(errors[0]["traceback"]) == 1


def test_help_and_completion_as_front_ends_ask(kernel: Kernel) -> None:
    text = "%%bpfseal --for 1s\nBEGIN { @ = lhist(5, 0, 10, 2); }"
    reply = kernel.client.inspect(text, text.index("hist"), reply=True, timeout=60)["content"]
    assert reply["found"]
    assert "lhist(" in reply["data"]["text/plain"]
    assert "lhist(" in reply["data"]["text/html"]
    python = kernel.client.inspect("len", 3, reply=True, timeout=60)["content"]
    assert "Return the number of items" in python["data"]["text/plain"]
    text = "%%bpfseal\ntracepoint:syscalls:sys_enter_openat { @[args.file"
    reply = kernel.client.complete(text, len(text), reply=True, timeout=60)["content"]
    assert reply["matches"] == ["filename"]
    assert text[reply["cursor_start"] : reply["cursor_end"]] == "file"
    kernel.run("%unload_ext bpfseal")
    assert not kernel.client.inspect("%%bpfseal\nBEGIN { lhist(", 23, reply=True, timeout=60)["content"]["found"]


def test_a_restart_leaves_nothing(kernel: Kernel) -> None:
    def processes() -> set[int]:
        return {int(pid) for pid in os.listdir("/proc") if pid.isdecimal()}

    kernel.run('%%bpfseal --background --name left\ninterval:ms:50 { @ = count(); printf("x"); }')
    assert "True" in kernel.run("left.running")
    process = int(kernel.run("import os; print(os.getpid())"))
    programs = _objects(process)
    helpers = {pid for pid in processes() if _parent(pid) == process}
    assert programs
    assert helpers
    kernel.manager.restart_kernel()
    kernel.client.wait_for_ready(timeout=60)
    assert process != int(kernel.run("import os; print(os.getpid())"))
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and (programs & set(bpf_info.ids("prog")) or helpers & processes()):
        time.sleep(0.1)
    assert not programs & set(bpf_info.ids("prog"))
    assert not helpers & processes()


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0
