"""What the running kernel can do, found by trying and remembered until the next boot.

Nobody sniffs versions: a feature is there if the smallest thing that uses it works. All probes together take some
milliseconds; their results are kept in the user's cache directory, one file per boot, user and set of capabilities.

    features.get("fentry")      Feature(name="fentry", ok=False, why="EPERM: …")
    features.probe_all()        all of them, cached
"""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from bpfseal.runtime import bpf, bpf_link
from bpfseal.signer.syscall import syscall

if TYPE_CHECKING:
    from bpfseal.signer.btf import Btf

_FORMAT = 1


@dataclass(frozen=True)
class Feature:
    """`ok` None: cannot be told here. `detail` adds to a yes, `why` explains a no."""

    name: str
    group: str
    ok: bool | None
    detail: str = ""
    why: str = ""


def get(name: str) -> Feature:
    """One feature by name. Raises KeyError for a name that is not in the table."""
    return {feature.name: feature for feature in probe_all()}[name]


def probe_all(*, refresh: bool = False) -> list[Feature]:
    """All features, from the cache of this boot if there is one. Never raises."""
    path = _cache_path()
    known = None if refresh else _read(path)
    if known is not None:
        return known
    found = [Feature(name, group, *_outcome(probe)) for name, group, probe in PROBES]
    # Where loads without a signature are refused, every answer would be "no": worth nothing, not to be remembered.
    if _outcome(lambda: _load(17))[0]:
        _write(path, found)
        return found
    if os.geteuid() == 0 and any(f.ok is False and "EPERM" in f.why for f in found):
        note = "programs are only taken signed here; ask before `bpfseal enforce on`"
        return [Feature(f.name, f.group, None, "", note) if "EPERM" in f.why else f for f in found]
    return found


# The cache


def _cache_path() -> str:
    from hashlib import sha256

    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    with open("/proc/self/status") as file:
        rights = [line for line in file if line.startswith(("Uid", "CapEff", "NSpid", "Seccomp:"))]
    rights = [line if not line.startswith("NSpid") else str(len(line.split())) for line in rights]
    key = sha256("".join((boot, str(_FORMAT), *rights)).encode()).hexdigest()[:16]
    return os.path.join(root, "bpfseal", f"features-{key}.json")


def _read(path: str) -> list[Feature] | None:
    """None for no cache, one of another version, or a damaged one."""
    try:
        with open(path) as file:
            found = [Feature(**entry) for entry in json.load(file)]
    except (OSError, ValueError, TypeError):
        return None
    return found if [(f.name, f.group) for f in found] == [(name, group) for name, group, _ in PROBES] else None


def _write(path: str, found: list[Feature]) -> None:
    temporary = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(temporary, "w") as file:
            json.dump([asdict(feature) for feature in found], file)
        os.replace(temporary, path)
    except OSError:
        return


# How a probe ends


class Missing(Exception):
    """A probe's own reason for "no"."""


def _outcome(probe: Callable[[], object]) -> tuple[bool, str, str]:
    """(ok, detail, why). A probe returns a detail or nothing, or fails."""
    try:
        detail = probe()
    except Missing as reason:
        return False, "", str(reason)
    except OSError as error:
        return False, "", _why(error)
    return True, detail if isinstance(detail, str) else "", ""


_REASONS = {
    errno.EPERM: "not permitted (capabilities, lockdown or an LSM)",
    errno.EACCES: "not permitted",
    errno.EINVAL: "unknown to this kernel",
    errno.ENOENT: "not in this kernel",
    errno.ENODEV: "not on this machine",
    errno.EOPNOTSUPP: "not built into this kernel",
    524: "not built into this kernel",
}


def _why(error: OSError) -> str:
    from bpfseal.runtime.load import errno_name

    code = error.errno or 0
    return f"{errno_name(code).split()[0]}: {_REASONS.get(code) or os.strerror(code)}"


# Probes


_RETURN_0 = b"\xb7\0\0\0\0\0\0\0\x95\0\0\0\0\0\0\0"
# bpf_get_func_ip, r0 = 0, exit
_GET_FUNC_IP = b"\x85\0\0\0" + struct.pack("<i", 173) + _RETURN_0
_GET_COOKIE = b"\x85\0\0\0" + struct.pack("<i", 174) + _RETURN_0


def _types() -> Btf:
    from bpfseal.errors import BpfsealError
    from bpfseal.signer.btf import Btf

    try:
        return Btf.vmlinux()
    except BpfsealError as error:
        raise Missing(error.message) from None


def _id(name: str, kind: int) -> int:
    found = _types().find(name, kind)
    if not found:
        raise Missing(f"this kernel has no {name}")
    return found


