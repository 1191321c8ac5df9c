"""Objects of clang's to bundles: compared with what libbpf makes of them, run on this kernel, and damaged."""

from __future__ import annotations

import ctypes
import os
import random
import re
import shutil
import struct
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from bpfseal.errors import BpfsealError
from bpfseal.runtime import bpf
from bpfseal.runtime.ahead.object import bundle_of
from bpfseal.runtime.attach import AttachContext, attach, detach_all
from bpfseal.runtime.load import load, seal_locally
from bpfseal.signer.btf import Btf
from bpfseal.signer.bundle import Bundle
from bpfseal.signer.check import check

Compile = Callable[..., Path]


def bundle(path: Path) -> tuple[Bundle, bool]:
    return bundle_of(path.read_bytes(), Btf.vmlinux(), path.name)


@pytest.fixture(scope="module")
def maps_object(compiled: Compile) -> Path:
    return compiled("maps")


@pytest.fixture(scope="module")
def core_object(compiled: Compile) -> Path:
    return compiled("core")


def test_sections_maps_variables_and_subprograms(maps_object: Path) -> None:
    made, bound = bundle(maps_object)
    assert not bound
    assert {m.name: (m.type, m.value_size, m.frozen) for m in made.maps} == {
        ".rodata": (2, 4, True),
        ".bss": (2, 8, False),
        "counts": (1, 8, False),
    }
    (program,) = made.programs
    assert (program.name, program.type, program.license) == ("opens", 5, "GPL")
    assert program.attach[0].target == "syscalls:sys_enter_openat"
    assert len(program.func_info) == 16
    found = check(made).programs[0]
    assert found.found.subprograms == 1
    assert found.subprograms == ("opens", "add")


@pytest.mark.host
def test_it_runs_as_libbpf_would_have_it(maps_object: Path, bpf_permitted: None) -> None:
    made, _ = bundle(maps_object)
    (program,) = made.programs
    with load(made, seal_locally(made)) as loaded:
        link = attach(program.attach[0], loaded.prog_fds[0], AttachContext())
        try:
            for _ in range(20):
                os.close(os.open("/dev/null", os.O_RDONLY))
        finally:
            detach_all([link])
        counts = [m.name for m in made.maps].index("counts")
        total = [m.name for m in made.maps].index(".bss")
        value = bpf.map_lookup(loaded.map_fds[counts], struct.pack("<I", 7), 8)  # `limit` is the key
        assert value is not None
        assert struct.unpack("<Q", value)[0] >= 20
        value = bpf.map_lookup(loaded.map_fds[total], bytes(4), 8)
        assert value is not None
        assert struct.unpack("<Q", value)[0] >= 20


@pytest.mark.host
def test_core_reads_what_the_kernel_has(core_object: Path, bpf_permitted: None) -> None:
    made, bound = bundle(core_object)
    assert bound
    with load(made, seal_locally(made)) as loaded:
        link = attach(made.programs[0].attach[0], loaded.prog_fds[0], AttachContext())
        try:
            libc = ctypes.CDLL(None)
            for _ in range(10):
                libc.getppid()
                value = bpf.map_lookup(loaded.map_fds[0], bytes(4), made.maps[0].value_size)
        finally:
            detach_all([link])
    assert value is not None
    # Variables in the order in which the object has them; the bpf(2) call itself was the last to be seen.
    tgid, pid, leader, comm = struct.unpack_from("<iii16s", value)
    exists, missing_field, missing_type, size, enumerator, no_enumerator = struct.unpack_from("<6i", value, 28)
    if tgid == os.getpid():  # another process may have been faster
        assert leader == tgid
        assert pid == tgid or pid > 0
        with open("/proc/self/comm", "rb") as file:
            assert comm.split(b"\0")[0] == file.read().strip()
    assert (exists, missing_field, missing_type, enumerator, no_enumerator) == (1, 0, 0, 3, 0)
    types = Btf.vmlinux()
    assert size == types.size_or_type(types.find("task_struct", 4))


@pytest.mark.host
def test_core_agrees_with_libbpf_instruction_by_instruction(core_object: Path, bpf_permitted: None) -> None:
    bpftool = shutil.which("bpftool")
    if bpftool is None:
        pytest.skip("no bpftool")
    # Pinning fails where there is no BPF file system, after everything has been said.
    pin = f"/sys/fs/bpf/bpfseal-{uuid.uuid4().hex}"
    said = subprocess.run(
        [bpftool, "-d", "prog", "load", str(core_object), pin], capture_output=True, text=True, check=False
    )
    Path(pin).unlink(missing_ok=True)
    patched = re.findall(r"patched insn #(\d+) \((\S+)\) (?:imm|off|imm64) (\d+) -> (\d+)", said.stdout + said.stderr)
    if not patched:
        pytest.skip("this bpftool says nothing of relocations")
    assert len(patched) >= 15
    code = bundle(core_object)[0].programs[0].insns
    for slot, form, _, value in patched:
        _, _, offset, imm = struct.unpack_from("<BBhi", code, 8 * int(slot))
        assert (offset if "LDX" in form else imm) == int(value), slot
    (impossible,) = re.findall(r"substituting insn #(\d+)", said.stdout + said.stderr)
    assert code[8 * int(impossible) :][:8] == bytes((0x7A, 10, 8, 0, 0, 0, 0, 0))


