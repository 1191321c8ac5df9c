"""Traces through the command line as a user runs it, in a process of their own, on the running kernel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from bpfseal.runtime import bpf


def command(*arguments: str) -> list[str]:
    """The command line of `bpfseal` with `arguments`; `-q` keeps stderr for what a test looks for."""
    return [sys.executable, "-c", "from bpfseal.runtime.cli import console; console()", *arguments]


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


def trace(program: str, *arguments: str, timeout: float = 180) -> Result:
    """Run a program to its end."""
    done = subprocess.run(
        command("-q", *arguments, "-e", program),
        capture_output=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return Result(
        done.returncode,
        done.stdout.decode("utf-8", "surrogateescape"),
        done.stderr.decode("utf-8", "surrogateescape"),
    )


class Running:
    """A trace that runs; `begin` waits for its first line, which the program's BEGIN is to print."""

    def __init__(self, program: str, *arguments: str, group: bool = False) -> None:
        """`group`: in a process group of its own, as a shell's job."""
        self.process = subprocess.Popen(
            command("-q", *arguments, "-e", program),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            process_group=0 if group else None,
        )

    def begin(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode()

    def end(self, number: int | None = signal.SIGINT, timeout: float = 120) -> Result:
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=timeout)
        return Result(self.process.returncode, out.decode(), err.decode())


@pytest.fixture
def running() -> Iterator[list[Running]]:
    """Traces that a test starts and that must not outlive it."""
    started: list[Running] = []
    yield started
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


@pytest.fixture(autouse=True, scope="session")
def bpf_permitted() -> None:
    try:
        os.close(bpf.map_create(bpf.MAP_ARRAY, 4, 8, 1))
    except OSError as error:
        pytest.skip(f"bpf(2) is not permitted here: {error.strerror}")


def wait_until(true: object, seconds: float = 10) -> bool:
    """Poll a callable."""
    assert callable(true)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.05)
    return False
