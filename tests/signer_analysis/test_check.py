"""Findings about good bundles: names for policy, sizes, classes, the record for the audit log."""

from __future__ import annotations

import json
import struct
from typing import Any

import msgspec
import pytest

from bpfseal.signer import btf as kinds
from bpfseal.signer import helpers as known
from bpfseal.signer.btf import Btf, BtfError
from bpfseal.signer.bundle import Attach, MapSpec, decode, encode
from bpfseal.signer.check import Findings, check, map_bytes
from bpfseal.signer.kernel_ids import Kernel
from bpfseal.signer.refusal import Refusal
from tests.hostile.case import IDS, KERNEL
from tests.hostile.instructions import VFS_READ, guard, guarded
from tests.signer_analysis.kit import (
    COUNT,
    COUNTED,
    EXIT,
    HASH,
    RETURN,
    BtfWriter,
    bundle,
    callsub,
    declare,
    lookup,
    program,
)

FAKE = Kernel(lambda: KERNEL)


def findings(**fields: Any) -> Findings:
    return check(bundle(program(COUNT, COUNTED, **fields)), kernel=FAKE)


def at(kind: str, target: str = "", probe: str = "", **more: Any) -> tuple[Attach, ...]:
    return (Attach(kind=kind, probe=probe or f"{kind}:{target}", target=target, **more),)


K, T, P, R = known.KPROBE, known.TRACEPOINT, known.PERF_EVENT, known.RAW_TRACEPOINT
MULTI, UMULTI = known.KPROBE_MULTI, known.UPROBE_MULTI
TARGETS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"type": T, "attach": at("perf_tracepoint", "sched:x")}, ("tracepoint:sched:x",)),
    ({"type": R, "attach": at("raw_tracepoint", "sys_enter")}, ("rawtracepoint:sys_enter",)),
    ({"type": K, "attach": at("kprobe", "vfs_read")}, ("kprobe:vfs_read",)),
    ({"type": K, "attach": at("kprobe", "f", params={"retprobe": 1})}, ("kretprobe:f",)),
    ({"type": K, "attach": at("kprobe", params={"address": 4096})}, ("kprobe:0x1000",)),
    (
        {"type": K, "expected_attach_type": MULTI, "attach": at("kprobe_multi", symbols=("a", "b"))},
        ("kprobe:a", "kprobe:b"),
    ),
    ({"type": K, "expected_attach_type": MULTI, "attach": at("kprobe_multi", offsets=(4096,))}, ("kprobe:0x1000",)),
    (
        {
            "type": K,
            "expected_attach_type": known.KPROBE_SESSION,
            "attach": at("kprobe_multi", symbols=("a",), params={"session": 1}),
        },
        ("kprobe:a", "kretprobe:a"),
    ),
    ({"type": K, "attach": at("uprobe", "/bin/sh", params={"offset": 16})}, ("uprobe:/bin/sh:0x10",)),
    ({"type": K, "attach": at("uprobe", "/bin/sh", params={"retprobe": 1})}, ("uretprobe:/bin/sh:0x0",)),
    ({"type": K, "attach": at("uprobe", "/bin/sh", "usdt:/bin/sh:a:b", params={"offset": 1})}, ("usdt:/bin/sh:0x1",)),
    (
        {"type": K, "expected_attach_type": UMULTI, "attach": at("uprobe_multi", "/x", offsets=(1, 2))},
        ("uprobe:/x:0x1", "uprobe:/x:0x2"),
    ),
    ({"type": P, "attach": at("perf_event", probe="profile:hz:99")}, ("profile:hz:99",)),
    ({"type": P, "attach": at("perf_event", probe="hardware:cycles:1", params={"type": 0})}, ("hardware:cycles:1",)),
    ({"type": P, "attach": at("watchpoint", params={"address": 256, "length": 8})}, ("watchpoint:0x100:8",)),
    ({"type": R, "attach": at("test_run", probe="begin", phase="begin")}, ("begin",)),
    ({"type": R, "attach": at("signal", probe="self:signal:SIGUSR1")}, ("self:signal:SIGUSR1",)),
    ({"type": known.XDP, "expected_attach_type": 37, "attach": at("xdp", "lo")}, ("xdp:lo",)),
    (
        {"type": known.SCHED_CLS, "expected_attach_type": 47, "attach": at("tc", "lo", params={"egress": 1})},
        ("tc:lo:egress",),
    ),
    ({"type": T, "attach": ()}, ("none:tracepoint",)),
    ({"type": T, "attach": at("perf_tracepoint", "a:b") * 2}, ("tracepoint:a:b",)),
]