def array(more: str, type: str = "ARRAY") -> str:
    """The declaration of a map m."""
    head = f"struct {{ __uint(type, BPF_MAP_TYPE_{type}); __uint(max_entries, 1); __type(key, int);"
    return f'{head} {more} }} m SEC(".maps");\n'


LOOK = 'SEC("tp/a/b") int f(void *c) { int k = 0; return !bpf_map_lookup_elem(&m, &k); }'
TAIL = 'SEC("tp/a/b") int f(void *c) { bpf_tail_call(c, &m, 0); return 0; }'
INNER = "struct i { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, int); __type(value, int); };"
TIME = 'SEC("tp/a/b") int f(void *c) { return bpf_ktime_get_ns(); }\n'
REFUSED = {
    "tail calls": (array("__type(value, int);", "PROG_ARRAY") + TAIL, "prog_array"),
    "inner maps": (INNER + array("__array(values, struct i);", "ARRAY_OF_MAPS") + LOOK, "inner map"),
    "pinned maps": (array("__type(value, int); __uint(pinning, 1);") + LOOK, "pinning"),
    "kconfig": (
        'extern int LINUX_KERNEL_VERSION __kconfig;\nSEC("tp/a/b") int f(void *c) { return LINUX_KERNEL_VERSION; }',
        "LINUX_KERNEL_VERSION",
    ),
    "typeless ksym": (
        'extern const void jiffies __ksym;\nSEC("tp/a/b") int f(void *c) { return (long)&jiffies & 1; }',
        "jiffies",
    ),
    "unknown kfunc": (
        'extern int no_such_kfunc(int) __ksym;\nSEC("tp/a/b") int f(void *c) { return no_such_kfunc(1); }',
        "no_such_kfunc",
    ),
    "unknown target": ('SEC("fentry/no_such_function") int f(void *c) { return 0; }', "no_such_function"),
    "cgroup programs": ('SEC("cgroup_skb/egress") int f(void *c) { return 1; }', "cannot be sealed"),
    "extensions": ('SEC("freplace/x") int f(void *c) { return 1; }', "cannot be sealed"),
    "addresses": ('int x; int *volatile p = &x;\nSEC("tp/a/b") int f(void *c) { return *p; }', "hold addresses"),
    "another licence": (TIME + 'char _license[] SEC("license") = "Proprietary";', "licence"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_cannot_be_sealed_is_refused_with_a_reason(name: str, compiled: Compile) -> None:
    text, reason = REFUSED[name]
    text = "#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\n" + text
    if "license" not in text:
        text += '\nchar _license[] SEC("license") = "GPL";\n'
    made = compiled("refused", text)
    with pytest.raises(BpfsealError, match=reason):
        check(bundle(made)[0])


def test_a_kernel_function_is_called_by_its_id(compiled: Compile) -> None:
    made = compiled(
        "kfunc",
        """
        #include <linux/bpf.h>
        #include <bpf/bpf_helpers.h>
        extern void bpf_rcu_read_lock(void) __ksym;
        extern void bpf_rcu_read_unlock(void) __ksym;
        SEC("tp_btf/sched_switch") int f(void *c) { bpf_rcu_read_lock(); bpf_rcu_read_unlock(); return 0; }
        char _license[] SEC("license") = "GPL";
        """,
    )
    found, bound = bundle(made)
    assert bound
    assert check(found).programs[0].found.kfuncs == ("bpf_rcu_read_lock", "bpf_rcu_read_unlock")
    assert found.programs[0].attach_btf == "btf_trace_sched_switch"


def test_damaged_objects_end_in_words(maps_object: Path, core_object: Path) -> None:
    random_ = random.Random(5)
    kernel = Btf.vmlinux()
    for path in (maps_object, core_object):
        data = path.read_bytes()
        for size in range(0, len(data), max(1, len(data) // 20)):
            with pytest.raises(BpfsealError):
                bundle_of(data[:size], kernel, "cut")
        for _ in range(60):
            mutated = bytearray(data)
            for _ in range(random_.randrange(1, 8)):
                mutated[random_.randrange(len(data))] = random_.randrange(256)
            try:
                check(bundle_of(bytes(mutated), kernel, "mutated")[0])
            except BpfsealError:
                continue


def test_an_object_for_another_machine_is_refused() -> None:
    with open("/bin/true", "rb") as file, pytest.raises(BpfsealError, match="not an object for BPF"):
        bundle_of(file.read(), Btf.vmlinux(), "true")
