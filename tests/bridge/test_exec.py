"""`bpfseal exec` on the running kernel: what tools get, what they are refused, what is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bpfseal.runtime import bpf_info
from tests.bridge.conftest import ROOT, Bridge

pytestmark = pytest.mark.host
Compiled = Callable[[str], str]

POLICY = """
version = 1
[[rule]]
name = "counters"
uid = {uid}
probes = {probes}
classes = {classes}
map_types = {map_types}
existing_maps = {existing}
per_minute = 0
"""


def policy(folder: Path, classes: str = '["basic", "map"]', existing: str = "true", **more: str) -> str:
    path = folder / "policy.toml"
    known = {"probes": '"none:raw_tracepoint"', "map_types": '["array"]'}
    path.write_text(POLICY.format(uid=os.getuid(), classes=classes, existing=existing, **known | more))
    path.chmod(0o600)
    return str(path)


def said(done: subprocess.CompletedProcess[str]) -> str:
    """What the bridge wrote, without the note about kernels that cannot verify."""
    return "".join(f"{line}\n" for line in done.stderr.splitlines() if "bpfseal: note:" not in line)


# The command


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["no-such-command"], 127),
        (["/"], 126),
    ],
)
def test_status_is_the_commands(bridge: Bridge, command: list[str], status: int) -> None:
    assert bridge.run(command).returncode == status


def test_a_command_that_loads_nothing_has_no_helper(bridge: Bridge) -> None:
    done = bridge.run(["echo", "hello"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")
    assert not bridge.audit.exists()


def test_what_was_blocked_and_ignored_is_as_it_was(bridge: Bridge) -> None:
    """Of signals: the supervisor's own handling does not get through to the command."""
    show = ["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]
    plain = subprocess.run(show, capture_output=True, text=True, check=True, restore_signals=True)
    assert bridge.run(show).stdout == plain.stdout


def test_under_another_bridge_is_refused(bridge: Bridge) -> None:
    done = bridge.run([sys.executable, "-m", "bpfseal", "exec", "--", "true"])
    assert done.returncode == 1
    assert "under a filter of that kind already" in done.stderr


def test_no_command_is_a_usage_error(bridge: Bridge) -> None:
    done = bridge.run([])
    assert done.returncode == 2
    assert "no command" in done.stderr


# Programs


def test_a_program_loads_and_counts(bridge: Bridge, compiled: Compiled, suffix: str) -> None:
    done = bridge.run([compiled("tool"), "count", suffix], "-v")
    assert done.stdout == "value 15, cloexec 1\n"
    assert f"loaded program {suffix}, type 17, 6 instructions, 1 maps" in said(done)
    (record,) = bridge.records("seal")
    (program,) = record["programs"]
    assert program["name"] == suffix
    assert program["targets"] == ["none:raw_tracepoint"]
    (found,) = record["maps"]
    assert found["type_by_client"] == "array"
    assert found["name"] == f"{suffix}.{found['existing']}"
    assert program["maps"] == {found["name"]: ["read", "write"]}
    assert record["source"].startswith("// program of tool[")
    assert f"tool count {suffix}" in record["source"]


def test_threads_and_children_are_followed(bridge: Bridge, compiled: Compiled, suffix: str) -> None:
    done = bridge.run([compiled("tool"), "threads", suffix], "-v")
    assert done.stdout == "failures 0, of the child 0\n"
    assert said(done).count("loaded program") == 80


def test_the_32_bit_call_is_taken_over_too(bridge: Bridge, compiled: Compiled, suffix: str) -> None:
    tool = [compiled("tool"), "compat", suffix]
    alone = subprocess.run(tool, capture_output=True, text=True, check=False)
    if alone.stdout != "loaded\n":
        pytest.skip("no 32-bit system calls here")
    done = bridge.run(tool, "-v")
    assert done.stdout == "loaded\n"
    assert f"loaded program {suffix}" in said(done)


def attempts(output: str) -> dict[str, Any]:
    return dict(json.loads(line) for line in output.splitlines())


def test_answers_are_those_of_the_kernel(bridge: Bridge, suffix: str) -> None:
    """errno and log of two dozen good and bad loads, by the kernel and through the bridge. What the helper's analysis
    refuses before the verifier sees it has the kernel's errno and a log in words of our own."""
    expected = compare(bridge, suffix)
    assert len(expected) > 70


KINDS = ("devmap", "devmap_hash", "cpumap", "xskmap", "array")


def test_redirections_through_maps_of_the_tool(bridge: Bridge, suffix: str, tmp_path: Path) -> None:
    classes = '["basic", "map", "network", "override"]'
    granting = policy(tmp_path, classes, probes='"none:*"', map_types='"*"')
    expected = compare(bridge, suffix, *(f"redirection, {kind}" for kind in KINDS), policy=granting)
    assert {case for case, answer in expected.items() if answer["errno"]} == {"redirection, array"}
    without = policy(tmp_path, classes.replace('"network", ', ""), probes='"none:*"', map_types='"*"')
    tool = [sys.executable, "-m", "tests.bridge.attempts", suffix, "redirection, devmap"]
    done = bridge.run(tool, "--policy", without)
    assert attempts(done.stdout)["redirection, devmap"]["errno"] == "EPERM"
    assert "helper redirect_map (network) is not granted" in said(done)


def compare(bridge: Bridge, suffix: str, *cases: str, policy: str = "") -> dict[str, Any]:
    """What the kernel says of some cases, after the bridge has said the same."""
    tool = [sys.executable, "-m", "tests.bridge.attempts", suffix, *cases]
    alone = subprocess.run(tool, capture_output=True, text=True, check=True, env=bridge.env, cwd=ROOT)
    done = bridge.run(tool, *(["--policy", policy] if policy else []))
    assert done.returncode == 0, done.stderr
    expected, found = attempts(alone.stdout), attempts(done.stdout)
    assert {c: a["errno"] for c, a in found.items()} == {c: a["errno"] for c, a in expected.items()}
    for case, answer in expected.items():
        log = found[case]["log"]
        own = log.startswith("bpfseal: ")
        assert own or log in answer["log"], (case, log, answer["log"])  # the kernel's own words, or a part of them
        if answer["errno"] in (0, "EACCES", "ENOSPC") and not own:
            assert found[case] == answer, case
    assert said(done) == ""  # tools that try things out are not complained about
    return expected


REFUSALS = {
    "token": "prog_token_fd",
    "signature": "signed already",
    "offload": "network card",
    "bound maps": "fd_array_cnt",
    "struct_ops": "replaces functions of the kernel",
    "cgroup device that is denied": "override",
    "user ring": "user_ringbuf",
    "nested bpf": "sys_bpf",
    "control": "kallsyms_lookup_name",
    "licence": "licence",
    "type": "program type 10",
    "flags": "flags 0x8",
}


def test_what_cannot_be_carried_over_is_refused_with_its_reason(bridge: Bridge, suffix: str) -> None:
    done = bridge.run([sys.executable, "-m", "tests.bridge.attempts", suffix, *REFUSALS])
    found = attempts(done.stdout)
    assert found.keys() == REFUSALS.keys()
    lines = said(done).splitlines()
    for (case, words), line in zip(REFUSALS.items(), lines, strict=True):
        assert found[case]["errno"] == "EPERM", case
        assert words in found[case]["log"], case
        assert words in line, case
        assert f"refused program {suffix}: " in line, case


def test_policy_decides(bridge: Bridge, compiled: Compiled, suffix: str, tmp_path: Path) -> None:
    tool = [compiled("tool"), "count", suffix]
    assert bridge.run(tool, "--policy", policy(tmp_path)).stdout == "value 15, cloexec 1\n"
    done = bridge.run(tool, "--policy", policy(tmp_path, existing="false"))
    assert (done.returncode, done.stdout) == (1, "load: Operation not permitted\n")
    assert f"refused program {suffix}: rule counters: map {suffix}." in said(done)
    assert "existing maps are not granted" in said(done)


def test_what_was_analysed_is_what_is_loaded(bridge: Bridge, compiled: Compiled, suffix: str, tmp_path: Path) -> None:
    """A thread swaps an allowed instruction for one that policy refuses, and back, while the other loads: no program
    with the refused one ever comes back."""
    tool = [compiled("tool"), "race", suffix, "400"]
    done = bridge.run(tool, "--policy", policy(tmp_path), timeout=900)
    seen = json.loads(done.stdout)
    assert seen["broken"] == 0
    assert seen["loaded"] > 20
    assert seen["refused"] > 20
    # and the attack is one: where policy allows both, both come back
    allowing = policy(tmp_path, '["basic", "map", "time"]')
    control = json.loads(bridge.run(tool, "--policy", allowing, timeout=900).stdout)
    assert control["broken"] > 20


# Ends


def started(bridge: Bridge, compiled: Compiled, suffix: str) -> tuple[subprocess.Popen[str], int]:
    """A waiting tool with a program; the bridge and the tool's pid."""
    process = bridge.start([compiled("tool"), "wait", suffix])
    assert process.stdout is not None
    assert process.stdout.readline() == "ready 1\n"
    assert held(suffix) == 2
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (tool,) = [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == "tool\n"]
    return process, tool


def held(suffix: str) -> int:
    """Maps and programs with that name."""
    count = 0
    for kind in ("map", "prog"):
        for id in bpf_info.ids(kind):
            try:
                fd = bpf_info.fd_by_id(kind, id)
            except OSError:
                continue
            count += (bpf_info.map_info(fd).name if kind == "map" else bpf_info.prog_info(fd).name) == suffix
            os.close(fd)
    return count


def finish(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=30)
    return process.returncode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_go_to_the_command(bridge: Bridge, compiled: Compiled, suffix: str, number: int) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # shells start what runs behind them with SIGINT ignored
    try:
        process, _tool = started(bridge, compiled, suffix)
    finally:
        signal.signal(number, before)
    process.send_signal(number)
    assert finish(process) == 128 + number


def test_killed_tools_leave_nothing(bridge: Bridge, compiled: Compiled, suffix: str) -> None:
    process, tool = started(bridge, compiled, suffix)
    os.kill(tool, signal.SIGKILL)
    assert finish(process) == 137


def test_a_killed_bridge_takes_its_tool_along(bridge: Bridge, compiled: Compiled, suffix: str) -> None:
    process, tool = started(bridge, compiled, suffix)
    pidfd = os.pidfd_open(tool)
    process.kill()
    finish(process)
    import select

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(10_000), "the tool outlived its bridge"
    os.close(pidfd)


def test_a_lost_helper_is_looked_for_again(bridge: Bridge, compiled: Compiled, suffix: str) -> None:
    tool = f"{compiled('tool')} count {suffix}"
    process = bridge.start(["sh", "-c", f"{tool}; read line; {tool}"])
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "value 15, cloexec 1\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (helper,) = [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() != "sh\n"]
    os.kill(helper, signal.SIGKILL)
    process.stdin.write("go\n")
    process.stdin.flush()
    assert process.stdout.readline() == "value 15, cloexec 1\n"
    assert finish(process) == 0


# Tools of others


def need(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"no {name} here")
    return found


def test_bpftrace(bridge: Bridge) -> None:
    script = """
        BEGIN { printf("began\\n"); @h = hist(5); }
        tracepoint:syscalls:sys_enter_openat { @opened[comm] = count(); @first = str(args->filename); }
        interval:ms:500 { exit(); }
    """
    done = bridge.run([need("bpftrace"), "-e", script], "-v")
    assert done.returncode == 0, done.stderr
    assert "began\n" in done.stdout
    assert "@h:" in done.stdout
    assert "@opened[" in done.stdout
    assert "refused" not in said(done).replace("the kernel refused", "")


OBJECT = """
typedef unsigned int u32; typedef unsigned long long u64;
#define SEC(n) __attribute__((section(n), used))
#define __uint(name, val) int (*name)[val]
#define __type(name, val) val *name
static void *(*map_lookup)(void *, const void *) = (void *)1;
struct { __uint(type, 1); __uint(max_entries, 16); __type(key, u32); __type(value, u64); } counts SEC(".maps");
const volatile u64 step = 3;
u64 total;
static __attribute__((noinline)) u64 twice(u64 x) { return x * 2 + step; }
SEC("raw_tp/sys_enter") int NAME(void *ctx) {
  u32 key = 0; u64 *v = map_lookup(&counts, &key);
  if (v) *v += 1;
  total += twice(step);
  return 0;
}
char LICENSE[] SEC("license") = "Dual BSD/GPL";
"""


def test_bpftool_loads_an_object(bridge: Bridge, suffix: str, tmp_path: Path) -> None:
    """With type information, a subprogram, constants and line numbers; the program that it pins has them all."""
    tool, clang = need("bpftool"), need("clang")
    source, object_, fs = tmp_path / "o.c", tmp_path / "o.o", tmp_path / "fs"
    name = f"p{suffix}"
    source.write_text(OBJECT.replace("NAME", name))
    subprocess.run([clang, "-g", "-O2", "-target", "bpf", "-c", str(source), "-o", str(object_)], check=True)
    fs.mkdir()
    if subprocess.run(["mount", "-t", "bpf", "bpf", str(fs)], check=False, capture_output=True).returncode:
        pytest.skip("cannot mount a BPF file system")
    try:
        done = bridge.run([tool, "prog", "load", str(object_), str(fs / "pin")])
        assert done.returncode == 0, done.stderr
        dump = [tool, "prog", "dump", "xlated", "pinned", str(fs / "pin"), "linum"]
        shown = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    finally:
        subprocess.run(["umount", str(fs)], check=True)
    assert f"int {name}(void * ctx):" in shown
    assert "twice" in shown
    assert "line_num:" in shown


def kernel_objects(pid: int) -> set[str]:
    """What a process holds of BPF."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except FileNotFoundError:
            continue
    return {name for name in found if name.startswith(("anon_inode:bpf", "anon_inode:[bpf", "anon_inode:btf"))}


def test_nothing_of_the_bridge_is_left(bridge: Bridge, compiled: Compiled, suffix: str) -> None:
    process, tool = started(bridge, compiled, suffix)
    for _ in range(500):  # the tool can be ready before the supervisor has closed what it gave
        if not (kept := kernel_objects(process.pid)):
            break
        time.sleep(0.02)
    assert not kept, "the supervisor keeps nothing of what it loaded"
    os.kill(tool, signal.SIGTERM)
    assert finish(process) == 143
    for _ in range(100):
        if not Path(f"/proc/{tool}").exists():
            return
        time.sleep(0.02)
    pytest.fail("the tool is still there")
