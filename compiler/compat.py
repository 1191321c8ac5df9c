"""Where a task says that it runs a 32-bit system call.

x86: thread_info.status & TS_COMPAT (arch/x86/include/asm/thread_info.h); arm64: thread_info.flags & TIF_32BIT
(arch/arm64/include/asm/thread_info.h). thread_info is the first member of task_struct on both.
"""

from __future__ import annotations

import platform
from typing import Final

from bpfseal.compiler.unit import Unit

_FLAGS: Final = {"x86_64": ("status", 1 << 1), "aarch64": ("flags", 1 << 22)}


def compat_flag(unit: Unit) -> tuple[int, int] | None:
    """(offset in task_struct, mask) of the 32-bit word that has the flag; None where there are no such calls."""
    where = _FLAGS.get(platform.machine())
    info = unit.kernel.record("struct thread_info") if where is not None else None
    field = info.field(where[0]) if info is not None and where is not None else None
    return (field.offset, where[1]) if field is not None and where is not None else None