@pytest.mark.parametrize(("fields", "targets"), TARGETS, ids=[targets[0] for _, targets in TARGETS])
def test_names_for_policy(fields: dict[str, Any], targets: tuple[str, ...]) -> None:
    (found,) = findings(**fields).programs
    assert (found.targets, found.enforceable) == (targets, False)


@pytest.mark.parametrize(
    ("type", "attach_type", "name", "target"),
    [
        (known.TRACING, known.TRACE_FENTRY, "vfs_read", "fentry:vmlinux:vfs_read"),
        (known.TRACING, known.TRACE_FEXIT, "vfs_read", "fexit:vmlinux:vfs_read"),
        (known.TRACING, known.MODIFY_RETURN, "vfs_read", "fmod_ret:vmlinux:vfs_read"),
        (known.TRACING, known.TRACE_RAW_TP, "btf_trace_sched_switch", "rawtracepoint:sched_switch"),
        (known.TRACING, known.TRACE_ITER, "bpf_iter_task", "iter:task"),
        (known.LSM, known.LSM_MAC, "bpf_lsm_file_open", "lsm:file_open"),
    ],
)
def test_targets_in_the_load_are_enforceable(type: int, attach_type: int, name: str, target: str) -> None:
    kind = "iter" if attach_type == known.TRACE_ITER else "trace"
    (found,) = findings(
        type=type, expected_attach_type=attach_type, attach_btf=name, attach_btf_id=IDS[name], attach=at(kind)
    ).programs
    assert (found.targets, found.enforceable) == ((target,), True)
    assert ("override" in found.classes) == (attach_type == known.MODIFY_RETURN)


@pytest.mark.parametrize(
    ("said", "target", "enforceable"),
    [
        ("sched:sched_switch", "tracepoint:sched:sched_switch", False),
        ("sched_switch", "rawtracepoint:sched_switch", True),
        # another event than what is signed, or no name of an event
        ("sched:sched_wakeup", "rawtracepoint:sched_switch", True),
        ("sched:*:sched_switch", "rawtracepoint:sched_switch", True),
        ("syscalls:sys_enter_openat", "rawtracepoint:sched_switch", True),
        (":sched_switch", "rawtracepoint:sched_switch", True),
    ],
)
def test_typed_programs_that_serve_an_event(said: str, target: str, enforceable: bool) -> None:
    name = "btf_trace_sched_switch"
    (found,) = findings(
        type=known.TRACING,
        expected_attach_type=known.TRACE_RAW_TP,
        attach_btf=name,
        attach_btf_id=IDS[name],
        attach=at("trace", said),
    ).programs
    assert (found.targets, found.enforceable) == ((target,), enforceable)


def test_a_guard_makes_a_kprobe_enforceable() -> None:
    loose = guarded(guard(0) + lookup() + RETURN)
    assert not check(loose, kernel=FAKE).programs[0].enforceable
    work = guarded(guard(6) + lookup() + RETURN)
    (found,) = check(work, kernel=FAKE, symbols=lambda name: (VFS_READ,)).programs
    assert (found.guard, found.enforceable) == ((VFS_READ,), True)


def test_map_bytes() -> None:
    cpus = known.possible_cpus()
    assert map_bytes(MapSpec(name="a", type=2, key_size=4, value_size=5, max_entries=10)) == 80
    assert map_bytes(MapSpec(name="a", type=6, key_size=4, value_size=8, max_entries=10)) == 80 * cpus
    assert map_bytes(MapSpec(name="a", type=1, key_size=4, value_size=8, max_entries=10)) == 800
    assert map_bytes(MapSpec(name="a", type=27, key_size=0, value_size=0, max_entries=8192)) == 8192
    assert check(bundle(), kernel=FAKE).map_bytes == sum(m.size for m in check(bundle(), kernel=FAKE).maps)


