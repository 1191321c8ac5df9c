"""One BPF_PROG_LOAD, copied out of the tool's memory once.

What is analysed, sealed and loaded are these bytes: the tool may change its own meanwhile. Checks are those that the
kernel makes before its verifier starts (bpf_prog_load in kernel/bpf/syscall.c, check_btf_func, check_btf_line and
check_core_relo in kernel/bpf/verifier.c), with its errnos; what the bridge cannot carry over is Unsupported.
"""

from __future__ import annotations

import errno
import struct
from typing import Final, NamedTuple

from bpfseal.errors import BpfsealError
from bpfseal.runtime.bridge.tool import Tool, ToolError

# union bpf_attr for BPF_PROG_LOAD, include/uapi/linux/bpf.h
_ATTR: Final = struct.Struct("<IIQQIIQII16sIIIIQIIQIIIIQQIIiIQIi")
ATTR_SIZE: Final = 168
LOG_TRUE_SIZE: Final = 140
_PAGE: Final = 4096
_MAX_INSNS: Final = 1_000_000
_MAX_RECORDS: Final = 1 << 20
_TOKEN_FLAG: Final = 1 << 16
_NAME: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.")


class Unsupported(BpfsealError):
    """Something that cannot be sealed for the tool; the message is the reason. `program` where that is not known to
    who catches it."""

    def __init__(self, message: str, program: str = "") -> None:
        super().__init__(message)
        self.program = program


class SignedAlready(Unsupported):
    """By somebody else: the kernel's business, if it looks at whose signatures count."""


class ProgLoad(NamedTuple):
    """Attributes by their names in the kernel; `func_info`, `line_info` and `core_relos` in records of 8, 16 and 16
    bytes. Descriptors are numbers in the tool."""

    type: int
    insns: bytes
    license: str
    flags: int
    name: str
    expected_attach_type: int
    btf_fd: int
    func_info: bytes
    line_info: bytes
    attach_btf_id: int
    attach_fd: int
    fd_array: int
    fd_array_cnt: int
    core_relos: bytes


class Log(NamedTuple):
    """Where the tool wants the verifier's log."""

    level: int
    size: int
    buffer: int


def read(tool: Tool, address: int, size: int) -> tuple[ProgLoad, Log]:
    """Raises ToolError, Unsupported."""
    raw = read_attr(tool, address, size)
    log = log_of(raw)
    (
        type, insn_cnt, insns, license, _level, _size, _buf, _version, flags, name, ifindex, attach_type, btf_fd,
        func_size, func_info, func_cnt, line_size, line_info, line_cnt, attach_btf_id, attach_fd, relo_cnt, fd_array,
        relos, relo_size, _true_size, _token, fd_array_cnt, _signature, signature_size, _keyring,
    ) = _ATTR.unpack(raw)  # fmt: skip
    for wanted, what in (
        (flags & _TOKEN_FLAG, "a token (prog_token_fd) is not for programs that are loaded on behalf of others"),
        (ifindex, "programs for a network card's own processor are not analysed"),
    ):
        if wanted:
            raise Unsupported(what, _name(name))
    if signature_size:
        raise SignedAlready("it is signed already, by somebody else, and enforcement is off here", _name(name))
    if not 0 < insn_cnt <= _MAX_INSNS:
        raise ToolError(errno.E2BIG)
    program = ProgLoad(
        type=type,
        insns=tool.read(insns, 8 * insn_cnt),
        license=tool.string(license, 127).decode("latin-1"),
        flags=flags,
        name=_name(name),
        expected_attach_type=attach_type,
        btf_fd=btf_fd,
        func_info=_records(tool, func_info, func_cnt, func_size, 8),
        line_info=_records(tool, line_info, line_cnt, line_size, 16),
        attach_btf_id=attach_btf_id,
        attach_fd=attach_fd,
        fd_array=fd_array,
        fd_array_cnt=fd_array_cnt,
        # As in the kernel, without function or line records nobody looks at relocations.
        core_relos=_records(tool, relos, relo_cnt, relo_size, 16) if func_cnt or line_cnt else b"",
    )
    return program, log


def read_attr(tool: Tool, address: int, size: int) -> bytes:
    """All of the attributes; members that the tool does not know are 0. Members that we do not know must be: what is
    older than its caller refuses them (bpf_check_uarg_tail_zero)."""
    if size > _PAGE:
        raise ToolError(errno.E2BIG)
    raw = tool.read(address, size)
    if any(raw[ATTR_SIZE:]):
        raise ToolError(errno.E2BIG)
    return raw[:ATTR_SIZE].ljust(ATTR_SIZE, b"\0")


def log_of(raw: bytes) -> Log:
    """Raises ToolError for a log that bpf_verifier_log_attr_valid would not have."""
    level, size, buffer = struct.unpack_from("<IIQ", raw, 24)
    if bool(buffer) != bool(size) or (buffer and not level) or level & ~15 or size > 0xFFFFFFFF >> 2:
        raise ToolError(errno.EINVAL)
    return Log(level, size, buffer)


def _name(raw: bytes) -> str:
    name, _, rest = raw.partition(b"\0")
    if len(raw) == len(name) or rest.strip(b"\0") or not _NAME.issuperset(name):
        raise ToolError(errno.EINVAL)
    return name.decode()


def _records(tool: Tool, address: int, count: int, size: int, known: int) -> bytes:
    """Records cut to the `known` bytes; what a newer tool knows beyond must be 0."""
    if not count:
        return b""
    if count > _MAX_RECORDS or not known <= size <= 252 or size % 4:
        raise ToolError(errno.EINVAL)
    data = tool.read(address, count * size)
    if size == known:
        return data
    records = [data[at : at + size] for at in range(0, len(data), size)]
    if any(any(record[known:]) for record in records):
        raise ToolError(errno.E2BIG)
    return b"".join(record[:known] for record in records)
