"""Which points share a program, and what happens to points that do not exist."""

from __future__ import annotations

import pytest

from bpfseal.dsl import typed
from bpfseal.dsl.types import RecordInfo

from .kit import all_of, checked, errors, warnings


def groups(program: str, **config: str | int | bool) -> list[list[str]]:
    return [[p.name for p in probe.points] for probe in checked(program, **config).probes]


def test_points_that_the_body_cannot_tell_apart_share_it() -> None:
    assert groups("kprobe:vfs_* { @[comm] = count(); }") == [["kprobe:vfs_read", "kprobe:vfs_write"]]
    assert groups("kprobe:vfs_*, kprobe:fget { print(arg0); }") == [
        ["kprobe:vfs_read", "kprobe:vfs_write", "kprobe:fget"]
    ]


def test_other_arguments_need_another_program() -> None:
    assert groups("fentry:vfs_* { print(args.file); }") == [["fentry:vfs_read"], ["fentry:vfs_write"]]
    assert groups("fentry:vfs_* { print(1); }") == [["fentry:vfs_read", "fentry:vfs_write"]]


def test_equal_arguments_do_not() -> None:
    assert groups("tracepoint:syscalls:sys_exit_* { print(args.ret); }") == [
        ["tracepoint:syscalls:sys_exit_openat", "tracepoint:syscalls:sys_exit_read"]
    ]


def test_kinds_need_programs_of_their_own() -> None:
    assert groups("begin, end, interval:s:1 { print(1); }") == [["begin"], ["end"], ["interval:s:1"]]


def test_the_name_of_the_probe_needs_a_program_for_each() -> None:
    assert groups("kprobe:vfs_* { print(probe); }") == [["kprobe:vfs_read"], ["kprobe:vfs_write"]]
    literals = {s.value for p in checked("kprobe:vfs_* { print(probe); }").probes for s in all_of(typed.StrLit, p.body)}
    assert literals == {b"kprobe:vfs_read", b"kprobe:vfs_write"}


def test_probetype_does_not() -> None:
    assert len(groups("kprobe:vfs_* { print(probetype); }")) == 1


def test_a_map_keyed_by_probe_has_room_for_the_longest() -> None:
    script = checked("kprobe:vfs_* { @[probe] = count(); }")
    assert str(script.maps[0].key) == "string[17]"


def test_named_probes() -> None:
    assert groups("mine = kprobe:vfs_read { print(1); }") == [["mine"]]


def test_arguments_are_handed_on_only_where_they_are_used() -> None:
    (probe,) = checked("fentry:vfs_read { print(args.count); }").probes
    assert isinstance(probe.args.fields, RecordInfo)
    (probe,) = checked("fentry:vfs_read { print(1); }").probes
    assert probe.args.fields is None
    assert probe.args.context == "argument"


def test_missing_points() -> None:
    program = "kprobe:vfs_read, kprobe:nothing { print(1); }"
    (error,) = errors(program)
    assert error.message == "No matches for kprobe nothing."
    assert groups(program, missing_probes="warn") == [["kprobe:vfs_read"]]
    unknown = 'nothing is not traceable (either non-existing, inlined, or marked as "notrace")'
    untraceable, skipping = sorted(warnings(program, missing_probes="warn"), reverse=True)
    assert skipping == "No matches for kprobe nothing. Skipping."
    assert untraceable.startswith(unknown)
    assert warnings(program, missing_probes="ignore") == []


def test_a_wildcard_may_match_nothing_beside_others() -> None:
    assert groups("kprobe:vfs_read, kprobe:nothing* { print(1); }") == [["kprobe:vfs_read"]]
    assert errors("kprobe:nothing* { print(1); }")[0].message.startswith("Probe has no valid attach points.")


def test_a_probe_without_points_is_left_out() -> None:
    program = "config = { missing_probes = warn } begin { print(1); } kprobe:nothing { print(arg0); }"
    assert groups(program) == [["begin"]]
    assert any(w.startswith("Probe has no valid attach points.") for w in warnings(program))


@pytest.mark.parametrize("policy", ["warn", "ignore"])
def test_nothing_is_left(policy: str) -> None:
    (error,) = errors("kprobe:nothing { }", missing_probes=policy)
    assert "No probes to attach" in error.message


def test_limits() -> None:
    (error,) = errors("kprobe:vfs_* { }", max_probes=1)
    assert "Can't attach to 2 probes" in error.message
    (error,) = errors("kprobe:vfs_* { print(probe); }", max_bpf_progs=1)
    assert "more than 1 BPF programs, which exceeds the current limit of 1" in error.message
    assert len(groups("kprobe:vfs_* { print(1); }", max_bpf_progs=1)) == 1


def test_a_mistake_in_a_body_with_many_points_is_told_once() -> None:
    assert len(errors("fentry:* { print(nothing); print(args.nothing); }")) >= 1
    assert len(errors("kprobe:vfs_* { print(probe); print(nothing); }")) == 1


@pytest.mark.parametrize(
    ("probe", "filtered"),
    [
        ("kprobe:vfs_read", True),
        ("kretprobe:vfs_read", True),
        ("fentry:vfs_read", True),
        ("tracepoint:sched:sched_switch", True),
        ("rawtracepoint:sched_switch", True),
        ("begin", False),
        ("interval:s:1", False),
        ("profile:hz:99", False),  # its events are of the process
        ("iter:task", False),
    ],
)
def test_of_the_process_that_is_named(probe: str, filtered: bool) -> None:
    """-p: what the kernel cannot attach to a process looks for it first."""
    for text in (f"{probe} {{ @ = 1; }}", f"{probe} /cpu == 1/ {{ @ = 1; }}"):
        (alone,) = checked(text).probes
        (of_process,) = checked(text, pid=4711).probes
        more = of_process.body[: len(of_process.body) - len(alone.body)]
        assert len(more) == filtered
        if filtered:
            assert [node.value for node in all_of(typed.Int, more)] == [4711]
            assert [node.name for node in all_of(typed.Builtin, more)] == ["pid"]


def test_iterators_stand_alone() -> None:
    assert groups("iter:task { print(ctx.task.pid); }") == [["iter:task"]]
    assert "cannot be mixed" in errors("iter:task { } begin { }")[0].message


def test_an_empty_script() -> None:
    (error,) = errors("")
    assert "no probes" in error.message
