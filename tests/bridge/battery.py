"""Inside a test kernel that enforces signatures: real tools, by themselves and under `bpfseal exec`.

`battery.py OBJECTS [TOOL…]` prints one JSON object for each tool (`!TOOL`: tried under the bridge only): version, if
it worked alone and under the bridge, what it said, programs loaded, records in the audit log. OBJECTS has the compiled
`pass.bpf.o`, `look.bpf.o`, `count.bpf.o`, `send.bpf.o`, and `probe`, made of probe.go, if there is a Go compiler.
BCC_KERNEL_SOURCE are headers for bcc, BPFSEAL_TEST_BPFTRACE and BPFSEAL_TEST_BPFTOOL the commands of another bpftrace
and bpftool, BPFSEAL_TEST_CORE the directory of Debian's libbpf-tools.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

AUDIT = Path("/var/log/bpfseal/audit.jsonl")
ROOT = Path(__file__).parent.parent.parent
OWN = f"cd {shlex.quote(str(ROOT))} && {shlex.quote(sys.executable)}"
XDP_TOOLS = "dpkg-query -W -f '${Version}' xdp-tools"  # they do not all say
KEPT = 600  # characters of what a tool said
SCRIPT = (
    'kprobe:vfs_read { @reads = count(); } tracepoint:syscalls:sys_enter_openat { @opens = count(); } '
    'BEGIN { printf("began\\n"); } interval:s:6 { exit(); }'
)  # fmt: skip


@dataclass(frozen=True)
class Tool:
    """`works`: what its output has when it does its work. `undo` is run after each try, by the shell as well."""

    name: str
    version: str
    command: str
    works: str
    undo: str = ""
    limit: float = 240
    needs: str = ""  # program that must be there
    slow: bool = False  # takes minutes before it loads anything: both tries run at once
    endless: bool = False  # has to be interrupted, which is done once it works


def tools(objects: str) -> list[Tool]:
    at = shlex.quote(objects)
    headers = os.environ.get("BCC_KERNEL_SOURCE", "")

    def bcc(name: str, arguments: str, works: str) -> Tool:
        version = "dpkg-query -W -f '${Version}' bpfcc-tools"
        needs = f"{name}-bpfcc" if headers else "no headers for bcc"
        command = f"{name}-bpfcc {arguments}".rstrip()
        return Tool(f"bcc {name}", version, command, works, limit=900, needs=needs, slow=True, endless=not arguments)

    version = "bpftool version | head -1"
    table = [
        Tool("bpftrace", "bpftrace --version", f"bpftrace -e {shlex.quote(SCRIPT)}", r"began\n(.*\n)*@opens: [1-9]"),
        Tool(
            "bpftrace fentry",
            "bpftrace --version",
            "bpftrace -e 'kfunc:vfs_read { @reads = count(); } interval:s:6 { exit(); }'",
            r"@reads: [1-9]",
            needs="bpftrace",
        ),
        Tool("bpftool prog load", version, f"bpftool prog load {at}/count.bpf.o /sys/fs/bpf/batt && "
             "bpftool prog show pinned /sys/fs/bpf/batt", r"tracepoint +name opens", "rm -f /sys/fs/bpf/batt"),
        Tool("bpftool prog load, maps of maps", version,
             f"bpftool prog load {at}/send.bpf.o /sys/fs/bpf/batt type xdp && head -c 60 /dev/zero > /dev/shm/p && "
             "bpftool prog run pinned /sys/fs/bpf/batt data_in /dev/shm/p repeat 3 && bpftool map dump name first",
             r'"key": 60,\s+"value": 3', "rm -f /sys/fs/bpf/batt"),
        Tool("bpftool prog attach", version,
             f"bpftool prog load {at}/pass.bpf.o /sys/fs/bpf/batt type xdp && "
             "bpftool net attach xdpgeneric pinned /sys/fs/bpf/batt dev v1 && bpftool net show dev v1",
             r"v1\(\d+\) generic id \d+", "bpftool net detach xdpgeneric dev v1; rm -f /sys/fs/bpf/batt"),
        Tool("ip link set xdpgeneric obj", "ip -V",
             f"ip link set dev v1 xdpgeneric obj {at}/pass.bpf.o sec xdp && ip link show v1", r"prog/xdp id \d+",
             "ip link set dev v1 xdpgeneric off"),
        Tool("tc filter bpf", "tc -V",
             f"tc filter add dev v1 ingress bpf direct-action obj {at}/look.bpf.o sec classifier && "
             "tc filter show dev v1 ingress", r"direct-action.* id \d+", "tc filter del dev v1 ingress"),
        Tool("xdp-loader", XDP_TOOLS,
             f"xdp-loader load -m skb v1 {at}/pass.bpf.o -s xdp && xdp-loader status v1", r"v1 .*(skb|dispatcher)",
             "xdp-loader unload v1 --all"),
        Tool("xdp-filter", XDP_TOOLS,
             "xdp-filter load -m skb v1 && xdp-filter port 4 -m dst && xdp-filter status",
             r"xdpfilt_\w+\s+v1", "xdp-filter unload v1"),
        Tool("xdpdump", XDP_TOOLS,
             f"xdp-loader load -m skb v1 {at}/pass.bpf.o -s xdp; timeout -s INT 15 xdpdump -i v1 -x",
             r"@entry: packet size", "xdp-loader unload v1 --all"),
        Tool("functions of programs", "uname -r", f"{OWN} -m tests.bridge.others",
             r'"fentry": 1, "replaced": 1, "again": 2', needs="sh"),
        Tool("static Go binary", "dpkg-query -W -f '${Version}' golang-github-cilium-ebpf-dev", f"{at}/probe",
             r"go: counted true", needs=f"{objects}/probe"),
        Tool("systemd (user manager)", "systemctl --version | head -1", SYSTEMD,
             r"free: none\nstrict: .*zero2.*not permitted\nsilent: .*not permitted", needs="systemctl"),
        Tool("bcc, smallest program", "dpkg-query -W -f '${Version}' python3-bpfcc",
             f"/usr/bin/python3 -c {shlex.quote(SMALL)}", r"counted [1-9]", limit=400,
             needs="opensnoop-bpfcc" if headers else "no headers for bcc"),
        bcc("opensnoop", "-d 4", r"(?m)^\d+ +\S+ +\d+ +0 /"),
        bcc("execsnoop", "", r"(?m)^true +\d+ +\d+ +0"),
        bcc("biolatency", "4 1", r"usecs +: count"),
        bcc("tcpconnect", "", r"127\.0\.0\.1 +127\.0\.0\.1"),
        bcc("funccount", "-d 3 'vfs_read*'", r"vfs_read +\d+"),
        bcc("profile", "-F 49 4", r"- +\S+ \(\d+\)\n +\d+"),
    ]  # fmt: skip
    if core := os.environ.get("BPFSEAL_TEST_CORE"):
        at = shlex.quote(core)
        for name, arguments, works in (
            ("opensnoop", "-d 3", r"(?m)^\d+ +\S+ +\d+ +0 /"),
            ("execsnoop", "", r"(?m)^true +\d+ +\d+ +0"),
            ("tcpconnect", "", r"127\.0\.0\.1 +127\.0\.0\.1"),
            ("biolatency", "3 1", r"usecs +: count"),
            ("runqlat", "3 1", r"usecs +: count"),
        ):
            table.insert(-7, Tool(f"libbpf-tools {name}", "dpkg-query -W -f '${Version}' bpfcc-tools",
                                  f"{at}/{name} {arguments}", works, endless=not arguments))  # fmt: skip
    if other := os.environ.get("BPFSEAL_TEST_BPFTRACE"):
        table[2:2] = [Tool("bpftrace (another)", f"{other} --version", f"{other} -e {shlex.quote(SCRIPT)}",
                           r"began\n(.*\n)*@opens: [1-9]")]  # fmt: skip
    if other := os.environ.get("BPFSEAL_TEST_BPFTOOL"):
        for row in [row for row in table if row.name.startswith("bpftool")]:
            table.append(replace(row, name=f"another {row.name}", version=row.version.replace("bpftool", other),
                                 command=row.command.replace("bpftool", other), undo=row.undo.replace("bpftool", other),
                                 needs=other.split()[0]))  # fmt: skip
    return table


# As little as clang can be asked for: no headers of the script's own.
SMALL = """
import sys, time
from bcc import BPF
b = BPF(text="BPF_HASH(counts, u32, u64); int kprobe__vfs_read(void *ctx) { counts.increment(1); return 0; }")
time.sleep(2)
print("counted", sum(v.value for v in b["counts"].values()))
"""


# A device that a unit may not open, and packets that it may not send: systemd makes programs for cgroups of both. Where
# it cannot load them it runs the units without. Units are files: systemd-run waits over a bus, and there is none here.
SYSTEMD = """\
export XDG_RUNTIME_DIR=/run/batt; rm -rf $XDG_RUNTIME_DIR; mkdir -p -m 700 $XDG_RUNTIME_DIR/systemd/user
mkdir -p /run/systemd/system  # "booted with systemd"
[ -e /dev/zero2 ] || mknod -m 666 /dev/zero2 c 1 5
unit() {
    printf '[Service]\\nType=oneshot\\nExecStart=%s\\nStandardError=file:%s\\n%s\\n' \
        "$2" $XDG_RUNTIME_DIR/$1.said "$3" > $XDG_RUNTIME_DIR/systemd/user/$1.service
}
unit free "/usr/bin/head -c1 /dev/zero2" ""
unit strict "/usr/bin/head -c1 /dev/zero2" "DevicePolicy=strict
DeviceAllow=/dev/null rw"
unit silent "/bin/bash -c 'echo > /dev/udp/127.0.0.1/9'" "IPAddressDeny=any"
mkdir -p /sys/fs/cgroup/batt
(echo 0 > /sys/fs/cgroup/batt/cgroup.procs; exec /lib/systemd/systemd --user) & manager=$!
for i in $(seq 60); do [ -S $XDG_RUNTIME_DIR/systemd/private ] && break; sleep 1; done
for unit in free strict silent; do
    systemctl --user start $unit 2>&- && said=none || said="$(cat $XDG_RUNTIME_DIR/$unit.said)"; echo "$unit: $said"