def _load(type: int, code: bytes = _RETURN_0, **more: int) -> None:
    os.close(bpf.prog_load(type, code, name=b"bpfseal_feature", **more))  # type: ignore[arg-type]


def _map(type: int, key: int = 4, value: int = 8, entries: int = 4) -> Callable[[], None]:
    return lambda: os.close(bpf.map_create(type, key, value, entries))


def _pmu(name: str) -> None:
    if not os.path.exists(f"/sys/bus/event_source/devices/{name}/type"):
        raise Missing(f"no {name} events in this kernel (/sys/bus/event_source/devices/{name})")


def _kprobe() -> None:
    _load(2)
    _pmu("kprobe")


def _uprobe() -> None:
    _load(2)
    _pmu("uprobe")


def _multi(attach_type: int, *, user: bool) -> Callable[[], None]:
    """Linking to what cannot exist: a kernel that knows the link type says so, one that does not says EINVAL or
    EOPNOTSUPP to everything."""

    def probe() -> None:
        fd = bpf.prog_load(2, _RETURN_0, name=b"bpfseal_feature", expected_attach_type=attach_type)
        session = attach_type in (bpf_link.TRACE_KPROBE_SESSION, bpf_link.TRACE_UPROBE_SESSION)
        try:
            if user:
                os.close(bpf_link.link_uprobe_multi(fd, "/", [1], session=session))
            else:
                os.close(bpf_link.link_kprobe_multi(fd, symbols=["bpfseal no such function"], session=session))
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.ENOENT, errno.EBADF, errno.EISDIR):
                raise
        finally:
            os.close(fd)

    return probe


def _traced(type: int, attach_type: int, kind: int, name: str, *, attach: bool = True) -> Callable[[], None]:
    """Load a program for a target by BTF, and attach it: both can be impossible on their own."""

    def probe() -> None:
        target = _id(name, kind)
        fd = bpf.prog_load(
            type, _RETURN_0, name=b"bpfseal_feature", expected_attach_type=attach_type, attach_btf_id=target
        )
        try:
            if attach and attach_type == bpf_link.TRACE_ITER:
                os.close(bpf_link.link_iter(fd))
            elif attach:
                os.close(bpf_link.raw_tracepoint_open(fd, None))
        finally:
            os.close(fd)

    return probe


def _lsm() -> str:
    from bpfseal.signer.btf import FUNC

    _traced(29, bpf_link.LSM_MAC, FUNC, "bpf_lsm_bpf_prog_load", attach=False)()
    try:
        with open("/sys/kernel/security/lsm") as file:
            active = file.read().strip()
    except OSError:
        return "whether bpf is among the active LSMs cannot be told: no securityfs at /sys/kernel/security"
    if "bpf" not in active.split(","):
        raise Missing(f"bpf is not among the active LSMs ({active}); boot with lsm={active},bpf")
    return ""


def _raw_tracepoint() -> None:
    with bpf.Fd(bpf.prog_load(17, _RETURN_0, name=b"bpfseal_feature")) as program:
        os.close(bpf_link.raw_tracepoint_open(program.number, "sys_enter"))


def _tracepoint() -> str:
    _load(5)
    return _tracefs()


def _tracefs() -> str:
    for path in ("/sys/kernel/tracing", "/sys/kernel/debug/tracing"):
        if os.path.exists(f"{path}/events/syscalls/sys_enter_openat/id"):
            return path
        if os.path.exists(f"{path}/events"):
            raise Missing(f"{path} has no syscalls events")
    raise Missing("tracefs is not mounted: mount -t tracefs tracefs /sys/kernel/tracing")


def _perf_open(type: int, config: int, *, tail: bytes = b"") -> None:
    """A counting event on this thread. struct perf_event_attr: type, size, config, period, …, flags at 40 (disabled,
    exclude_kernel)."""
    attr = struct.pack("<IIQQQQQ", type, 112, config, 0, 0, 0, 1 | 1 << 5) + tail
    os.close(syscall("perf_event_open", attr.ljust(112, b"\0"), 0, -1, -1, 8))


def _watchpoint() -> None:
    """bp_type at 52 (write: 2), bp_addr at 56, bp_len at 64."""
    _perf_open(5, 0, tail=struct.pack("<IIQQ", 0, 2, id(_watchpoint) & ~7, 8))


def _timer() -> None:
    _load(7)
    _perf_open(1, 0)


def _hardware() -> None:
    _load(7)
    try:
        _perf_open(0, 0)
    except FileNotFoundError:
        raise Missing("this machine has no hardware counters (usual in virtual ones)") from None


def _syscall_program() -> None:
    _load(31, flags=1 << 4)


