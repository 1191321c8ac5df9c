"""Programs on functions of another program, inside a test kernel: one JSON object, attempt → errno and what ran.

The target returns 2 (XDP_PASS) for a packet; a program on its entry counts, an extension makes it 1.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
from typing import Any

sys.argv[1:2] = sys.argv[1:2] or ["others"]  # the name that the programs of `attempts` have

from bpfseal.runtime import bpf  # noqa: E402
from bpfseal.signer import bpf as raw  # noqa: E402
from bpfseal.signer.asm import Asm, R  # noqa: E402
from bpfseal.signer.syscall import syscall  # noqa: E402
from tests.bridge.attempts import _MEMBERS, array, code, records  # noqa: E402

PACKET = bytes(64)
XDP, TRACING, EXT = 6, 26, 28
FENTRY = 24


MAIN = 5


def types() -> int:
    """BTF with `int main(struct xdp_md *)`: 1 int, 2 the struct, 3 its pointer, 4 the prototype, 5 the function, which
    is global: only such functions can be replaced, and only if their first argument is the context."""
    names = b"\0int\0xdp_md\0ctx\0main\0"
    body = struct.pack("<IIII", 1, 1 << 24, 4, 1 << 24 | 32) + struct.pack("<III", 5, 4 << 24, 24)
    body += struct.pack("<III", 0, 2 << 24, 2) + struct.pack("<IIIII", 0, 13 << 24 | 1, 1, 12, 3)
    body += struct.pack("<III", 16, 12 << 24 | 1, 4)
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(names))
    return bpf.btf_load(header + body + names)


def load(program: bytes, **members: int) -> int:
    """The descriptor of a program whose only function is that of `types`. Raises OSError."""
    text, licence = ctypes.create_string_buffer(program, len(program)), ctypes.create_string_buffer(b"GPL")
    attr = ctypes.create_string_buffer(168)
    values = {"insn_cnt": len(program) // 8, "insns": ctypes.addressof(text), "license": ctypes.addressof(licence)}
    values |= {"func_info": records(0, MAIN), "func_cnt": 1, "func_size": 8, "btf_fd": types()}
    for member, value in (values | members).items():
        offset, form = _MEMBERS[member]
        struct.pack_into("<" + form, attr, offset, value)
    attr[48:54] = b"others"
    return syscall("bpf", 5, attr, 168)


def returning(value: int) -> bytes:
    return code(lambda a: (a.mov(R.R0, value), a.exit()))


def counting(map_fd: int) -> bytes:
    def build(a: Asm) -> None:
        a.ld_pseudo(R.R1, 2, map_fd)
        a.mov(R.R2, 1)
        a.atomic_add(8, R.R1, 0, R.R2)
        a.ret(0)

    return code(build)


def link(program: int, target: int, attach_type: int, id: int) -> int:
    """BPF_LINK_CREATE: to a function of a program, by the id of its type; 0 for the one of the load."""
    return raw.bpf(28, struct.pack("<IIIIII", program, target, attach_type, 0, id, 0).ljust(48, b"\0"))


def attempt() -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        target = load(returning(2), type=XDP)
        found["target"] = bpf.prog_run(target, data=PACKET)[0]
        counts = array()
        fentry = load(counting(counts), type=TRACING, attach_type=FENTRY, btf_id=MAIN, attach_fd=target)
        with bpf.Fd(link(fentry, 0, FENTRY, 0)):
            bpf.prog_run(target, data=PACKET)[0]
        found["fentry"] = int.from_bytes(bpf.map_lookup(counts, bytes(4), 8) or b"", "little")
        extension = load(returning(1), type=EXT, btf_id=MAIN, attach_fd=target)
        with bpf.Fd(link(extension, 0, 0, 0)):
            found["replaced"] = bpf.prog_run(target, data=PACKET)[0]
        found["again"] = bpf.prog_run(target, data=PACKET)[0]
    except OSError as error:
        found["errno"] = error.errno
    return found


if __name__ == "__main__":
    print(json.dumps(attempt()))
    os._exit(0)
