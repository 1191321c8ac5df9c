"""The few bpf(2) commands that the load sequence needs, shared by the ABI probe here and by `runtime.bpf`.

Attributes are packed to just the members in use, by offset in `union bpf_attr` (include/uapi/linux/bpf.h); the kernel
takes the missing rest as zero. Every function raises OSError with the kernel's errno; descriptors are close-on-exec.
"""

from __future__ import annotations

import ctypes
import errno
import struct
import time

from bpfseal.signer.syscall import address_of, syscall

# enum bpf_cmd
MAP_CREATE = 0
MAP_UPDATE_ELEM = 2
PROG_LOAD = 5
PROG_RUN = 10
OBJ_GET_INFO_BY_FD = 15
MAP_FREEZE = 22

MAP_TYPE_ARRAY = 2
PROG_TYPE_SYSCALL = 31
F_SLEEPABLE = 1 << 4


def bpf(command: int, attr: bytes) -> int:
    """bpf(2). An interrupted call is made again; EAGAIN (the verifier met a pending signal) a few times."""
    buffer = ctypes.create_string_buffer(attr, len(attr))
    return bpf_buffer(command, buffer)


def bpf_buffer(command: int, attr: ctypes.Array[ctypes.c_char]) -> int:
    """bpf(2) with an attr that the kernel writes to as well."""
    again = 5
    while True:
        try:
            return syscall("bpf", command, attr, len(attr))
        except OSError as error:
            if error.errno == errno.EINTR:
                continue
            if error.errno == errno.EAGAIN and again:
                again -= 1
                time.sleep(0.001)
                continue
            raise


def map_create(
    type: int,
    key_size: int,
    value_size: int,
    max_entries: int,
    *,
    flags: int = 0,
    name: bytes = b"",
    btf_fd: int = 0,
    key_btf: int = 0,
    value_btf: int = 0,
    inner_map_fd: int = 0,
    map_extra: int = 0,
    excl_prog_hash: bytes = b"",
) -> int:
    """A map's fd. `excl_prog_hash`: only the program with this sha256 may use it (Linux 6.18)."""
    attr = struct.pack(
        "<IIIIIII16sIIIIIQ", type, key_size, value_size, max_entries, flags, inner_map_fd, 0,
        name[:15], 0, btf_fd, key_btf, value_btf, 0, map_extra,
    )  # fmt: skip
    if excl_prog_hash:
        attr += struct.pack("<iiQI4x", 0, 0, address_of(excl_prog_hash), len(excl_prog_hash))
    return bpf(MAP_CREATE, attr)


def map_update(fd: int, key: bytes, value: bytes, flags: int = 0) -> None:
    bpf(MAP_UPDATE_ELEM, struct.pack("<IxxxxQQQ", fd, address_of(key), address_of(value), flags))


def map_freeze(fd: int) -> None:
    """No more changes from user space."""
    bpf(MAP_FREEZE, struct.pack("<I", fd))


def map_hash(fd: int) -> bytes:
    """sha256 of a frozen array map's contents; asking for it makes the kernel keep it in `map->sha` (6.18 to 7.2).
    EPERM: not frozen. Offsets in `struct bpf_map_info`: hash 88, hash_size 96."""
    out = ctypes.create_string_buffer(32)
    info = ctypes.create_string_buffer(struct.pack("<88xQII", ctypes.addressof(out), 32, 0), 104)
    bpf(OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", fd, len(info), ctypes.addressof(info)))
    return out.raw


def prog_load(
    type: int,
    insns: bytes,
    *,
    license: bytes = b"GPL",
    flags: int = 0,
    name: bytes = b"",
    expected_attach_type: int = 0,
    attach_btf_id: int = 0,
    attach_btf_obj_fd: int = 0,
    btf_fd: int = 0,
    func_info: bytes = b"",
    line_info: bytes = b"",
    fds: tuple[int, ...] = (),
    bind_fds: bool = False,
    signature: bytes = b"",
    keyring: int = 0,
    log: ctypes.Array[ctypes.c_char] | None = None,
    log_level: int = 0,
) -> int:
    """A program's fd. `fds` is the fd_array; `bind_fds` also passes its length (fd_array_cnt, Linux 6.14).

    `log` receives the verifier's log. EAGAIN is retried a few times, since a signal is no verdict.
    """
    array = struct.pack(f"<{len(fds)}i", *fds)
    code, terminated = insns, license + b"\0"
    attr = struct.pack(
        "<IIQQIIQII16sIIIIQIIQIIIIQQII", type, len(insns) // 8, address_of(code), address_of(terminated),
        log_level if log is not None else 0, len(log) if log is not None else 0,
        ctypes.addressof(log) if log is not None else 0,
        0, flags, name[:15], 0, expected_attach_type, btf_fd,
        8 if func_info else 0, address_of(func_info), len(func_info) // 8,
        16 if line_info else 0, address_of(line_info), len(line_info) // 16,
        attach_btf_id, attach_btf_obj_fd, 0, address_of(array) if fds else 0, 0, 0, 0,
    )  # fmt: skip
    if bind_fds or signature:
        attr += struct.pack("<iI", 0, len(fds) if bind_fds else 0)
    if signature:
        attr += struct.pack("<QIi", address_of(signature), len(signature), keyring)
    return bpf(PROG_LOAD, attr)


def prog_run(fd: int, context: bytes = b"", data: bytes = b"", *, cpu: int | None = None) -> tuple[int, bytes]:
    """Runs a program once: (return value as s32, context after the run).

    SYSCALL programs get `context` read and written; raw tracepoints take u64 arguments in it. `cpu` runs it there
    (BPF_F_TEST_RUN_ON_CPU). OSError is for a run that could not be made. EINTR is not retried: a program ran or not,
    the caller must know.
    """
    ctx = ctypes.create_string_buffer(context, len(context)) if context else None
    attr = ctypes.create_string_buffer(
        struct.pack(
            "<IIIIQQIIIIQQIII4x",
            fd,
            0,
            len(data),
            0,
            address_of(data) if data else 0,
            0,
            0,
            0,
            len(context),
            0,
            ctypes.addressof(ctx) if ctx is not None else 0,
            0,
            1 if cpu is not None else 0,
            cpu or 0,
            0,
        ),
        80,
    )
    syscall("bpf", PROG_RUN, attr, len(attr))
    return struct.unpack_from("<i", attr, 4)[0], ctx.raw if ctx is not None else b""
