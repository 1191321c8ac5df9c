"""Bundles whose type information, source or declarations are wrong, and bytes that are no bundles."""

from __future__ import annotations

import struct

import msgspec

from bpfseal.signer.bundle import Attributes, Bundle, encode
from tests.hostile.case import Case
from tests.signer_analysis.kit import (
    COUNT,
    COUNTED,
    EXIT,
    RETURN,
    BtfWriter,
    bundle,
    callsub,
    declare,
    ld64,
    program,
)


def _good_btf() -> tuple[bytes, int]:
    w = BtfWriter()
    id = w.func("probe_1")
    return w.bytes(), id


GOOD, FUNC = _good_btf()
LINE = struct.pack("<IIII", 0, 1, 1, 1 << 10)


def btf(name: str, data: bytes, reason: str) -> Case:
    return Case(name, lambda: bundle(btf=data), "btf", reason)


def info(
    name: str, rule: str, reason: str, func: bytes = b"", line: bytes = b"", insns: bytes = COUNT, **more: bytes
) -> Case:
    declared = COUNTED if insns == COUNT else declare(insns, subprograms=9)

    def build() -> Bundle:
        return bundle(program(insns, declared, func_info=func, line_info=line), btf=more.get("btf", GOOD))

    return Case(name, build, rule, reason)


def typed(*steps: tuple[int, str, int]) -> bytes:
    w = BtfWriter()
    for kind, name, third in steps:
        w.add(kind, name, third)
    return w.bytes()


