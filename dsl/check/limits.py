"""Limits of the kernel, explained before the kernel refuses."""

from __future__ import annotations

from bpfseal.dsl.check.state import State
from bpfseal.dsl.types import Aggregate, size_of

MAX_ENTRY = (1 << 22) - 64  # KMALLOC_MAX_SIZE, kernel/bpf/hashtab.c htab_map_alloc_check
MAX_KEY = (1 << 16) - 8  # what the signing helper takes, less a histogram's bucket number
MAX_PER_CPU_VALUE = 32 << 10  # PCPU_MIN_UNIT_SIZE, include/linux/percpu.h


def maps(c: State) -> None:
    """Sizes of keys and values."""
    for info in c.memory.maps.values():
        if info.value is None:
            continue
        key = size_of(info.key) if info.keyed and info.key is not None else 4
        value = size_of(info.value)
        if key > MAX_KEY:
            hint = "str(…, LENGTH) or a smaller max_strlen makes strings shorter"
            c.error(info.span, f"a key of @{info.name} takes {key} bytes, at most {MAX_KEY} are possible", hint)
        elif key + value > MAX_ENTRY:
            c.error(info.span, f"an entry of @{info.name} takes {key + value} bytes, at most {MAX_ENTRY} are possible")
        elif isinstance(info.value, Aggregate) and value > MAX_PER_CPU_VALUE:
            c.error(info.span, f"a value of @{info.name} takes {value} bytes per processor, the kernel allows 32768")
