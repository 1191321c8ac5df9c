"""Bundles whose maps are wrong."""

from __future__ import annotations

from typing import Any

from bpfseal.signer.bundle import Bundle, MapSpec
from tests.hostile.case import Case
from tests.signer_analysis.kit import (
    ARRAY,
    COUNT,
    COUNTED,
    HASH,
    RETURN,
    BtfWriter,
    bundle,
    ldvalue,
    program,
    simple,
    st,
)


def with_map(type: int = 1, btf: bytes = b"", **fields: Any) -> Bundle:
    base: dict[str, Any] = {"name": "odd", "key_size": 8, "value_size": 8, "max_entries": 128}
    return bundle(program(COUNT, COUNTED), maps=(HASH, MapSpec(type=type, **base | fields)), btf=btf)


def bad(case: str, rule: str, reason: str, type: int = 1, **fields: Any) -> Case:
    return Case(case, lambda: with_map(type, **fields), rule, reason)


def _user_pointer() -> bytes:
    w = BtfWriter()
    tag = w.add(18, "uptr", w.int())
    w.struct("value", 8, ("p", w.add(2, third=tag), 0))
    return w.bytes()


def _timer() -> bytes:
    w = BtfWriter()
    w.struct("value", 16, ("t", w.struct("bpf_list_head", 16), 0))
    return w.bytes()


CONSTANT = MapSpec(name="consts", type=2, key_size=4, value_size=8, max_entries=1, initial=b"8" * 8, frozen=True)

CASES = [
    bad("zero-entries", "map-size", "0 entries in hash", max_entries=0),
    bad("two-to-the-32-entries", "number", "max_entries 4294967296 is not a 32-bit number", max_entries=1 << 32),
    bad("negative-entries", "number", "max_entries -1", max_entries=-1),
    bad("value-4gib", "number", "value_size 4294967296", value_size=1 << 32),
    bad("value-2gib", "map-size", "value of 2147483648 bytes", value_size=1 << 31),
    bad("value-empty", "map-size", "value of 0 bytes", value_size=0),
    bad("key-of-array-8", "map-size", "key of 8 bytes in array", type=2),
    bad("key-1mib", "map-size", "key of 1048576 bytes", key_size=1 << 20),
    bad("too-many-bytes", "policy", "bytes of maps, 67108864 allowed", max_entries=1 << 20, value_size=64),
    bad("percpu-multiplied", "policy", "bytes of maps", type=5, max_entries=1 << 16, value_size=2048),
    bad("prog-array", "map-type", "prog_array: there is nothing", type=3, key_size=4, value_size=4),
    bad("prog-array-that-exists", "policy", "type prog_array is not granted", type=3, key_size=4, value_size=4, id=7),
    bad("devmap", "map-type", "devmap: only existing ones", type=14, key_size=4, value_size=4),
    bad("array-of-maps", "map-type", "array_of_maps: only existing ones", type=12, key_size=4, value_size=4),
    bad("hash-of-maps", "map-type", "hash_of_maps: only existing ones", type=13, value_size=4),
    bad("struct-ops", "map-type", "struct_ops", type=26),
    bad("arena", "map-type", "arena", type=33, key_size=0, value_size=0),
    bad("user-ringbuf", "map-type", "user_ringbuf", type=31, key_size=0, value_size=0, max_entries=4096),
    bad("insn-array", "map-type", "insn_array", type=34, key_size=4),
    bad("map-type-0", "map-type", "unknown map type 0", type=0),
    bad("map-type-of-tomorrow", "map-type", "unknown map type 99", type=99),
    bad("map-type-not-allowed", "policy", "type bloom_filter is not granted", type=30, key_size=0),
    bad("unknown-flag", "map-flags", "flags 0x80000000", flags=1 << 31),
    bad("numa-node-flag", "map-flags", "flags 0x4", flags=1 << 2),
    bad("mmapable-hash", "map-flags", "flags 0x400", flags=1 << 10),
    bad("zero-seed", "map-flags", "flags 0x40", flags=1 << 6),
    bad("ring-of-5000-bytes", "map-size", "not a power of two", type=27, key_size=0, value_size=0, max_entries=5000),
    bad("init-longer-than-value", "map-initial", "9 bytes for 8", type=2, key_size=4, max_entries=1, initial=b"9" * 9),
    bad("init-of-a-hash", "map-initial", "only an array of one", initial=b"8" * 8),
    bad("init-of-many", "map-initial", "only an array of one", type=2, key_size=4, max_entries=2, initial=b"8" * 8),
    bad(
        "mutable-constant",
        "map-frozen",
        "can be changed from outside",
        type=2,
        key_size=4,
        max_entries=1,
        flags=1 << 7,
        initial=b"8" * 8,
    ),
    bad("frozen-without-value", "map-frozen", "without a value", type=2, key_size=4, max_entries=1, frozen=True),
    bad("storage-with-entries", "map-size", "128 entries in task_storage", type=29, key_size=4, flags=1),
    Case(
        "write-to-a-constant",
        lambda: simple(ldvalue(1, 1) + st(1, 0, 7) + RETURN, maps=(HASH, CONSTANT, ARRAY)),
        "map-frozen",
        "writes to the constant map consts",
    ),
    Case("duplicate-name", lambda: bundle(maps=(HASH, HASH)), "name", "two maps are named counts"),
    bad("name-of-16", "name", "bad map name", name="sixteen_letters_"),
    bad("name-with-slash", "name", "bad map name '../x'", name="../x"),
    bad("name-empty", "name", "bad map name ''", name=""),
    Case("257-maps", lambda: bundle(maps=tuple(_numbered(257))), "size", "257 maps"),
    bad("value-type-without-btf", "btf", "not in the bundle's BTF", key_btf=1, value_btf=1),
    Case("value-type-past-end", lambda: with_map(btf=_timer(), key_btf=1, value_btf=99), "btf", "not in the bundle's"),
    Case(
        "user-pointer-in-value", lambda: with_map(btf=_user_pointer(), key_btf=1, value_btf=4), "map-value-type", "uptr"
    ),
    Case(
        "kernel-objects-in-value",
        lambda: with_map(btf=_timer(), key_btf=1, value_btf=2),
        "policy",
        "values need class kptr",
    ),
]


def _numbered(count: int) -> list[MapSpec]:
    return [MapSpec(name=f"m{i}", type=1, key_size=8, value_size=8, max_entries=1) for i in range(count)]
