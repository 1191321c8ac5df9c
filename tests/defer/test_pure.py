"""What needs no tracing: the checker's answers, the policy's, and those on a kernel that has no deferred work."""

from __future__ import annotations

import json
import re

import pytest
from msgspec import structs

from bpfseal import compiler
from bpfseal.compiler.kernel import KernelTypes
from bpfseal.errors import BpfsealError
from bpfseal.runtime import doctor, features
from bpfseal.signer.btf import Btf
from bpfseal.signer.bundle import SealRequest
from bpfseal.signer.check import check
from bpfseal.signer.identity import Identity
from bpfseal.signer.policy import Policy, decide
from bpfseal.signer.refusal import Refusal
from tests.compiler.harness import compiled, typed, why_not

pytestmark = pytest.mark.skipif(why_not() == "the kernel has no BTF", reason="the kernel has no BTF")

OPEN = "tracepoint:syscalls:sys_enter_openat"
SAMPLE = "profile:hz:99"


# --- the checker --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{OPEN} {{ defer {{ print(args.filename); }} }}", "args.filename belongs to the probe, which is over"),
        (f"{OPEN} {{ defer {{ $a = args; print(1); }} }}", "args belongs to the probe"),
        (f"{OPEN} {{ defer {{ print(ctx); }} }}", "ctx belongs to the probe"),
        (f"{OPEN} {{ defer {{ print(kstack); }} }}", "kstack belongs to the probe"),
        (f"{OPEN} {{ defer {{ print(ustack(build_id)); }} }}", "ustack with build ids belongs to the probe"),
        (f'{SAMPLE} {{ defer {{ print(reg("ip")); }} }}', "reg() belongs to the probe"),
        (f"{SAMPLE} {{ defer {{ print(usermode); }} }}", "usermode belongs to the probe"),
        (f"{SAMPLE} {{ @a[1] = 1; $p = &@a[1]; defer {{ print(*$p); }} }}", "$p points into a variable or map"),
        (f"{SAMPLE} {{ defer {{ return 1; }} }}", "a deferred block has nobody to return a value to"),
        (f"fn f() : int64 {{ defer {{ return 1; }} return 2; }} {SAMPLE} {{ print(f()); }}", "nobody to return"),
        (f"{SAMPLE} {{ for ($i : 0..3) {{ defer {{ break; }} }} }}", "'break' can only be used inside of a loop"),
        (f"{SAMPLE} {{ defer {{ defer {{ print(1); }} }} }}", "defer cannot be used inside of defer"),
        (
            f"fn f() : void {{ defer {{ print(1); }} }} {SAMPLE} {{ defer {{ f(); }} }}",
            "cannot be used inside of defer",
        ),
        (f"{SAMPLE} {{ defer(later) {{ }} }}", "unknown mode 'later' of defer"),
        (f"{SAMPLE} {{ @a[1] = 1; defer {{ for ($kv : @a) {{ print(ustack); }} }} }}", "not in a loop over a map"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(BpfsealError) as raised:
        compiled(text)
    assert message in str(raised.value)


def test_changes_of_a_copy_are_warned_of() -> None:
    script = typed(f"{SAMPLE} {{ $x = 1; $y = 1; defer {{ $x = 2; $x++; $z = 1; $z++; print(($x, $y, $z)); }} }}")
    messages = [w.message for w in script.warnings]
    assert messages == ["the deferred block changes its own copy of $x only"] * 2


def test_circles_are_warned_of() -> None:
    """A system call that sleeps, is interrupted and started again by the block of the probe at its entry."""
    for probe in (
        OPEN,
        "tracepoint:raw_syscalls:sys_enter",
        "rawtracepoint:sys_enter",
        "tracepoint:sched:sched_switch",
    ):
        messages = [w.message for w in typed(f"{probe} {{ defer(signal) {{ @n = count(); }} }}").warnings]
        assert any("defer(signal) interrupts system calls that sleep" in text for text in messages), probe
        assert not typed(f"{probe} {{ defer {{ @n = count(); }} }}").warnings
    assert not typed(f"{SAMPLE} {{ defer(signal) {{ @n = count(); }} }}").warnings


# --- a kernel that lacks it ----------------------------------------------------------------------------------------


def lacking() -> Btf:
    """This kernel's types, in which the functions have another name."""
    return Btf(bytes(Btf.vmlinux().raw).replace(b"bpf_task_work_schedule_", b"bpf_task_bork_schedule_"))


class Lacking(KernelTypes):
    """Likewise for the compiler."""

    def kfunc(self, name: str) -> bool:
        return not name.startswith("bpf_task_work_schedule_") and super().kfunc(name)


@pytest.mark.parametrize(
    ("written", "name"),
    [("defer", "bpf_task_work_schedule_resume()"), ("defer(signal)", "bpf_task_work_schedule_signal()")],
)
def test_the_compiler_says_what_is_missing(written: str, name: str) -> None:
    with pytest.raises(BpfsealError) as raised:
        compiler.compile(typed(f"{SAMPLE} {{ {written} {{ print(1); }} }}"), kernel=Lacking())
    assert raised.value.message == f"{written} needs {name}, which this kernel does not have"
    assert "Linux 6.18" in str(raised.value.hint)
    assert "doctor" in str(raised.value.hint)


def test_the_doctor_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    types = lacking()
    monkeypatch.setattr(features, "_types", lambda: types)
    monkeypatch.setattr(features, "_write", lambda path, found: None)
    doctor.main(["--refresh"])
    lines = [re.sub(r"\s+", " ", line).strip() for line in capsys.readouterr().out.splitlines()]
    assert "no task_work no kfunc bpf_task_work_schedule_resume: `defer` needs Linux 6.18" in lines
    assert "no task_work_signal no kfunc bpf_task_work_schedule_signal: `defer(signal)` needs Linux 6.18" in lines
    doctor.main(["--refresh", "--json"])
    (found,) = [f for f in json.loads(capsys.readouterr().out) if f["name"] == "task_work"]
    assert found["ok"] is False


# --- the policy -----------------------------------------------------------------------------------------------------

RULE = """version = 1
[[rule]]
uid = 0
probes = "*"
map_types = "*"
max_map_bytes = "2GiB"
kfuncs = [{kfuncs}]
classes = [{classes}]
"""
CLASSES = ["basic", "identity", "map", "output", "read-kernel", "read-user", "deferred"]
KFUNCS = ["bpf_task_work_schedule_*", "bpf_copy_from_user_str"]


def objections(classes: list[str], kfuncs: list[str]) -> tuple[str, ...]:
    bundle = compiled(f"{OPEN} {{ $f = args.filename; defer {{ @[comm] = count(); print(str($f)); }} }}")
    text = RULE.format(
        classes=", ".join(f'"{name}"' for name in classes), kfuncs=", ".join(f'"{name}"' for name in kfuncs)
    )
    decision = decide(Policy.parse(text.encode(), "p.toml"), Identity(0, 0), check(bundle), SealRequest(bundle=b""))
    assert decision.allowed == (classes == CLASSES and kfuncs == KFUNCS)
    return decision.reasons


@pytest.fixture
def task_work_types() -> None:
    types = KernelTypes()
    if not any(types.kfunc(f"bpf_task_work_schedule_resume{suffix}") for suffix in ("", "_impl")):
        pytest.skip("the kernel has no deferred work (Linux 6.18)")


@pytest.mark.usefixtures("task_work_types")
@pytest.mark.parametrize("missing", ["deferred", "read-user", "map"])
def test_classes_of_blocks(missing: str) -> None:
    """What a deferred block does counts as what the program does."""
    reasons = objections([name for name in CLASSES if name != missing], KFUNCS)
    assert any(missing in reason for reason in reasons), reasons
    if missing == "deferred":
        assert any("values need class deferred" in reason for reason in reasons), reasons


@pytest.mark.usefixtures("task_work_types")
def test_functions_of_blocks() -> None:
    assert not any("kfunc" in reason for reason in objections(CLASSES, KFUNCS))
    reasons = objections(CLASSES, KFUNCS[:1])
    assert any("kfunc bpf_copy_from_user_str is not granted" in reason for reason in reasons)
    reasons = objections(CLASSES, KFUNCS[1:])
    assert any(re.search(r"kfunc bpf_task_work_schedule_resume\w* is not granted", reason) for reason in reasons)


@pytest.mark.usefixtures("task_work_types")
def test_blocks_are_analysed() -> None:
    """What only the block does, its program has to declare: helpers, kernel functions, what happens to maps."""
    bundle = compiled(f"{OPEN} {{ $f = args.filename; defer {{ @seen[comm] = 1; print(str($f)); }} }}")
    (program,) = bundle.programs
    declared = program.declared
    assert "get_current_comm" in declared.helpers
    assert "bpf_copy_from_user_str" in declared.kfuncs
    number = next(n for n, spec in enumerate(bundle.maps) if spec.name == "at_seen")
    assert dict(declared.maps)[number] == ("write",)
    for understated in (
        structs.replace(declared, helpers=tuple(h for h in declared.helpers if h != "get_current_comm")),
        structs.replace(declared, kfuncs=tuple(k for k in declared.kfuncs if k != "bpf_copy_from_user_str")),
        structs.replace(declared, maps=tuple((n, done) for n, done in declared.maps if n != number)),
    ):
        with pytest.raises(Refusal):
            check(structs.replace(bundle, programs=(structs.replace(program, declared=understated),)))
    check(bundle)
