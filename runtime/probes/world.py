"""What providers look at: kernel types, tracefs, symbols, the traced process. Each is opened when first asked for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from bpfseal.errors import BpfsealError
from bpfseal.runtime.tracefs import Tracefs, tracefs

if TYPE_CHECKING:
    from bpfseal.compiler.kernel import KernelTypes
    from bpfseal.dsl.env import Target
    from bpfseal.runtime.dwarf import Dwarf
    from bpfseal.runtime.elf import Elf
    from bpfseal.runtime.probes.btf_names import BtfNames
    from bpfseal.runtime.probes.functions import KernelFunctions


class World:
    """Sources of names and types, shared by the providers of one compilation."""

    def __init__(self, target: Target | None = None) -> None:
        self._target = target
        self.binaries: dict[str, None] = {}  # that probes were expanded in, in order
        self._debug: dict[str, Dwarf] = {}

    @property
    def target(self) -> Target:
        """The traced process, as given on the command line."""
        if self._target is None:
            from bpfseal.dsl.env import Target

            self._target = Target()
        return self._target

    @cached_property
    def types(self) -> KernelTypes | None:
        """Kernel types, None on a kernel without BTF."""
        from bpfseal.compiler.kernel import KernelTypes

        try:
            return KernelTypes()
        except BpfsealError:
            return None

    @cached_property
    def names(self) -> BtfNames | None:
        """Names of what is in the kernel's BTF, None on a kernel without."""
        from bpfseal.runtime.probes.btf_names import BtfNames

        try:
            return BtfNames()
        except BpfsealError:
            return None

    @property
    def tracefs(self) -> Tracefs:
        """Raises TracefsError."""
        return tracefs()

    @cached_property
    def functions(self) -> KernelFunctions:
        """Kernel functions and which of them can be probed."""
        from bpfseal.runtime.probes.functions import KernelFunctions

        return KernelFunctions(self)

    @cached_property
    def events(self) -> list[tuple[str, str]]:
        """(category, event) of every tracepoint, sorted. Raises TracefsError."""
        return self.tracefs.events()

    def debug_info(self, elf: Elf) -> Dwarf:
        """Debug information of a user program, kept: its records are asked for later. Raises DwarfError."""
        from bpfseal.runtime.dwarf import Dwarf

        if elf.path not in self._debug:
            types = self.types
            self._debug[elf.path] = Dwarf(elf, lambda name: types is not None and types.record(name) is not None)
        return self._debug[elf.path]

    def programs(self) -> Iterator[Dwarf]:
        """Debug information of every traced user program that has some."""
        from bpfseal.runtime.probes.binaries import open_elf

        for path in self.binaries:
            try:
                yield self.debug_info(open_elf(path))
            except BpfsealError:
                continue
