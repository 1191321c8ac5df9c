"""The trusted loader: a SYSCALL program that makes the maps and programs of one Bundle.

Its signature is the only one there is; everything else is in its metadata map (`loader_blob`), which the kernel (ABI 2)
or the loader itself (ABI 1) checks against a sha256. The code is a fixed little interpreter: apart from array lengths,
offsets and the terms of the seal it is the same for every bundle, so a reader of one loader has read them all.

What it defends itself against:

* fd_array is read again by a v1 kernel for every reference to the map, so a second thread could show one map to the
  check and another to the rest. There is exactly one `ld_imm64` of the map; check and look-up go through its register.
* A map that is not exclusive can be rewritten after it was hashed: v1 checks exclusivity before the hash.
* The kernel checks a signature when the loader is *loaded*. Running it later, elsewhere or again is refused by the
  loader: deadline on the boot clock, uid, tgid, one run per metadata map.
* The context comes from whoever runs it. Only the verifier log's address, size and level are read from it.

Return value of a run: 0, or a negative errno. -EINVAL: metadata is not what was sealed; -EKEYEXPIRED: past the
deadline; -EPERM: another uid; -ESRCH: another process; -EALREADY: this metadata map had its run.
"""

from __future__ import annotations

import errno
import functools
import hashlib

import msgspec

from bpfseal.errors import BpfsealError
from bpfseal.signer import loader_blob as blob
from bpfseal.signer.asm import PSEUDO_MAP_IDX, Asm, R, put_imm
from bpfseal.signer.bundle import Bundle
from bpfseal.signer.loader_blob import Layout
from bpfseal.signer.loader_context import (
    CTX_ERRNO,
    CTX_FDS,
    CTX_INDEX,
    CTX_LOG_BUF,
    CTX_LOG_LEVEL,
    CTX_LOG_SIZE,
    CTX_STAGE,
    MAX_CONTEXT,
    Stage,
    context_size,
)

# enum bpf_cmd, enum bpf_func_id
MAP_CREATE, MAP_UPDATE_ELEM, PROG_LOAD, MAP_GET_FD_BY_ID, BTF_LOAD, MAP_FREEZE, LINK_CREATE = 0, 2, 5, 14, 18, 22, 28
H_MAP_LOOKUP, H_PID_TGID, H_UID_GID, H_BOOT_NS, H_SYS_BPF, H_FIND_BTF, H_SYS_CLOSE = 1, 14, 15, 125, 166, 167, 168


class ExclField(msgspec.Struct, frozen=True):
    """The member of `struct bpf_map` that says a map is exclusive, from the running kernel's BTF: `excl` (u32, 1) or
    the pointer `excl_prog_sha`. Offset and size in bytes."""

    offset: int
    size: int


class Terms(msgspec.Struct, frozen=True):
    """The conditions of a seal.

    abi          0 none, 1 v1, 2 v2 (see `signer.abi`)
    uid, tgid    who may run the loader (initial namespaces), None for anybody
    deadline_ns  CLOCK_BOOTTIME until when, 0 for ever
    excl         required for ABI 1
    record       number of the audit record, kept in the metadata
    statement    bytes that are kept at the end of the metadata, and so are signed (`signer.sealed_file`)
    """

    abi: int
    uid: int | None = None
    tgid: int | None = None
    deadline_ns: int = 0
    excl: ExclField | None = None
    record: int = 0
    statement: bytes = b""


class Loader(msgspec.Struct, frozen=True):
    """Instructions of the SYSCALL program, the one value of its metadata map, bytes of context a run needs."""

    insns: bytes
    metadata: bytes
    ctx_size: int

    @property
    def exclusive_hash(self) -> bytes:
        """What the metadata map must be created with (`excl_prog_hash`): sha256 of the instructions."""
        return hashlib.sha256(self.insns).digest()

    def signed_bytes(self, abi: int) -> bytes:
        """What the signature must cover: ABI 1 instructions, ABI 2 instructions and the map's contents."""
        return self.insns + self.metadata if abi == 2 else self.insns


