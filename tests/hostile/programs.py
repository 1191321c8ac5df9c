"""Bundles whose programs, attach points or licences are wrong."""

from __future__ import annotations

from typing import Any

import msgspec

from bpfseal.signer import helpers as known
from bpfseal.signer.bundle import Attach, Bundle
from tests.hostile.case import IDS, Case
from tests.signer_analysis.kit import (
    COUNT,
    COUNTED,
    OPENAT,
    RETURN,
    addi,
    bundle,
    call,
    declare,
    kfunc,
    mov,
    movi,
    program,
)

TRACE = Attach(kind="trace", probe="fentry:vmlinux:vfs_read")


def bad(case: str, rule: str, reason: str, **fields: Any) -> Case:
    return Case(case, lambda: bundle(program(COUNT, COUNTED, **fields)), rule, reason)


def attached(name: str, reason: str, rule: str = "attach", **fields: Any) -> Case:
    return bad(name, rule, reason, attach=(msgspec.structs.replace(OPENAT, **fields),))


def fentry(function: str, id: int | None = None, **fields: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "type": known.TRACING,
        "expected_attach_type": known.TRACE_FENTRY,
        "attach": (TRACE,),
        "attach_btf": function,
        "attach_btf_id": IDS[function] if id is None else id,
    }
    return base | fields


def traced(**fields: Any) -> dict[str, Any]:
    return fentry("vfs_read", attach=(msgspec.structs.replace(TRACE, **fields),))


def calls(helper: str, insns: bytes) -> Bundle:
    return bundle(program(insns + RETURN, declare(insns + RETURN, helper)))


