"""An environment in which nothing exists but what C always has."""

from __future__ import annotations

from collections.abc import Sequence

from bpfseal.dsl.env import Args, AttachSpec, Point, Target
from bpfseal.dsl.types import Enum, RecordInfo, Type


class EmptyEnvironment:
    target = Target()

    def expand(self, spec: AttachSpec) -> Sequence[Point]:
        return ()

    def args(self, point: Point) -> Args:
        return Args(None)

    def record(self, name: str) -> RecordInfo | None:
        return None

    def type_named(self, name: str) -> Type | None:
        return None

    def enum(self, type: Enum) -> dict[int, str] | None:
        return None

    def constant(self, name: str) -> tuple[int, Type] | None:
        return None

    def kernel_symbol(self, name: str) -> int | None:
        return None

    def user_symbol(self, path: str, name: str) -> tuple[int, int] | None:
        return None

    def cgroup_id(self, path: str) -> int | None:
        return None

    def kfunc(self, name: str) -> bool:
        return False

    def suggest(self, what: str, name: str) -> list[str]:
        return []
