"""Attach points: names, parts, numbers, and what is said about wrong ones."""

from __future__ import annotations

import time

import pytest

from bpfseal.dsl.points import PROVIDERS, PointError, canonical, specs, split, substitute

RIGHT = {
    "BEGIN": ("begin",),
    "begin": ("begin",),
    "begin:*": ("begin",),
    "END": ("end",),
    "k:f": ("kprobe", "f"),
    "kprobe:mod:f": ("kprobe", "mod", "f"),
    "kprobe:f+0x10": ("kprobe", "f+16"),
    "kprobe:tcp_*": ("kprobe", "tcp_*"),
    "kr:f": ("kretprobe", "f"),
    "f:f": ("fentry", "f"),
    "kfunc:vmlinux:f": ("fentry", "vmlinux", "f"),
    "fr:f": ("fexit", "f"),
    "kretfunc:f": ("fexit", "f"),
    "fentry:bpf:prog": ("fentry", "bpf", "prog"),
    "fexit:bpf:0x10:prog": ("fexit", "bpf", "16", "prog"),
    "fentry:bpf:*:prog": ("fentry", "bpf", "*", "prog"),
    "t:syscalls:sys_enter_*": ("tracepoint", "syscalls", "sys_enter_*"),
    "tracepoint:*": ("tracepoint", "*", "*"),
    "rt:sys_enter": ("rawtracepoint", "sys_enter"),
    "rawtracepoint:vmlinux:x": ("rawtracepoint", "vmlinux", "x"),
    "i:s:1": ("interval", "s", "1"),
    "interval:ms:1e3": ("interval", "ms", "1000"),
    "interval:1s": ("interval", "us", "1000000"),
    "profile:5m": ("profile", "us", "300000000"),
    "p:hz:99": ("profile", "hz", "99"),
    "s:faults": ("software", "faults"),
    "software:faults:": ("software", "faults"),
    "software:faults:1_000": ("software", "faults", "1000"),
    "h:cycles:1e6": ("hardware", "cycles", "1000000"),
    "u:/bin/sh:f": ("uprobe", "/bin/sh", "f"),
    "uprobe:/bin/sh:f+4": ("uprobe", "/bin/sh", "f+4"),
    "uprobe:/bin/sh:0x1234": ("uprobe", "/bin/sh", "4660"),
    "uprobe:/bin/sh:1234abc": ("uprobe", "/bin/sh", "1234abc"),
    'uprobe:/x:cpp:"A::f(int)"': ("uprobe", "/x", "cpp", "A::f(int)"),
    'uprobe:/x:cpp:"A::operator+"': ("uprobe", "/x", "cpp", "A::operator+"),
    'uprobe:"/a b":"c\\"d"': ("uprobe", "/a b", 'c"d'),
    'uprobe:"/a@b":f': ("uprobe", "/a@b", "f"),
    "uprobe:/bin/sh@a.c:010": ("uprobe", "/bin/sh", "@", "a.c", "8"),
    "uprobe:/bin/sh@a/b.c:12:3": ("uprobe", "/bin/sh", "@", "a/b.c", "12", "3"),
    "ur:libc:malloc": ("uretprobe", "libc", "malloc"),
    "U:/x:name": ("usdt", "/x", "name"),
    "usdt:/x:ns:name": ("usdt", "/x", "ns", "name"),
    "usdt:/x::*": ("usdt", "/x", "", "*"),
    "w:0x10000000:8:wr": ("watchpoint", "268435456", "8", "rw"),
    "it:task": ("iter", "task"),
    "iter:task_file:/sys/fs/bpf/x": ("iter", "task_file", "/sys/fs/bpf/x"),
    "self:signal:SIGUSR1": ("self", "signal", "SIGUSR1"),
    "test:a": ("test", "a"),
    "bench:a": ("bench", "a"),
    "lsm:bprm_check_security": ("lsm", "bprm_check_security"),
    "xdp:eth0": ("xdp", "eth0"),
    "tc:eth0:egress": ("tc", "eth0", "egress"),
}


@pytest.mark.parametrize(("text", "meant"), RIGHT.items())
def test_right(text: str, meant: tuple[str, ...]) -> None:
    (spec,) = specs(text)
    assert (spec.kind, *spec.parts) == meant
    assert spec.text == text
    assert spec.alias == split(text)[0]


