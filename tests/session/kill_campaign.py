"""Kill traces with SIGKILL at random moments of their lives, and look what is left of them.

    python -m tests.session.kill_campaign [--fork] [--system] [--signing=MODE] [ROUNDS]

Nothing may be: no map (the traces' have a name that nobody else uses), hence no program (each holds that map) and no
link (each holds a program); no `-c` child, which has their environment; no private helper, which knows their process
ids; no key and no keyring.

`--fork`: traces are forks of this process, which has everything imported: in an emulated kernel most of a trace's life
would be imports otherwise. `--system`: their helper is the system's, whose own keys are renewed meanwhile.
"""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
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


def left(mark: str, keys: set[str], clients: set[int], *, system: bool = False) -> Left:
    """What there is of traces with `mark`, whose process ids are `clients`; keys but those of before."""
    found = Left(keys=sorted(all_keys(system=system) - keys))
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
    for name in filter(str.isdigit, os.listdir("/proc")):
        if int(name) in clients or int(name) == os.getpid():
            continue
        parents = re.findall(rb"\0parent=(\d+)\0", _read(f"/proc/{name}/cmdline"))
        if f"BPFSEAL_TEST_MARK={mark}".encode() in _read(f"/proc/{name}/environ") or any(
            int(parent) in clients for parent in parents
        ):
            found.processes.append(int(name))
    return found


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def all_keys(*, system: bool = False) -> set[str]:
    """Our keys and keyrings on this machine, of `system` the rings alone; revoked and expired ones are on their way
    out."""
    lines = _read("/proc/keys").decode().splitlines()
    return {
        " ".join((line.split()[0], line.split()[7], line.split()[8]))
        for line in lines
        if "bpfseal" in line and not set("RDX") & set(line.split()[1]) and not (system and "asymmetri" in line)
    }


def arguments(mark: str, signing: str) -> list[str]:
    program = (
        f'tracepoint:syscalls:sys_enter_* {{ @{mark}[probe] = count(); }} interval:ms:1 {{ @{mark}["i"] = count(); '
        f'printf("%d\\n", pid); }} BEGIN {{ @{mark}["b"] = count(); }}'
    )
    return ["-q", f"--signing={signing}", "-c", "/bin/sleep 60", "-e", program]


def spawned(mark: str, signing: str, errors: int) -> int:
    """The pid of a new process that traces; the descriptor `errors` gets what it says on stderr."""
    command = "from bpfseal.runtime.cli import console; console()"
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", command, *arguments(mark, signing)],
        {**os.environ, "BPFSEAL_TEST_MARK": mark},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, errors, 2),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_RDWR, 0),
        ],
    )


def forked(mark: str, signing: str, errors: int) -> int:
    """The pid of a fork of this process that traces."""
    from bpfseal.runtime import api, attach, cli, load, session, trace_command  # noqa: F401
    from bpfseal.signer import client  # noqa: F401

    pid = os.fork()
    if pid == 0:
        try:
            silent = os.open(os.devnull, os.O_RDWR)
            for descriptor, target in ((silent, 0), (silent, 1), (errors, 2)):
                os.dup2(descriptor, target)
            os.environ["BPFSEAL_TEST_MARK"] = mark
            cli.main(arguments(mark, signing))
        finally:
            os._exit(0)
    return pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def ended(pid: int) -> bool:
    """Without taking its status away."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def seconds_to_maps(start: Callable[[], int], look: Callable[[], Left]) -> float:
    """How long a trace takes here and now until it has maps, its compilation being in the cache. Raises RuntimeError
    when it never has any."""
    seconds = 0.0
    for _ in range(2):
        pid = start()
        began = time.monotonic()
        while not (found := look()).maps or not found.processes:  # or what is looked for could not be seen
            if time.monotonic() - began > 6 * _PATIENCE_SECONDS or ended(pid):
                kill(pid)
                raise RuntimeError(f"a trace had no maps, or no child or helper, for {time.monotonic() - began:.0f} s")
            time.sleep(0.02)
        seconds = time.monotonic() - began
        kill(pid)
        while look().maps and time.monotonic() - began < 8 * _PATIENCE_SECONDS:
            time.sleep(0.02)
    return seconds


def campaign(
    rounds: int, seed: int | None = None, *, fork: bool = False, system: bool = False, signing: str = "auto"
) -> tuple[Left, int]:
    """(what was left after all rounds, how many were killed before they had a map). Raises RuntimeError when traces do
    not work here."""
    with tempfile.TemporaryFile() as errors:
        try:
            return _campaign(rounds, seed, forked if fork else spawned, signing, errors.fileno(), system=system)
        except RuntimeError as error:
            errors.seek(0)
            raise RuntimeError(f"{error}: {errors.read().decode(errors='replace')}") from None


def _campaign(
    rounds: int, seed: int | None, begin: Callable[[str, str, int], int], signing: str, errors: int, *, system: bool
) -> tuple[Left, int]:
    mark = f"k{os.urandom(4).hex()}"
    keys = all_keys(system=system)
    clients: set[int] = set()

    def start() -> int:
        pid = begin(mark, signing, errors)
        clients.add(pid)
        return pid

    def look() -> Left:
        return left(mark, keys, clients, system=system)

    dice = random.Random(seed)
    longest = _LONGEST * seconds_to_maps(start, look)
    early = 0
    for _ in range(rounds):
        pid = start()
        time.sleep(dice.random() * longest)
        too_early = not look().maps
        kill(pid)
        early += too_early
        longest *= 1.1 if too_early else 0.9  # the machine gets busier and idler: as many before as after
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found, early


def main(words: list[str]) -> int:
    rounds = int(words[-1]) if words and words[-1].isdigit() else 100
    signing = next((word.partition("=")[2] for word in words if word.startswith("--signing=")), "auto")
    found, early = campaign(rounds, fork="--fork" in words, system="--system" in words, signing=signing)
    print(f"{rounds} killed, {early} of them before they had a map; left: {found if found else 'nothing'}", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
