"""Tracepoints whose record nobody uses: attached as typed programs, which detach at once."""

from __future__ import annotations

import pytest

from bpfseal import compiler
from bpfseal.runtime.build import Request, check
from tests.probes.test_environment import needs_btf, needs_tracefs

pytestmark = [needs_btf, needs_tracefs]
ONE = "tracepoint:signal:signal_generate"
TWO = f"{ONE},tracepoint:signal:signal_deliver"
TYPED, CLASSIC = "trace", "perf_tracepoint"


def kinds(text: str) -> list[tuple[str, str]]:
    """(how, where) of every attach point."""
    bundle = compiler.compile(check(Request(text=text)))
    return [(attach.kind, attach.probe) for program in bundle.programs for attach in program.attach]


@pytest.mark.parametrize(
    "text",
    [
        f"{ONE} {{ @ = count(); }}",
        f"{ONE} /pid == 5/ {{ @[comm, probe] = count(); }}",
        f'{ONE} {{ printf("%d\\n", nsecs); }}',
    ],
)
def test_record_not_used(text: str) -> None:
    assert kinds(text) == [(TYPED, ONE)]


@pytest.mark.parametrize(
    "text",
    [
        f"{ONE} {{ @ = args.sig; }}",
        f"{ONE} /args.sig == 9/ {{ @ = count(); }}",
        f"{ONE} {{ print(args); }}",
        # the kernel's stack would show how the program was called
        f"{ONE} {{ @[kstack] = count(); }}",
    ],
)
def test_record_used(text: str) -> None:
    assert kinds(text) == [(CLASSIC, ONE)]


def test_each_point_has_a_program() -> None:
    assert [kind for kind, _ in kinds(f"{TWO} {{ @ = count(); }}")] == [TYPED, TYPED]


def test_one_program_where_it_has_to_know_which() -> None:
    assert [kind for kind, _ in kinds(f"{TWO} {{ @[probe] = count(); }}")] == [CLASSIC, CLASSIC]


def test_many_points_share_one_program() -> None:
    bundle = compiler.compile(check(Request(text="tracepoint:sched:* { @ = count(); }")))
    (program,) = bundle.programs
    assert len(program.attach) > 16
    assert {attach.kind for attach in program.attach} == {CLASSIC}


@pytest.mark.parametrize("text", [f"{ONE} {{ @ = count(); }}", f"mine = {ONE} {{ @ = count(); }}"])
def test_policy_knows_the_event(text: str) -> None:
    """Also where the script gives the probe a name of its own."""
    from bpfseal.signer.check import check as analyse

    (program,) = analyse(compiler.compile(check(Request(text=text)))).programs
    assert (program.targets, program.enforceable) == ((ONE,), False)
