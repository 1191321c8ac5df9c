"""Which signing ABI the running kernel has, found by trying.

No version and no BTF member tells the ABIs apart: 7.2 already has the verdict fields of v2 and still covers the
instructions only. So a tiny program is signed and loaded under the rules of each, once per start of the helper.

    2   the signature covers instructions and contents of every map in fd_array (Linux 7.3)
    1   it covers the instructions; the loader checks its metadata map itself (Linux 6.18 to 7.2)
    0   this kernel does not verify, or is not to be trusted with it
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct

from bpfseal.errors import BpfsealError
from bpfseal.signer import bpf
from bpfseal.signer.asm import Asm, R
from bpfseal.signer.loader import ExclField

if TYPE_CHECKING:
    from bpfseal.signer.btf import Btf

_VALUE = b"bpfseal?"
# Verified; EPERM is an LSM's no to a program whose signature was found good (enforcement that does not know this
# helper's keyring yet). What the kernel cannot verify is refused before, with EKEYREJECTED.
_GOOD = (0, errno.EPERM)


class Abi(Struct, frozen=True):
    """`excl` is set for version 1, `why` (one clause) for version 0. `can_verify`: the kernel looks at signatures,
    though it may have refused this one (a key it does not know, an algorithm it lacks)."""

    version: int
    excl: ExclField | None
    why: str
    can_verify: bool = False


def probe(sign: Callable[[bytes], bytes], keyring: int) -> Abi:
    """The ABI of this kernel. `sign` makes a DER PKCS#7 that `keyring` (serial) verifies. Never raises."""
    try:
        return _probe(sign, keyring)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            return Abi(0, None, f"bpf(2) is not permitted to the signing helper: {error.strerror}")
        return Abi(0, None, f"the probe of the kernel's signing failed: {error.strerror}")


def _probe(sign: Callable[[bytes], bytes], keyring: int) -> Abi:
    code = _two_instructions()
    try:
        meta = bpf.map_create(
            bpf.MAP_TYPE_ARRAY, 4, len(_VALUE), 1, name=b"bpfseal_probe", excl_prog_hash=hashlib.sha256(code).digest()
        )
    except OSError as error:
        if error.errno in (errno.E2BIG, errno.EINVAL):
            return Abi(0, None, "it is older than signed BPF programs (Linux 6.18)")
        raise
    try:
        bpf.map_update(meta, bytes(4), _VALUE)
        early = _code_of(lambda: bpf.map_hash(meta))
        bpf.map_freeze(meta)
        return _judge(code, meta, early, sign, keyring)
    finally:
        os.close(meta)


def _judge(code: bytes, meta: int, early: int, sign: Callable[[bytes], bytes], keyring: int) -> Abi:
    def attempt(content: bytes, *, v2: bool) -> int:
        signature = sign(content)
        return _code_of(
            lambda: bpf.prog_load(
                bpf.PROG_TYPE_SYSCALL,
                code,
                flags=bpf.F_SLEEPABLE,
                name=b"bpfseal_probe",
                fds=(meta,) if v2 else (),
                bind_fds=v2,
                signature=signature,
                keyring=keyring,
            ),
            keep=False,
        )

    v2 = attempt(code + _VALUE, v2=True)
    if v2 in (errno.EOPNOTSUPP, errno.E2BIG):
        return Abi(0, None, "it was built without CONFIG_SYSTEM_DATA_VERIFICATION, or is older than Linux 6.18")
    if v2 not in (*_GOOD, errno.EKEYREJECTED):
        return Abi(0, None, f"it refuses the helper's signature: {os.strerror(v2)}", can_verify=True)
    wrong = attempt(code + _VALUE[::-1], v2=True)
    if v2 == wrong == errno.EPERM:
        return Abi(0, None, "bpf(2) is not permitted to the signing helper")
    # A kernel that takes anything at all as a signature verifies nothing.
    if wrong != errno.EKEYREJECTED or early == 0:
        what = "a map could be hashed before it was frozen (CVE-2026-45927)" if early == 0 else "it took a wrong one"
        return Abi(0, None, f"its signatures are not trustworthy: {what}")
    if v2 in _GOOD:
        return Abi(2, None, "", can_verify=True)
    v1 = attempt(code, v2=False)
    if v1 not in _GOOD:
        return Abi(0, None, f"it refuses the helper's signature: {os.strerror(v1)}", can_verify=True)
    try:
        return Abi(1, excl_field(), "", can_verify=True)
    except BpfsealError as error:
        return Abi(0, None, f"signed loaders cannot be made safe on it: {error.message}", can_verify=True)


def excl_field(types: Btf | None = None) -> ExclField:
    """The member of `struct bpf_map` that is non-zero for exclusive maps: `excl`, or before that `excl_prog_sha`; in
    the running kernel or in `types`.

    Raises BpfsealError where the kernel has no BTF or neither member.
    """
    from bpfseal.signer.btf import STRUCT, Btf

    types = types or Btf.vmlinux()
    members = {name: (bits, type) for name, type, bits, _ in types.members(types.find("bpf_map", STRUCT))}
    for name, size in (("excl", 4), ("excl_prog_sha", 8)):
        if name in members:
            return ExclField(members[name][0] // 8, size)
    raise BpfsealError("struct bpf_map does not say whether a map is exclusive")


def _two_instructions() -> bytes:
    a = Asm()
    a.mov(R.R0, 0)
    a.exit()
    return a.code()


def _code_of(call: Callable[[], object], *, keep: bool = True) -> int:
    """0, or the errno that `call` failed with; closes the descriptor it gives unless `keep`."""
    try:
        result = call()
    except OSError as error:
        return error.errno or errno.EIO
    if not keep and isinstance(result, int):
        os.close(result)
    return 0
