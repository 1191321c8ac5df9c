"""Giving up everything the helper does not need, in an order that works, each step read back from the kernel.

    memory locked → groups, gid, uid, capabilities → dumpable, core limit, no_new_privs → Landlock → MDWE → seccomp

Traps: a change of uid sets "dumpable" to fs.suid_dumpable and clears the death signal, so both come after it. Locked
memory is limited to 8 MiB without CAP_IPC_LOCK, also for allocations after the capability was dropped: the limit is
raised while that is still allowed, and where it is not (no CAP_SYS_RESOURCE) that one harmless capability is kept.
Anything imported lazily fails after Landlock, and its paths have to be opened before the change of uid.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal

from msgspec import Struct

from bpfseal.errors import BpfsealError
from bpfseal.signer import landlock, seccomp

# include/uapi/linux/prctl.h, capability.h; include/uapi/asm-generic/mman.h
_PDEATHSIG, _GET_DUMPABLE, _SET_DUMPABLE, _SET_KEEPCAPS, _CAPBSET_DROP = 1, 3, 4, 8, 24
_NO_NEW_PRIVS, _GET_NO_NEW_PRIVS, _CAP_AMBIENT, _SET_MDWE, _GET_MDWE = 38, 39, 47, 65, 66
_AMBIENT_CLEAR_ALL = 4
_MDWE_REFUSE_EXEC_GAIN = 1
_CAP_IPC_LOCK, _CAP_SYS_PTRACE = 14, 19
_CAPABILITY_VERSION_3 = 0x20080522
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4

# Scratch uids: one per private helper of root, so that no two helpers and no other service share one. The range is
# outside those of people, systemd and containers (systemd: "Users, Groups, UIDs and GIDs on systemd Systems").
SCRATCH_BASE = 0x70000000
NOBODY = 65534
# A limit on locked memory that the helper cannot run into.
ENOUGH_LOCKED = 512 << 20

_libc = ctypes.CDLL(None, use_errno=True)


class HardenError(BpfsealError):
    """A protection that the helper does not run without could not be had."""


class Confinement(Struct, frozen=True):
    """What is left to the helper.

    uid, gid      to become, None to stay (not root)
    writable      directories to create, append and rename files in (the audit log's)
    readable      directories and files that may be read
    listening     whether it accepts connections
    token         whether a PKCS#11 library has to go on working in here
    death_signal  whether to end with the parent process
    look          whether executables of peers are looked at, which takes CAP_SYS_PTRACE
    """

    uid: int | None
    gid: int | None
    writable: tuple[str, ...]
    readable: tuple[str, ...]
    listening: bool = False
    token: bool = False
    death_signal: bool = False
    look: bool = False


def scratch_uid() -> int:
    return SCRATCH_BASE + os.getpid()


def _prctl(option: int, *args: int) -> int:
    padded = [ctypes.c_ulong(a) for a in (*args, 0, 0, 0, 0)[:4]]
    result: int = _libc.prctl(ctypes.c_int(option), *padded)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "prctl")
    return result


def status() -> dict[str, str]:
    """/proc/self/status, by field."""
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}


def lock_memory() -> tuple[str, bool]:
    """Keep everything that is and will be in memory out of swap. Says how that went, and whether it takes
    CAP_IPC_LOCK to go on allocating."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        pass
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    unlimited = limit == resource.RLIM_INFINITY or limit >= ENOUGH_LOCKED
    capable = bool(int(status()["CapEff"], 16) >> _CAP_IPC_LOCK & 1)
    if not unlimited and not capable:
        # It might succeed now and then fail allocations later.
        return f"memory not locked (limit {limit >> 20} MiB)", False
    if _libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        return f"memory not locked ({os.strerror(ctypes.get_errno())})", False
    return "memory locked", not unlimited


def drop_identity(uid: int | None, gid: int | None, keep: int = 0) -> None:
    """Another uid and gid, no groups, no capabilities but `keep` (a mask) in any set. A step that is not allowed was
    not needed: what is left is read back by the caller."""
    last = int(open("/proc/sys/kernel/cap_last_cap").read())  # noqa: SIM115
    for capability in range(last + 1):
        if keep >> capability & 1:
            continue
        try:
            _prctl(_CAPBSET_DROP, capability)
        except PermissionError:
            break
    if uid is not None and gid is not None:
        _prctl(_SET_KEEPCAPS, 1)
        os.setgroups([])
        try:
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        except OSError:  # EINVAL: this user namespace does not have it
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
    _prctl(_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    left = (ctypes.c_uint32 * 6)(keep, keep)
    if _libc.capset(header, left) != 0:
        raise HardenError(f"capabilities could not be dropped: {os.strerror(ctypes.get_errno())}")


def confine(want: Confinement) -> tuple[str, ...]:
    """Do all of it. Returns what holds, for `status` and the audit log.

    Raises HardenError when one of the indispensable ones (no capabilities, not dumpable, no new privileges, seccomp)
    does not read back.
    """
    # A domain of Landlock cannot look at processes outside of it, whatever capabilities it has.
    rules = None if want.look else landlock.Ruleset(want.writable, want.readable)
    locked, needs_capability = lock_memory()
    keep = {"CAP_IPC_LOCK": 1 << _CAP_IPC_LOCK} if needs_capability else {}
    if want.look:
        keep["CAP_SYS_PTRACE"] = 1 << _CAP_SYS_PTRACE
    kept = sum(keep.values())
    root_before = os.geteuid() == 0
    drop_identity(want.uid, want.gid, kept)
    if want.death_signal:
        _prctl(_PDEATHSIG, signal.SIGTERM)
    _prctl(_SET_DUMPABLE, 0)
    if _prctl(_GET_DUMPABLE) != 0:
        raise HardenError("still dumpable")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0):
        raise HardenError("core dumps are still possible")
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    _prctl(_NO_NEW_PRIVS, 1)
    report = [locked, rules.enforce() if rules else "no Landlock (looks at executables)"]
    report.append(_refuse_writable_code())
    try:
        seccomp.restrict(listening=want.listening, token=want.token)
    except OSError as error:
        raise HardenError(f"the system call filter was refused: {error.strerror}") from None
    _verify(root_before and want.uid is not None, kept)
    state = status()
    fixed = (
        f"only {' '.join(keep)}" if keep else "no capabilities",
        "not dumpable",
        "no core dumps",
        "no new privileges",
        "seccomp filter",
    )
    return (*fixed, *report, f"uid {state['Uid'].split()[0]}")


def _refuse_writable_code() -> str:
    try:
        _prctl(_SET_MDWE, _MDWE_REFUSE_EXEC_GAIN)
        return "no writable code" if _prctl(_GET_MDWE) & _MDWE_REFUSE_EXEC_GAIN else "writable code possible"
    except OSError as error:
        return f"writable code possible ({error.strerror})"


def _verify(was_root: bool, keep: int) -> None:
    """What the kernel says about us now."""
    state = status()
    wanted = {"CapInh": 0, "CapPrm": keep, "CapEff": keep, "CapAmb": 0} | ({"CapBnd": keep} if was_root else {})
    for name, value in wanted.items():
        if int(state.get(name, "1"), 16) != value:
            raise HardenError(f"capabilities are left after dropping them ({name} {state.get(name)})")
    if was_root and "0" in state["Uid"].split() + state["Gid"].split():
        raise HardenError(f"still root after the change of user ({state['Uid']})")
    if state.get("NoNewPrivs") != "1" or state.get("Seccomp") != "2":
        raise HardenError("no_new_privs or seccomp do not hold")
