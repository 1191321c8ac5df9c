"""`RealEnvironment`: this machine, as the checker asks about it (`dsl.env.Environment`)."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from bpfseal.dsl.env import Args, AttachSpec, CFunction, Point, Target
from bpfseal.dsl.types import Enum, RecordInfo, Type
from bpfseal.errors import BpfsealError
from bpfseal.runtime.probes import provider
from bpfseal.runtime.probes.world import World


class RealEnvironment:
    """Probe points, kernel types and constants of the running machine, seen for one traced target."""

    def __init__(self, target: Target | None = None) -> None:
        self.world = World(target)
        self.target = self.world.target
        self._expanded: dict[AttachSpec, Sequence[Point]] = {}
        self._arguments: dict[Point, Args] = {}

    def expand(self, spec: AttachSpec) -> Sequence[Point]:
        if spec not in self._expanded:
            self._expanded[spec] = provider(spec.kind).expand(self.world, spec)
        return self._expanded[spec]

    def args(self, point: Point) -> Args:
        if point not in self._arguments:
            self._arguments[point] = provider(point.kind).args(self.world, point)
        return self._arguments[point]

    def record(self, name: str) -> RecordInfo | None:
        """The kernel's, else that of a traced program with debug information."""
        found = self.world.types.record(name) if self.world.types is not None else None
        if found is not None:
            return found
        return next(filter(None, (program.record(name) for program in self.world.programs())), None)

    def type_named(self, name: str) -> Type | None:
        found = self.world.types.type_named(name) if self.world.types is not None else None
        if found is not None or not name.startswith(("struct ", "union ")):
            return found
        return next(filter(None, (program.record_type(name) for program in self.world.programs())), None)

    def enum(self, type: Enum) -> dict[int, str] | None:
        return self.world.types.enum(type.name) if self.world.types is not None else None

    def constant(self, name: str) -> tuple[int, Type] | None:
        from bpfseal.compiler.kernel_constants import macro

        found = self.world.types.constant(name) if self.world.types is not None else None
        return found if found is not None else macro(name)

    def kernel_symbol(self, name: str) -> int | None:
        return self.world.functions.address(name)

    def user_symbol(self, path: str, name: str) -> tuple[int, int] | None:
        from bpfseal.runtime.probes.binaries import open_elf

        try:
            found = open_elf(path).object_named(name)
        except BpfsealError:
            return None
        return (found.address, found.size) if found is not None else None

    def cgroup_id(self, path: str) -> int | None:
        """The inode number of the directory, which is the 64-bit id (kernfs)."""
        try:
            status = os.stat(path)
        except OSError:
            return None
        return status.st_ino if stat.S_ISDIR(status.st_mode) else None

    def kfunc(self, name: str) -> bool:
        return self.world.types.kfunc(name) if self.world.types is not None else False

    def c_functions(self, path: str, text: str) -> Sequence[CFunction]:
        from bpfseal.compiler.external import compile_c

        return tuple(compile_c(path, text).prototypes.values())

    def suggest(self, what: str, name: str) -> list[str]:
        from bpfseal.runtime.suggest import near

        return near(self.world, what, name)
