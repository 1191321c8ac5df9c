"""The metadata of a trusted loader: everything it hands to nested bpf() calls, laid out in one map value.

    0   header (HEADER_SIZE bytes, H_* below)
    64  file descriptors the loader makes: maps, then programs, then links; s32 each, -1 until made
        prepared `union bpf_attr`s: BTF_LOAD, MAP_CREATE or MAP_GET_FD_BY_ID per map, MAP_UPDATE_ELEM and MAP_FREEZE
        where wanted, PROG_LOAD per program, LINK_CREATE where wanted
        data: instructions, licences, BTF, func and line info, initial values

Pointer members of the attrs hold offsets from the start of the value; the loader adds its address when it runs. The
descriptors of the maps are in the order of `Bundle.maps`, so they are the fd_array of every program.
Attr layouts: `union bpf_attr` in include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import re
import struct

import msgspec

from bpfseal.errors import BpfsealError
from bpfseal.signer.bundle import Bundle, MapSpec, ProgramSpec
from bpfseal.signer.program_target import program_target

MAGIC = b"bpfseal\x01"

# Header members.
H_MAGIC = 0  # 8 bytes
H_RECORD = 8  # u64, number of the audit record
H_BASE = 16  # u64, written by the loader: its own kernel address of the value
H_ONCE = 24  # u32, exchanged for 1 by the first run
H_BTF_FD = 28  # s32
H_MAPS = 32  # u32, number of maps
H_PROGRAMS = 36  # u32, number of programs
HEADER_SIZE = 64
FDS = HEADER_SIZE

# union bpf_attr for BPF_BTF_LOAD
BTF_ATTR_SIZE = 32
B_BTF = 0
B_LOG_BUF = 8
B_SIZE = 16
B_LOG_SIZE = 20
B_LOG_LEVEL = 24

# ... for BPF_MAP_CREATE, up to and including map_extra (Linux 5.16)
MAP_ATTR_SIZE = 72
M_BTF_FD = 48

# ... for BPF_MAP_GET_FD_BY_ID, padded here
GET_ATTR_SIZE = 12
GET_STRIDE = 16

# ... for BPF_MAP_UPDATE_ELEM, followed here by the map's index
UPDATE_ATTR_SIZE = 32
UPDATE_STRIDE = 40
U_MAP_FD = 0
U_KEY = 8
U_VALUE = 16
U_INDEX = 32

# ... for BPF_MAP_FREEZE, followed here by the map's index
FREEZE_ATTR_SIZE = 4
FREEZE_STRIDE = 8
F_MAP_FD = 0
F_INDEX = 4

# ... for BPF_PROG_LOAD, up to and including log_true_size
PROG_ATTR_SIZE = 144
P_INSNS = 8
P_LICENSE = 16
P_LOG_LEVEL = 24
P_LOG_SIZE = 28
P_LOG_BUF = 32
P_BTF_FD = 72
P_FUNC_INFO = 80
P_LINE_INFO = 96
P_ATTACH_BTF_OBJ_FD = 112
P_FD_ARRAY = 120
PROG_POINTERS = (P_INSNS, P_LICENSE, P_FUNC_INFO, P_LINE_INFO, P_FD_ARRAY)

# ... for BPF_LINK_CREATE, up to and including tracing.cookie, followed here by the program's index
LINK_ATTR_SIZE = 32
LINK_STRIDE = 40
L_PROG_FD = 0
L_INDEX = 32

BPF_F_RDONLY_PROG = 1 << 7

# fds are addressed by a signed 16-bit offset in the value and in the context.
MAX_OBJECTS = 8000


class ModuleTarget(msgspec.Struct, frozen=True):
    """A program whose attach target lives in a kernel module: its BTF is found by name when the loader runs."""

    program: int
    name: int  # offset of the NUL-terminated name
    name_size: int
    kind: int  # BTF kind of the target
    btf_id: int


class Layout(msgspec.Struct, frozen=True):
    """Offsets in the blob that the loader's code needs. Counts are array lengths at these offsets; of the maps, the
    first `made` are created and the others exist."""

    maps: int
    made: int
    programs: int
    updates: int
    freezes: int
    btf_at: int  # 0: no BTF
    maps_at: int
    existing_at: int
    updates_at: int
    freezes_at: int
    programs_at: int
    modules: tuple[ModuleTarget, ...]
    links: int = 0
    links_at: int = 0

    @property
    def objects(self) -> int:
        """Descriptors that a run gives."""
        return self.maps + self.programs + self.links


class _Data:
    """Grows the data area; equal items are stored once."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.bytes = bytearray()
        self._seen: dict[bytes, int] = {}

    def put(self, item: bytes) -> int:
        """Offset of `item` in the blob, 0 for an empty one."""
        if not item:
            return 0
        known = self._seen.get(item)
        if known is None:
            known = self._seen[item] = self.start + len(self.bytes)
            self.bytes += item + bytes(-len(item) % 8)
        return known


