"""The table, row by row: listed, described, attached, an exact number of known events counted exactly, nothing left.

On this machine for what it has; `test_in_vms` runs it in the test kernels, signed, under enforcement.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import time
from pathlib import Path

import pytest

from bpfseal.runtime import bpf_info
from bpfseal.runtime.environment import RealEnvironment
from bpfseal.runtime.listing import list_probes
from bpfseal.runtime.probes import lsm
from bpfseal.signer.bpf import prog_load
from tests.probes import inside, kit
from tests.probes.inside import IN_GUEST
from tests.probes.table import ROWS, SOURCE, Row

pytestmark = [
    pytest.mark.host,
    pytest.mark.slow,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="addresses and names of x86-64"),
]
EVENTS = os.environ.get("BPFSEAL_TEST_EVENTS", "")


@pytest.fixture(scope="module")
def exe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The traced program, made here or by who started the tests."""
    if EVENTS:
        return EVENTS
    return str(kit.compile_c(tmp_path_factory.mktemp("events") / "events", SOURCE, "-no-pie"))


def has(what: str) -> bool:
    if what == "kprobe":
        return Path("/sys/bus/event_source/devices/kprobe").exists()
    if what == "lsm":
        return lsm.active() and has("trampoline")
    if what == "trampoline":
        from bpfseal.compiler.kernel import KernelTypes

        code = b"\xb7\0\0\0\0\0\0\0\x95\0\0\0\0\0\0\0"
        try:
            id = KernelTypes().find("f", "vfs_read")
            os.close(prog_load(kit.TRACING, code, expected_attach_type=24, attach_btf_id=id))
        except OSError:
            return IN_GUEST  # under enforcement nobody loads unsigned programs
        return True
    return True


def objects() -> dict[str, set[str]]:
    """What there is in the kernel: BPF objects by id, dynamic probes."""
    found = {kind: {str(id) for id in bpf_info.ids(kind)} for kind in ("prog", "map", "link")}
    for name in ("kprobe_events", "uprobe_events"):
        for folder in ("/sys/kernel/tracing", "/sys/kernel/debug/tracing"):
            path = Path(folder, name)
            if path.exists():
                found[name] = set(path.read_text().splitlines())
    return found


def left_over(before: dict[str, set[str]]) -> dict[str, set[str]]:
    """What has come since `before` and does not go within seconds (the kernel frees programs with a delay)."""
    end = time.monotonic() + 20
    while True:
        now = objects()
        new = {kind: now[kind] - before.get(kind, set()) for kind in now}
        if not any(new.values()) or time.monotonic() > end:
            return {kind: names for kind, names in new.items() if names}
        time.sleep(0.1)


def symbol(exe: str, name: str) -> int:
    found = RealEnvironment().user_symbol(exe, name)
    assert found is not None
    return found[0]


def fill(text: str, words: dict[str, str]) -> str:
    for name, value in words.items():
        text = text.replace("{" + name + "}", value)
    return text


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_row(row: Row, exe: str) -> None:
    if row.needs and not has(row.needs):
        pytest.skip(f"this machine has no {row.needs}")
    words = {"exe": exe, "watched": hex(symbol(exe, "watched")), "traced": hex(symbol(exe, "traced"))}
    pattern, line = (fill(text, words) for text in row.listed)
    if line:
        lines = list(list_probes(pattern, verbose=True))
        assert line in lines
        assert not row.argument or f"    {row.argument}" in lines
    before = objects()
    options = ("-c", f"{exe} {row.does}") if row.does else ()
    status, out, err = inside.run(*options, "-e", f"{fill(row.probe, words)} {row.body}")
    assert status == 0, err
    counted = [int(count) for count in re.findall(r"@: (\d+)", out)]
    if row.needs == "watchpoint" and "QEMU TCG" in Path("/proc/cpuinfo").read_text():
        # The emulated debug registers fire more than once for a write.
        assert sum(counted) >= row.count, out + err
    else:
        assert counted == [row.count], out + err
    if IN_GUEST:  # elsewhere others come and go
        assert left_over(before) == {}


