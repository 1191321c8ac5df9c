"""Programs that are attached to functions of other BPF programs: how `ProgramSpec.attach_module` names those.

The kernel takes a descriptor of the other program. bpf_sys_bpf() cannot ask for a program by its id
(kernel/bpf/syscall.c), so what is sealed is the descriptor's number in the process that loads. That the id is the same
program's, and what the program's functions are called, is the client's word.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from bpfseal.signer.refusal import Refusal

_PROGRAM: Final = re.compile(r"prog-([1-9]\d{0,9})@(\d{1,9})", re.ASCII)


class ProgramTarget(NamedTuple):
    """Another program: its id, and its descriptor in the process that loads."""

    id: int
    fd: int


def program_target(module: str) -> ProgramTarget | None:
    """What `attach_module` says of a program; None for the kernel and its modules, in whose names there is no "-".
    Raises Refusal for half of one."""
    if "-" not in module and "@" not in module:
        return None
    found = _PROGRAM.fullmatch(module)
    if found is None or int(found[1]) >> 32 or int(found[2]) >> 31:
        raise Refusal("attach-btf", f"bad target program {module[:64]!r}", attribute="attach_module")
    return ProgramTarget(int(found[1]), int(found[2]))
