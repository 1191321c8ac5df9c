"""python -m tests.defer.nmi FOLDER INTERRUPTS [OPTION…]: deferred reads scheduled by a program that runs in real NMIs,
which the kernel sends to other processors when it is asked for their backtraces. For test kernels: it fills the log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.defer import kit

SCRIPT = (
    'begin { print("ready"); } '
    'tracepoint:nmi:nmi_handler /args.handled && comm == "pageout"/ '
    f"{{ $p = uptr((char *){kit.BASE}); @plain[str($p, 64)] = count(); defer {{ @later[str($p, 64)] = count(); }} }}"
)


def main(folder: str, interrupts: str, *options: str) -> None:
    program, page = str(Path(folder) / "pageout"), str(Path(folder) / "page")
    Path("/proc/sys/kernel/printk").write_text("1")
    Path("/proc/sys/kernel/sysrq").write_text("1")
    # On the second processor: the first asks.
    target = f"taskset 2 {program} spin 100000000 {page}"
    command = kit.command("-q", "-f", "json", *options, "-e", SCRIPT, "-c", target)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        while "ready" not in ready and ready:
            ready = process.stdout.readline()
        time.sleep(1)
        os.sched_setaffinity(0, {0})
        for _ in range(int(interrupts)):
            Path("/proc/sysrq-trigger").write_text("l")
            time.sleep(0.02)
        process.send_signal(2)
        out, err = process.communicate(timeout=120)
    found = kit.parse(process.returncode, out, err)
    entry = {
        "how": "nmi",
        "plain": found.maps.get("@plain", {}),
        "later": found.maps.get("@later", {}),
        "account": found.account,
        "err": err[-500:],
    }
    print(json.dumps(entry), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
