"""Runs inside a test kernel: turns enforcement on and off and tries what it must refuse. One line of JSON per step;
judged by test_enforce.py, outside. Never for a machine that matters."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from bpfseal.errors import BpfsealError
from bpfseal.runtime import bpf, bpf_info, enforce
from bpfseal.runtime.enforce_layout import LOG_BYTES, MAP_NAMES
from bpfseal.runtime.enforce_log import Decision
from bpfseal.runtime.enforce_state import PINS, State
from bpfseal.runtime.load import LoadRefused, load, seal_locally
from bpfseal.runtime.ring import RingReader
from bpfseal.signer import abi
from bpfseal.signer.bundle import Bundle, SealedBundle, encode
from bpfseal.signer.client import SOCKET, connect
from bpfseal.signer.keys import Keys, SoftKey
from bpfseal.signer.loader import Terms
from tests.loader import samples
from tests.loader.attacks import Kernel
from tests.loader.guest import sealed

Observed = dict[str, Any]
RETURN_0 = b"\xb7\0\0\0\0\0\0\0\x95\0\0\0\0\0\0\0"


def command(*words: str) -> Observed:
    """What `bpfseal enforce WORDS` did: status, output, error."""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            status = enforce.main(list(words))
    except BpfsealError as error:
        return {"status": error.status, "out": out.getvalue(), "error": error.message, "hint": error.hint}
    return {"status": status, "out": out.getvalue(), "error": ""}


def try_load(bundle: Bundle, seal: SealedBundle) -> str:
    try:
        load(bundle, seal).close()
    except LoadRefused as error:
        return errno.errorcode[error.code]
    return "loaded"


def probe() -> Bundle:
    """What the machine's policy for root allows: a counting tracepoint-like program."""
    return samples.bundle((samples.program("probe", samples.counting()),), (samples.counter_map(),))


def signed() -> str:
    """Load what the system's helper sealed; whether it counts."""
    import msgspec

    bundle = msgspec.structs.replace(probe(), source="// counts")
    bundle = msgspec.structs.replace(bundle, programs=tuple(declare(p) for p in bundle.programs))
    with connect(path=SOCKET) as client:
        seal = client.seal(encode(bundle))
    try:
        with load(bundle, seal) as loaded:
            for _ in range(500):
                bpf.prog_run(loaded.prog_fds[0], bytes(16))
            value = bpf.map_lookup(loaded.map_fds[0], bytes(4), 8) or b""
        return f"counted {int.from_bytes(value, 'little')}"
    except LoadRefused as error:
        return errno.errorcode[error.code]


def declare(program: Any) -> Any:
    import msgspec

    declared = msgspec.structs.replace(program.declared, helpers=("map_lookup_elem",), maps=((0, ("read", "write")),))
    return msgspec.structs.replace(program, declared=declared)


def direct() -> str:
    """A program without any loader."""
    try:
        os.close(bpf.prog_load(17, RETURN_0, name=b"direct"))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "loaded"


def own_ring() -> Observed:
    """A good signature by a key and ring that the attacker made: by its serial, and by the names of possible rings."""
    keys = Keys(SoftKey.generate("ec"), "ec", 600)
    assert keys.rings is not None
    found = abi.Abi(1 if os.uname().release < "7.3" else 2, None, "")
    excl = abi.excl_field() if found.version == 1 else None
    kernel = Kernel(Terms(abi=found.version, excl=excl), keys.current.sign, keys.rings.leaf)
    results = {"serial": try_load(probe(), sealed(kernel, probe()))}
    for name, ring in (("session", -3), ("process", -2), ("builtin", 0), ("secondary", 1), ("platform", 2)):
        results[name] = try_load(probe(), sealed(dataclasses.replace(kernel, keyring=ring), probe()))
    keys.close()
    return results


def decisions() -> list[Observed]:
    state = State.open()
    assert state is not None
    with state, RingReader(state.log_fd, LOG_BYTES) as ring:
        found = [vars(d) for d in map(Decision.parse, ring.read())]
    return [d for i, d in enumerate(found) if d["comm"] != "bpftool" or i % 10 == 0]