WRONG = {
    "": "no probe type",
    "::k::f": "no probe type",
    "kprob:f": "no probe type 'kprob'",
    "aw:f:8:w": "no probe type 'aw' any more",
    "begin:f": "takes nothing",
    "kprobe": "kprobe needs [MODULE:]FUNCTION",
    "kprobe:": "part between the colons is empty",
    "kprobe:a:b:c": "kprobe needs",
    "kprobe:f+": "no function with one offset",
    "kprobe:f+1+2": "no function with one offset",
    "kprobe:f+x": "the offset must be a number",
    "kprobe:0xffff": "needs --unsafe",
    "kretprobe:f+4": "takes no offset",
    "tracepoint": "tracepoint needs CATEGORY:EVENT",
    "tracepoint:f": "tracepoint needs CATEGORY:EVENT",
    "tracepoint:a:b:c": "tracepoint needs CATEGORY:EVENT",
    "rawtracepoint": "needs [MODULE:]EVENT",
    "interval": "needs UNIT:NUMBER",
    "interval:100": "period of 100 ns is too short",
    "interval:min:1": "'min' is no unit",
    "interval:s:0": "must be more than zero",
    "interval:s:x": "must be a number",
    "profile:hz:0": "the rate of profile must be more than zero",
    "software:faults:x": "the count of software must be a number",
    "uprobe": "uprobe needs BINARY",
    "uprobe:f": "uprobe needs BINARY",
    "uprobe::f": "part between the colons is empty",
    "uprobe:/x*:0x10": "an address needs one binary",
    "uprobe:/x:rust:f": "unknown language 'rust'",
    "uprobe:/x@f.c": "uprobe needs BINARY@FILE:LINE",
    "uprobe:/x@f.c:y": "the line must be a number",
    "uretprobe:/x@f.c:1": "only a uprobe",
    "uprobe:/x:f/pid==1/": "'f/pid==1/' is no function",
    "uretprobe:/x:f+4": "takes no offset",
    "usdt:name": "usdt needs BINARY",
    "usdt::ns:name": "needs a binary where no process is traced",
    "usdt:/x:": "name of the probe is empty",
    "watchpoint:1:8": "needs ADDRESS:LENGTH:MODE",
    "watchpoint:0:8:w": "cannot stand at address 0",
    "watchpoint:1:3:w": "cannot be 3 bytes long",
    "watchpoint:1:8:q": "'q' is no mode",
    "watchpoint:1:8:ww": "'ww' is no mode",
    "iter:*": "takes no wildcards",
    "fentry:bpf": "needs bpf:[ID:]PROGRAM",
    "fentry:bpf:x:prog": "id of a BPF program must be a number",
    "self:signal:SIGKILL": "does not support 'SIGKILL'",
    "self:other:x": "no trigger 'other'",
    "test": "test needs NAME",
    "tc:eth0:up": "no direction 'up'",
    'uprobe:"/x:f': "quotes of this attach point are not closed",
    "x*:f": "no probe type matches",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_wrong(text: str, message: str) -> None:
    with pytest.raises(PointError) as caught:
        specs(text)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_with_a_traced_process_paths_may_be_missing() -> None:
    assert [s.parts for s in specs("uprobe:f", pid=True)] == [("", "f")]
    assert [s.parts for s in specs("uprobe:cpp:f", pid=True)] == [("", "cpp", "f")]
    assert [s.parts for s in specs("usdt:name", pid=True)] == [("", "name")]
    assert [s.parts for s in specs("usdt::ns:name", pid=True)] == [("", "ns", "name")]


def test_addresses_with_unsafe() -> None:
    assert specs("kprobe:0xffff", unsafe=True)[0].parts == ("65535",)


def test_wildcard_providers() -> None:
    assert [(s.kind, s.parts) for s in specs("k*:vfs_read")] == [("kprobe", ("vfs_read",))]
    assert {s.kind for s in specs("*:vfs_*")} == {
        "kprobe",
        "tracepoint",
        "software",
        "hardware",
        "fentry",
        "rawtracepoint",
    }
    assert {s.kind for s in specs("u*:/bin/sh:f")} == {"uprobe", "usdt"}
    assert {s.kind for s in specs("*vfs*")} >= {"kprobe", "tracepoint"}


def test_near_names_are_offered() -> None:
    with pytest.raises(PointError) as caught:
        canonical("tracepont")
    assert caught.value.hint == "did you mean tracepoint or rawtracepoint?"
    assert all(canonical(name) == name for name in PROVIDERS)
    assert canonical("KProbe") == "kprobe"


def test_parameters() -> None:
    params = ("foo", "/bin/sh", "a:b")
    assert substitute("kprobe:$1", params) == "kprobe:foo"
    assert substitute('kprobe:$1"here"', params) == 'kprobe:foo"here"'
    assert substitute("u:$2:$1$4", params) == "u:/bin/sh:foo"
    assert split(substitute("u:$3", params)) == ["u", "a", "b"]
    assert substitute('u:"$1":x', params) == 'u:"$1":x'
    for text in ("k:$0", "k:$x", "k:$", "k:$99999999999"):
        with pytest.raises(PointError, match="no positional parameter"):
            substitute(text, params)


@pytest.mark.parametrize("text", ["profile:hz:²9", "interval:s:٣", "kprobe:f+²"])
def test_digits_of_other_scripts_are_no_numbers(text: str) -> None:
    """`str.isdigit` is true for them, `int` takes some and fails for others."""
    with pytest.raises(PointError):
        specs(text)


def test_a_long_pattern_for_the_provider_takes_no_time() -> None:
    begin = time.process_time()
    with pytest.raises(PointError, match="no probe type matches"):
        specs("w" + "[" * 60_000 + ":0x10000000:8:rw")
    assert time.process_time() - begin < 2