def test_signal(exe: str) -> None:
    """self:signal: as many runs as signals that were sent one by one."""
    before = objects()
    assert "self:signal:SIGUSR1" in list(list_probes("self:*"))
    trace = inside.Trace("-B", "line", "-e", 'self:signal:SIGUSR1 { printf("seen\\n"); @ = count(); }')
    trace.wait_until_attached()
    for _ in range(5):
        trace.signal(signal.SIGUSR1)
        assert trace.line() == "seen"
    out, _ = trace.end(signal.SIGINT)
    assert "@: 5" in out
    if IN_GUEST:
        assert left_over(before) == {}


def test_functions_of_programs(exe: str) -> None:
    """fentry and fexit of a BPF program, by its id and by its name: as many calls as the program has counted."""
    if not has("trampoline"):
        pytest.skip("this machine has no trampoline")
    before = objects()
    # The loop is a function of its own, and programs with functions have BTF.
    traced = inside.Trace("-e", f"uprobe:{exe}:traced {{ @ = count(); for ($kv : @b) {{ print($kv); }} @b[0] = 1; }}")
    traced.wait_until_attached()
    names = [x for x in list_probes("fentry:bpf:*:p*") if x.split(":")[2] not in before["prog"]]
    line = next(x for x in names if re.search(r":p\d+$", x))
    for probe in (line, "fexit:bpf:" + line.rpartition(":")[2]):
        body = "/retval == 0/ { @ = count(); }" if probe.startswith("fexit") else "/args.a0 != 0/ { @ = count(); }"
        status, out, err = inside.run("-c", f"{exe} call 137", "-e", f"{probe} {body}")
        assert status == 0, err
        assert "@: 137\n" in out, out + err
    out, _ = traced.end(signal.SIGINT)
    assert f"@: {2 * 137}\n" in out
    if IN_GUEST:
        assert left_over(before) == {}


def test_hardware_counters_or_why_not(exe: str) -> None:
    """Exact counts cannot be had; machines without counters say so."""
    status, out, err = inside.run("-c", f"{exe} call 1000", "-e", "hardware:instructions:1000 { @ = count(); }")
    if status:
        assert "does not have that counter" in err
    else:
        assert re.findall(r"@: (\d+)", out), out + err


@pytest.mark.skipif(not IN_GUEST, reason="only in a test kernel with a policy of ours")
class TestDecisions:
    """What an lsm probe returns decides, with --unsafe and a grant of the class override, and never otherwise."""

    POLICY = Path("/etc/bpfseal/policy.toml")
    PROGRAM = 'lsm:file_open /comm == "events"/ { return -13; }'

    def test_only_with_unsafe(self) -> None:
        status, _, err = inside.run("-e", self.PROGRAM)
        assert status != 0
        assert "--unsafe" in err

    def test_policy_decides(self) -> None:
        text = self.POLICY.read_text()
        assert '"override"' in text
        self.POLICY.write_text(text.replace(', "override"', ""))
        try:
            time.sleep(2)
            status, _, err = inside.run("--unsafe", "-e", self.PROGRAM)
            assert status != 0
            assert "override" in err
        finally:
            self.POLICY.write_text(text)
        time.sleep(2)

    def test_denies(self) -> None:
        """The program that is named, while the trace runs, and no other opens the file in vain."""
        program = (
            'lsm:file_open /comm == "denied" && str(args.file->f_path.dentry->d_name.name) == "null"/ '
            "{ @ = count(); return -13; }"
        )
        trace = inside.Trace("--unsafe", "-e", program)
        trace.wait_until_attached()
        refused, allowed = self.open_as("denied"), self.open_as("others")
        out, err = trace.end(signal.SIGINT)
        assert (refused, allowed) == (13, 0), err
        assert "@: 1" in out
        assert self.open_as("denied") == 0

    def open_as(self, name: str) -> int:
        """errno of opening /dev/null as a process of that name."""
        child = os.fork()
        if child == 0:
            ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)
            try:
                os.open("/dev/null", os.O_RDONLY)
            except OSError as error:
                os._exit(error.errno or 255)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
