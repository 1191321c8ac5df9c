"""Where enforcement keeps its state: maps, their values, the records of the log, and the members of kernel structures.

Member offsets are taken from the running kernel's BTF when the programs are made.
"""

from __future__ import annotations

from dataclasses import dataclass

from bpfseal.errors import BpfsealError
from bpfseal.signer.btf import ENUM, FUNC, STRUCT, TYPEDEF, UNION, Btf

OFF, AUDIT, ENFORCE = 0, 1, 2
MODES = ("off", "audit", "enforce")

# Map indexes, and the names they are pinned under
CONFIG, ALLOWED, HELPERS, LOG, TAGS, CGROUPS, PENDING, GUARDED = range(8)
MAP_NAMES = ("config", "allowed", "helpers", "log", "tags", "cgroups", "pending", "guarded")
LOG_BYTES = 256 << 10
MAX_EXCEPTIONS = 1024  # tags; cgroups
MAX_PENDING = 4096  # programs between the start of their load and their first descriptor

# Keys of `allowed` are serial numbers of keyrings. The system's own, which loads name by a small number instead
# (include/linux/verification.h), are kept under that number; no serial number is below 3.
SYSTEM_RINGS = ("builtin", "secondary", "platform")
NO_RING = 0xFFFFFFFF

# The value of `config`
C_MODE = 0  # u32
C_UNTIL_NS = 8  # u64, CLOCK_BOOTTIME when enforcement ends by itself, 0 for never
C_ALLOWED = 16  # u64 each: loads let pass, refused, that would have been refused, decisions the log had no room for
C_DENIED = 24
C_WOULD = 32
C_LOST = 40
C_EXCEPTED = 48  # u64, loads let pass by an exception
C_GUARDED = 56  # u64, changes to enforcement that were refused
C_FLAGS = 64  # u32, below
C_ORPHAN = 68  # u32, 1 once a helper on the list has ended: the guard is off then
C_TICKET_TGID = 72  # u32, the process that may change enforcement, because it has just loaded something signed,
C_TICKET_UNTIL = 80  # u64, CLOCK_BOOTTIME until when
C_PIN_INODE = 88  # u64, the directory of the pins, and its file system as in `struct super_block`
C_PIN_DEVICE = 96  # u32
CONFIG_SIZE = 104
BY_TAG, BY_CGROUP, GUARD = 1, 2, 4
TICKET_NS = 10 * 10**9

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
SIGNED, UNSIGNED, UNKNOWN_RING, TAG_LISTED, CGROUP_LISTED = range(5)
REASONS = ("", "not signed", "keyring is not on the list", "its tag is excepted", "its cgroup is excepted")

SESSION_KEYRING = -3  # KEY_SPEC_SESSION_KEYRING


@dataclass(frozen=True)
class Offsets:
    """Where things are in this kernel. `verdict`/`serial` are in `struct bpf_prog_aux`, -1 before Linux 7.2; there the
    rule reads what the caller asked for (`attr`), which the kernel has verified by then."""

    prog_type: int
    prog_aux: int
    prog_tag: int
    aux_name: int
    verdict: int
    serial: int
    ring_type: int
    verified: int
    attr_signature_size: int
    attr_keyring_id: int
    map_id: int
    inode_number: int
    inode_super: int
    super_device: int
    mount_super: int
    exit_id: int
    task_cred: int
    cred_session: int
    key_serial: int

    @property
    def judged(self) -> bool:
        """Whether the kernel keeps what it verified."""
        return min(self.verdict, self.serial, self.ring_type, self.verified) >= 0

    @property
    def by_session(self) -> bool:
        """Whether the rule looks at the task's session keyring."""
        return not self.judged and min(self.task_cred, self.cred_session, self.key_serial) >= 0


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
    task, cred, key = (types.find(n, STRUCT) for n in ("task_struct", "cred", "key"))
    hook = types.find("bpf_lsm_bpf_prog_load", FUNC)
    if not (prog and aux and attr and hook):
        raise BpfsealError("this kernel has no BPF LSM (CONFIG_BPF_LSM), so nothing can be enforced")
    if len(types.params(types.size_or_type(hook))) != 4:
        raise BpfsealError("this kernel's LSM hook does not tell who loads a program (Linux 6.18 does)")
    verdict = types.find("bpf_sig_verdict", ENUM)
    found = Offsets(
        prog_type=_member(types, prog, "type"),
        prog_aux=_member(types, prog, "aux"),
        prog_tag=_member(types, prog, "tag"),
        aux_name=_member(types, aux, "name"),
        verdict=_member(types, aux, "sig.verdict"),
        serial=_member(types, aux, "sig.keyring_serial"),
        ring_type=_member(types, aux, "sig.keyring_type"),
        verified=dict(types.enumerators(verdict)).get("BPF_SIG_VERIFIED", -1) if verdict else -1,
        attr_signature_size=_member(types, attr, "signature_size"),
        attr_keyring_id=_member(types, attr, "keyring_id"),
        map_id=_member(types, types.find("bpf_map", STRUCT), "id"),
        inode_number=_member(types, types.find("inode", STRUCT), "i_ino"),
        inode_super=_member(types, types.find("inode", STRUCT), "i_sb"),
        super_device=_member(types, types.find("super_block", STRUCT), "s_dev"),
        mount_super=_member(types, types.find("vfsmount", STRUCT), "mnt_sb"),
        exit_id=types.find("btf_trace_sched_process_exit", TYPEDEF),
        task_cred=_member(types, task, "cred") if task else -1,
        cred_session=_member(types, cred, "session_keyring") if cred else -1,
        key_serial=_member(types, key, "serial") if key else -1,
    )
    if found.attr_keyring_id < 0 or min(found.prog_type, found.prog_aux, found.aux_name) < 0 or not found.exit_id:
        raise BpfsealError("this kernel does not know signed BPF programs (Linux 6.18)")
    return found
