"""`bpfseal check`: what only this machine lacks is a warning, what is wrong anywhere an error."""

from __future__ import annotations

import os

import pytest

from bpfseal.dsl.source import DslError
from bpfseal.errors import BpfsealError
from bpfseal.runtime.build import Request, build

pytestmark = pytest.mark.skipif(not os.path.exists("/sys/kernel/btf/vmlinux"), reason="the kernel has no BTF")

ABSENT = [
    ("kprobe:no_such_module:f { @ = arg0; }", "specified module no_such_module"),
    ("fentry:no_such_module:f { @ = args.x; }", "specified module no_such_module"),
    ("uprobe:/nonexistent/file:f { @ = arg0; }", "'/nonexistent/file' does not exist"),
    ("usdt:/nonexistent/file:p { @ = arg0; }", "'/nonexistent/file' does not exist"),
    ("tracepoint:none:such { @ = count(); }", "No matches for tracepoint none:such"),
    ('begin { print(*kaddr("no_such_symbol")); }', "Failed to resolve kernel symbol: no_such_symbol"),
    ('begin { print(cgroupid("/nonexistent/cgroup")); }', "there is no cgroup at '/nonexistent/cgroup'"),
]
WRONG = [
    "watchpoint:0x1001:4:w { @ = 1; }",
    "interval:s:99999999999999999 { @ = 1; }",
    "no_such_kind:x { @ = 1; }",
    "begin { print(nothing); }",
]


def checked(text: str, mode: str = "check") -> tuple[str, ...]:
    config: dict[str, str | int | bool] = {"missing_probes": "warn"} if mode == "check" else {}
    return build(Request(text=text, config=config, mode=mode, cache=False)).warnings


@pytest.mark.parametrize(("text", "warning"), ABSENT, ids=range(len(ABSENT)))
def test_absent(text: str, warning: str) -> None:
    assert warning in "".join(checked(text))
    assert warning in "".join(checked(f"{text} end {{ print(1); }}"))
    with pytest.raises(DslError, match=warning.split("'")[0]):
        checked(text, mode="")


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_wrong(text: str) -> None:
    with pytest.raises(BpfsealError):
        checked(text)
