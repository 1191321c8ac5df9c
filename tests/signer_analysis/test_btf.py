"""Reading BTF, by hand-made blobs and by the running kernel's."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfseal.signer import btf as kinds
from bpfseal.signer.btf import Btf, BtfError
from bpfseal.signer.btf_check import check_program_btf
from tests.signer_analysis.kit import BtfWriter

VMLINUX = Path("/sys/kernel/btf/vmlinux")
needs_vmlinux = pytest.mark.skipif(not VMLINUX.exists(), reason="this kernel has no BTF")


def sample() -> BtfWriter:
    w = BtfWriter()
    number = w.int("int")
    flags = struct.pack("<III", w.string("low"), number, 0 | 3 << 24) + struct.pack("<III", w.string("high"), number, 3)
    w.add(kinds.STRUCT, "bits", 4, 2, flags, kflag=1)
    w.struct("pair", 16, ("left", number, 0), ("right", number, 8))
    w.add(kinds.ARRAY, "", 0, tail=struct.pack("<III", number, number, 7))
    w.add(kinds.ENUM, "signed", 4, 1, struct.pack("<Ii", w.string("minus"), -2), kflag=1)
    w.add(kinds.ENUM64, "big", 8, 1, struct.pack("<III", w.string("huge"), 5, 1))
    w.func("work", 0)
    w.add(kinds.TYPEDEF, "pair_t", 3)
    w.add(kinds.CONST, "", 10)
    w.add(kinds.DECL_TAG, "bpf_kfunc", 9, tail=struct.pack("<i", -1))
    w.add(kinds.DECL_TAG, "argument", 9, tail=struct.pack("<i", 0))
    w.add(kinds.VAR, "counter", number, tail=struct.pack("<I", 1))
    w.add(kinds.DATASEC, ".bss", 4, 1, struct.pack("<III", 14, 0, 4))
    return w


def test_every_accessor() -> None:
    btf = Btf(sample().bytes())
    assert len(btf) == 16
    assert [btf.kind(i) for i in (0, 1, 2, 4, 7)] == [0, kinds.INT, kinds.STRUCT, kinds.ARRAY, kinds.INT]
    assert btf.members(2) == [("low", 1, 0, 3), ("high", 1, 3, 0)]
    assert btf.members(3) == [("left", 1, 0, 0), ("right", 1, 64, 0)]
    assert btf.array(4) == (1, 1, 7)
    assert btf.enumerators(5) == [("minus", -2)]
    assert btf.enumerators(6) == [("huge", 1 << 32 | 5)]
    assert (btf.name(9), btf.linkage(9), btf.size_or_type(9)) == ("work", 0, 8)
    assert btf.params(8) == []
    assert btf.resolve(11) == 3
    assert btf.decl_tags(9) == ["bpf_kfunc"]
    assert btf.tags(9) == [("bpf_kfunc", -1), ("argument", 0)]
    assert btf.is_kfunc(9)
    assert not btf.is_kfunc(3)
    assert (btf.linkage(14), btf.sections(15)) == (1, [(14, 0, 4)])
    assert btf.int_info(1) == (1, 0, 32)
    assert list(btf.all_named(kinds.TYPEDEF)) == [("pair_t", 10)]
    assert (btf.vlen(3), btf.kflag(2), btf.kflag(3)) == (2, True, False)


def test_find_by_name_and_kind() -> None:
    btf = Btf(sample().bytes())
    assert btf.find("pair", kinds.STRUCT) == 3
    assert btf.find("pair_t", kinds.TYPEDEF) == 10
    assert btf.find("pair", kinds.UNION) == btf.find("", kinds.STRUCT) == btf.find("nothing", kinds.STRUCT) == 0


def test_find_a_name_that_is_the_tail_of_another() -> None:
    w = BtfWriter()
    w.int("my_int")
    w.types.append(struct.pack("<IIII", 1 + 3, 1 << 24, 4, 32))  # "int" inside "my_int"
    assert Btf(w.bytes()).find("int", kinds.INT) == 2


@pytest.mark.parametrize("id", [16, 17, 1 << 31, -1])
def test_ids_out_of_range(id: int) -> None:
    btf = Btf(sample().bytes())
    for read in (btf.kind, btf.name, btf.members, btf.params, btf.array, btf.vlen, btf.resolve):
        with pytest.raises(BtfError, match="no BTF type"):
            read(id)


def test_wrong_kind_is_named() -> None:
    with pytest.raises(BtfError, match="type 1 is a int, not a struct"):
        Btf(sample().bytes()).members(1)


def test_resolve_ends_on_a_cycle() -> None:
    w = BtfWriter()
    w.add(kinds.TYPEDEF, "a", 2)
    w.add(kinds.TYPEDEF, "b", 1)
    with pytest.raises(BtfError, match="more than 64"):
        Btf(w.bytes()).resolve(1)


def test_split_btf_goes_on_where_its_base_stops() -> None:
    base = Btf(sample().bytes())
    strings = base.string_bytes
    w = BtfWriter()
    w.struct("module_type", 4, ("left", 1, 0))
    types = b"".join(w.types)
    # Name offsets of a split blob count from the end of the base's string table.
    types = struct.pack("<I", strings + w.strings.index(b"module_type")) + types[4:12]
    types += struct.pack("<III", base.raw[24:].index(b"left") - len(b"".join(sample().types)), 1, 0)
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(w.strings))
    split = Btf(header + types + w.strings, base)
    assert (split.name(16), split.kind(16), split.name(3)) == ("module_type", kinds.STRUCT, "pair")
    assert split.members(16) == [("left", 1, 0, 0)]
    assert (split.find("module_type", kinds.STRUCT), split.find("pair", kinds.STRUCT), len(split)) == (16, 3, 17)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(sample().bytes()) - 1), st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(at: int, value: int) -> None:
    data = bytearray(sample().bytes())
    data[at] = value
    _read_all(bytes(data))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_types_are_read_or_refused(body: bytes) -> None:
    _read_all(struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), 5) + body + b"\0abc\0")


def _read_all(data: bytes) -> None:
    """Everything in a blob is readable or a BtfError; what the validator passes has no errors left."""
    try:
        good: Btf | None = check_program_btf(data)
    except BtfError:
        good = None
    try:
        btf = good or Btf(data)
        ids = range(len(btf))
    except BtfError:
        return
    for id in ids:
        for read in (btf.name, btf.members, btf.params, btf.enumerators, btf.array, btf.decl_tags, btf.resolve):
            trouble = ""
            try:
                read(id)
            except BtfError as error:
                trouble = str(error)
            assert good is None or not trouble or "is a" in trouble or "no BTF type 0" in trouble


@needs_vmlinux
def test_vmlinux_and_its_kfuncs() -> None:
    btf = Btf.vmlinux()
    task = btf.find("task_struct", kinds.STRUCT)
    assert "pid" in [name for name, *_rest in btf.members(task)]
    assert btf.is_kfunc(btf.find("bpf_task_release", kinds.FUNC))
    assert not btf.is_kfunc(btf.find("vfs_read", kinds.FUNC))
    assert ("BPF_MAP_TYPE_HASH", 1) in btf.enumerators(btf.find("bpf_map_type", kinds.ENUM))
    assert Btf.vmlinux() is btf


@pytest.mark.parametrize("name", ["", ".", "..", "vmlinux", "../vmlinux", "a/b", "no_such_module"])
def test_module_names_are_file_names(name: str) -> None:
    with pytest.raises(BtfError):
        Btf.module(name)