CASES = [
    bad("type-swap", "attach", "a kprobe program cannot be attached as perf_tracepoint", type=known.KPROBE),
    bad("type-swap-to-xdp", "attach", "cannot be attached as perf_tracepoint", type=known.XDP),
    bad("type-ext-of-nothing", "attach-btf", "no function of a program", type=28),
    bad("type-struct-ops", "program-type", "program type 27", type=27),
    bad("type-of-tomorrow", "program-type", "program type 77", type=77),
    bad("attach-type-swap", "attach-type", "attach type 24 does not fit a tracepoint", expected_attach_type=24),
    bad(
        "fexit-as-iterator",
        "attach",
        "a fexit program cannot be attached as iter",
        **fentry("vfs_read", expected_attach_type=known.TRACE_FEXIT, attach=(Attach(kind="iter", probe="iter:x"),)),
    ),
    bad(
        "kprobe-multi-as-single",
        "attach",
        "a kprobe_multi program cannot be attached as kprobe",
        type=known.KPROBE,
        expected_attach_type=known.KPROBE_MULTI,
        attach=(Attach(kind="kprobe", probe="kprobe:vfs_read", target="vfs_read"),),
    ),
    bad(
        "btf-id-of-other-function",
        "attach-btf",
        "func 'commit_creds', not 'vfs_read'",
        **fentry("vfs_read", IDS["commit_creds"]),
    ),
    bad(
        "btf-id-of-a-struct",
        "attach-btf",
        "struct 'task_struct', not 'vfs_read'",
        **fentry("vfs_read", IDS["task_struct"]),
    ),
    bad("btf-id-past-end", "attach-btf", "no BTF type 99999", **fentry("vfs_read", 99999)),
    bad("btf-id-missing", "attach-btf", "no target", **fentry("vfs_read", 0)),
    bad(
        "btf-name-of-another-hook",
        "attach-btf",
        "no target for a lsm program",
        **fentry("commit_creds", type=known.LSM, expected_attach_type=known.LSM_MAC),
    ),
    bad(
        "btf-id-of-denied-prefix",
        "policy",
        "probe fentry:vmlinux:bpf_prog_put is not granted",
        **fentry("bpf_prog_put"),
    ),
    bad("btf-id-of-denied-function", "policy", "probe fentry:vmlinux:vfs_write is denied", **fentry("vfs_write")),
    bad("btf-module-traversal", "attach-btf", "bad module name", **fentry("vfs_read", attach_module="../vmlinux")),
    bad("btf-module-with-nul", "attach-btf", "bad module name", **fentry("vfs_read", attach_module="a\0b")),
    bad(
        "btf-module-not-loaded",
        "attach-btf",
        "no kernel type information",
        **fentry("vfs_read", attach_module="no_such"),
    ),
    bad("btf-target-of-a-tracepoint", "attach-btf", "has no target in BTF", attach_btf="vfs_read", attach_btf_id=6),
    bad(
        "modify-return",
        "policy",
        "class override is not granted",
        **fentry("vfs_read", expected_attach_type=known.MODIFY_RETURN),
    ),
    bad("sleepable-not-allowed", "policy", "sleepable programs are not granted", flags=known.SLEEPABLE),
    bad("flag-any-alignment", "program-flags", "flags 0x2", flags=2),
    bad("flag-of-tests", "program-flags", "flags 0x8", flags=8),
    bad("flags-64-bit", "number", "flags 4294967296", flags=1 << 32),
    Case(
        "override-return",
        lambda: calls("override_return", movi(2, 0) + call("override_return")),
        "policy",
        "helper override_return (override) is not granted",
    ),
    Case(
        "send-signal",
        lambda: calls("send_signal", movi(1, 9) + call("send_signal")),
        "policy",
        "helper send_signal (signal) is not granted",
    ),
    Case(
        "send-signal-by-kfunc",
        lambda: bundle(
            program(kfunc(IDS["bpf_send_signal_task"]) + RETURN, declare(b"\0" * 24, kfuncs=("bpf_send_signal_task",)))
        ),
        "policy",
        "class signal is not granted",
    ),
    Case(
        "call-kfunc-not-granted",
        lambda: bundle(
            program(
                kfunc(IDS["bpf_modify_return_test_tp"]) + RETURN,
                declare(b"\0" * 24, kfuncs=("bpf_modify_return_test_tp",)),
            )
        ),
        "policy",
        "kfunc bpf_modify_return_test_tp",
    ),
    Case(
        "probe-write-user",
        lambda: calls(
            "probe_write_user", movi(1, 0) + mov(2, 10) + addi(2, -8) + movi(3, 8) + call("probe_write_user")
        ),
        "policy",
        "helper probe_write_user (write-user) is not granted",
    ),
    Case(
        "two-programs-one-allowed",
        lambda: bundle(
            program(COUNT, COUNTED),
            program(
                COUNT,
                COUNTED,
                name="probe_2",
                type=known.KPROBE,
                attach=(Attach(kind="kprobe", probe="tracepoint:a:b", target="commit_creds"),),
            ),
        ),
        "policy",
        "probe_2: probe kprobe:commit_creds is not granted",
    ),
    Case("4097-programs", lambda: bundle(*[program(name=f"p{i}") for i in range(4097)]), "size", "4097 programs"),
    Case("no-programs", lambda: msgspec.structs.replace(bundle(), programs=()), "size", "0 programs"),
    bad("licence-not-gpl", "license", "'MIT' is not compatible", license="MIT"),
    bad("licence-long", "license", "is not compatible", license="GPL" * 1000),
    bad("licence-with-nul", "license", "is not compatible", license="GPL\0MIT"),
    bad("name-empty", "name", "bad program name", name=""),
    bad("name-with-newline", "name", "bad program name", name="a\nb"),
    attached("kind-unknown", "unknown kind of attach point 'freplace'", kind="freplace"),
    attached("phase-unknown", "unknown phase", phase="later"),
    attached("target-with-nul", "bad text", target="syscalls:sys_enter_openat\0x"),
    attached("probe-with-escape", "bad text", probe="tracepoint:\x1b[2J"),
    attached("probe-says-something-else", "probe tracepoint:lsm:x is not granted", "policy-syscalls", target="lsm:x"),
    attached("cookies-too-many", "do not fit together", cookies=(1, 2, 3)),
    bad("linked-tracepoint", "attach", "one target, which is part of the load", linked=True),
    bad("linked-twice", "attach", "one target", **(fentry("vfs_read") | {"attach": (TRACE, TRACE)}), linked=True),
    bad("linked-nowhere", "attach", "one target", **(fentry("vfs_read") | {"attach": ()}), linked=True),
    bad("linked-at-the-end", "attach", "one target", **traced(phase="end"), linked=True),
    bad("linked-with-cookies", "attach", "do not fit together", **traced(cookies=(1, 2)), linked=True),
    bad("no-attach-point", "policy", "probe none:tracepoint is not granted", attach=()),
    bad("attached-nowhere", "policy", "probe none:tracepoint is not granted", attach=(Attach(kind="none", probe=""),)),
    bad(
        "70000-targets",
        "size",
        "more than 65536 attach points",
        type=known.KPROBE,
        expected_attach_type=known.KPROBE_MULTI,
        attach=(Attach(kind="kprobe_multi", probe="kprobe:*", symbols=("vfs_read",) * 70000),),
    ),
    bad(
        "one-symbol-not-granted",
        "policy",
        "probe kprobe:commit_creds is not granted",
        type=known.KPROBE,
        expected_attach_type=known.KPROBE_MULTI,
        attach=(Attach(kind="kprobe_multi", probe="kprobe:vfs_*", symbols=("vfs_read", "commit_creds")),),
    ),
    bad(
        "return-probe-not-granted",
        "policy",
        "probe kretprobe:vfs_read is not granted",
        type=known.KPROBE,
        attach=(Attach(kind="kprobe", probe="kprobe:vfs_read", target="vfs_read", params={"retprobe": 1}),),
    ),
    bad(
        "session-needs-both",
        "policy",
        "probe kretprobe:vfs_read is not granted",
        type=known.KPROBE,
        expected_attach_type=known.KPROBE_SESSION,
        attach=(Attach(kind="kprobe_multi", probe="kprobe:vfs_read", symbols=("vfs_read",), params={"session": 1}),),
    ),
    bad(
        "event-of-another-type",
        "attach",
        "interval:s:1 is not event type 4",
        type=known.PERF_EVENT,
        attach=(Attach(kind="perf_event", probe="interval:s:1", params={"type": 4}),),
    ),
    bad(
        "run-under-a-false-name",
        "attach",
        "is not something that is run directly",
        type=known.RAW_TRACEPOINT,
        attach=(Attach(kind="test_run", probe="tracepoint:syscalls:x"),),
    ),
]
