"""The command line that `ps` and `pidof` see: ours, not that of the interpreter that runs it.

A script's process begins with the interpreter's path; `pidof bpfseal` and `pgrep -f '^bpfseal'` look for the name in
front. The kernel reads the arguments from the process's own memory (fs/proc/base.c, get_mm_cmdline), where they are
moved up by one here.
"""

from __future__ import annotations

import ctypes
import sys


def show_own_name() -> None:
    """Take the interpreter out of this process's /proc/PID/cmdline. What is not as expected stays as it is."""
    try:
        with open("/proc/self/cmdline", "rb") as file:
            shown = file.read()
        with open("/proc/self/stat", "rb") as file:
            numbers = file.read().rpartition(b")")[2].split()
        # arg_start and arg_end are fields 48 and 49 of proc_pid_stat(5); 0 where the kernel hides them
        start, end = int(numbers[45]), int(numbers[46])
    except (OSError, ValueError, IndexError):
        return
    script = sys.argv[0].encode("utf-8", "surrogateescape") + b"\0" if sys.argv else b"\0"
    _, _, rest = shown.partition(b"\0")
    if len(script) < 2 or not rest.startswith(script) or not start or end - start != len(shown):
        return  # started in another way, such as python -m
    ctypes.memmove(start, rest.ljust(len(shown), b"\0"), len(shown))


__all__ = ["show_own_name"]
