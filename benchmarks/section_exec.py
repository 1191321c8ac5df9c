"""What `bpfseal exec` costs a tool: one that loads programs, and one that does not."""

from __future__ import annotations

from measure import OURS, Row, Section, in_turn, reference, rounds, row, run, system_helper

PROGRAM = "tracepoint:syscalls:sys_enter_openat { @ = count(); } interval:ms:1 { exit(); }"


def section() -> Section:
    rows: list[Row] = []
    tools = [("true(1), which loads nothing", ["true"])]
    if other := reference():
        tools.append(("bpftrace, two programs", [*other, "-q", "-e", PROGRAM]))
    with system_helper() as socket:
        for what, tool in tools:
            a, b = in_turn(
                lambda tool=tool: run([*OURS, "exec", "--", *tool], env={"BPFSEAL_SOCKET": socket}),
                lambda tool=tool: run(tool),
                rounds(11),
            )
            assert not any(r.status for r in a), a[0].err
            rows.append(row(f"{what}: wall clock", "s", [r.wall for r in a], [r.wall for r in b], goal="1.1"))
            rows.append(row(f"{what}: CPU", "s", [r.cpu for r in a], [r.cpu for r in b]))
    return Section(
        "Other tools under `bpfseal exec`",
        "The tool under `bpfseal exec` with a system helper (the column “ours”), and by itself (“reference”), in turn.",
        rows,
    )