done
kill -9 $manager; wait $manager
"""


def run(command: list[str], limit: float, until: re.Pattern[str] | None = None) -> tuple[str, float]:
    """What a command wrote, in the order of writing; seconds. It is interrupted as by Ctrl-C after `limit`, and once
    `until` is in what it wrote; if it does not end then, all that came from it is killed."""
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    assert process.stdout is not None
    out, deadline, stopped = b"", started + limit, False
    while (left := deadline - time.monotonic()) > 0 or not stopped:
        if left <= 0 or (until and not stopped and until.search(out.decode(errors="replace"))):
            out += b"" if left > 0 else b"\n[over its time]\n"
            stopped, deadline = True, time.monotonic() + 60
            os.killpg(process.pid, signal.SIGINT)
        elif select.select([process.stdout], [], [], min(left, 1))[0]:
            piece = os.read(process.stdout.fileno(), 1 << 16)
            if not piece:
                break
            out += piece
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return out.decode(errors="replace"), time.monotonic() - started


def one(tool: Tool, exec_: list[str], *, alone: bool) -> dict[str, object]:
    first = (tool.needs or shlex.split(tool.command)[0]).partition(" ")[0]
    row: dict[str, object] = {"tool": tool.name, "kernel": os.uname().release}
    if shutil.which(first) is None:
        return row | {"skipped": f"no {tool.needs or first}"}
    words, _ = run(["sh", "-c", tool.version], 60)
    numbers = re.findall(r"\d+\.\d+[\w.+-]*", words)
    row["version"] = numbers[0] if numbers else words.strip()[:60]
    pattern = re.compile(tool.works)
    before = AUDIT.stat().st_size
    under = [*exec_, "sh", "-c", tool.command]
    until = pattern if tool.endless else None
    with ThreadPoolExecutor() as pool:
        early = pool.submit(run, under, tool.limit, until) if tool.slow else None
        out, took = run(["sh", "-c", tool.command], tool.limit, until) if alone else ("", 0.0)
    run(["sh", "-c", tool.undo or "true"], 60)
    if alone:
        row |= {"alone": bool(pattern.search(out)), "alone_said": _said(out), "alone_s": round(took, 1)}
    out, took = early.result() if early else run(under, tool.limit, until)
    run([*exec_, "sh", "-c", tool.undo] if "unload" in tool.undo else ["sh", "-c", tool.undo or "true"], 60)
    own = [line for line in out.splitlines() if line.startswith("bpfseal: ")]
    rest = "\n".join(line for line in out.splitlines() if not line.startswith("bpfseal: "))
    with open(AUDIT) as log:
        log.seek(before)
        records = [json.loads(line) for line in log]
    row |= {
        "exec": bool(pattern.search(rest)),
        "exec_said": _said(rest),
        "exec_s": round(took, 1),
        "loaded": sum("loaded program" in line for line in own),
        "types": sorted({m[1] for line in own if (m := re.search(r"loaded program .*, type (\d+)", line))}, key=int),
        "refused": sorted({re.sub(r"\[\d+\]", "", line) for line in own if "refused program" in line}),
        "by_kernel": sorted({re.sub(r"\[\d+\]", "", line) for line in own if "kernel refused" in line}),
        "audited": sum(r["event"] == "seal" and "// program of " in r.get("source", "") for r in records),
    }
    return row


def _said(text: str) -> str:
    kept = [x for x in text.splitlines() if not re.search(r"warning:|note:|^In file|^\s*\^|^#define|^extern", x)]
    return "\n".join(kept)[-KEPT:]


@contextlib.contextmanager
def activity() -> Iterator[None]:
    """Something to see: files, programs, connections, packets on v0, reads of a disk."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import battery; battery.work()"
    process = subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parent)], start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def work() -> None:
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    packets.bind(("v0", 0))
    frame = b"\xff" * 6 + b"\2\0\0\0\0\1" + b"\x08\x06" + bytes(46)
    while True:
        subprocess.run(["true"], check=False)
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", 9), 1)
        with contextlib.suppress(OSError):
            packets.send(frame)
        with contextlib.suppress(OSError):
            disk = os.open("/dev/loop0", os.O_RDONLY | os.O_DIRECT)
            import mmap

            os.preadv(disk, [mmap.mmap(-1, 4096)], 0)
            os.close(disk)
        time.sleep(0.2)


def prepare() -> None:
    for command in (
        "modprobe veth; ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up; ip link set lo up",
        "modprobe sch_ingress; modprobe cls_bpf; tc qdisc add dev v1 clsact",
        "modprobe loop; truncate -s 64M /dev/shm/disk; losetup /dev/loop0 /dev/shm/disk",
        "[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd",
    ):
        subprocess.run(["sh", "-c", command], check=False, capture_output=True)


def main() -> None:
    os.environ["PATH"] = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
    os.environ["PYTHONUNBUFFERED"] = "1"  # bcc's tools write to a pipe
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what is ignored here would be ignored by them
    exec_ = [sys.executable, "-m", "bpfseal", "exec", "-v", "--"]
    prepare()
    with activity():
        for word in sys.argv[2:] or [""]:
            for tool in tools(sys.argv[1]):
                if word.lstrip("!") in tool.name:
                    print(json.dumps(one(tool, exec_, alone=not word.startswith("!"))), flush=True)


if __name__ == "__main__":
    main()
