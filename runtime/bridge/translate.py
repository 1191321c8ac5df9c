"""From a copied BPF_PROG_LOAD to a Bundle: descriptors become ids, BTF its bytes.

Maps are named by their kernel ids, which the seal covers; the descriptors that were taken from the tool are held until
the program is loaded, so that an id stays what it is. A program that is the target of another one is named by id and by
our copy of its descriptor. Messages that libraries look for are in the kernel's words
(resolve_pseudo_ldimm64 and bpf_check_attach_target in kernel/bpf/verifier.c).
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Final

from bpfseal.runtime import bpf_info
from bpfseal.runtime.bridge.request import ProgLoad, Unsupported
from bpfseal.runtime.bridge.tool import Tool, ToolError
from bpfseal.signer.bundle import BUNDLE_VERSION, UNDECLARED, Bundle, MapSpec, ProgramSpec
from bpfseal.signer.insn import (
    LD_IMM64,
    PSEUDO_MAP_FD,
    PSEUDO_MAP_IDX,
    PSEUDO_MAP_IDX_VALUE,
    PSEUDO_MAP_VALUE,
)

_MAX_MAPS: Final = 64
_TRACING, _EXT, _LSM, _STRUCT_OPS = 26, 28, 29, 27
_TRACE_RAW_TP: Final = 23
_KEPT_BTF: Final = 8
_BTF_HEADER: Final = struct.Struct("<HBBIIIII")
_INFO_BTF_ID: Final = 128  # in struct bpf_prog_info

_BY_INDEX: Final = {PSEUDO_MAP_FD: PSEUDO_MAP_IDX, PSEUDO_MAP_VALUE: PSEUDO_MAP_IDX_VALUE}


class Translator:
    """Makes bundles; keeps the type information of the last few, since a tool's programs share theirs."""

    def __init__(self) -> None:
        self._btf: dict[int, bytes] = {}

    def bundle(self, tool: Tool, load: ProgLoad, held: list[int], origin: str) -> Bundle:
        """The Bundle for one program. `held` gets the descriptors to close after the load. `origin` is for the audit
        log. Raises ToolError, Unsupported."""
        maps = _Maps(tool, load, held)
        insns = maps.rewrite(load.insns)
        maps.bound()
        target, module = self._target(tool, load, held)
        debug = bool(load.func_info or load.line_info)
        btf = self._program_btf(tool, load.btf_fd) if debug else b""
        if load.core_relos:
            insns = _relocated(insns, btf, load.core_relos)
        program = ProgramSpec(
            name=load.name or "unnamed",
            type=load.type,
            insns=insns,
            declared=UNDECLARED,
            attach=(),
            expected_attach_type=load.expected_attach_type,
            license=load.license,
            flags=load.flags,
            attach_btf=target,
            attach_btf_id=load.attach_btf_id,
            attach_module=module,
            func_info=load.func_info,
            line_info=load.line_info,
        )
        return Bundle(
            version=BUNDLE_VERSION, programs=(program,), maps=tuple(maps.specs), btf=btf, source=origin, reader=b""
        )

    def _program_btf(self, tool: Tool, number: int) -> bytes:
        fd = tool.descriptor(number)
        try:
            _expect(fd, "btf")
            info = bpf_info.btf_info(fd)
            if info.kernel:
                raise ToolError(errno.EACCES)
            data = self._btf.pop(info.id, None) or bpf_info.btf_data(fd, info.size)
        finally:
            os.close(fd)
        data = _packed(data)
        self._btf[info.id] = data  # ids are not used twice
        if len(self._btf) > _KEPT_BTF:
            del self._btf[next(iter(self._btf))]
        return data

    def _target(self, tool: Tool, load: ProgLoad, held: list[int]) -> tuple[str, str]:
        """Name of what a tracing program is attached to, and where that is: `ProgramSpec.attach_module`."""
        if load.type == _STRUCT_OPS:
            raise Unsupported("it replaces functions of the kernel (struct_ops)")
        if load.type not in (_TRACING, _EXT, _LSM):
            if load.attach_btf_id or load.attach_fd:
                raise ToolError(errno.EINVAL)
            return "", ""
        place, data = _place(tool, load.attach_fd, held) if load.attach_fd else ("", b"")
        if load.type == _EXT and not data:
            raise ToolError(errno.EINVAL)
        if load.type == _LSM and data:
            raise Unsupported("its target is another BPF program (attach_prog_fd)")
        from bpfseal.signer import btf as kinds
        from bpfseal.signer.btf import Btf, BtfError

        id = load.attach_btf_id
        if not id:
            raise ToolError(errno.EINVAL, "Tracing programs must provide btf_id\n")
        wanted = kinds.TYPEDEF if load.expected_attach_type == _TRACE_RAW_TP else kinds.FUNC
        try:
            btf = Btf(data) if data else Btf.module(place) if place else Btf.vmlinux()
            name, kind = btf.name(id), btf.kind(id)
        except BtfError:
            raise ToolError(errno.EINVAL, f"attach_btf_id {id} doesn't have a name\n") from None
        if kind != wanted:
            what = "typedef" if wanted == kinds.TYPEDEF else "function"
            raise ToolError(errno.EINVAL, f"attach_btf_id {id} is not a {what}\n")
        return name, place


