"""The running kernel's names for BTF ids in a program: functions that it calls, variables whose address it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bpfseal.signer import btf as btf_kinds
from bpfseal.signer.btf import Btf, BtfError
from bpfseal.signer.refusal import Refusal


class Kfunc(NamedTuple):
    """A kernel function that programs may call: `writes` has bit i set if argument i is a pointer to non-const."""

    name: str
    arguments: int
    writes: int


class Kernel:
    """The running kernel's names for ids, looked up once. `btf` is called when the first id has to be resolved."""

    def __init__(self, btf: Callable[[], Btf] = Btf.vmlinux) -> None:
        self.btf = btf
        self._kfuncs: dict[int, Kfunc] = {}

    def kfunc(self, id: int) -> Kfunc:
        """Raises Refusal if the id is not that of a function that is marked as a kfunc."""
        known = self._kfuncs.get(id)
        if known is None:
            known = self._kfuncs[id] = self._resolve(id)
        return known

    def _resolve(self, id: int) -> Kfunc:
        btf = self.btf()
        name = str(id)
        try:
            name = btf.name(id) or name
            if btf.kind(id) != btf_kinds.FUNC:
                raise Refusal("kfunc", f"call of BTF type {id} ({name}), which is not a function", attribute=name)
            if not btf.is_kfunc(id):
                raise Refusal("kfunc", f"call of {name}, which is not a kfunc", attribute=name)
            params, writes = btf.params(btf.size_or_type(id)), 0
            for number, (_name, type_id) in enumerate(params, 1):
                pointer = btf.resolve(type_id)
                if btf.kind(pointer) == btf_kinds.PTR and not _is_const(btf, btf.size_or_type(pointer)):
                    writes |= 1 << number
        except BtfError as error:
            raise Refusal("kfunc", f"call of {name}: {error}", attribute=name) from None
        return Kfunc(name, min(len(params), 5), writes)

    def variable(self, id: int) -> str:
        """Name of a kernel variable. Raises Refusal if the id is something else."""
        btf = self.btf()
        try:
            if btf.kind(id) == btf_kinds.VAR:
                return btf.name(id)
        except BtfError as error:
            raise Refusal("pseudo", f"kernel variable {id}: {error}") from None
        raise Refusal("pseudo", f"BTF type {id} is not a kernel variable")


def _is_const(btf: Btf, id: int) -> bool:
    for _ in range(16):
        kind = btf.kind(id)
        if kind == btf_kinds.CONST:
            return True
        if kind not in (btf_kinds.VOLATILE, btf_kinds.RESTRICT, btf_kinds.TYPE_TAG, btf_kinds.TYPEDEF):
            return False
        id = btf.size_or_type(id)
    return False
