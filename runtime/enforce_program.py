"""The enforcement programs: who may load BPF programs on this kernel, decided inside it.

`require` (lsm/bpf_prog_load) runs for every BPF_PROG_LOAD after the kernel has verified the signature, if there is one.
It lets pass what a signed loader loads (the kernel's own calls), and otherwise only programs that were verified against
a keyring on the allow-list, or that an exception names. A program's tag is not known before it went through the
verifier, so an exception by tag is decided when its first descriptor is made: `admit` (lsm/bpf_prog) refuses that one,
and any other, to a program that `require` let pass on condition; `drop` (lsm/bpf_prog_free) ends the condition with the
program. `forget` (tp_btf/sched_process_exit) takes a helper's keyring off the list when the helper ends: the ring ends
with it, and its serial number could be given to another one.
"""

from __future__ import annotations

import errno

from bpfseal.runtime.enforce_layout import (
    ALLOWED,
    BY_CGROUP,
    BY_TAG,
    C_ALLOWED,
    C_DENIED,
    C_EXCEPTED,
    C_FLAGS,
    C_LOST,
    C_MODE,
    C_ORPHAN,
    C_TICKET_TGID,
    C_TICKET_UNTIL,
    C_UNTIL_NS,
    C_WOULD,
    CGROUP_LISTED,
    CGROUPS,
    CONFIG,
    E_COMM,
    E_KEYRING,
    E_NAME,
    E_REASON,
    E_TGID,
    E_TIME_NS,
    E_TYPE,
    E_UID,
    E_VERDICT,
    ENFORCE,
    EVENT_SIZE,
    HELPERS,
    LOG,
    NO_RING,
    OFF,
    PASSED,
    PENDING,
    REFUSED,
    SESSION_KEYRING,
    SIGNED,
    TAG_LISTED,
    TAGS,
    TICKET_NS,
    UNKNOWN_RING,
    UNSIGNED,
    WOULD_REFUSE,
    Offsets,
)
from bpfseal.signer.asm import PSEUDO_MAP_IDX, Asm, R

_LOOKUP, _UPDATE, _DELETE, _BOOT_NS, _PID_TGID, _UID_GID, _COMM, _OUTPUT = 1, 2, 3, 125, 14, 15, 16, 130
_ANCESTOR_CGROUP, _TASK_BTF = 123, 158
_CGROUP_LEVELS = range(1, 11)  # below the root of the hierarchy; container managers nest five deep or so

# The stack: key of a look-up, value, keyring, record, the program's address and when the hook ran
_KEY, _VALUE, _RING, _RECORD, _PROG = -8, -12, -16, -96, -104


def map_index(a: Asm, register: R, index: int) -> None:
    a.ld_pseudo(register, PSEUDO_MAP_IDX, index)


def lookup(a: Asm, index: int, key: int = _KEY) -> None:
    """r0 = value of the map at the key on the stack at `key`."""
    map_index(a, R.R1, index)
    a.mov(R.R2, R.R10)
    a.add(R.R2, key)
    a.call(_LOOKUP)


def _delete(a: Asm, index: int, key: int = _KEY) -> None:
    map_index(a, R.R1, index)
    a.mov(R.R2, R.R10)
    a.add(R.R2, key)
    a.call(_DELETE)


def config_or(a: Asm, otherwise: str) -> None:
    """r9 = the config, [record time] = now; to `otherwise` when enforcement is off or its time is over."""
    a.st(4, R.R10, _KEY, 0)
    lookup(a, CONFIG)
    a.jump_if(R.R0, "==", 0, otherwise)
    a.mov(R.R9, R.R0)
    a.ldx(4, R.R1, R.R9, C_MODE)
    a.jump_if(R.R1, "==", OFF, otherwise)
    a.call(_BOOT_NS)
    a.stx(8, R.R10, _RECORD + E_TIME_NS, R.R0)
    a.ldx(8, R.R1, R.R9, C_UNTIL_NS)
    a.jump_if(R.R1, "==", 0, "in force")
    a.jump_if(R.R0, ">", R.R1, otherwise)
    a.label("in force")


