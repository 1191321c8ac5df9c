"""Programs that their loader attaches: which, and that nobody can tell the difference."""

from __future__ import annotations

import os

import pytest

import bpfseal
from bpfseal.runtime.build import Request, build
from bpfseal.runtime.linked import link_in_loader
from bpfseal.runtime.load import load, seal_locally

COUNT = "tracepoint:syscalls:sys_enter_getppid /pid == %d/ { @ = count(); }"


@pytest.mark.parametrize(
    ("text", "linked"),
    [
        ("tracepoint:syscalls:sys_enter_openat { @[comm] = count(); }", [True]),
        ("rawtracepoint:sched_switch { @ = count(); } end { print(1); }", [True, False]),
        ("rawtracepoint:sched_switch { @ = count(); } interval:s:1 { print(@); }", [True, False]),
        ("rawtracepoint:sched_switch { @[kstack] = count(); }", [True]),
        # what comes before attaching would come too late
        ("begin { @a = 1; } rawtracepoint:sched_switch { @ = count(); }", [False, False]),
        ("rawtracepoint:sched_switch /pid == cpid/ { @ = count(); }", [False]),
        ("rawtracepoint:sched_switch { print(elapsed); }", [False]),
        ("rawtracepoint:sched_switch { @[ustack] = count(); }", [False]),
        ('rawtracepoint:sched_switch { printf("%s", usym(1)); }', [False]),
        # the target is not part of the load
        ("software:cpu-clock:1000 { @ = count(); }", [False]),
    ],
)
def test_which(text: str, linked: list[bool]) -> None:
    bundle = build(Request(text=text, cache=False)).bundle
    assert [program.linked for program in bundle.programs] == linked


@pytest.mark.parametrize("begin", ["", "begin { @b = 1; } "], ids=["by the loader", "by the client"])
def test_counts_exactly(begin: str, bpf_permitted: None) -> None:
    with bpfseal.trace(begin + COUNT % os.getpid()) as trace:
        for _ in range(100):
            os.getppid()
        trace.stop()
    assert trace.maps["@"][None] == 100


def test_gone_with_the_link(bpf_permitted: None) -> None:
    built = build(Request(text=COUNT % os.getpid(), cache=False))
    assert link_in_loader(built.bundle, built.reader) == built.bundle  # as often as one likes
    loaded = load(built.bundle, seal_locally(built.bundle))
    assert list(loaded.links) == [0]
    loaded.close()
    assert not loaded.links
    assert not loaded.prog_fds
