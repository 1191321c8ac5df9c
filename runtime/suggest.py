"""Names near to one that does not exist: for the hint under an error message.

Comparing every name with difflib takes seconds for 60,000 functions. A cheap screen by shared pieces of four letters
leaves a few hundred, which difflib then orders.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

from bpfseal.errors import BpfsealError
from bpfseal.runtime.probes import MODULES, provider
from bpfseal.runtime.probes.world import World

_SHOWN: Final = 3
_COMPARED: Final = 400
_PIECE: Final = 4


def near(world: World, what: str, name: str) -> list[str]:
    """Up to three names of the sort `what` that are near to `name`: a probe kind (then `name` is an attach point as
    written and so is what comes back), "type", "constant", "function"."""
    try:
        if what not in MODULES:
            return closest(name, _candidates(world, what))
        _, _, rest = name.partition(":")
        return [f"{what}:{found}" for found in closest(rest, provider(what).names(world, what, rest))]
    except (BpfsealError, OSError):
        return []


def closest(name: str, candidates: Iterable[str]) -> list[str]:
    """The best of `candidates`, best first; none when nothing is near."""
    from difflib import get_close_matches

    wanted = name.lower()
    pieces = {wanted[i : i + _PIECE] for i in range(max(len(wanted) - _PIECE + 1, 1))}
    scored = []
    for candidate in candidates:
        if abs(len(candidate) - len(wanted)) <= max(len(wanted) // 2, 3):
            low = candidate.lower()
            score = sum(piece in low for piece in pieces)
            if score or len(wanted) < 2 * _PIECE:
                scored.append((-score, candidate))
    scored.sort()
    return get_close_matches(name, [candidate for _, candidate in islice(scored, _COMPARED)], _SHOWN, 0.6)


def _candidates(world: World, what: str) -> Iterable[str]:
    if world.types is None:
        return ()
    if what == "function":
        return world.types.function_names().decode().split()
    if what == "constant":
        from bpfseal.compiler.kernel_constants import names

        return [*names(), *world.types.constant_names()]
    if what == "type":
        return world.types.type_names()
    return ()
