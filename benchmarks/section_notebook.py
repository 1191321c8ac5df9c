"""The notebook: what loading the extension costs, and how long a million events take to become a frame."""

from __future__ import annotations

import json
import subprocess
import sys

from measure import Section, rounds, row

# The shell is there before the extension is: only what bpfseal adds counts.
_LOAD = """
import sys, time
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.history_manager.enabled = False
began, cpu = time.perf_counter(), time.process_time()
shell.run_line_magic("load_ext", "bpfseal")
print(time.perf_counter() - began, time.process_time() - cpu)
"""

_STREAM = """
import json, sys, time
from bpfseal.runtime.build import Request
from bpfseal.runtime.notebook.run import Run
from bpfseal.runtime.sealing import Signing
import pandas, numpy
events = 1_000_000
program = 'tracepoint:syscalls:sys_enter_write /pid == cpid/ { printf("%d %d %s\\\\n", nsecs, args.count, comm); }'
command = f"dd if=/dev/zero of=/dev/null bs=1 count={events} status=none"
began = time.perf_counter()
run = Run(Request(text=program, command=command), Signing("auto")).start().wait()
traced = time.perf_counter() - began
began, cpu = time.perf_counter(), time.process_time()
frame = run.events
wall, cpu = time.perf_counter() - began, time.process_time() - cpu
assert len(frame) + run.lost == events, (len(frame), run.lost)
began = time.perf_counter()
table = run.arrow()
print(json.dumps([wall, cpu, traced, run.lost, len(frame), time.perf_counter() - began]))
"""


def _said(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def section() -> Section:
    _said(_LOAD)
    loads = [[float(word) for word in _said(_LOAD).split()] for _ in range(rounds(7))]
    streams = [json.loads(_said(_STREAM)) for _ in range(rounds(5))]
    rows = [
        row("%load_ext bpfseal: wall clock", "ms", [1000 * wall for wall, _ in loads], [], goal="150"),
        row("%load_ext bpfseal: CPU", "ms", [1000 * cpu for _, cpu in loads], []),
        row("events of a million to a pandas frame: wall clock", "s", [s[0] for s in streams], [], goal="2"),
        row("events of a million to a pandas frame: CPU", "s", [s[1] for s in streams], []),
        row("the trace that took them, from compiling to the end", "s", [s[2] for s in streams], []),
        row("events lost of the million", "", [float(s[3]) for s in streams], []),
        row("the same as an Arrow table", "s", [s[5] for s in streams], []),
    ]
    return Section(
        "Notebook",
        "The extension is loaded into a shell that is there already. `dd` writes a million times, each write is an "
        "event with a time, a number and a name, and `.events` makes a frame of them. Every round is a process.",
        rows,
    )