def helper_pid() -> int:
    state = State.open()
    assert state is not None
    with state:
        (pid,) = state.rings().values()
    return pid


def other_tool() -> str:
    """What bpftool finds when it tries every program type."""
    done = subprocess.run(
        ["bpftool", "feature", "probe", "kernel"], capture_output=True, text=True, check=False, timeout=120
    )
    return "\n".join(line for line in done.stdout.splitlines() if "program_type socket_filter" in line)


def steps() -> Any:
    yield "off at first", lambda: command("status")
    yield "no helper", lambda: command("on")
    yield "unsigned before", lambda: {"direct": direct(), "loader": try_load(probe(), seal_locally(probe()))}
    yield "audit", lambda: command("on", "--audit", "--start-helper")
    yield "unsigned in audit", lambda: {"direct": direct(), "loader": try_load(probe(), seal_locally(probe()))}
    yield "log of audit", lambda: {"decisions": decisions()}
    yield "on", lambda: command("on")
    yield "status on", lambda: command("status", "--json")
    yield "unsigned", lambda: {"direct": direct(), "loader": try_load(probe(), seal_locally(probe()))}
    yield "own ring", own_ring
    yield "signed", lambda: {"signed": signed()}
    yield "other tool", lambda: {"bpftool": other_tool()}
    yield "log", lambda: {"decisions": decisions()}
    yield "log command", lambda: {"direct": direct(), **command("log", "--keep"), "kept": kept()}
    yield "kill helper", kill_helper
    yield "on without helper", lambda: command("on")
    yield "still on", lambda: {"direct": direct(), **command("status")}
    yield "handed over", lambda: {**command("on", "--start-helper"), "signed": signed()}
    yield "for", lambda: command("on", "--for", "2")
    yield "within time", lambda: {"direct": direct()}
    yield "after time", after_time
    yield "system rings", lambda: {**command("on", "--trust", "builtin"), "rings": own_ring(), **status()}
    yield "except tag", except_tag
    yield "except cgroup", except_cgroup
    yield "unguarded", lambda: command("on", "--guard")
    yield "off", lambda: command("off")
    yield "guard", lambda: command("on", "--guard")
    yield "attack", lambda: elsewhere(attack)
    yield "guarded status", lambda: {"log": command("log")["status"], **status()}
    yield "changed by the helper", lambda: elsewhere(lambda: command("on", "--audit", "--guard"))
    yield "off through the helper", lambda: elsewhere(lambda: command("off"))
    yield "guard again", lambda: command("on", "--guard")
    yield "kill the guard's helper", lambda: {"killed": kill_helper(), **elsewhere(lambda: command("off"))}
    yield "off again", lambda: command("off")
    yield "nothing left", nothing_left


def status() -> Observed:
    return {"state": json.loads(command("status", "--json")["out"])}


