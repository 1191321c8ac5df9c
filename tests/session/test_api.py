"""The Python API on this kernel."""

from __future__ import annotations

import gc
import os
import threading
import time

import pytest

import bpfseal
from bpfseal import BpfsealError

pytestmark = pytest.mark.host


def test_events_and_maps() -> None:
    with bpfseal.trace(
        'BEGIN { printf("%d %s\\n", 7, "x"); print((1, "a")); @m["k"] = 3; @c = count(); exit(); }'
    ) as t:
        events = list(t.events(timeout=20))
        assert [(e.action, e.values, e.text) for e in events] == [
            ("printf", (7, "x"), "7 x\n"),
            ("print", ((1, "a"),), "(1, a)"),
        ]
        assert t.maps["@m"] == {"k": 3}
    assert t.maps["@c"] == {None: 1}


def test_timeout_ends_waiting() -> None:
    with bpfseal.trace("interval:s:60 { exit(); }") as t:
        start = time.monotonic()
        assert list(t.events(timeout=0.5)) == []
        assert time.monotonic() - start < 10


def test_stop_from_another_thread() -> None:
    with bpfseal.trace("interval:s:60 { exit(); } END { @ended = 1; }") as t:
        threading.Timer(0.5, t.stop).start()
        assert list(t.events(timeout=20)) == []
    assert t.maps["@ended"] == {None: 1}


def test_parameters_and_child() -> None:
    with bpfseal.trace("tracepoint:syscalls:sys_enter_execve /pid == cpid/ { @ = $1; }", "42", cmd="/bin/true") as t:
        t.run(20)
    assert t.maps["@"] == {None: 42}


def test_nothing_stays_open() -> None:
    with bpfseal.trace("BEGIN { exit(); }") as t:
        t.run(20)
    gc.collect()  # what earlier tests left to the collector would count otherwise
    before = len(os.listdir("/proc/self/fd"))
    with bpfseal.trace("BEGIN { @x = 1; exit(); }") as t:
        t.run(20)
    assert len(os.listdir("/proc/self/fd")) == before


def test_wrong_script() -> None:
    with pytest.raises(BpfsealError), bpfseal.trace("BEGIN { exit( }"):
        pass


def test_full_maps_and_errors_are_events() -> None:
    with bpfseal.trace(
        "config = { max_map_keys = 1 } BEGIN { @m[1] = 1; @m[2] = 1; @z = 4 / @q; @q = 0; exit(); }"
    ) as t:
        t.run(20)
        actions = {event.action: event.values for event in t.events(timeout=1)}
    assert actions["map_full"] == ("@m", 1, 1)
    assert actions["runtime_error"] == ("divide_by_zero", 0)