class _Maps:
    """The maps of one program in the order of their first use."""

    def __init__(self, tool: Tool, load: ProgLoad, held: list[int]) -> None:
        self.tool, self.load, self.held = tool, load, held
        self.specs: list[MapSpec] = []
        self._by_number: dict[int, int] = {}
        self._by_id: dict[int, int] = {}
        self._slots: dict[int, int] = {}

    def rewrite(self, insns: bytes) -> bytes:
        """Instructions that name maps by their index. Anything else stays as it is, for the analysis to judge."""
        codes = insns[0::8]
        code = bytearray(insns)
        at = codes.find(LD_IMM64)
        while at >= 0:
            registers, imm = code[8 * at + 1], struct.unpack_from("<i", code, 8 * at + 4)[0]
            source = registers >> 4
            if source in (PSEUDO_MAP_FD, PSEUDO_MAP_VALUE):
                index = self._index(imm)
            elif source in (PSEUDO_MAP_IDX, PSEUDO_MAP_IDX_VALUE):
                index = self._index(self._slot(imm))
            else:
                at = codes.find(LD_IMM64, at + 2)
                continue
            code[8 * at + 1] = registers & 15 | _BY_INDEX.get(source, source) << 4
            struct.pack_into("<i", code, 8 * at + 4, index)
            at = codes.find(LD_IMM64, at + 2)
        return bytes(code)

    def bound(self) -> None:
        """Maps that fd_array binds without their being used would have to be bound by the loader."""
        for slot in range(min(self.load.fd_array_cnt, 2 * _MAX_MAPS)):
            fd = self.tool.descriptor(self._slot(slot))
            try:
                kind = _kind(fd)
                if kind not in ("bpf-map", "btf"):
                    raise ToolError(errno.EINVAL)
                if kind == "bpf-map" and bpf_info.map_info(fd).id not in self._by_id:
                    raise Unsupported("maps that are bound to it (fd_array_cnt) but not used by it")
            finally:
                os.close(fd)

    def _slot(self, slot: int) -> int:
        """An entry of the tool's fd_array, read once."""
        if not self.load.fd_array:
            raise ToolError(errno.EPROTO, "fd_idx without fd_array is invalid\n")
        if slot < 0:
            raise ToolError(errno.EFAULT)
        if slot not in self._slots:
            self._slots[slot] = struct.unpack("<i", self.tool.read(self.load.fd_array + 4 * slot, 4))[0]
        return self._slots[slot]

    def _index(self, number: int) -> int:
        if number in self._by_number:
            return self._by_number[number]
        try:
            fd = self.tool.descriptor(number)
        except ToolError as error:
            raise ToolError(error.code, f"fd {number} is not pointing to valid bpf_map\n") from None
        self.held.append(fd)
        if _kind(fd) != "bpf-map":
            raise ToolError(errno.EINVAL, f"fd {number} is not pointing to valid bpf_map\n")
        info = bpf_info.map_info(fd)
        index = self._by_id.get(info.id, len(self.specs))
        if index == len(self.specs):
            if index >= _MAX_MAPS:
                raise ToolError(errno.E2BIG, "The total number of maps per program has reached the limit of 64\n")
            self._by_id[info.id] = index
            self.specs.append(_spec(info))
        self._by_number[number] = index
        return index


