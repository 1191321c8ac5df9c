"""%gr: the flags of a kernel memory allocation by name.

Bits as the kernel numbers them since Linux 6.10 (enum in include/linux/gfp_types.h); names that stand for several bits
come first, in the order in which the kernel's own trace events try them (include/trace/events/mmflags.h).
"""

from __future__ import annotations

_ORDER = (
    "DMA HIGHMEM DMA32 MOVABLE RECLAIMABLE HIGH IO FS ZERO - DIRECT_RECLAIM KSWAPD_RECLAIM WRITE NOWARN RETRY_MAYFAIL "
    "NOFAIL NORETRY MEMALLOC COMP NOMEMALLOC HARDWALL THISNODE ACCOUNT ZEROTAGS SKIP_ZERO SKIP_KASAN NO_OBJ_EXT"
).split()
_BIT = {name: 1 << number for number, name in enumerate(_ORDER) if name != "-"}


def _union(names: str) -> int:
    return sum(_BIT[name] for name in names.split())


_USER = "DIRECT_RECLAIM KSWAPD_RECLAIM IO FS HARDWALL"
_MOVABLE = f"{_USER} HIGHMEM MOVABLE SKIP_KASAN"
_LIGHT = "IO FS HARDWALL HIGHMEM MOVABLE SKIP_KASAN COMP NOMEMALLOC NOWARN"
_TOGETHER = {
    "TRANSHUGE": f"{_LIGHT} DIRECT_RECLAIM",
    "TRANSHUGE_LIGHT": _LIGHT,
    "HIGHUSER_MOVABLE": _MOVABLE,
    "HIGHUSER": f"{_USER} HIGHMEM",
    "USER": _USER,
    "KERNEL_ACCOUNT": "DIRECT_RECLAIM KSWAPD_RECLAIM IO FS ACCOUNT",
    "KERNEL": "DIRECT_RECLAIM KSWAPD_RECLAIM IO FS",
    "NOFS": "DIRECT_RECLAIM KSWAPD_RECLAIM IO",
    "ATOMIC": "HIGH KSWAPD_RECLAIM",
    "NOIO": "DIRECT_RECLAIM KSWAPD_RECLAIM",
    "NOWAIT": "KSWAPD_RECLAIM NOWARN",
}
_ALONE = {"DMA": "GFP_DMA", "DMA32": "GFP_DMA32"}
_NAMES = [(_union(names), f"GFP_{name}") for name, names in _TOGETHER.items()]
_NAMES += [(bit, _ALONE.get(name, f"__GFP_{name}")) for name, bit in _BIT.items()]


def gfp_text(flags: int) -> str:
    """ "GFP_KERNEL|__GFP_ZERO"; bits without a name in hexadecimal, no bits at all "0"."""
    found = []
    for bits, name in _NAMES:
        if flags & bits == bits:
            found.append(name)
            flags &= ~bits
    if flags or not found:
        found.append(f"0x{flags:x}" if flags else "0")
    return "|".join(found)