def test_cpus_are_counted_before_the_helper_is_confined(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable() -> int:
        raise OSError

    monkeypatch.setattr(known, "possible_cpus", unreadable)
    assert 64 <= map_bytes(MapSpec(name="a", type=6, key_size=4, value_size=8, max_entries=8)) < 8 * 8 * 8192


def test_values_with_timers_need_their_class() -> None:
    w = BtfWriter()
    w.int()
    w.struct("value", 24, ("count", 1, 0), ("timer", w.struct("bpf_timer", 16), 8))
    spec = MapSpec(name="timed", type=2, key_size=4, value_size=24, max_entries=1, key_btf=1, value_btf=3)
    found = check(bundle(program(), maps=(spec,), btf=w.bytes()), kernel=FAKE)
    assert found.maps[0].classes == {"async"}


def test_function_names_come_from_btf() -> None:
    w = BtfWriter()
    main, sub = w.func("main"), w.func("sub", 0)
    insns = callsub(1) + EXIT + RETURN
    info = struct.pack("<IIII", 0, main, 2, sub)
    spec = program(
        insns, declare(insns, subprograms=1), func_info=info, line_info=struct.pack("<IIII", 0, 1, 1, 1 << 10)
    )
    (found,) = check(bundle(spec, btf=w.bytes()), kernel=FAKE).programs
    assert found.subprograms == ("main", "sub")


def test_declared_more_than_found_counts_as_declared() -> None:
    declared = msgspec.structs.replace(COUNTED, insns=20, helpers=("ktime_get_ns", "map_lookup_elem"))
    (found,) = check(bundle(program(COUNT, declared)), kernel=FAKE).programs
    assert found.classes == {"map", "time"}
    assert found.found.helpers == ("map_lookup_elem",)


def test_the_record_is_json_and_bounded() -> None:
    symbols = tuple(f"function_{i}" for i in range(5000))
    spec = program(COUNT, COUNTED, type=K, expected_attach_type=MULTI, attach=at("kprobe_multi", symbols=symbols))
    record = check(bundle(spec), kernel=FAKE).record()
    text = json.dumps(record)
    assert len(text) < 10_000
    (first,) = record["programs"]
    assert (len(first["targets"]), first["target_count"]) == (256, 5000)
    assert first["maps"] == {"counts": ["read", "write"]}


def test_limit_before_analysis() -> None:
    with pytest.raises(Refusal, match="11 instructions are over the limit of 10"):
        check(bundle(), kernel=FAKE, max_insns=10)


def test_checking_does_not_change_the_bundle() -> None:
    data = encode(bundle(maps=(HASH,)))
    check(decode(data), kernel=FAKE)
    assert encode(decode(data)) == data


def test_against_the_running_kernel() -> None:
    try:
        btf = Btf.vmlinux()
    except BtfError as error:
        pytest.skip(str(error))
    id = btf.find("vfs_read", kinds.FUNC)
    spec = program(
        type=known.TRACING,
        expected_attach_type=known.TRACE_FENTRY,
        attach=at("trace"),
        attach_btf="vfs_read",
        attach_btf_id=id,
    )
    assert check(bundle(spec)).programs[0].targets == ("fentry:vmlinux:vfs_read",)
    with pytest.raises(Refusal, match="not 'vfs_read'"):
        check(bundle(msgspec.structs.replace(spec, attach_btf_id=id + 1)))


def test_tables_are_the_kernels() -> None:
    """Helper, map and program type numbers against the enums of the running kernel."""
    try:
        btf = Btf.vmlinux()
    except BtfError as error:
        pytest.skip(str(error))

    def enum(name: str, prefix: str) -> dict[int, str]:
        return {value: text.removeprefix(prefix).lower() for text, value in btf.enumerators(btf.find(name, kinds.ENUM))}

    helpers = enum("bpf_func_id", "BPF_FUNC_")
    assert {h.id: h.name for h in known.HELPERS.values()} == {
        id: name for id, name in helpers.items() if 0 < id < 212 and not name.startswith("__")
    }
    types = enum("bpf_map_type", "BPF_MAP_TYPE_")
    assert all(types[t.id] in (t.name, f"{t.name}_deprecated") for t in known.MAP_TYPES.values())
    programs = enum("bpf_prog_type", "BPF_PROG_TYPE_")
    assert all(programs[id] == name for id, name in known.PROGRAM_TYPES.items())
    attach = enum("bpf_attach_type", "BPF_")
    for name in (
        "TRACE_RAW_TP",
        "TRACE_FENTRY",
        "TRACE_FEXIT",
        "MODIFY_RETURN",
        "LSM_MAC",
        "TRACE_ITER",
        "TCX_INGRESS",
    ):
        assert attach[getattr(known, name)] == name.lower()
    for number, name in ((MULTI, "kprobe_multi"), (UMULTI, "uprobe_multi"), (known.KPROBE_SESSION, "kprobe_session")):
        assert attach[number] == f"trace_{name}"