def emit(bundle: Bundle, terms: Terms) -> Loader:
    """The loader for `bundle` under `terms`. Same input, same bytes.

    Raises BpfsealError for a bundle that no loader can carry, or for ABI 1 terms without the exclusivity field.
    """
    metadata, layout = blob.build(bundle, terms.record)
    metadata += terms.statement
    size = context_size(layout.objects)
    if size > MAX_CONTEXT:
        raise BpfsealError(f"{layout.objects} maps, programs and links do not fit a loader's context")
    return Loader(_code(layout, terms, metadata), metadata, size)


def _code(layout: Layout, terms: Terms, metadata: bytes) -> bytes:
    """What `Code(layout, terms, metadata).bytes()` gives. One layout's code differs in a few immediates only."""
    shape = Terms(
        abi=terms.abi,
        uid=None if terms.uid is None else 0,
        tgid=None if terms.tgid is None else 0,
        deadline_ns=1 if terms.deadline_ns else 0,
        excl=terms.excl,
    )
    template, marks = _template(layout, shape)
    code = bytearray(template)
    for name, value in (("uid", terms.uid), ("tgid", terms.tgid), ("deadline", terms.deadline_ns)):
        if name in marks:
            put_imm(code, marks[name], value or 0, wide=name == "deadline")
    if terms.abi == 1:
        sha = hashlib.sha256(metadata).digest()
        for at in range(0, 32, 8):
            put_imm(code, marks[f"sha{at}"], int.from_bytes(sha[at : at + 8], "little"), wide=True)
    return bytes(code)


@functools.lru_cache(maxsize=32)
def _template(layout: Layout, shape: Terms) -> tuple[bytes, dict[str, int]]:
    """The code for a layout, and where the immediates are that the terms and the metadata decide."""
    code = Code(layout, shape, b"")
    return code.bytes(), code.asm.marks


