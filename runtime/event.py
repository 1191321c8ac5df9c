"""What a trace hands to a program that reads it."""

from __future__ import annotations

from typing import Any

import msgspec


class Event(msgspec.Struct, frozen=True):
    """Something a program said. `action`: printf, print, time, join, cat, syscall, errorf, warnf, map; runtime_error
    (helper, code), lost (events), map_full (map, failed updates, room), skipped (probe, times),
    deferred (the account of deferred blocks, at the end).

    `values`: of printf and print a named tuple of the arguments, whose names are those in the program
    (`printf("%d %s", pid, comm)` has `values.pid` and `values.comm`); of a printed map its (key, value) pairs; else
    what stands in brackets above. `text` is what the command line would write, without a newline for print.
    `probe`: which one said it, where the program has several.
    """

    action: str
    values: tuple[Any, ...]
    text: str
    probe: str = ""
