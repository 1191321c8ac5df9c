"""Changes of decoded values: one thing in a message or bundle becomes another of the same type."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec

from tests.fuzz.loop import mutate

NUMBERS = (0, 1, 2, 3, 4, 8, 24, 31, 255, 4096, 65536, 1 << 31, (1 << 32) - 1, 1 << 32, -1, 1 << 63, (1 << 64) - 1)
_TEXTS = ("", "vfs_read", "\u202e")
# Fields that hold much are chosen eight times as often.
_HEAVY = {"programs", "maps", "insns", "btf", "attach", "func_info", "line_info", "initial", "helpers", "symbols"}
_HEAVY |= {"request", "bundle"}
_fields: dict[type, tuple[str, ...]] = {}


def changed(rng: random.Random, value: Any, others: Sequence[bytes]) -> Any:
    """`value` with one thing in it changed, of the same type."""
    draw = rng.random
    if isinstance(value, msgspec.Struct):
        kind = type(value)
        names = _fields.get(kind)
        if names is None:
            names = tuple(n for n in kind.__struct_fields__ for _ in range(8 if n in _HEAVY else 1))
            _fields[kind] = names
        if not names:
            return value
        name = names[int(draw() * len(names))]
        return msgspec.structs.replace(value, **{name: changed(rng, getattr(value, name), others)})
    if isinstance(value, bytes):
        return mutate(rng, value, others)
    if isinstance(value, tuple):
        if not value:
            return value
        items = list(value)
        at = int(draw() * len(items))
        way = draw()
        if way < 0.1:
            del items[at]
        elif way < 0.2:
            items.insert(at, rng.choice(items))
        else:
            items[at] = changed(rng, items[at], others)
        return tuple(items)
    if isinstance(value, str):
        way = int(draw() * 6)
        return _TEXTS[way] if way < 3 else (value + "\x1b", value[:-1], value * 3 + "\0")[way - 3]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        way = int(draw() * (len(NUMBERS) + 3))
        if way < len(NUMBERS):
            return NUMBERS[way]
        return (value + 1, value - 1, value ^ 1 << int(draw() * 32))[way - len(NUMBERS)]
    if isinstance(value, dict):
        return value | {rng.choice(("retprobe", "type", "x\0")): rng.choice(NUMBERS)}
    return value
