"""What providers look at: kernel types, tracefs, symbols, the traced process. Each is opened when first asked for."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from bpfseal.dsl.env import Target
from bpfseal.errors import BpfsealError
from bpfseal.runtime.tracefs import Tracefs, tracefs

if TYPE_CHECKING:
    from bpfseal.compiler.kernel import KernelTypes
    from bpfseal.runtime.probes.functions import KernelFunctions


class World:
    """Sources of names and types, shared by the providers of one compilation."""

    def __init__(self, target: Target | None = None) -> None:
        self.target = target if target is not None else Target()

    @cached_property
    def types(self) -> KernelTypes | None:
        """Kernel types, None on a kernel without BTF."""
        from bpfseal.compiler.kernel import KernelTypes

        try:
            return KernelTypes()
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
