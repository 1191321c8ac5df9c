"""Probes on kernel functions, on a kernel that has them: loaded, attached, counted."""

from __future__ import annotations

import os

import pytest

from bpfseal.errors import BpfsealError
from tests.compiler.harness import compiled, environment, run, why_not

PID = os.getpid()


def has_kprobes() -> bool:
    return os.path.exists("/sys/bus/event_source/devices/kprobe")


def has_fentry() -> bool:
    if why_not():
        return False
    from bpfseal.runtime.load import load, seal_locally

    try:
        bundle = compiled("fentry:vfs_read { @ = count(); }")
        load(bundle, seal_locally(bundle)).close()
    except BpfsealError:
        return False
    return True


pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host")]
kprobes = pytest.mark.skipif(not has_kprobes(), reason="the kernel has no kprobes")
fentry = pytest.mark.skipif(not has_fentry(), reason="the kernel refuses fentry programs")


def read_files(count: int = 50) -> None:
    for _ in range(count):
        with open("/proc/self/comm", "rb") as file:
            file.read()


def count_of(found: str, name: str) -> int:
    return int(found.split(f"{name}: ")[1].split("\n")[0])


@kprobes
def test_kprobe_arguments() -> None:
    found = run(
        f"kprobe:vfs_read /pid == {PID}/ {{ $f = (struct file *)arg0; "
        "@n[str($f.f_path.dentry.d_name.name, 16)] = count(); @f[func] = count(); }",
        act=read_files,
    )
    assert count_of(found, "@n[comm]") >= 50
    assert "@f[vfs_read]: " in found


@kprobes
def test_kretprobe_result() -> None:
    found = run(
        f"kretprobe:vfs_read /pid == {PID} && retval > 0/ {{ @ = count(); @bytes = max(retval); }}", act=read_files
    )
    assert count_of(found, "@") >= 50


@kprobes
def test_entry_and_result_of_one_function() -> None:
    """One session, where the kernel has them."""
    found = run(
        f"kprobe:vfs_read /pid == {PID}/ {{ @in[func] = count(); @size = max(arg2); }} "
        f"kretprobe:vfs_read /pid == {PID} && retval > 0/ {{ @out = count(); @got = max(retval); }}",
        act=read_files,
    )
    assert count_of(found, "@in[vfs_read]") >= count_of(found, "@out") >= 50
    assert count_of(found, "@size") >= count_of(found, "@got") > 0


@kprobes
def test_functions_that_are_only_in_the_types() -> None:
    """The compiler has put them into others: skipped with missing_probes, the other functions are traced."""
    functions, types = environment().world.functions, environment().world.types
    assert types is not None
    names = set(types.function_names().decode().split()) - functions.names
    gone = next((name for name in sorted(names) if functions.address(name) is None), None)
    if gone is None:
        pytest.skip("all functions of the types are there")
    text = f"kprobe:vfs_read,kprobe:{gone} /pid == {PID}/ {{ @ = count(); }}"
    found = run('config = { missing_probes = "ignore" } ' + text, act=read_files)
    assert count_of(found, "@") >= 50
    with pytest.raises(BpfsealError, match="Unable to attach probe"):
        run(text, act=read_files)


@kprobes
def test_many_kprobes_know_their_names() -> None:
    found = run(f"kprobe:vfs_r*d, kprobe:vfs_open /pid == {PID}/ {{ @[probe] = count(); }}", act=read_files)
    assert count_of(found, "@[kprobe:vfs_read]") >= 50
    assert count_of(found, "@[kprobe:vfs_open]") >= 50


@kprobes
def test_stack_of_a_kprobe() -> None:
    found = run(f"kprobe:vfs_read /pid == {PID}/ {{ @[kstack(4)] = count(); }}", act=read_files)
    assert "vfs_read" in found


@fentry
def test_fentry_reads_through_objects() -> None:
    found = run(
        f"fentry:vfs_read /pid == {PID}/ {{ @[str(args.file.f_path.dentry.d_name.name, 16)] = count(); "
        "@size = max(args.count); }",
        act=read_files,
    )
    assert count_of(found, "@[comm]") >= 50


@fentry
def test_fexit_has_arguments_and_result() -> None:
    found = run(
        f"fexit:vfs_read /pid == {PID} && retval > 0/ {{ @[args.count >= (uint64)retval] = count(); }}", act=read_files
    )
    assert count_of(found, "@[true]") >= 50
    assert "@[false]" not in found


@fentry
def test_path() -> None:
    found = run(
        f"fentry:security_file_open /pid == {PID}/ {{ @[path(args.file.f_path, 64)] = count(); }}", act=read_files
    )
    assert f"@[/proc/{PID}/comm]: " in found


@fentry
def test_iterator() -> None:
    found = run("iter:task { @[ctx.task.comm, ctx.task.pid] = count(); }", act=lambda: None)
    with open("/proc/self/comm") as file:
        assert f"@[{file.read().strip()}, {PID}]: 1" in found