_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.]")


def object_name(name: str) -> bytes:
    """`name` as the 16 bytes of a map or program name: the kernel takes alphanumerics, '_' and '.', 15 at most
    (bpf_obj_name_cpy)."""
    return _NOT_IN_NAMES.sub("_", name).encode()[:15].ljust(16, b"\0")


def build(bundle: Bundle, record: int) -> tuple[bytes, Layout]:
    """The blob for `bundle` and where things are in it. Raises BpfsealError for what no loader can carry."""
    maps, programs = bundle.maps, bundle.programs
    linked = [i for i, p in enumerate(programs) if p.linked]
    objects = len(maps) + len(programs) + len(linked)
    if objects > MAX_OBJECTS:
        raise BpfsealError(f"{objects} maps, programs and links in one bundle, a loader can make {MAX_OBJECTS}")
    made = sum(not m.id for m in maps)
    if any(m.id for m in maps[:made]):
        raise BpfsealError("existing maps come after new ones")
    initial = [i for i, m in enumerate(maps) if m.initial]
    frozen = [i for i, m in enumerate(maps) if m.frozen]

    at = FDS + 4 * (objects + objects % 2)
    btf_at = at if bundle.btf else 0
    at += BTF_ATTR_SIZE if bundle.btf else 0
    maps_at, at = at, at + MAP_ATTR_SIZE * made
    existing_at, at = at, at + GET_STRIDE * (len(maps) - made)
    updates_at, at = at, at + UPDATE_STRIDE * len(initial)
    freezes_at, at = at, at + FREEZE_STRIDE * len(frozen)
    programs_at, at = at, at + PROG_ATTR_SIZE * len(programs)
    links_at, at = at, at + LINK_STRIDE * len(linked)

    data = _Data(at)
    head = struct.pack("<8sQQIiII24x", MAGIC, record, 0, 0, -1, len(maps), len(programs))
    parts = [head, b"\xff\xff\xff\xff" * objects, bytes(4 * (objects % 2))]
    if bundle.btf:
        parts.append(struct.pack("<QQIIII", data.put(bundle.btf), 0, len(bundle.btf), 0, 0, 0))
    parts += [_map_attr(m) for m in maps[:made]]
    parts += [struct.pack("<IIII", m.id, 0, 0, 0) for m in maps[made:]]
    for i in initial:
        key = data.put(bytes(max(maps[i].key_size, 8)))
        parts.append(struct.pack("<IxxxxQQQIxxxx", 0, key, data.put(_initial(maps[i])), 0, i))
    parts += [struct.pack("<II", 0, i) for i in frozen]
    parts += [_program_attr(p, data) for p in programs]
    parts += [_link_attr(i, programs[i]) for i in linked]
    modules = tuple(_module_target(i, p, data) for i, p in enumerate(programs) if _in_module(p))
    blob = b"".join(parts)
    assert len(blob) == data.start
    layout = Layout(
        len(maps),
        made,
        len(programs),
        len(initial),
        len(frozen),
        btf_at,
        maps_at,
        existing_at,
        updates_at,
        freezes_at,
        programs_at,
        modules,
        len(linked),
        links_at,
    )
    return blob + data.bytes, layout