def _batch() -> None:
    fd = bpf.map_create(bpf.MAP_HASH, 4, 8, 4)
    try:
        next(bpf._batches(fd, 4, 8, 4, False), None)
    finally:
        os.close(fd)


def _kfunc(*names: str, purpose: str = "") -> Callable[[], str]:
    """The first of `names` that is a kfunc: later kernels renamed some, and may still list the old name. `purpose`
    ends the answer where there is none."""

    def probe() -> str:
        from bpfseal.signer.btf import FUNC

        types = _types()
        for name in names:
            if (found := types.find(name, FUNC)) and types.is_kfunc(found):
                return name
        raise Missing(f"no kfunc {names[0]}{f': {purpose}' if purpose else ''}")

    return probe


def _task_work(mode: str, written: str) -> Callable[[], str]:
    name = f"bpf_task_work_schedule_{mode}"
    return _kfunc(name, f"{name}_impl", purpose=f"`{written}` needs Linux 6.18")


def _btf() -> str:
    return f"{len(_types().raw) / 1e6:.1f} MB"


def _btf_modules() -> str:
    try:
        modules = [name for name in os.listdir("/sys/kernel/btf") if name != "vmlinux"]
    except OSError:
        raise Missing("no /sys/kernel/btf") from None
    if modules:
        return f"{len(modules)} modules"
    try:
        with open("/proc/modules") as file:
            loaded = len(file.readlines())
    except FileNotFoundError:
        return "this kernel has no modules"
    if loaded:
        raise Missing(f"none of {loaded} loaded modules has BTF")
    return "no module is loaded"


def _exclusive() -> None:
    os.close(bpf.map_create(bpf.MAP_ARRAY, 4, 8, 1, excl_prog_hash=bytes(32)))


def _table() -> tuple[tuple[str, str, Callable[[], object]], ...]:
    func, typedef = 12, 8
    kernel, programs, maps, calls = "kernel", "probes", "maps", "functions"
    fentry, fexit = bpf_link.TRACE_FENTRY, bpf_link.TRACE_FEXIT
    return (
        ("btf", kernel, _btf),
        ("btf_modules", kernel, _btf_modules),
        ("tracefs", kernel, _tracefs),
        ("exclusive_maps", kernel, _exclusive),
        ("loader", kernel, _syscall_program),
        ("tracepoint", programs, _tracepoint),
        ("rawtracepoint", programs, _raw_tracepoint),
        ("tp_btf", programs, _traced(26, bpf_link.TRACE_RAW_TP, typedef, "btf_trace_sched_process_exit")),
        ("kprobe", programs, _kprobe),
        ("kprobe_multi", programs, _multi(bpf_link.TRACE_KPROBE_MULTI, user=False)),
        ("kprobe_session", programs, _multi(bpf_link.TRACE_KPROBE_SESSION, user=False)),
        ("uprobe", programs, _uprobe),
        ("uprobe_multi", programs, _multi(bpf_link.TRACE_UPROBE_MULTI, user=True)),
        ("uprobe_session", programs, _multi(bpf_link.TRACE_UPROBE_SESSION, user=True)),
        ("fentry", programs, _traced(26, fentry, func, "bpf_fentry_test1")),
        ("fexit", programs, _traced(26, fexit, func, "bpf_fentry_test1")),
        ("lsm", programs, _lsm),
        ("iter", programs, _traced(26, bpf_link.TRACE_ITER, func, "bpf_iter_task")),
        ("profile", programs, _timer),
        ("hardware", programs, _hardware),
        ("watchpoint", programs, _watchpoint),
        ("xdp", programs, lambda: _load(6)),
        ("tc", programs, lambda: _load(3)),
        ("ringbuf", maps, _map(bpf.MAP_RINGBUF, 0, 0, 4096)),
        ("percpu_hash", maps, _map(bpf.MAP_PERCPU_HASH)),
        ("lru_hash", maps, _map(bpf.MAP_LRU_HASH)),
        ("stack_trace", maps, _map(bpf.MAP_STACK_TRACE)),
        ("map_batch", maps, _batch),
        ("get_func_ip", calls, lambda: _load(2, _GET_FUNC_IP)),
        ("attach_cookie", calls, lambda: _load(2, _GET_COOKIE)),
        ("task_work", calls, _task_work("resume", "defer")),
        ("task_work_signal", calls, _task_work("signal", "defer(signal)")),
        ("copy_from_user_str", calls, _kfunc("bpf_copy_from_user_str", purpose="str() in `defer` needs Linux 6.12")),
        ("path_d_path", calls, _kfunc("bpf_path_d_path")),
    )


PROBES = _table()