def require_code(at: Offsets) -> bytes:
    """int bpf_prog_load(prog, attr, token, kernel): 0 or -EPERM. r6 prog, r7 attr, r8 the reason, r9 the config."""
    a = Asm()
    a.ldx(8, R.R0, R.R1, 24)
    a.alu("and", R.R0, 0xFF)
    a.jump_if(R.R0, "!=", 0, "pass")  # a loader's nested call: the loader itself was judged
    a.ldx(8, R.R6, R.R1, 0)
    a.ldx(8, R.R7, R.R1, 8)
    config_or(a, "pass")
    _keyring_of(a, at)
    a.mov(R.R8, UNSIGNED)
    a.ldx(4, R.R1, R.R10, _RING)
    a.mov(R.R2, NO_RING, bits=32)
    a.jump_if(R.R1, "==", R.R2, "unsigned")
    a.mov(R.R8, UNKNOWN_RING)
    lookup(a, ALLOWED, _RING)
    a.jump_if(R.R0, "==", 0, "unsigned")
    a.mov(R.R8, SIGNED)
    _give_ticket(a)
    a.jump("decide")
    a.label("unsigned")
    _cgroup_exception(a)
    a.ldx(4, R.R1, R.R9, C_FLAGS)
    a.alu("and", R.R1, BY_TAG)
    a.jump_if(R.R1, "==", 0, "decide")
    a.stx(8, R.R10, _KEY, R.R6)
    a.stx(4, R.R10, _VALUE, R.R8)
    map_index(a, R.R1, PENDING)
    for register, place in ((R.R2, _KEY), (R.R3, _VALUE)):
        a.mov(register, R.R10)
        a.add(register, place)
    a.mov(R.R4, 0)
    a.call(_UPDATE)
    a.jump_if(R.R0, "==", 0, "pass")  # `admit` decides; without a place to note that, it is decided here
    a.label("decide")
    _count_and_tell(a, at)
    a.ldx(4, R.R1, R.R10, _RECORD + E_VERDICT)
    a.jump_if(R.R1, "!=", REFUSED, "pass")
    a.ret(-errno.EPERM)
    a.label("pass")
    a.ret(0)
    return a.code()


def admit_code(at: Offsets) -> bytes:
    """int bpf_prog(prog), when a descriptor of a program is made: 0 or -EPERM. Registers as in `require_code`.

    The entry of a refused program stays until the program is freed: its id is public for a moment, and whoever was
    quick enough to ask for a descriptor by it is refused as well.
    """
    a = Asm()
    a.ldx(8, R.R6, R.R1, 0)
    a.stx(8, R.R10, _PROG, R.R6)
    lookup(a, PENDING, _PROG)
    a.jump_if(R.R0, "==", 0, "pass")
    a.ldx(4, R.R8, R.R0, 0)
    config_or(a, "forgive")
    a.mov(R.R1, NO_RING, bits=32)
    a.stx(4, R.R10, _RING, R.R1)
    for half in (0, 4):
        a.ldx(4, R.R1, R.R6, at.prog_tag + half)
        a.stx(4, R.R10, _KEY + half, R.R1)
    lookup(a, TAGS)
    a.jump_if(R.R0, "==", 0, "decide")
    a.mov(R.R8, TAG_LISTED)
    a.label("decide")
    _count_and_tell(a, at)
    a.ldx(4, R.R1, R.R10, _RECORD + E_VERDICT)
    a.jump_if(R.R1, "!=", REFUSED, "forgive")
    a.ret(-errno.EPERM)
    a.label("forgive")
    _delete(a, PENDING, _PROG)
    a.label("pass")
    a.ret(0)
    return a.code()


def drop_code() -> bytes:
    """void bpf_prog_free(prog): its address may be given to another program."""
    a = Asm()
    a.ldx(8, R.R1, R.R1, 0)
    a.stx(8, R.R10, _PROG, R.R1)
    _delete(a, PENDING, _PROG)
    a.ret(0)
    return a.code()


def _keyring_of(a: Asm, at: Offsets) -> None:
    """[ring] = key of `allowed` for the ring that the signature was verified with, NO_RING without one."""
    a.mov(R.R2, NO_RING, bits=32)
    if at.judged:
        a.ldx(8, R.R1, R.R6, at.prog_aux)
        a.ldx(1, R.R3, R.R1, at.verdict)
        a.jump_if(R.R3, "!=", at.verified, "known")
        a.ldx(4, R.R2, R.R1, at.serial)
        a.ldx(1, R.R3, R.R1, at.ring_type)  # enum bpf_sig_keyring: 1 builtin, 2 secondary, 3 platform, 4 a user's
        a.jump_if(R.R3, ">", 3, "known")
        a.mov(R.R2, R.R3)
        a.add(R.R2, -1)
    else:
        a.ldx(4, R.R3, R.R7, at.attr_signature_size)
        a.jump_if(R.R3, "==", 0, "known")
        a.ldx(4, R.R2, R.R7, at.attr_keyring_id)
        if at.by_session:  # that name is worth the ring that it stood for when the kernel verified, in this same call
            a.jump_if(R.R2, "!=", SESSION_KEYRING, "known", bits=32)
            a.call(_TASK_BTF)
            a.mov(R.R2, NO_RING, bits=32)
            a.ldx(8, R.R1, R.R0, at.task_cred)
            a.ldx(8, R.R1, R.R1, at.cred_session)
            a.jump_if(R.R1, "==", 0, "known")
            a.ldx(4, R.R2, R.R1, at.key_serial)
    a.label("known")
    a.stx(4, R.R10, _RING, R.R2)