def _map_attr(spec: MapSpec) -> bytes:
    flags = spec.flags | (BPF_F_RDONLY_PROG if spec.frozen else 0)
    try:
        return struct.pack(
            "<IIIIIII16sIIIIIQ",
            spec.type,
            spec.key_size,
            spec.value_size,
            spec.max_entries,
            flags,
            0,  # inner_map_fd
            0,  # numa_node
            object_name(spec.name),
            0,  # map_ifindex
            0,  # btf_fd, filled in by the loader
            spec.key_btf,
            spec.value_btf,
            0,  # btf_vmlinux_value_type_id
            0,  # map_extra
        )
    except struct.error as error:
        raise BpfsealError(f"map {spec.name}: a number does not fit the kernel's attributes ({error})") from None


def _initial(spec: MapSpec) -> bytes:
    """The kernel reads value_size bytes whatever is there; a short value would take in its neighbour."""
    if len(spec.initial) != spec.value_size:
        raise BpfsealError(f"map {spec.name}: {len(spec.initial)} bytes of initial contents for {spec.value_size}")
    return spec.initial


def _program_attr(spec: ProgramSpec, data: _Data) -> bytes:
    if not spec.insns or len(spec.insns) % 8:
        raise BpfsealError(f"program {spec.name}: {len(spec.insns)} bytes are no instructions")
    licence = spec.license.encode() + b"\0"
    program = program_target(spec.attach_module)
    try:
        return struct.pack(
            "<IIQQIIQII16sIIIIQIIQIIIIQQII",
            spec.type,
            len(spec.insns) // 8,
            data.put(spec.insns),
            data.put(licence),
            0,  # log_level, log_size, log_buf: from the context
            0,
            0,
            0,  # kern_version
            spec.flags,
            object_name(spec.name),
            0,  # prog_ifindex
            spec.expected_attach_type,
            0,  # prog_btf_fd, filled in by the loader
            8 if spec.func_info else 0,
            data.put(spec.func_info),
            len(spec.func_info) // 8,
            16 if spec.line_info else 0,
            data.put(spec.line_info),
            len(spec.line_info) // 16,
            spec.attach_btf_id,
            program.fd if program else 0,  # attach_prog_fd, attach_btf_obj_fd
            0,  # core_relo_cnt
            FDS,  # fd_array
            0,  # core_relos
            0,  # core_relo_rec_size
            0,  # log_true_size
        )
    except struct.error as error:
        raise BpfsealError(f"program {spec.name}: a number does not fit the kernel's attributes ({error})") from None


def _link_attr(index: int, spec: ProgramSpec) -> bytes:
    """prog_fd (filled in by the loader), target_fd, attach_type, flags, target_btf_id: the target is the program's."""
    cookies = spec.attach[0].cookies if spec.attach else ()
    cookie = cookies[0] if cookies else 0
    try:
        return struct.pack("<IIIIIxxxxQIxxxx", 0, 0, spec.expected_attach_type, 0, 0, cookie, index)
    except struct.error as error:
        raise BpfsealError(f"program {spec.name}: a number does not fit the link's attributes ({error})") from None


BTF_KIND_TYPEDEF = 8
BTF_KIND_FUNC = 12


def _in_module(spec: ProgramSpec) -> bool:
    return bool(spec.attach_module) and program_target(spec.attach_module) is None


def _module_target(index: int, spec: ProgramSpec, data: _Data) -> ModuleTarget:
    name = spec.attach_btf.encode() + b"\0"
    kind = BTF_KIND_TYPEDEF if spec.attach_btf.startswith("btf_trace_") else BTF_KIND_FUNC
    return ModuleTarget(index, data.put(name), len(name), kind, spec.attach_btf_id)
