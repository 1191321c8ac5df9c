"""Kill traces with SIGKILL at random moments of their lives, and look what is left of them.

    python -m tests.session.kill_campaign [ROUNDS]

Nothing may be: no map (the traces' have a name that nobody else uses), hence no program (each holds that map) and no
link (each holds a program); no process with their environment, hence no helper and no `-c` child; no key.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

from bpfseal.runtime import bpf_info

# Of the time that a trace takes until it has maps, how much the longest life is.
_LONGEST = 2.0
_PATIENCE_SECONDS = 20.0


@dataclass
class Left:
    """What is left: names of maps, ids of processes, descriptions of keys."""

    maps: list[str] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.maps or self.processes or self.keys)


def left(mark: str, keys: set[str]) -> Left:
    """What there is of traces with `mark`; keys but those of before."""
    found = Left(keys=sorted(all_keys() - keys))
    for number in bpf_info.ids("map"):
        try:
            fd = bpf_info.fd_by_id("map", number)
        except OSError:
            continue  # going
        try:
            if mark in (name := bpf_info.map_info(fd).name):
                found.maps.append(name)
        finally:
            os.close(fd)
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if f"BPFSEAL_TEST_MARK={mark}".encode() in file.read():
                    found.processes.append(int(name))
        except OSError:
            continue
    return found


def all_keys() -> set[str]:
    """Descriptions of our keys and keyrings on this machine; revoked and expired ones are on their way out."""
    try:
        with open("/proc/keys") as file:
            lines = file.read().splitlines()
    except OSError:
        return set()
    return {line for line in lines if "bpfseal" in line and not set("RDX") & set(line.split()[1])}


def start(mark: str) -> subprocess.Popen[bytes]:
    program = (
        f'tracepoint:syscalls:sys_enter_* {{ @{mark}[probe] = count(); }} interval:ms:1 {{ @{mark}["i"] = count(); '
        f'printf("%d\\n", pid); }} BEGIN {{ @{mark}["b"] = count(); }}'
    )
    command = "from bpfseal.runtime.cli import console; console()"
    return subprocess.Popen(
        [sys.executable, "-c", command, "-q", "-c", "/bin/sleep 60", "-e", program],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "BPFSEAL_TEST_MARK": mark},
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def seconds_to_maps(mark: str) -> float:
    """How long a trace takes here and now until it has maps, its compilation being in the cache; 1 if it never has."""
    seconds = 1.0
    for _ in range(2):
        process = start(mark)
        began = time.monotonic()
        while time.monotonic() - began < 4 * _PATIENCE_SECONDS and process.poll() is None:
            if left(mark, set()).maps:
                seconds = time.monotonic() - began
                break
            time.sleep(0.02)
        kill(process)
        while left(mark, set()).maps and time.monotonic() - began < 8 * _PATIENCE_SECONDS:
            time.sleep(0.02)
    return seconds


def campaign(rounds: int, seed: int | None = None) -> tuple[Left, int]:
    """(what was left after all rounds, how many were killed before they had a map)."""
    mark = f"k{os.urandom(4).hex()}"
    keys = all_keys()
    dice = random.Random(seed)
    longest = _LONGEST * seconds_to_maps(mark)
    early = 0
    for _ in range(rounds):
        process = start(mark)
        time.sleep(dice.random() * longest)
        early += not left(mark, keys).maps
        kill(process)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (found := left(mark, keys)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found, early


if __name__ == "__main__":
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    found, early = campaign(rounds)
    print(f"{rounds} killed, {early} of them before they had a map; left: {found if found else 'nothing'}")
    sys.exit(1 if found else 0)
