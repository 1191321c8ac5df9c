"""Bundles as a whole: same script, same bytes; what is declared is what the analysis finds; layouts."""

from __future__ import annotations

import os

import pytest

from bpfseal.compiler import layout
from bpfseal.compiler.options import Options
from bpfseal.errors import BpfsealError
from bpfseal.signer.analyse import analyse
from bpfseal.signer.bundle import encode
from bpfseal.signer.insn import decode
from bpfseal.signer.kernel_ids import Kernel
from tests.compiler.harness import checked, compiled

needs_btf = pytest.mark.skipif(not os.path.exists("/sys/kernel/btf/vmlinux"), reason="the kernel has no BTF")
pytestmark = needs_btf

SCRIPTS = [
    "BEGIN { exit(); }",
    'BEGIN { @a[1, "x"] = count(); @b = hist(5); @c["k"] = hist(4, 2); printf("%s %d\\n", comm, pid); }',
    "tracepoint:syscalls:sys_enter_openat { @[comm] = count(); } interval:s:1 { print(@); clear(@); }",
    "tracepoint:syscalls:sys_enter_* { @[probe] = count(); }",
    "t:syscalls:sys_enter_read { @s[tid] = nsecs; } t:syscalls:sys_exit_read { @ = hist(@s[tid]); delete(@s, tid); }",
    "BEGIN { @x[1] = 1; for ($kv : @x) { @y[$kv.0] = $kv.1; } $i = 0; while ($i < 10) { $i++; } }",
    "profile:hz:99 { @[kstack, ustack(3)] = count(); }",
    'BEGIN { $s = str_concat(comm, "x"); print(strcontains($s, "y")); print(strerror($1)); }'.replace("$1", "pid"),
    "rawtracepoint:sched_switch { @[args.prev.comm] = sum(args.next.pid); }",
    'config = { on_stack_limit = 0 } BEGIN { @a["x", 1] = (1, "y"); print(@a["x", 1]); }',
]


@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
def test_deterministic(script: str) -> None:
    assert encode(compiled(script)) == encode(compiled(script))


@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
def test_declared_is_found(script: str) -> None:
    """Nothing is undeclared, and helpers are not declared for nothing."""
    bundle = checked(compiled(script))
    for program in bundle.programs:
        found = analyse(decode(program.insns), bundle.maps, Kernel()).found
        assert set(found.helpers) == set(program.declared.helpers)
        assert program.declared.insns == len(program.insns) // 8
        for index, operations in found.maps:
            assert set(operations) <= set(dict(program.declared.maps)[index])


def test_keys_are_whole_words() -> None:
    """Which the kernel hashes and compares faster; numbers and what is smaller stay as they are."""
    bundle = compiled('BEGIN { @a["nine chars"] = 1; @b[comm, pid] = 1; @c["x"] = 1; @d[1] = 1; @e[comm] = count(); }')
    assert {m.name: m.key_size for m in bundle.maps if m.name.startswith("at_")} == {
        "at_a": 16,
        "at_b": 24,
        "at_c": 2,
        "at_d": 1,
        "at_e": 16,
    }
    assert {m.name: m.key_size for m in layout.decode(bundle.reader).maps}["@a"] == 16


def test_scalar_maps_are_arrays() -> None:
    reader = layout.decode(compiled("BEGIN { @a = 1; @c = count(); @h = hist(1); @m = max(1); @k[1] = 1; }").reader)
    maps = {m.name: m for m in reader.maps}
    assert [maps[n].array for n in ("@a", "@c", "@h", "@m", "@k")] == [True, True, True, True, False]
    assert maps["@c"].per_cpu
    assert maps["@c"].present == 8
    assert maps["@h"].bucket == 0
    assert maps["@h"].max_entries == layout.hist_buckets(0)


def test_keys_of_histograms_have_a_bucket_behind_them() -> None:
    reader = layout.decode(compiled('BEGIN { @h["abc"] = hist(1); }').reader)
    assert (reader.maps[0].key_size, reader.maps[0].bucket) == (8, 4)


def test_events_name_their_place() -> None:
    reader = layout.decode(compiled('BEGIN { print(1);\n  errorf("bad"); }').reader)
    assert reader.events[1].where.startswith("stdin:2:3")


def test_many_system_calls_are_one_program() -> None:
    bundle = compiled("tracepoint:syscalls:sys_enter_* { @[probe] = count(); }")
    assert len(bundle.programs) == 1
    assert bundle.programs[0].attach_btf == "btf_trace_sys_enter"
    assert len(layout.decode(bundle.reader).probes) > 100


def test_stack_is_found_elsewhere_when_it_is_short() -> None:
    """Values that do not fit the 512 bytes move to scratch memory."""
    names = "".join(f'$a{n} = (comm, {n}, "0123456789abcdef"); ' for n in range(30))
    uses = "".join(f"print($a{n}); " for n in range(30))
    bundle = checked(compiled(f"config = {{ on_stack_limit = 512 }} BEGIN {{ {names} {uses} }}"))
    assert any(m.name == "scratch" for m in bundle.maps)


def test_guarded_kprobe() -> None:
    """With addresses the program checks where it runs before it does anything."""
    from bpfseal.signer.cfg import split
    from bpfseal.signer.guard import guarded

    options = Options(addresses={"vfs_read": 0xFFFFFFFF81234560})
    script = "kprobe:vfs_read { @[comm] = count(); }"
    insns = decode(compiled(script, options).programs[0].insns)
    assert guarded(insns, split(insns)) == {0xFFFFFFFF81234560}
    plain = decode(compiled(script).programs[0].insns)
    assert guarded(plain, split(plain)) is None
    with pytest.raises(BpfsealError, match="cannot be bound"):
        compiled(script, Options(addresses={}))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("BEGIN { print(comm(1)); }", "cannot be used in begin"),
        ("tracepoint:syscalls:sys_enter_openat { defer { defer { print(1); } } }", "inside of defer"),
    ],
)
def test_clear_errors(script: str, message: str) -> None:
    with pytest.raises(BpfsealError, match=message):
        compiled(script)


def test_buckets() -> None:
    """Every number is in the bucket whose bounds say so."""
    for bits in range(6):
        for value in [*range(300), *(2**e + d for e in range(9, 63) for d in (-1, 0, 1))]:
            exponent = value.bit_length() - 1 - bits
            index = value + 1 if exponent <= 0 else (exponent << bits) + (value >> exponent) + 1
            low = layout.hist_bucket_low(index, bits)
            assert low is not None
            assert low <= value
            if index + 1 < layout.hist_buckets(bits):
                high = layout.hist_bucket_low(index + 1, bits)
                assert high is not None
                assert value < high


@pytest.mark.parametrize(
    ("key", "size"), [("comm", 24), ("(uint64)1", 16), ("(uint32)1", 8), ("(uint8)1", 8), ("comm, (uint32)1", 24)]
)
def test_keys_of_histograms_are_whole_words(key: str, size: int) -> None:
    """The kernel compares what is left of a key behind the last 8 bytes one by one."""
    assert {m.key_size for m in compiled(f"BEGIN {{ @[{key}] = hist(1); }}").maps if m.name == "at_"} == {size}
