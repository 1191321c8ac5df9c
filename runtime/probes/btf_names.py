"""Names in the kernel's BTF, for listings: without the language's types, whose import takes longer than to list."""

from __future__ import annotations

import os
from typing import Final

from bpfseal.compiler import kernel_index
from bpfseal.signer import btf as raw
from bpfseal.signer.btf import Btf, BtfError

_SYSFS: Final = "/sys/kernel/btf"


class BtfNames:
    """Raises BtfError where the kernel has no BTF."""

    def __init__(self) -> None:
        data = Btf.vmlinux().raw
        self._index = kernel_index.load(data)
        self._vmlinux = Btf(data, positions=self._index.positions)

    def modules(self) -> list[str]:
        """Modules with BTF, sorted, "vmlinux" among them."""
        try:
            return sorted(os.listdir(_SYSFS))
        except OSError:
            return ["vmlinux"]

    def functions(self, module: str) -> list[str]:
        """Functions of "vmlinux" or a module, sorted; none when it has just gone."""
        if module == "vmlinux" and (text := self._index.functions()) is not None:
            return text.decode().strip("\n").split("\n")
        btf = self._btf(module)
        return sorted({name for name, _ in btf.all_named(raw.FUNC)}) if btf is not None else []

    def typedefs_behind(self, module: str, prefix: str) -> list[str]:
        """Rests of the names that begin with `prefix`, sorted."""
        btf = self._btf(module)
        return btf.strings_behind(prefix) if btf is not None else []

    def _btf(self, module: str) -> Btf | None:
        if module == "vmlinux":
            return self._vmlinux
        try:
            with open(os.path.join(_SYSFS, module), "rb") as file:
                return Btf(file.read(), self._vmlinux)
        except (OSError, BtfError):
            return None
