"""Starts the system's helper many times without importing it each time: one process that has imported it forks.

Everything after the imports is as ever: policy, log, socket, keys, confinement. Each line on the process's standard
input asks for a helper, each line on its standard output is the pid of one that is about to listen.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from bpfseal.signer import protocol, start
from bpfseal.signer.system import Settings
from tests.signer_process.conftest import Helper, exchange


def main() -> None:
    folder = sys.argv[1]
    settings = Settings(f"{folder}/run/signer.sock", f"{folder}/policy.toml", f"{folder}/log/audit.jsonl")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _line in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(0)
            os.open(os.devnull, os.O_RDONLY)
            os.closerange(3, 64)
            start.system(settings)
            os._exit(0)
        print(child, flush=True)


class Zygote:
    """Takes over the starting of a `Helper` whose process has ended."""

    def __init__(self, helper: Helper) -> None:
        self.helper = helper
        code = "from tests.signer_process.zygote import main; main()"
        command = [sys.executable, "-c", code, str(helper.folder)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, cwd=Path(__file__).parents[2]
        )

    def start(self) -> int:
        """The pid of a helper that has answered."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        pid = int(self.process.stdout.readline())
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(OSError), self.helper.raw() as sock:
                reply = exchange(sock, protocol.frame(protocol.Hello()), 60)
                if isinstance(reply, protocol.Welcome) and reply.pid == pid:
                    return pid
            time.sleep(0.005)
        raise AssertionError("no helper")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
