"""The enforcement programs: who may load BPF programs on this kernel, decided inside it.

`require` (lsm/bpf_prog_load) runs for every BPF_PROG_LOAD after the kernel has verified the signature, if there is one.
It lets pass what a signed loader loads (the kernel's own calls), and otherwise only programs that were verified against
a keyring on the allow-list. `forget` (tp_btf/sched_process_exit) takes a helper's keyring off that list when the helper
ends: the ring ends with it, and its serial number could be given to another one.

State is in four maps, laid out below. Member offsets in kernel structures are taken from the running kernel's BTF when
the programs are made.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from bpfseal.errors import BpfsealError
from bpfseal.signer.asm import PSEUDO_MAP_IDX, Asm, R
from bpfseal.signer.btf import ENUM, FUNC, STRUCT, TYPEDEF, UNION, Btf
from bpfseal.signer.bundle import BUNDLE_VERSION, Attach, Attributes, Bundle, MapSpec, ProgramSpec

OFF, AUDIT, ENFORCE = 0, 1, 2
MODES = ("off", "audit", "enforce")

# Map indexes, and the names they are pinned under
CONFIG, ALLOWED, HELPERS, LOG = range(4)
MAP_NAMES = ("config", "allowed", "helpers", "log")
LOG_BYTES = 256 << 10

# The value of `config`
C_MODE = 0  # u32
C_UNTIL_NS = 8  # u64, CLOCK_BOOTTIME when enforcement ends by itself, 0 for never
C_ALLOWED = 16  # u64 each: loads let pass, refused, that would have been refused, decisions the log had no room for
C_DENIED = 24
C_WOULD = 32
C_LOST = 40
CONFIG_SIZE = 48

# One record of `log`
E_TIME_NS = 0  # u64, CLOCK_BOOTTIME
E_UID = 8  # u32 each
E_TGID = 12
E_VERDICT = 16
E_REASON = 20
E_KEYRING = 24
E_TYPE = 28
E_COMM = 32  # 16 bytes each
E_NAME = 48
EVENT_SIZE = 64
PASSED, REFUSED, WOULD_REFUSE = range(3)
VERDICTS = ("allowed", "refused", "would be refused")
SIGNED, UNSIGNED, UNKNOWN_RING = range(3)
REASONS = ("", "not signed", "keyring is not on the list")

_LOOKUP, _DELETE, _BOOT_NS, _PID_TGID, _UID_GID, _COMM, _OUTPUT = 1, 3, 125, 14, 15, 16, 130
_LSM, _TRACING, _LSM_MAC, _TRACE_RAW_TP = 29, 26, 27, 23
_ARRAY, _HASH, _RINGBUF = 2, 1, 27


@dataclass(frozen=True)
class Offsets:
    """Where things are in this kernel. `verdict`/`serial` are in `struct bpf_prog_aux`, -1 before Linux 7.2; there the
    rule reads what the caller asked for (`attr`), which the kernel has verified by then."""

    prog_type: int
    prog_aux: int
    aux_name: int
    verdict: int
    serial: int
    verified: int
    attr_signature_size: int
    attr_keyring_id: int
    hook_id: int
    exit_id: int


def _member(types: Btf, struct: int, path: str) -> int:
    """Byte offset of a member, looked for in nested anonymous structs and unions too; -1 if there is none."""
    first, _, rest = path.partition(".")
    for name, type, bits, _ in types.members(struct):
        if name == first:
            inner = _member(types, types.resolve(type), rest) if rest else 0
            return bits // 8 + inner if inner >= 0 else -1
        if not name and types.kind(types.resolve(type)) in (STRUCT, UNION):
            inner = _member(types, types.resolve(type), path)
            if inner >= 0:
                return bits // 8 + inner
    return -1


def offsets(types: Btf) -> Offsets:
    """Raises BpfsealError for a kernel on which enforcement cannot work."""
    prog, aux, attr = (
        types.find(n, k) for n, k in (("bpf_prog", STRUCT), ("bpf_prog_aux", STRUCT), ("bpf_attr", UNION))
    )
    hook = types.find("bpf_lsm_bpf_prog_load", FUNC)
    if not (prog and aux and attr and hook):
        raise BpfsealError("this kernel has no BPF LSM (CONFIG_BPF_LSM), so nothing can be enforced")
    if len(types.params(types.size_or_type(hook))) != 4:
        raise BpfsealError("this kernel's LSM hook does not tell who loads a program (Linux 6.18 does)")
    verdict = types.find("bpf_sig_verdict", ENUM)
    found = Offsets(
        prog_type=_member(types, prog, "type"),
        prog_aux=_member(types, prog, "aux"),
        aux_name=_member(types, aux, "name"),
        verdict=_member(types, aux, "sig.verdict"),
        serial=_member(types, aux, "sig.keyring_serial"),
        verified=dict(types.enumerators(verdict)).get("BPF_SIG_VERIFIED", -1) if verdict else -1,
        attr_signature_size=_member(types, attr, "signature_size"),
        attr_keyring_id=_member(types, attr, "keyring_id"),
        hook_id=hook,
        exit_id=types.find("btf_trace_sched_process_exit", TYPEDEF),
    )
    if found.attr_keyring_id < 0 or min(found.prog_type, found.prog_aux, found.aux_name) < 0 or not found.exit_id:
        raise BpfsealError("this kernel does not know signed BPF programs (Linux 6.18)")
    return found


def _map(a: Asm, register: R, index: int) -> None:
    a.ld_pseudo(register, PSEUDO_MAP_IDX, index)


def _lookup(a: Asm, index: int, key: int) -> None:
    """r0 = value of the map at the key on the stack at `key`."""
    _map(a, R.R1, index)
    a.mov(R.R2, R.R10)
    a.add(R.R2, key)
    a.call(_LOOKUP)


_KEY, _SERIAL, _RECORD = -8, -12, -80


def require_code(at: Offsets) -> bytes:
    """int bpf_prog_load(prog, attr, token, kernel): 0 or -EPERM. r6 prog, r7 attr, r8 the reason, r9 the config."""
    a = Asm()
    a.ldx(8, R.R0, R.R1, 24)
    a.alu("and", R.R0, 0xFF)
    a.jump_if(R.R0, "!=", 0, "pass")  # a loader's nested call: the loader itself was judged
    a.ldx(8, R.R6, R.R1, 0)
    a.ldx(8, R.R7, R.R1, 8)
    a.st(4, R.R10, _KEY, 0)
    _lookup(a, CONFIG, _KEY)
    a.jump_if(R.R0, "==", 0, "pass")
    a.mov(R.R9, R.R0)
    a.ldx(4, R.R1, R.R9, C_MODE)
    a.jump_if(R.R1, "==", OFF, "pass")
    a.call(_BOOT_NS)
    a.stx(8, R.R10, _RECORD + E_TIME_NS, R.R0)
    a.ldx(8, R.R1, R.R9, C_UNTIL_NS)
    a.jump_if(R.R1, "==", 0, "judge")
    a.jump_if(R.R0, ">", R.R1, "pass")
    a.label("judge")
    _keyring_of(a, at)
    a.mov(R.R8, UNSIGNED)
    a.ldx(4, R.R1, R.R10, _SERIAL)
    a.jump_if(R.R1, "==", 0, "decide")
    a.mov(R.R8, UNKNOWN_RING)
    _lookup(a, ALLOWED, _SERIAL)
    a.jump_if(R.R0, "==", 0, "decide")
    a.mov(R.R8, SIGNED)
    a.label("decide")
    _count(a)
    _tell(a, at)
    a.ldx(4, R.R1, R.R10, _RECORD + E_VERDICT)
    a.jump_if(R.R1, "!=", REFUSED, "pass")
    a.ret(-errno.EPERM)
    a.label("pass")
    a.ret(0)
    return a.code()


def _keyring_of(a: Asm, at: Offsets) -> None:
    """[serial] = the ring that the signature was verified with, 0 without one. System rings (0 to 2) count as none."""
    a.mov(R.R2, 0)
    if at.verdict >= 0 and at.serial >= 0 and at.verified >= 0:
        a.ldx(8, R.R1, R.R6, at.prog_aux)
        a.ldx(1, R.R3, R.R1, at.verdict)
        a.jump_if(R.R3, "!=", at.verified, "known")
        a.ldx(4, R.R2, R.R1, at.serial)
    else:
        a.ldx(4, R.R3, R.R7, at.attr_signature_size)
        a.jump_if(R.R3, "==", 0, "known")
        a.ldx(4, R.R2, R.R7, at.attr_keyring_id)
    a.label("known")
    a.stx(4, R.R10, _SERIAL, R.R2)


def _count(a: Asm) -> None:
    """Verdict from reason and mode into the record; one counter up."""
    a.mov(R.R2, PASSED)
    a.mov(R.R3, C_ALLOWED)
    a.jump_if(R.R8, "==", SIGNED, "verdict")
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


def _tell(a: Asm, at: Offsets) -> None:
    """The decision into the log."""
    a.stx(4, R.R10, _RECORD + E_REASON, R.R8)
    a.ldx(4, R.R1, R.R10, _SERIAL)
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
    _map(a, R.R1, LOG)
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
    """At the end of a process whose tgid is in `helpers`: both entries go."""
    a = Asm()
    a.call(_PID_TGID)
    a.mov(R.R1, R.R0)
    a.alu("rsh", R.R1, 32)
    a.stx(4, R.R10, _KEY, R.R1)
    a.mov(R.R0, R.R0, bits=32)
    a.jump_if(R.R0, "!=", R.R1, "out")  # a thread that is not the process's first
    _lookup(a, HELPERS, _KEY)
    a.jump_if(R.R0, "==", 0, "out")
    a.ldx(4, R.R1, R.R0, 0)
    a.stx(4, R.R10, _SERIAL, R.R1)
    for index, key in ((ALLOWED, _SERIAL), (HELPERS, _KEY)):
        _map(a, R.R1, index)
        a.mov(R.R2, R.R10)
        a.add(R.R2, key)
        a.call(_DELETE)
    a.label("out")
    a.ret(0)
    return a.code()


SOURCE = """\
// bpfseal enforcement, written in assembly: runtime/enforce_program.py
lsm:bpf_prog_load                  refuse what is not signed for a keyring on the list
rawtracepoint:sched_process_exit   take a helper's keyring off the list when the helper ends
"""


def bundle(types: Btf) -> Bundle:
    """The enforcement programs for the running kernel. Raises BpfsealError where they cannot work."""
    at = offsets(types)
    require, forget = require_code(at), forget_code()

    def hash_map(name: str) -> MapSpec:
        return MapSpec(name=name, type=_HASH, key_size=4, value_size=4, max_entries=64)

    return Bundle(
        version=BUNDLE_VERSION,
        programs=(
            ProgramSpec(
                name="bpfseal_require",
                type=_LSM,
                insns=require,
                expected_attach_type=_LSM_MAC,
                attach_btf="bpf_lsm_bpf_prog_load",
                attach_btf_id=at.hook_id,
                declared=Attributes(
                    insns=len(require) // 8,
                    helpers=(
                        "get_current_comm",
                        "get_current_pid_tgid",
                        "get_current_uid_gid",
                        "ktime_get_boot_ns",
                        "map_lookup_elem",
                        "ringbuf_output",
                    ),
                    maps=((CONFIG, ("read", "write")), (ALLOWED, ("read",)), (LOG, ("output",))),
                ),
                attach=(Attach(kind="trace", probe="lsm:bpf_prog_load", target="bpf_prog_load"),),
            ),
            ProgramSpec(
                name="bpfseal_forget",
                type=_TRACING,
                insns=forget,
                expected_attach_type=_TRACE_RAW_TP,
                attach_btf="btf_trace_sched_process_exit",
                attach_btf_id=at.exit_id,
                declared=Attributes(
                    insns=len(forget) // 8,
                    helpers=("get_current_pid_tgid", "map_delete_elem", "map_lookup_elem"),
                    maps=((ALLOWED, ("delete",)), (HELPERS, ("delete", "read"))),
                ),
                attach=(Attach(kind="trace", probe="rawtracepoint:sched_process_exit", target="sched_process_exit"),),
            ),
        ),
        maps=(
            MapSpec(name="config", type=_ARRAY, key_size=4, value_size=CONFIG_SIZE, max_entries=1),
            hash_map("allowed"),
            hash_map("helpers"),
            MapSpec(name="log", type=_RINGBUF, key_size=0, value_size=0, max_entries=LOG_BYTES),
        ),
        source=SOURCE,
    )
