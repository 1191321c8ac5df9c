"""Validation of type information that came with a bundle: BTF, func_info, line_info, special members of map values.

The kernel validates all of this again in `btf_parse` and `check_btf_func`/`check_btf_line`; what is here keeps
readers of the audit log and of this helper safe, and makes sure that names in it can be believed to be of one piece.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from operator import ge
from typing import Final

from bpfseal.signer import btf as kinds
from bpfseal.signer.btf import Btf, BtfError
from bpfseal.signer.insn import Insn
from bpfseal.signer.refusal import Refusal

MAX_BTF_BYTES: Final = 1 << 20
MAX_BTF_TYPES: Final = 1 << 16
_CONTROL: Final = re.compile(rb"[\x01-\x08\x0a-\x1f\x7f]")

_REFERS: Final = frozenset(
    {kinds.PTR, kinds.TYPEDEF, kinds.VOLATILE, kinds.CONST, kinds.RESTRICT, kinds.FUNC, kinds.FUNC_PROTO, kinds.VAR}
    | {kinds.DECL_TAG, kinds.TYPE_TAG}
)
_BY_VALUE: Final = frozenset((kinds.TYPEDEF, kinds.VOLATILE, kinds.CONST, kinds.RESTRICT, kinds.TYPE_TAG, kinds.VAR))

# Members of map values that the kernel treats specially (btf_field_type in include/linux/btf.h): class that they need.
_SPECIAL: Final = {
    "bpf_spin_lock": "map",
    "bpf_res_spin_lock": "map",
    "bpf_timer": "async",
    "bpf_wq": "async",
    "bpf_task_work": "deferred",
    "bpf_list_head": "kptr",
    "bpf_list_node": "kptr",
    "bpf_rb_root": "kptr",
    "bpf_rb_node": "kptr",
    "bpf_refcount": "kptr",
}
_KPTR_TAGS: Final = frozenset(("kptr", "kptr_untrusted", "percpu_kptr"))


def check_program_btf(data: bytes) -> Btf:
    """The Btf of untrusted bytes. Raises BtfError: bad header, unknown kinds, ids, strings or tails out of bounds,
    control characters in strings, types that contain themselves."""
    if len(data) > MAX_BTF_BYTES:
        raise BtfError(f"BTF of {len(data)} bytes is over the limit of {MAX_BTF_BYTES}")
    btf = Btf(data)
    _magic, _version, flags, header, type_off, type_len, str_off, str_len = struct.unpack_from("<HBBIIIII", data)
    if flags or header != 24 or type_off or str_off != type_len or header + str_off + str_len != len(data):
        raise BtfError("BTF sections do not follow each other without gaps")
    if len(btf) > MAX_BTF_TYPES:
        raise BtfError(f"{len(btf)} BTF types are over the limit of {MAX_BTF_TYPES}")
    strings = data[header + str_off :]
    if found := _CONTROL.search(strings):
        raise BtfError(f"control character in BTF string at offset {found.start()}")
    try:
        strings.decode()
    except UnicodeDecodeError as error:
        raise BtfError(f"BTF string at offset {error.start} is not UTF-8") from None
    _check_references(btf, str_len)
    return btf


def _check_references(btf: Btf, strings: int) -> None:
    """Ids and name offsets of every record are in range; one pass over the words of the type section."""
    words, positions = btf.words(), btf.positions()
    count = len(positions) + 1
    contains: dict[int, Sequence[int]] = {}
    for id, at in enumerate(positions, 1):
        name, info, third = words[at : at + 3]
        kind = info >> 24
        refers: Sequence[int] = ()
        names: Sequence[int] = ()
        if kind > 127:  # kind_flag
            kind -= 128
        if kind in _REFERS:
            refers = (third,)
            if kind == kinds.FUNC_PROTO:
                tail = words[at + 3 : at + 3 + 2 * (info & 0xFFFFFF)]
                refers, names = [third, *tail[1::2]], tail[0::2]
            elif kind in _BY_VALUE:
                contains[id] = [third]
        elif kind == kinds.STRUCT or kind == kinds.UNION:
            tail = words[at + 3 : at + 3 + 3 * (info & 0xFFFFFF)]
            refers, names = tail[1::3], tail[0::3]
            contains[id] = refers
        elif kind == kinds.ARRAY:
            refers = words[at + 3 : at + 5]
            contains[id] = refers[:1]
        elif kind == kinds.ENUM or kind == kinds.ENUM64:
            step = 2 if kind == kinds.ENUM else 3
            names = words[at + 3 : at + 3 + step * (info & 0xFFFFFF) : step]
        elif kind == kinds.DATASEC:
            refers = contains[id] = words[at + 3 : at + 3 + 3 * (info & 0xFFFFFF) : 3]
        if refers and max(refers) >= count:
            raise BtfError(f"BTF type {id} refers to type {max(refers)} of {count}")
        if name >= strings or (names and max(names) >= strings):
            raise BtfError(f"BTF type {id} has a name past the end of the string table")
        if kind == kinds.FUNC and (not third or words[positions[third - 1] + 1] >> 24 & 127 != kinds.FUNC_PROTO):
            raise BtfError(f"BTF type {id} is a function without a prototype")
    _refuse_cycles(contains)


def _refuse_cycles(contains: dict[int, Sequence[int]]) -> None:
    """Depth-first over what types hold by value. Raises BtfError for a type that contains itself."""
    done: set[int] = set()
    for root in contains:
        if root in done or all(child < root for child in contains[root]):
            # Ids below have been looked at as roots; what they contain cannot be on a path that starts here.
            done.add(root)
            continue
        path: list[tuple[int, list[int]]] = [(root, list(contains[root]))]
        open_: set[int] = {root}
        while path:
            id, rest = path[-1]
            if not rest:
                path.pop()
                open_.discard(id)
                done.add(id)
                continue
            child = rest.pop()
            if child in open_:
                raise BtfError(f"BTF type {child} contains itself")
            if child in contains and child not in done:
                open_.add(child)
                path.append((child, list(contains[child])))


def check_func_info(records: bytes, starts: tuple[int, ...], btf: Btf) -> tuple[str, ...]:
    """Names of the subprograms from `struct bpf_func_info` records (8 bytes: slot, type id), one per subprogram.
    Raises Refusal."""
    if len(records) % 8:
        raise Refusal("func-info", f"{len(records)} bytes of func_info are not whole records")
    found = list(struct.iter_unpack("<II", records))
    slots = tuple(slot for slot, _id in found)
    if any(map(ge, slots, slots[1:])):
        raise Refusal("func-info", "func_info is not sorted")
    if slots != starts:
        raise Refusal("func-info", f"func_info at {list(slots)[:8]} does not fit subprograms at {list(starts)[:8]}")
    for slot, id in found:
        if not 0 < id < len(btf) or btf.kind(id) != kinds.FUNC:
            raise Refusal("func-info", f"BTF type {id} is not a function", insn=slot)
    return tuple(btf.name(id) for _slot, id in found)


def check_line_info(records: bytes, insns: list[Insn], btf: Btf) -> None:
    """`struct bpf_line_info` records (16 bytes: slot, file name, line, column). Raises Refusal."""
    if len(records) % 16:
        raise Refusal("line-info", f"{len(records)} bytes of line_info are not whole records")
    words = memoryview(records).cast("I")
    slots = words[0::4].tolist()
    if any(map(ge, slots, slots[1:])):
        raise Refusal("line-info", "line_info is not sorted")
    if not slots:
        return
    if slots[-1] >= len(insns):
        raise Refusal("line-info", f"line_info for instruction {slots[-1]} of {len(insns)}")
    if not all(insns[slot][0] for slot in slots):
        raise Refusal("line-info", "line_info for the second half of ld_imm64")
    if max(max(words[1::4].tolist()), max(words[2::4].tolist())) >= btf.string_bytes:
        raise Refusal("line-info", "line_info names a string past the end of the table")


def special_members(btf: Btf, id: int) -> frozenset[str]:
    """Classes that the members of a map's value need. Raises Refusal for kinds of members that are not known."""
    found: set[str] = set()
    seen: set[int] = set()
    work = [id]
    while work:
        id = btf.resolve(work.pop())
        if id in seen:
            continue
        seen.add(id)
        kind = btf.kind(id)
        if kind == kinds.ARRAY:
            work.append(btf.array(id)[0])
        elif kind in (kinds.STRUCT, kinds.UNION):
            name = btf.name(id)
            if name in _SPECIAL:
                found.add(_SPECIAL[name])
            else:
                work += [type_id for _name, type_id, _offset, _size in btf.members(id)]
        elif kind == kinds.PTR:
            target = btf.size_or_type(id)
            while btf.kind(target) == kinds.TYPE_TAG:
                tag = btf.name(target)
                if tag in _KPTR_TAGS:
                    found.add("kptr")
                elif tag == "uptr":
                    raise Refusal("map-value-type", "uptr: memory shared with user space is not modelled")
                target = btf.size_or_type(target)
    return frozenset(found)