def elsewhere(act: Callable[[], Observed]) -> Observed:
    """In a process that has loaded nothing so far."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            observed = act()
        except Exception:
            observed = {"trouble": traceback.format_exc()}
        with open(writing, "w") as out:
            json.dump(observed, out)
        os._exit(0)
    os.close(writing)
    with open(reading) as answer:
        found: Observed = json.load(answer)
    os.waitpid(child, 0)
    return found


def kept() -> list[Any]:
    with open("/var/log/bpfseal/audit.jsonl") as log:
        return [record for record in map(json.loads, log) if record["event"] == "decisions"]


def refusal(act: Any) -> str:
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    except BpfsealError as error:
        return type(error).__name__
    return "done"


def attack() -> Observed:
    """What somebody would try who wants enforcement to end, without the helper."""
    libc = ctypes.CDLL(None, use_errno=True)

    def umount(flags: int) -> None:
        if libc.umount2(b"/sys/fs/bpf", flags):
            raise OSError(ctypes.get_errno(), "umount2")

    def write(name: str) -> None:
        os.close(bpf.obj_get(f"{PINS}/{name}"))

    def by_id() -> None:
        with bpf.Fd(bpf.obj_get(f"{PINS}/config", 8)) as fd:
            os.close(bpf_info.fd_by_id("map", bpf_info.map_info(fd.number).id))

    return {
        "open": refusal(lambda: State.open()),
        **{f"write {name}": refusal(lambda name=name: write(name)) for name in MAP_NAMES if name != "log"},
        "by id": refusal(by_id),
        "unlink": refusal(lambda: os.unlink(f"{PINS}/link_require")),
        "rename": refusal(lambda: os.rename(f"{PINS}/link_require", "/sys/fs/bpf/elsewhere")),
        "rename over": refusal(lambda: os.rename(f"{PINS}/config", f"{PINS}/link_require")),
        "umount": refusal(lambda: umount(0)),
        "lazy umount": refusal(lambda: umount(2)),
        "direct": direct(),
    }


def except_tag() -> Observed:
    command("off")
    with bpf.Fd(bpf.prog_load(17, RETURN_0, name=b"direct")) as fd:
        tag = bpf_info.prog_info(fd.number).tag
    turned = command("on", "--except-tag", tag)
    other = refusal(lambda: os.close(bpf.prog_load(17, RETURN_0[:4] + b"\1" + RETURN_0[5:], name=b"other")))
    found = {"direct": direct(), "other": other, "loader": try_load(probe(), seal_locally(probe())), **status()}
    log = [d for d in decisions() if d["program"] in ("direct", "other")]
    audit = command("on", "--audit", "--except-tag", tag)
    other = refusal(lambda: os.close(bpf.prog_load(17, RETURN_0[:4] + b"\1" + RETURN_0[5:], name=b"other")))
    # A load that the verifier refuses leaves no condition behind, however often.
    for _ in range(5000):
        refusal(lambda: bpf.prog_load(17, RETURN_0[8:], name=b"broken"))
    return {
        **turned,
        **found,
        "tag": tag,
        "log": log,
        "in audit": other,
        "signed": signed(),
        "pending": pending(),
        **audit,
    }


def pending() -> int:
    with bpf.Fd(bpf.obj_get(f"{PINS}/pending")) as fd:
        return len(list(bpf.map_items(fd.number, 8, 4, 4096)))


def except_cgroup() -> Observed:
    root = "/tmp/unified"
    os.makedirs(root, exist_ok=True)
    subprocess.run(["mount", "-t", "cgroup2", "none", root], check=True)
    os.makedirs(f"{root}/tools/inner", exist_ok=True)
    turned = command("on", "--except-cgroup", f"{root}/tools")

    def inside(name: str) -> Observed:
        with open(f"{root}/{name}/cgroup.procs", "w") as members:
            members.write(str(os.getpid()))
        return {"direct": direct()}

    found = {name: elsewhere(lambda name=name: inside(name))["direct"] for name in ("tools", "tools/inner", ".")}
    return {**turned, "found": found, "everybody": command("on", "--except-cgroup", root), **status()}


def after_time() -> Observed:
    time.sleep(2.1)
    return {"direct": direct(), **command("status")}


def kill_helper() -> Observed:
    os.kill(helper_pid(), signal.SIGKILL)
    for _ in range(100):
        state = State.open()
        assert state is not None
        with state:
            left = state.rings()
        if not left:
            break
        time.sleep(0.02)
    return {"rings": len(left)}


def nothing_left() -> Observed:
    names = []
    for _ in range(50):
        names = [n for n in _program_names() if n.startswith("bpfseal")]
        if not names:
            break
        time.sleep(0.05)
    return {"pins": os.path.exists(PINS), "programs": names, "direct": direct()}


def _program_names() -> list[str]:
    names = []
    for id in list(bpf_info.ids("prog")):
        try:
            with bpf.Fd(bpf_info.fd_by_id("prog", id)) as fd:
                names.append(bpf_info.prog_info(fd.number).name)
        except OSError:
            continue
    return names


def main() -> None:
    assert struct.calcsize("P") == 8
    for name, step in steps():
        started = time.monotonic()
        try:
            observed = step()
        except Exception:
            observed = {"trouble": traceback.format_exc()}
        print(json.dumps({"step": name, "seconds": round(time.monotonic() - started, 2), **observed}), flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