def _relocated(insns: bytes, btf: bytes, records: bytes) -> bytes:
    """The instructions with CO-RE relocations settled, as the kernel would have done after the analysis. Types of
    modules are not looked at. Raises ToolError."""
    from bpfseal.errors import BpfsealError
    from bpfseal.runtime.ahead.core import Core
    from bpfseal.signer.btf import Btf

    code = bytearray(insns)
    try:
        types = Btf(btf)
        core = Core(types, Btf.vmlinux())
        for number, (at, type, access, kind) in enumerate(struct.iter_unpack("<IIII", records)):
            if at % 8 or at + (16 if at < len(code) and code[at] == LD_IMM64 else 8) > len(code):
                raise ToolError(errno.EINVAL, f"Invalid core_relo[{number}].insn_off:{at} prog->len:{len(code) // 8}\n")
            core.apply(code, at // 8, type, types.string(access), kind)
    except BpfsealError as error:
        raise ToolError(errno.EINVAL, f"bpfseal: {error.message}\n") from None
    return bytes(code)


def _spec(info: bpf_info.MapInfo) -> MapSpec:
    """Its name with the id, so that names differ and the audit log's reader finds the map."""
    suffix = f".{info.id}"
    return MapSpec(
        name=info.name[: 15 - len(suffix)] + suffix,
        type=info.type,
        key_size=info.key_size,
        value_size=info.value_size,
        max_entries=info.max_entries,
        flags=info.flags,
        id=info.id,
    )


def _kind(fd: int) -> str:
    """Of an anonymous inode: "bpf-map", "bpf-prog", "btf", …"""
    return os.readlink(f"/proc/self/fd/{fd}").removeprefix("anon_inode:").strip("[]")


def _expect(fd: int, kind: str) -> None:
    if _kind(fd) != kind:
        raise ToolError(errno.EINVAL)


def _place(tool: Tool, number: int, held: list[int]) -> tuple[str, bytes]:
    """The module whose type information a descriptor is, empty for the kernel's own; or the program that it is, with
    that one's type information."""
    fd = tool.descriptor(number)
    held.append(fd)
    kind = _kind(fd)
    if kind == "bpf-prog":
        return f"prog-{bpf_info.prog_info(fd).id}@{fd}", _types_of(fd)
    if kind != "btf":
        raise ToolError(errno.EINVAL)
    info = bpf_info.btf_info(fd)
    if not info.kernel:
        raise ToolError(errno.EOPNOTSUPP)
    return "" if info.name == "vmlinux" else info.name, b""


def _types_of(program: int) -> bytes:
    """Raises ToolError for a program without type information, as bpf_check_attach_target does."""
    id = struct.unpack_from("<I", bpf_info.raw_info(program, 232), _INFO_BTF_ID)[0]
    if not id:
        raise ToolError(errno.EINVAL, "Tracing program can only be attached to another program annotated with BTF\n")
    try:
        fd = bpf_info.fd_by_id("btf", id)
    except PermissionError:
        raise Unsupported("looking at its target program's types needs CAP_SYS_ADMIN") from None
    try:
        return bpf_info.btf_data(fd, bpf_info.btf_info(fd).size)
    finally:
        os.close(fd)


def _packed(data: bytes) -> bytes:
    """Type information with a header of the first kind and the two sections that matter one after the other: ids and
    offsets of names stay what they are. Newer libraries give a longer header (`layout_off` and `layout_len`, for
    readers that do not know all kinds of types). What is not to be understood stays as it is."""
    if len(data) < _BTF_HEADER.size:
        return data
    magic, version, flags, header, types, types_size, strings, strings_size = _BTF_HEADER.unpack_from(data)
    ends = header + types + types_size, header + strings + strings_size
    if header < _BTF_HEADER.size or max(ends) > len(data) or any(data[_BTF_HEADER.size + 8 : header]):
        return data
    head = _BTF_HEADER.pack(magic, version, flags, _BTF_HEADER.size, 0, types_size, types_size, strings_size)
    return head + data[ends[0] - types_size : ends[0]] + data[ends[1] - strings_size : ends[1]]