def patched(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def _self_containing() -> bytes:
    w = BtfWriter()
    w.struct("a", 8, ("b", 2, 0))
    w.struct("b", 8, ("a", 1, 0))
    return w.bytes()


def _member_name_past_end() -> bytes:
    w = BtfWriter()
    w.add(4, "s", 4, 1, struct.pack("<III", 5000, 1, 0))
    return w.bytes()


def declared(**fields: object) -> Attributes:
    return msgspec.structs.replace(COUNTED, **fields)


def says(name: str, reason: str, rule: str = "attributes", **fields: object) -> Case:
    return Case(name, lambda: bundle(program(COUNT, declared(**fields))), rule, reason)


def source(name: str, text: str, reason: str) -> Case:
    return Case(name, lambda: bundle(source=text), "source", reason)


def _bytes(name: str, change: bytes, to: bytes, reason: str) -> Case:
    def build() -> bytes:
        data = encode(bundle(source="MARKER"))
        assert change in data
        return data.replace(change, to, 1)

    return Case(name, build, "decode", reason)


CASES = [
    btf("btf-bad-magic", patched(GOOD, 0, b"\xeb\x9f"), "bad BTF magic"),
    btf("btf-version-2", patched(GOOD, 2, b"\2"), "BTF version 2"),
    btf("btf-flags", patched(GOOD, 3, b"\1"), "do not follow each other"),
    btf("btf-three-bytes", GOOD[:3], "shorter than its header"),
    btf("btf-cut", GOOD[:-1], "past the end of the data"),
    btf("btf-with-tail", GOOD + b"\0\0\0\0", "do not follow each other"),
    btf("btf-sections-overlap", patched(GOOD, 16, struct.pack("<I", 0)), "BTF"),
    btf("btf-section-wraps-round", patched(GOOD, 8, struct.pack("<II", 0xFFFFFFF0, 0x20)), "past the end"),
    btf(
        "btf-string-past-end",
        typed((8, "t", 0)).replace(struct.pack("<I", 1), struct.pack("<I", 500), 1),
        "past the end",
    ),
    btf("btf-member-string-past-end", _member_name_past_end(), "name past the end"),
    btf("btf-strings-without-end", GOOD[:-1] + b"x", "does not start and end with a NUL"),
    btf("btf-string-escape", typed((8, "a\x1b[2J", 0)), "control character"),
    btf("btf-string-not-utf8", typed((8, "aa", 0)).replace(b"aa", b"\xff\xfe"), "not UTF-8"),
    btf("btf-cycle", typed((8, "a", 2), (8, "b", 1)), "contains itself"),
    btf("btf-cycle-of-one", typed((8, "a", 1)), "contains itself"),
    btf("btf-struct-in-itself", _self_containing(), "contains itself"),
    btf("btf-type-past-end", typed((2, "", 7)), "refers to type 7"),
    btf("btf-unknown-kind", typed((25, "x", 0)), "unknown kind 25"),
    btf("btf-kind-0", typed((0, "x", 0)), "unknown kind 0"),
    btf("btf-cut-record", GOOD[:12] + struct.pack("<III", 8, 8, 1) + b"\1\0\0\0\0\0\0\4" + b"\0", "BTF"),
    btf("btf-function-without-prototype", typed((12, "f", 0)), "function without a prototype"),
    Case("btf-2mib", lambda: bundle(btf=b"\0" * (2 << 20)), "btf", "over the limit of 1048576"),
    info("funcinfo-unsorted", "func-info", "not sorted", struct.pack("<IIII", 4, FUNC, 0, FUNC)),
    info("funcinfo-cut", "func-info", "not whole records", struct.pack("<II", 0, FUNC)[:5]),
    info("funcinfo-elsewhere", "func-info", "does not fit subprograms", struct.pack("<II", 3, FUNC)),
    info("funcinfo-of-an-int", "func-info", "is not a function", struct.pack("<II", 0, 1)),
    info("funcinfo-type-past-end", "func-info", "is not a function", struct.pack("<II", 0, 99)),
    info(
        "funcinfo-one-missing",
        "func-info",
        "does not fit subprograms",
        struct.pack("<II", 0, FUNC),
        insns=callsub(1) + EXIT + RETURN,
    ),
    info("funcinfo-without-btf", "btf", "without BTF", struct.pack("<II", 0, FUNC), btf=b""),
    info("lineinfo-past-end", "line-info", "instruction 999", line=LINE + struct.pack("<IIII", 999, 1, 1, 0)),
    info("lineinfo-unsorted", "line-info", "not sorted", line=LINE + LINE),
    info("lineinfo-cut", "line-info", "not whole records", line=LINE[:-1]),
    info("lineinfo-string-past-end", "line-info", "past the end of the table", line=struct.pack("<IIII", 0, 1, 999, 0)),
    info(
        "lineinfo-in-ldimm64",
        "line-info",
        "second half",
        line=struct.pack("<IIII", 1, 1, 1, 0),
        insns=ld64(1, 5) + RETURN,
    ),
    source("source-over-1mib", "x" * ((1 << 20) + 1), "over the limit of 1048576"),
    source("source-escape-codes", "BEGIN { }\n// \x1b]0;title\x07", "U+001B in line 2"),
    source("source-backspaces", "exit()" + "\b" * 6, "U+0008 in line 1"),
    source("source-reordered-text", "// \u202e }{ txt", "U+202E"),
    source("source-nul", "a\0b", "U+0000"),
    Case("reader-2mib", lambda: bundle(reader=b"x" * (2 << 20)), "size", "reader layout"),
    says("attributes-understated-helper", "calls the helper map_lookup_elem", helpers=()),
    says("attributes-understated-insns", "declares 3 instructions", insns=3),
    says("attributes-understated-map", "does write on map 0", maps=((0, ("read",)),)),
    says("attributes-understated-other-map", "does read on map 0", maps=((1, ("read", "write")),)),
    Case(
        "attributes-understated-subprograms",
        lambda: bundle(program(callsub(1) + EXIT + RETURN, Attributes(insns=4))),
        "attributes",
        "has 4 and 1",
    ),
    says(
        "attributes-overstated",
        "helper probe_write_user (write-user) is not granted",
        "policy",
        helpers=("map_lookup_elem", "probe_write_user"),
    ),
    says("attributes-overstated-kfunc", "kfunc bpf_everything is not granted", "policy", kfuncs=("bpf_everything",)),
    says("attributes-kfunc-of-a-megabyte", "not the name of a kfunc", kfuncs=("x" * (1 << 20),)),
    says("attributes-1000-kfuncs", "not the name of a kfunc", kfuncs=tuple(f"k{i}" for i in range(1000))),
    says("attributes-operation-of-a-megabyte", "on map 0", maps=((0, ("x" * (1 << 20),)),)),
    says("attributes-unknown-helper", "declares the unknown helper 'magic'", helpers=("magic", "map_lookup_elem")),
    says("attributes-nested-bpf", "declares the unknown helper 'sys_bpf'", helpers=("map_lookup_elem", "sys_bpf")),
    says("attributes-map-past-end", "on map 7", maps=((0, ("read", "write")), (7, ("read",)))),
    says("attributes-unknown-operation", "on map 0", maps=((0, ("execute", "read", "write")),)),
    Case("bytes-empty", lambda: b"", "decode", "not a bundle"),
    Case("bytes-of-a-list", lambda: b"\x90", "decode", "not a bundle"),
    Case("bytes-with-tail", lambda: encode(bundle()) + b"\0", "decode", "not a bundle"),
    Case("bytes-cut", lambda: encode(bundle())[:-1], "decode", "not a bundle"),
    Case("bytes-9mib", lambda: b"\0" * (9 << 20), "decode", "over the limit"),
    Case("bytes-deep", lambda: b"\x91" * 100_000, "decode", "not a bundle"),
    _bytes("source-invalid-utf8", b"MARKER", b"MA\xffKER", "not a bundle"),
    _bytes("bundle-version-1", b"\xa7version\x02", b"\xa7version\x01", "version 1"),
    _bytes("bundle-version-not-shortest", b"\xa7version\x02", b"\xa7version\xcc\x02", "not canonical"),
    _bytes("bundle-unknown-field", b"\xa7version", b"\xa7verzion", "not a bundle"),
    _bytes("bundle-wrong-type", b"\xa6source\xa6MARKER", b"\xa6source\x05", "not a bundle"),
]
