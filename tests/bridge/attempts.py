"""A tool that tries loads and prints what the kernel says: one JSON object, case → errno, log, what became of the
attributes. Run by itself and under the bridge, the answers have to be the same. `attempts.py NAME [CASE…]`"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bpfseal.runtime.bpf import btf_load
from bpfseal.signer import bpf
from bpfseal.signer.asm import Asm, R
from bpfseal.signer.syscall import address_of, syscall

NAME = sys.argv[1].encode()
_MEMBERS = {
    "type": (0, "I"), "insn_cnt": (4, "I"), "insns": (8, "Q"), "license": (16, "Q"), "log_level": (24, "I"),
    "log_size": (28, "I"), "log_buf": (32, "Q"), "flags": (44, "I"), "ifindex": (64, "I"), "attach_type": (68, "I"),
    "btf_fd": (72, "I"), "func_size": (76, "I"), "func_info": (80, "Q"), "func_cnt": (88, "I"), "line_size": (92, "I"),
    "line_info": (96, "Q"), "line_cnt": (104, "I"), "btf_id": (108, "I"), "attach_fd": (112, "I"),
    "relo_cnt": (116, "I"), "fd_array": (120, "Q"), "relos": (128, "Q"), "relo_size": (136, "I"), "token": (144, "i"),
    "fd_array_cnt": (148, "I"), "signature": (152, "Q"), "signature_size": (160, "I"), "keyring": (164, "i"),
}  # fmt: skip

GOOD = b"\xb7\0\0\0\0\0\0\0\x95\0\0\0\0\0\0\0"
ALLOWS = b"\xb7\0\0\0\1\0\0\0" + GOOD[8:]  # return 1
_keep: list[Any] = []


def load(
    program: bytes = GOOD,
    /,
    *,
    size: int = 168,
    log: int = 4096,
    level: int = 1,
    name: bytes = NAME,
    run: bool = False,
    **members: int,
) -> dict[str, Any]:
    """errno (0: loaded), log, whether its size was told, what it returned if it was to be `run`. `members` overwrite
    attributes."""
    code, licence = ctypes.create_string_buffer(program, len(program)), ctypes.create_string_buffer(b"GPL")
    buffer = ctypes.create_string_buffer(b"\x55" * max(log, 1), max(log, 1))
    attr = bytearray(max(size, 168))
    values = {
        "type": 17,
        "insn_cnt": len(program) // 8,
        "insns": ctypes.addressof(code),
        "license": ctypes.addressof(licence),
    }
    if log:
        values |= {"log_level": level, "log_size": log, "log_buf": ctypes.addressof(buffer)}
    for member, value in (values | members).items():
        offset, form = _MEMBERS[member]
        struct.pack_into("<" + form, attr, offset, value)
    attr[48 : 48 + len(name)] = name
    raw = ctypes.create_string_buffer(bytes(attr), len(attr))
    value = -1
    try:
        fd = syscall("bpf", 5, raw, size)
        value = bpf.prog_run(fd)[0] if run else 0
        os.close(fd)
        code_ = 0
    except OSError as error:
        code_ = error.errno or 0
    text, _, _rest = buffer.raw.partition(b"\0")
    told = struct.unpack_from("<I", raw.raw, 140)[0]
    words = text.decode(errors="replace").replace("\x55", "") if log else ""
    words = re.sub(r"verification time .*\n|max_states.*|peak_states.*|stack depth .*\n", "", words)
    words = re.sub(r"0xffff[0-9a-f]{12} +;", ";", words)  # where a map happens to be
    return {
        "errno": errno.errorcode.get(code_, code_),
        "log": words,
        "told": told >= len(text) + 1 if log else told > 0,
        "value": value,
    }


def array(value: int = 8) -> int:
    return bpf.map_create(2, 4, value, 1, name=NAME)


def code(build: Callable[[Asm], object]) -> bytes:
    asm = Asm()
    build(asm)
    return asm.code()


def with_map(source: int, imm: int, second: int = 0) -> bytes:
    return struct.pack("<BBhiBBhi", 0x18, 1 | source << 4, 0, imm, 0, 0, 0, second) + GOOD


def call(number: int) -> bytes:
    return struct.pack("<BBhi", 0x85, 0, 0, number) + GOOD


POISON = struct.pack("<BBhi", 0x85, 0, 0, 195896080)
# In the place of both halves of a map's address, which is then looked into.
POISONED_MAP = struct.pack("<BBhi", 0x85, 0, 0, 2001000003) * 2 + struct.pack("<BBhi", 0x85, 0, 0, 1)


def guarded(there: int, poison: bytes = POISON) -> bytes:
    """What this kernel does not have, after a question whether it has: `there` 1 says no."""
    question = struct.pack("<BBhi", 0xB7, 1, 0, there)
    return question + struct.pack("<BBhi", 0x15, 1, len(poison) // 8, 1) + poison + GOOD


def array_of(*numbers: int) -> int:
    data = ctypes.create_string_buffer(struct.pack(f"<{len(numbers)}i", *numbers))
    _keep.append(data)
    return ctypes.addressof(data)


def tail_call(map_fd: int) -> bytes:
    return code(lambda a: (a.ld_pseudo(R.R2, 1, map_fd), a.mov(R.R3, 0), a.call(12), a.mov(R.R0, 0), a.exit()))


def programs() -> int:
    return bpf.map_create(3, 4, 4, 1, name=NAME)


def attached() -> dict[str, Any]:
    """A program for what a cgroup sends, attached by us; `value`: whether it saw the packet."""
    from bpfseal.runtime.bpf import map_lookup

    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    tree = next((mount[1] for mount in mounts if mount[2] == "cgroup2"), "")
    folder = f"{tree}/{os.fsdecode(NAME)}-{os.getpid()}"
    seen = array()

    def build(a: Asm) -> None:
        a.ld_pseudo(R.R1, 2, seen)
        a.mov(R.R2, 1)
        a.atomic_add(8, R.R1, 0, R.R2)
        a.ret(1)

    try:
        os.mkdir(folder)
    except OSError:
        return {"errno": "no cgroups", "log": "", "told": False, "value": -1}
    try:
        fd = bpf.prog_load(8, code(build), expected_attach_type=1, name=NAME)
        group = os.open(folder, os.O_RDONLY)
        bpf.bpf(8, struct.pack("<IIII", group, fd, 1, 0))  # BPF_PROG_ATTACH
        child = os.fork()
        if not child:
            Path(f"{folder}/cgroup.procs").write_text(str(os.getpid()))
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))
            os._exit(0)
        os.waitpid(child, 0)
        count = int.from_bytes(map_lookup(seen, bytes(4), 8) or b"", "little")
        return {"errno": 0, "log": "", "told": False, "value": count > 0}
    except OSError as error:
        return {"errno": errno.errorcode.get(error.errno or 0), "log": "", "told": False, "value": -1}
    finally:
        os.rmdir(folder)


def outer(type: int = 12) -> int:
    """A map of maps, with an array in it that has the value 41."""
    from bpfseal.runtime.bpf import map_update

    inner = array()
    attr = struct.pack("<IIIIII", type, 4, 4, 1, 0, inner).ljust(72, b"\0")
    fd = bpf.bpf(0, attr)
    map_update(inner, bytes(4), struct.pack("<Q", 41))
    map_update(fd, bytes(4), struct.pack("<I", inner))
    return fd


def looked_up(fd: int, times: int, type: int = 17) -> dict[str, Any]:
    """Looks up key 0 in a map, then in what that gave, so many `times`; adds 1 to the last value and returns it."""

    def build(a: Asm) -> None:
        a.st(4, R.R10, -4, 0)
        a.ld_pseudo(R.R1, 1, fd)
        for number in range(times):
            a.mov(R.R2, R.R10)
            a.add(R.R2, -4)
            a.call(1)
            a.jump_if(R.R0, "!=", 0, f"found{number}")
            a.ret(0)
            a.label(f"found{number}")
            a.mov(R.R1, R.R0)
        a.mov(R.R2, 1)
        a.atomic_add(8, R.R1, 0, R.R2)
        a.ldx(8, R.R0, R.R1, 0)
        a.exit()

    return load(code(build), type=type, run=True)


def redirected(kind: int, value: int = 4) -> dict[str, Any]:
    """A program for packets that sends them on through a map of such a kind."""
    fd = bpf.map_create(kind, 4, value, 1, name=NAME)
    return load(
        code(lambda a: (a.ld_pseudo(R.R1, 1, fd), a.mov(R.R2, 0), a.mov(R.R3, 0), a.call(51), a.exit())), type=6
    )


def socket_of_map(kind: int) -> dict[str, Any]:
    """A classifier that looks at a socket which a map holds."""
    fd = bpf.map_create(kind, 4, 4, 1, name=NAME)

    def build(a: Asm) -> None:
        a.st(4, R.R10, -4, 0)
        a.ld_pseudo(R.R1, 1, fd)
        a.mov(R.R2, R.R10)
        a.add(R.R2, -4)
        a.call(1)
        a.jump_if(R.R0, "!=", 0, "found")
        a.ret(0)
        a.label("found")
        a.mov(R.R1, R.R0)
        a.ldx(4, R.R6, R.R1, 0)
        a.call(86)
        a.mov(R.R0, R.R6)
        a.exit()

    return load(code(build), type=3)


def chain() -> dict[str, Any]:
    """Value 7 comes from the program that the first one goes on in."""
    from bpfseal.runtime.bpf import map_update

    last, table = GOOD[:4] + b"\7" + GOOD[5:], programs()
    fd = bpf.prog_load(17, last, name=NAME)
    map_update(table, bytes(4), struct.pack("<I", fd))
    return load(tail_call(table), run=True)


def bad_memory() -> bytes:
    return code(lambda a: (a.mov(R.R1, 0), a.ldx(8, R.R0, R.R1, 0), a.exit()))


def records(*values: int) -> int:
    data = struct.pack(f"<{len(values)}I", *values)
    _keep.append(data)
    return address_of(data)


def types(longer: int = 0) -> int:
    """BTF with `int main(int)`: 1 int, 2 its prototype, 3 the function. The header is so many bytes `longer`."""
    body = struct.pack("<IIII", 1, 1 << 24, 4, 1 << 24 | 32)
    body += struct.pack("<IIIII", 0, 13 << 24 | 1, 1, 5, 1) + struct.pack("<III", 5, 12 << 24, 2)
    strings = b"\0int\0main\0"
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24 + longer, 0, len(body), len(body), len(strings))
    return btf_load(header + bytes(longer) + body + strings)


def relocated(kind: int, struct_name: bytes = b"task_struct", member: bytes = b"pid", **members: int) -> dict[str, Any]:
    """`return 4242` with a CO-RE relocation on the constant, of a struct with one int at offset 0."""
    names = b"\0int\0main\0" + struct_name + b"\0" + member + b"\x000:0\0"
    at = 10 + len(struct_name) + 1
    body = struct.pack("<IIII", 1, 1 << 24, 4, 1 << 24 | 32)
    body += struct.pack("<IIIII", 0, 13 << 24 | 1, 1, 5, 1) + struct.pack("<III", 5, 12 << 24, 2)
    body += struct.pack("<IIIIII", 10, 4 << 24 | 1, 4, at, 1, 0)
    data = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(names)) + body + names
    relo = records(0, 4, at + len(member) + 1, kind)
    program = struct.pack("<BBhi", 0xB7, 0, 0, {0: 0, 1: 4, 2: 1}[kind]) + GOOD[8:]
    wanted = {"func_info": records(0, 3), "func_cnt": 1, "func_size": 8, "btf_fd": btf_load(data)}
    wanted |= {"relo_cnt": 1, "relos": relo, "relo_size": 16}
    return load(program, run=True, **(wanted | members))


CASES: dict[str, Callable[[], Any]] = {
    "good": load,
    "good, no log": lambda: load(log=0),
    "level without buffer": lambda: load(log=0, log_level=1),
    "buffer without level": lambda: load(log=64, level=0),
    "unknown level": lambda: load(level=16),
    "old attributes": lambda: load(size=48, name=b""),
    "long attributes": lambda: load(size=400),
    "beyond a page": lambda: load(size=5000),
    "no instructions": lambda: load(insn_cnt=0),
    "too many instructions": lambda: load(insn_cnt=2_000_000),
    "unreadable instructions": lambda: load(insns=8),
    "unreadable licence": lambda: load(license=8),
    "negative address": lambda: load(license=0xFFFF_FFFF_FFFF_F000),
    "name with a blank": lambda: load(name=b"a b"),
    "name without an end": lambda: load(name=b"a" * 16),
    "uninitialised": lambda: load(code(lambda a: a.exit())),
    "invalid memory": lambda: load(bad_memory()),
    "verbose": lambda: load(bad_memory(), level=2),
    "log too small": lambda: load(bad_memory(), log=16),
    "log of the end only": lambda: load(bad_memory(), log=16, level=1),
    "map": lambda: load(with_map(1, array())),
    "map value": lambda: load(with_map(2, array())),
    "map value past its end": lambda: load(with_map(2, array(), 64)),
    "huge offset": lambda: load(with_map(2, array(), 1 << 30)),
    "closed map": lambda: load(with_map(1, 999)),
    "not a map": lambda: load(with_map(1, 0)),
    "fd_array": lambda: load(with_map(5, 1), fd_array=array_of(-1, array())),
    "fd_array, value": lambda: load(with_map(6, 0, 4), fd_array=array_of(array())),
    "fd_array with its length": lambda: load(with_map(5, 0), fd_array=array_of(array()), fd_array_cnt=1),
    "index without fd_array": lambda: load(with_map(5, 0)),
    "poison where nothing gets": lambda: load(guarded(1), run=True),
    "poison where something gets": lambda: load(guarded(0)),
    "poisoned map": lambda: load(guarded(1, POISONED_MAP), run=True),
    "poisoned map where something gets": lambda: load(guarded(0, POISONED_MAP)),
    "helper without arguments": lambda: load(call(1)),
    "unknown helper": lambda: load(call(9999)),
    "helper of other types": lambda: load(call(9)),
    "target on a plain type": lambda: load(btf_id=1),
    "BTF that is none": lambda: load(func_info=records(0, 1), func_cnt=1, func_size=8, btf_fd=999),
    "func_info": lambda: load(func_info=records(0, 3), func_cnt=1, func_size=8, btf_fd=types()),
    "BTF of a newer library": lambda: load(func_info=records(0, 3), func_cnt=1, func_size=8, btf_fd=types(8)),
    "func_info of odd size": lambda: load(func_info=records(0, 3), func_cnt=1, func_size=7, btf_fd=types()),
    "func_info from the future": lambda: load(func_info=records(0, 3, 9), func_cnt=1, func_size=12, btf_fd=types()),
    "func_info padded": lambda: load(func_info=records(0, 3, 0), func_cnt=1, func_size=12, btf_fd=types()),
    "unreadable func_info": lambda: load(func_info=8, func_cnt=1, func_size=8, btf_fd=types()),
    "line_info": lambda: load(
        func_info=records(0, 3),
        func_cnt=1,
        func_size=8,
        btf_fd=types(),
        line_info=records(0, 1, 1, 1 << 10),
        line_cnt=1,
        line_size=16,
    ),
    "relocation, offset": lambda: relocated(0),
    "relocation, size": lambda: relocated(1),
    "relocation, there": lambda: relocated(2),
    "relocation, not there": lambda: relocated(2, member=b"no_such_member"),
    "relocation, no such type": lambda: relocated(2, b"no_such_struct_at_all"),
    "relocations that nobody looks at": lambda: load(relo_cnt=1, relos=8, relo_size=16),
    "relocations out of reach": lambda: relocated(0, relos=8),
    "relocations of odd size": lambda: relocated(0, relo_size=15),
    "relocation behind the end": lambda: relocated(0, relos=records(64, 4, 10, 0)),
    "unknown opcode": lambda: load(b"\xff" + GOOD[1:]),
    "jump out": lambda: load(struct.pack("<BBhi", 5, 0, 99, 0) + GOOD),
    "unreachable": lambda: load(GOOD + GOOD),
    "tail call": chain,
    "tail call without a program array": lambda: load(tail_call(array())),
    "program array used as a map": lambda: load(with_map(1, programs())),
    "array of maps": lambda: looked_up(outer(), 2),
    "hash of maps": lambda: looked_up(outer(13), 2),
    "map of maps, a map as memory": lambda: looked_up(outer(), 1),
    "map of maps, a value as a map": lambda: looked_up(outer(), 3),
    "no map of maps": lambda: looked_up(array(), 2),
    "socket of a sockmap": lambda: socket_of_map(15),
    "socket of a sockhash": lambda: socket_of_map(18),
    "cgroup packets": lambda: load(ALLOWS, type=8, attach_type=1),
    "cgroup packets, attached": attached,
    "cgroup sockets": lambda: load(ALLOWS, type=9, attach_type=2),
    "cgroup device": lambda: load(ALLOWS, type=15, attach_type=6),
    "cgroup address": lambda: load(ALLOWS, type=18, attach_type=8),
    "cgroup address, another attach type": lambda: load(ALLOWS, type=18, attach_type=21),
    "cgroup address, no attach type": lambda: load(ALLOWS, type=18),
    "cgroup options": lambda: load(ALLOWS, type=25, attach_type=21),
}
# Those that change where packets go, which policy has to grant.
NETWORK: dict[str, Callable[[], Any]] = {
    "redirection, devmap": lambda: redirected(14),
    "redirection, devmap_hash": lambda: redirected(25, 8),
    "redirection, cpumap": lambda: redirected(16),
    "redirection, xskmap": lambda: redirected(17),
    "redirection, array": lambda: redirected(2),
}
# What the bridge refuses, whatever the kernel would say.
REFUSED: dict[str, Callable[[], Any]] = {
    "token": lambda: load(flags=1 << 16, token=0),
    "signature": lambda: load(signature=8, signature_size=100, keyring=1),
    "offload": lambda: load(ifindex=1),
    "bound maps": lambda: load(fd_array=array_of(array()), fd_array_cnt=1),
    "struct_ops": lambda: load(type=27, btf_id=1),
    "cgroup device that is denied": lambda: load(type=15, attach_type=6),
    "user ring": lambda: load(with_map(1, bpf.map_create(31, 0, 0, 4096, name=NAME))),
    "nested bpf": lambda: load(call(166)),
    "control": lambda: load(call(179), type=31, flags=16),
    "licence": lambda: load(license=records(0x00006578)),
    "type": lambda: load(type=10),
    "flags": lambda: load(flags=1 << 3),
}


def main() -> None:
    table = CASES | NETWORK | REFUSED
    wanted = sys.argv[2:] or list(CASES)
    for name in wanted:
        print(json.dumps([name, table[name]()]), flush=True)


if __name__ == "__main__":
    main()