def _give_ticket(a: Asm) -> None:
    """The process that loads something signed may change enforcement for a moment, if it is guarded."""
    a.call(_PID_TGID)
    a.alu("rsh", R.R0, 32)
    a.stx(4, R.R9, C_TICKET_TGID, R.R0)
    a.ldx(8, R.R1, R.R10, _RECORD + E_TIME_NS)
    a.ld_imm64(R.R2, TICKET_NS)
    a.add(R.R1, R.R2)
    a.stx(8, R.R9, C_TICKET_UNTIL, R.R1)


def _cgroup_exception(a: Asm) -> None:
    """To "decide" with the reason set when the process is in a listed cgroup (v2), or below one."""
    a.ldx(4, R.R1, R.R9, C_FLAGS)
    a.alu("and", R.R1, BY_CGROUP)
    a.jump_if(R.R1, "==", 0, "no cgroup")
    for level in _CGROUP_LEVELS:
        a.mov(R.R1, level)
        a.call(_ANCESTOR_CGROUP)
        a.jump_if(R.R0, "==", 0, "no cgroup")
        a.stx(8, R.R10, _KEY, R.R0)
        lookup(a, CGROUPS)
        a.jump_if(R.R0, "!=", 0, "in cgroup")
    a.jump("no cgroup")
    a.label("in cgroup")
    a.mov(R.R8, CGROUP_LISTED)
    a.jump("decide")
    a.label("no cgroup")


def _count_and_tell(a: Asm, at: Offsets) -> None:
    """[record verdict] from reason and mode; one counter up; the decision into the log."""
    a.mov(R.R2, PASSED)
    a.mov(R.R3, C_ALLOWED)
    a.jump_if(R.R8, "==", SIGNED, "verdict")
    a.mov(R.R3, C_EXCEPTED)
    a.jump_if(R.R8, "==", TAG_LISTED, "verdict")
    a.jump_if(R.R8, "==", CGROUP_LISTED, "verdict")
    a.mov(R.R2, REFUSED)
    a.mov(R.R3, C_DENIED)
    a.ldx(4, R.R1, R.R9, C_MODE)
    a.jump_if(R.R1, "==", ENFORCE, "verdict")
    a.mov(R.R2, WOULD_REFUSE)
    a.mov(R.R3, C_WOULD)
    a.label("verdict")
    a.stx(4, R.R10, _RECORD + E_VERDICT, R.R2)
    a.add(R.R3, R.R9)
    a.mov(R.R1, 1)
    a.atomic_add(8, R.R3, 0, R.R1)
    a.stx(4, R.R10, _RECORD + E_REASON, R.R8)
    a.ldx(4, R.R1, R.R10, _RING)
    a.stx(4, R.R10, _RECORD + E_KEYRING, R.R1)
    a.ldx(4, R.R1, R.R6, at.prog_type)
    a.stx(4, R.R10, _RECORD + E_TYPE, R.R1)
    a.ldx(8, R.R1, R.R6, at.prog_aux)
    for half in (0, 8):
        a.ldx(8, R.R2, R.R1, at.aux_name + half)
        a.stx(8, R.R10, _RECORD + E_NAME + half, R.R2)
    a.call(_UID_GID)
    a.stx(4, R.R10, _RECORD + E_UID, R.R0)
    a.call(_PID_TGID)
    a.alu("rsh", R.R0, 32)
    a.stx(4, R.R10, _RECORD + E_TGID, R.R0)
    a.mov(R.R1, R.R10)
    a.add(R.R1, _RECORD + E_COMM)
    a.mov(R.R2, 16)
    a.call(_COMM)
    map_index(a, R.R1, LOG)
    a.mov(R.R2, R.R10)
    a.add(R.R2, _RECORD)
    a.mov(R.R3, EVENT_SIZE)
    a.mov(R.R4, 0)
    a.call(_OUTPUT)
    a.jump_if(R.R0, "==", 0, "told")
    a.mov(R.R1, 1)
    a.atomic_add(8, R.R9, C_LOST, R.R1)
    a.label("told")


def forget_code() -> bytes:
    """At the end of a process whose tgid is in `helpers`: both entries go, and the guard is lifted."""
    a = Asm()
    a.call(_PID_TGID)
    a.mov(R.R1, R.R0)
    a.alu("rsh", R.R1, 32)
    a.stx(4, R.R10, _KEY, R.R1)
    a.mov(R.R0, R.R0, bits=32)
    a.jump_if(R.R0, "!=", R.R1, "out")  # a thread that is not the process's first
    lookup(a, HELPERS)
    a.jump_if(R.R0, "==", 0, "out")
    a.ldx(4, R.R1, R.R0, 0)
    a.stx(4, R.R10, _RING, R.R1)
    _delete(a, ALLOWED, _RING)
    _delete(a, HELPERS)
    a.st(4, R.R10, _KEY, 0)
    lookup(a, CONFIG)
    a.jump_if(R.R0, "==", 0, "out")
    a.st(4, R.R0, C_ORPHAN, 1)
    a.label("out")
    a.ret(0)
    return a.code()