class Code:
    """Emits the instructions. r7 is the metadata value, r6 first the map then the value's address as a number, r8 and
    r9 the record and the index of the loop at hand, [r10-8] the context."""

    def __init__(self, layout: Layout, terms: Terms, metadata: bytes) -> None:
        self.layout = layout
        self.terms = terms
        self.sha = hashlib.sha256(metadata).digest()
        self.asm = Asm()

    def bytes(self) -> bytes:
        self._enter()
        self._check_terms()
        self._once()
        lay = self.layout
        if lay.btf_at:
            self._load_btf()
        if lay.made:
            self._make_maps()
        if lay.maps > lay.made:
            self._find_maps()
        if lay.updates:
            self._fill_maps()
        if lay.freezes:
            self._freeze_maps()
        if lay.modules:
            self._find_targets()
        if lay.programs:
            self._load_programs()
        if lay.links:
            self._link_programs()
        self._finish()
        self._fail()
        return self.asm.code()

    # Before anything is made

    def _enter(self) -> None:
        a = self.asm
        a.stx(8, R.R10, -8, R.R1)
        a.mov(R.R2, 0)
        for member in (CTX_STAGE, CTX_INDEX, CTX_ERRNO):
            a.stx(4, R.R1, member, R.R2)
        a.ld_pseudo(R.R6, PSEUDO_MAP_IDX, 0)  # the one and only reference to the map
        if self.terms.abi == 1:
            self._check_map()
        a.st(4, R.R10, -12, 0)
        a.mov(R.R2, R.R10)
        a.add(R.R2, -12)
        a.mov(R.R1, R.R6)
        a.call(H_MAP_LOOKUP)
        a.jump_if(R.R0, "!=", 0, "value")
        a.label("bad_metadata")
        a.ret(-errno.EINVAL)
        a.label("value")
        a.mov(R.R7, R.R0)

    def _check_map(self) -> None:
        """ABI 1: the map must be exclusive to this loader and its hash the sealed one. `struct bpf_map` begins with
        `u8 sha[32]`, filled when user space asked for the hash of the frozen map."""
        a, excl = self.asm, self.terms.excl
        if excl is None or excl.size not in (4, 8):
            raise BpfsealError("this kernel's BTF does not say how an exclusive map is told: cannot seal for ABI 1")
        a.ldx(excl.size, R.R1, R.R6, excl.offset)
        a.jump_if(R.R1, "==", 0, "bad_metadata")
        for at in range(0, 32, 8):
            a.ldx(8, R.R1, R.R6, at)
            a.mark(f"sha{at}")
            a.ld_imm64(R.R2, int.from_bytes(self.sha[at : at + 8], "little"))
            a.jump_if(R.R1, "!=", R.R2, "bad_metadata")

    def _check_terms(self) -> None:
        a, terms = self.asm, self.terms
        if terms.deadline_ns:
            a.call(H_BOOT_NS)
            a.mark("deadline")
            a.ld_imm64(R.R1, terms.deadline_ns)
            a.jump_if(R.R0, "<=", R.R1, "in_time")
            a.ret(-errno.EKEYEXPIRED)
            a.label("in_time")
        if terms.uid is not None:
            a.call(H_UID_GID)
            a.mark("uid")
            a.jump_if(R.R0, "==", terms.uid, "same_uid", bits=32)
            a.ret(-errno.EPERM)
            a.label("same_uid")
        if terms.tgid is not None:
            a.call(H_PID_TGID)
            a.alu("rsh", R.R0, 32)
            a.mark("tgid")
            a.jump_if(R.R0, "==", terms.tgid, "same_tgid", bits=32)
            a.ret(-errno.ESRCH)
            a.label("same_tgid")

    def _once(self) -> None:
        a = self.asm
        a.mov(R.R1, 1)
        a.xchg(4, R.R7, blob.H_ONCE, R.R1)
        a.jump_if(R.R1, "==", 0, "first")
        a.ret(-errno.EALREADY)
        a.label("first")
        # Through memory the address becomes a plain number, which may be added to offsets without bounds.
        a.stx(8, R.R7, blob.H_BASE, R.R7)
        a.ldx(8, R.R6, R.R7, blob.H_BASE)

    # Steps

    def _stage(self, stage: Stage) -> None:
        a = self.asm
        a.ldx(8, R.R1, R.R10, -8)
        a.mov(R.R2, stage)
        a.stx(4, R.R1, CTX_STAGE, R.R2)

    def _ok_or_fail(self, label: str) -> None:
        """Failure is the fall-through: the verifier then ends that path before it goes on, and finds all later ones
        equal to it, however often the loop goes round."""
        a = self.asm
        a.jump_if(R.R0, "s>=", 0, label)
        a.jump("fail")
        a.label(label)

    def _sys_bpf(self, command: int, attr_size: int, name: str) -> None:
        """bpf(command, r8, attr_size); r0 is the result and not negative afterwards."""
        a = self.asm
        a.mov(R.R1, command)
        a.mov(R.R2, R.R8)
        a.mov(R.R3, attr_size)
        a.call(H_SYS_BPF)
        self._ok_or_fail(f"{name}_ok")

    def _records(self, start: int) -> None:
        a = self.asm
        a.mov(R.R8, R.R7)
        a.add(R.R8, start)

    def _loop(self, stage: Stage, start: int, name: str, first: int = 0) -> None:
        """Head of a loop over records at `start`: r8 the record, r9 its index from `first`, told to the context."""
        a = self.asm
        self._stage(stage)
        self._records(start)
        a.mov(R.R9, first)
        a.label(name)
        a.ldx(8, R.R1, R.R10, -8)
        a.stx(4, R.R1, CTX_INDEX, R.R9)

    def _next(self, stride: int, count: int, name: str) -> None:
        a = self.asm
        a.add(R.R8, stride)
        a.add(R.R9, 1)
        a.jump_if(R.R9, "<", count, name)

    def _keep_fd(self, first: int) -> None:
        """fds[first + r9] = r0"""
        a = self.asm
        a.mov(R.R1, R.R9)
        a.alu("lsh", R.R1, 2)
        a.add(R.R1, R.R7)
        a.stx(4, R.R1, blob.FDS + 4 * first, R.R0)

    def _relocate(self, *members: int) -> None:
        """Offsets in the record become kernel addresses."""
        a = self.asm
        for member in members:
            a.ldx(8, R.R1, R.R8, member)
            a.add(R.R1, R.R6)
            a.stx(8, R.R8, member, R.R1)

    def _log(self, buf: int, size: int, level: int) -> None:
        """The verifier's log goes where the context says: a user address even in a nested call."""
        a = self.asm
        a.ldx(8, R.R1, R.R10, -8)
        for width, source, target in ((8, CTX_LOG_BUF, buf), (4, CTX_LOG_SIZE, size), (4, CTX_LOG_LEVEL, level)):
            a.ldx(width, R.R2, R.R1, source)
            a.stx(width, R.R8, target, R.R2)

    def _load_btf(self) -> None:
        self._stage(Stage.BTF)
        self._records(self.layout.btf_at)
        self._relocate(blob.B_BTF)
        self._log(blob.B_LOG_BUF, blob.B_LOG_SIZE, blob.B_LOG_LEVEL)
        self._sys_bpf(BTF_LOAD, blob.BTF_ATTR_SIZE, "btf")
        self.asm.stx(4, R.R7, blob.H_BTF_FD, R.R0)

    def _btf_fd(self, member: int) -> None:
        if self.layout.btf_at:
            self.asm.ldx(4, R.R1, R.R7, blob.H_BTF_FD)
            self.asm.stx(4, R.R8, member, R.R1)

    def _make_maps(self) -> None:
        lay = self.layout
        self._loop(Stage.MAP, lay.maps_at, "map")
        self._btf_fd(blob.M_BTF_FD)
        self._sys_bpf(MAP_CREATE, blob.MAP_ATTR_SIZE, "map")
        self._keep_fd(0)
        self._next(blob.MAP_ATTR_SIZE, lay.made, "map")

    def _find_maps(self) -> None:
        """Existing maps by their sealed ids: the context has no say in which map a program gets. Needs
        CAP_SYS_ADMIN (bpf_map_get_fd_by_id in kernel/bpf/syscall.c)."""
        lay = self.layout
        self._loop(Stage.MAP, lay.existing_at, "existing", lay.made)
        self._sys_bpf(MAP_GET_FD_BY_ID, blob.GET_ATTR_SIZE, "existing")
        self._keep_fd(0)
        self._next(blob.GET_STRIDE, lay.maps, "existing")

    def _fd_of(self, first: int, count: int, index: int, member: int, name: str) -> None:
        """record.member = fds[first + record.index]; the bound is for the verifier."""
        a = self.asm
        a.ldx(4, R.R1, R.R8, index)
        a.jump_if(R.R1, "<", count, f"{name}_index")
        a.mov(R.R0, -errno.EINVAL)
        a.jump("fail")
        a.label(f"{name}_index")
        a.alu("lsh", R.R1, 2)
        a.add(R.R1, R.R7)
        a.ldx(4, R.R1, R.R1, blob.FDS + 4 * first)
        a.stx(4, R.R8, member, R.R1)

    def _fill_maps(self) -> None:
        lay = self.layout
        self._loop(Stage.INITIAL, lay.updates_at, "initial")
        self._fd_of(0, lay.maps, blob.U_INDEX, blob.U_MAP_FD, "initial")
        self._relocate(blob.U_KEY, blob.U_VALUE)
        self._sys_bpf(MAP_UPDATE_ELEM, blob.UPDATE_ATTR_SIZE, "initial")
        self._next(blob.UPDATE_STRIDE, lay.updates, "initial")

    def _freeze_maps(self) -> None:
        lay = self.layout
        self._loop(Stage.FREEZE, lay.freezes_at, "freeze")
        self._fd_of(0, lay.maps, blob.F_INDEX, blob.F_MAP_FD, "freeze")
        self._sys_bpf(MAP_FREEZE, blob.FREEZE_ATTR_SIZE, "freeze")
        self._next(blob.FREEZE_STRIDE, lay.freezes, "freeze")

    def _find_targets(self) -> None:
        """Programs on functions of modules: the helper finds the name in any BTF and gives id and a BTF fd, which
        goes into the program's attr and is closed at the end. The id must be the sealed one."""
        a, lay = self.asm, self.layout
        self._stage(Stage.TARGET)
        for n, target in enumerate(lay.modules):
            a.ldx(8, R.R1, R.R10, -8)
            a.mov(R.R2, target.program)
            a.stx(4, R.R1, CTX_INDEX, R.R2)
            self._records(target.name)
            a.mov(R.R1, R.R8)
            a.mov(R.R2, target.name_size)
            a.mov(R.R3, target.kind)
            a.mov(R.R4, 0)
            a.call(H_FIND_BTF)
            self._ok_or_fail(f"target{n}_found")
            self._records(lay.programs_at + target.program * blob.PROG_ATTR_SIZE)
            a.mov(R.R1, R.R0)
            a.alu("rsh", R.R1, 32)
            a.stx(4, R.R8, blob.P_ATTACH_BTF_OBJ_FD, R.R1)
            a.jump_if(R.R0, "==", target.btf_id, f"target{n}_same", bits=32)
            a.mov(R.R0, -errno.ENOENT)
            a.jump("fail")
            a.label(f"target{n}_same")

    def _load_programs(self) -> None:
        lay = self.layout
        self._loop(Stage.PROGRAM, lay.programs_at, "program")
        self._relocate(*blob.PROG_POINTERS)
        self._btf_fd(blob.P_BTF_FD)
        self._log(blob.P_LOG_BUF, blob.P_LOG_SIZE, blob.P_LOG_LEVEL)
        self._sys_bpf(PROG_LOAD, blob.PROG_ATTR_SIZE, "program")
        self._keep_fd(lay.maps)
        self._next(blob.PROG_ATTR_SIZE, lay.programs, "program")

    def _link_programs(self) -> None:
        """Attach those whose target is part of what was loaded: nobody gets a chance to do less or something else."""
        lay = self.layout
        self._loop(Stage.LINK, lay.links_at, "link")
        self._fd_of(lay.maps, lay.programs, blob.L_INDEX, blob.L_PROG_FD, "link")
        self._sys_bpf(LINK_CREATE, blob.LINK_ATTR_SIZE, "link")
        self._keep_fd(lay.maps + lay.programs)
        self._next(blob.LINK_STRIDE, lay.links, "link")

    # The end

    def _close_extras(self) -> None:
        """BTF descriptors: nobody needs them once the programs are loaded. Closing -1 or a descriptor that is not
        there is harmless, except 0, which an unfilled member of an attr is."""
        a, lay = self.asm, self.layout
        if lay.btf_at:
            a.ldx(4, R.R1, R.R7, blob.H_BTF_FD)
            a.call(H_SYS_CLOSE)
        for target in lay.modules:
            self._records(lay.programs_at + target.program * blob.PROG_ATTR_SIZE)
            name = f"module{target.program}_{len(a)}"
            a.ldx(4, R.R1, R.R8, blob.P_ATTACH_BTF_OBJ_FD)
            a.jump_if(R.R1, "==", 0, name)
            a.call(H_SYS_CLOSE)
            a.label(name)

    def _finish(self) -> None:
        a, lay = self.asm, self.layout
        self._close_extras()
        self._stage(Stage.DONE)
        a.mov(R.R2, 0)
        a.stx(4, R.R1, CTX_INDEX, R.R2)
        for pair in range((lay.objects + 1) // 2):
            a.ldx(8, R.R2, R.R7, blob.FDS + 8 * pair)
            a.stx(8, R.R1, CTX_FDS + 8 * pair, R.R2)
        a.ret(0)

    def _fail(self) -> None:
        a, lay = self.asm, self.layout
        a.label("fail")
        a.mov(R.R6, R.R0)
        a.ldx(8, R.R1, R.R10, -8)
        a.stx(4, R.R1, CTX_ERRNO, R.R6)
        self._close_extras()
        if lay.objects:
            a.mov(R.R9, 0)
            a.label("close")
            a.mov(R.R1, R.R9)
            a.alu("lsh", R.R1, 2)
            a.add(R.R1, R.R7)
            a.ldx(4, R.R1, R.R1, blob.FDS)
            a.call(H_SYS_CLOSE)
            a.add(R.R9, 1)
            a.jump_if(R.R9, "<", lay.objects, "close")
        a.mov(R.R0, R.R6)
        a.exit()
