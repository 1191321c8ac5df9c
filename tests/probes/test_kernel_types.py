"""Kernel types: the index survives bad files, conversions agree with the kernel's own layout."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import pytest

from bpfseal.compiler import kernel_constants, kernel_index
from bpfseal.compiler.kernel import KernelTypes
from bpfseal.dsl.types import BOOL, Array, Enum, Int, Ptr, Record, Str, Void, size_of
from bpfseal.signer import btf as raw

VMLINUX = Path("/sys/kernel/btf/vmlinux")
pytestmark = pytest.mark.skipif(not VMLINUX.exists(), reason="the running kernel has no BTF")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def types(cache: Path) -> KernelTypes:
    return KernelTypes(cache)


def index_file(cache: Path) -> Path:
    (path,) = cache.glob("btf-*")
    return path


class TestIndex:
    def test_every_name_is_found(self, types: KernelTypes) -> None:
        btf = types.btf()
        assert btf is not None
        for kind in kernel_index.KINDS:
            letter = kernel_index.letter(kind)
            names: dict[str, int] = {}
            for name, id in btf.all_named(kind):
                names.setdefault(name, id)
            sample = random.Random(1).sample(sorted(names), min(len(names), 500))
            for name in sample:
                found = types.find(letter, name)
                assert btf.name(found) == name
                assert found <= names[name]

    def test_unknown_names(self, types: KernelTypes) -> None:
        for name in ("", "no_such_thing", "task_struct\0", "ünï", "x" * 10_000):
            assert types.find("s", name) == 0
            assert types.record(f"struct {name}") is None
            assert types.constant(name) is None

    def test_is_kept_and_private(self, types: KernelTypes, cache: Path) -> None:
        path = index_file(cache)
        before = path.stat()
        assert before.st_mode & 0o777 == 0o600
        KernelTypes(cache)
        assert path.stat().st_mtime_ns == before.st_mtime_ns
        assert os.listdir(cache) == [path.name]

    @pytest.mark.parametrize("damage", ["empty", "cut", "magic", "identity", "positions", "hashes", "text", "long"])
    def test_damaged_files_are_replaced(self, types: KernelTypes, tmp_path: Path, damage: str, cache: Path) -> None:
        good = index_file(cache).read_bytes()
        bad = bytearray(good)
        match damage:
            case "empty":
                bad = bytearray()
            case "cut":
                bad = bad[:-100]
            case "magic":
                bad[0] ^= 1
            case "identity":
                bad[9] ^= 1
            case "positions":
                bad[5_000] ^= 0x40
            case "hashes":
                bad[4 * int.from_bytes(good[24:28], "little") + 10_000] ^= 0x01
            case "text":
                bad[-50] ^= 0x01
            case "long":
                bad += b"\0"
        path = tmp_path / index_file(cache).name
        path.write_bytes(bad)
        fresh = KernelTypes(tmp_path)
        assert fresh.record("struct task_struct") == types.record("struct task_struct")
        assert fresh.function_names() == types.function_names()
        if damage != "text":  # checked when it is used, not when the file is opened
            assert path.read_bytes() == good

    def test_random_damage_changes_no_answer(self, types: KernelTypes, tmp_path: Path, cache: Path) -> None:
        good, rng = index_file(cache).read_bytes(), random.Random(7)
        path = tmp_path / index_file(cache).name
        for _ in range(4):
            bad = bytearray(good)
            for _ in range(3):
                bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
            path.write_bytes(bad)
            assert KernelTypes(tmp_path).record("struct file") == types.record("struct file")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_files_of_others_are_not_believed(self, types: KernelTypes, tmp_path: Path, cache: Path) -> None:
        path = tmp_path / index_file(cache).name
        path.write_bytes(index_file(cache).read_bytes())
        os.chown(path, 12345, 12345)
        KernelTypes(tmp_path)
        assert path.stat().st_uid == 0

    def test_writable_files_are_not_believed(self, types: KernelTypes, tmp_path: Path, cache: Path) -> None:
        path = tmp_path / index_file(cache).name
        path.write_bytes(index_file(cache).read_bytes())
        path.chmod(0o666)
        KernelTypes(tmp_path)
        assert path.stat().st_mode & 0o777 == 0o600

    def test_links_are_not_followed(self, types: KernelTypes, tmp_path: Path, cache: Path) -> None:
        (tmp_path / index_file(cache).name).symlink_to(index_file(cache))
        assert KernelTypes(tmp_path).record("struct file") is not None
        assert not (tmp_path / index_file(cache).name).is_symlink()

    def test_works_without_a_cache(self, types: KernelTypes, tmp_path: Path) -> None:
        blocked = tmp_path / "file"
        blocked.write_text("")
        assert KernelTypes(blocked / "below").record("struct file") == types.record("struct file")


class TestTypes:
    def test_task_struct(self, types: KernelTypes) -> None:
        info = types.record("struct task_struct")
        assert info is not None
        fields = {field.name: field for field in info.fields}
        assert fields["pid"].type == Int(32)
        assert fields["comm"].type == Str(16)
        parent = fields["real_parent"].type
        assert isinstance(parent, Ptr)
        assert parent.to == Record("struct task_struct", info.size)
        assert max(f.offset + size_of(f.type) for f in info.fields if not f.bits) <= info.size

    def test_anonymous_members_are_flattened(self, types: KernelTypes) -> None:
        info = types.record("struct sk_buff")
        assert info is not None
        names = [field.name for field in info.fields]
        assert {"next", "sk", "len", "protocol", "network_header"} <= set(names)
        assert "" not in names
        offsets = {field.name: field.offset for field in info.fields}
        assert offsets["tstamp"] == offsets["skb_mstamp_ns"]

    def test_every_record_converts(self, types: KernelTypes) -> None:
        btf = types.btf()
        assert btf is not None
        for kind, word in ((raw.STRUCT, "struct"), (raw.UNION, "union")):
            for name, _ in btf.all_named(kind):
                info = types.record(f"{word} {name}")
                assert info is not None
                for field in info.fields:
                    if field.bits:
                        assert isinstance(field.type, Int)
                        assert field.bit_offset + field.bits <= field.type.bits
                        assert field.offset + field.type.bits // 8 <= info.size
                    elif not isinstance(field.type, Array | Str):
                        assert field.offset + size_of(field.type) <= info.size

    def test_bit_fields_lie_where_the_compiler_puts_them(self, types: KernelTypes) -> None:
        btf = types.btf()
        assert btf is not None
        checked = 0
        for name in ("task_struct", "sk_buff", "tcp_sock", "bpf_prog", "perf_event_attr", "sock"):
            id = types.find("s", name)
            info = types.record(f"struct {name}")
            assert info is not None
            positions = {n: (offset, size) for n, _, offset, size in btf.members(id) if size}
            for field in info.fields:
                if field.name in positions:
                    assert (field.offset * 8 + field.bit_offset, field.bits) == positions[field.name]
                    checked += 1
        assert checked > 30

    def test_typedefs_of_unnamed_records(self, types: KernelTypes) -> None:
        info = types.record("atomic_t")
        assert info is not None
        assert [field.name for field in info.fields] == ["counter"]
        assert types.type_named("atomic_t") == Record("atomic_t", 4)

    def test_names_of_unnamed_records_lead_back(self, types: KernelTypes) -> None:
        btf = types.btf()
        assert btf is not None
        seen = 0
        for name in ("mm_struct", "inode", "page", "sock_common", "task_struct", "bpf_attr"):
            info = types.record(f"struct {name}") or types.record(f"union {name}")
            assert info is not None
            for field in info.fields:
                if isinstance(field.type, Record) and "#" in field.type.name:
                    inner = types.record(field.type.name)
                    assert inner is not None
                    assert inner.size == field.type.size
                    seen += 1
        assert seen

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("int", Int(32)),
            ("unsigned int", Int(32, False)),
            ("unsigned", Int(32, False)),
            ("long unsigned", Int(64, False)),
            ("unsigned long long int", Int(64, False)),
            ("short", Int(16)),
            ("unsigned char", Int(8, False)),
            ("signed char", Int(8)),
            ("_Bool", BOOL),
            ("u32", Int(32, False)),
            ("__u64", Int(64, False)),
            ("s16", Int(16)),
            ("uint8_t", Int(8, False)),
            ("size_t", Int(64, False)),
            ("pid_t", Int(32)),
            ("void", Void()),
            ("void *", Ptr(None)),
            ("const int *", Ptr(Int(32))),
            ("int**", Ptr(Ptr(Int(32)))),
            ("enum pid_type", Enum("pid_type")),
            ("struct no_such_struct", None),
            ("no_such_type", None),
            ("unsigned float", None),
            ("", None),
            ("*", None),
            ("int int * int", None),
        ],
    )
    def test_c_names(self, types: KernelTypes, name: str, expected: object) -> None:
        assert types.type_named(name) == expected

    def test_enums_and_constants(self, types: KernelTypes) -> None:
        names = types.enum("pid_type")
        assert names is not None
        assert names[1] == "PIDTYPE_TGID"
        assert types.constant("PIDTYPE_TGID") == (1, Enum("pid_type"))
        found = types.constant("TCP_ESTABLISHED")
        assert found is not None
        assert found[0] == 1

    def test_macros(self) -> None:
        assert kernel_constants.macro("AF_INET6") == (socket.AF_INET6, Int(32))
        assert kernel_constants.macro("EINVAL") == (22, Int(32))
        assert kernel_constants.macro("SIGKILL") == (9, Int(32))
        assert kernel_constants.macro("S_IFMT") == (0o170000, Int(32))
        assert kernel_constants.macro("NO_SUCH_MACRO") is None
        assert all(kernel_constants.macro(name) is not None for name in kernel_constants.names())

    def test_prototypes(self, types: KernelTypes) -> None:
        proto = types.prototype("vfs_read")
        assert proto is not None
        assert [param.name for param in proto.params] == ["file", "buf", "count", "pos"]
        assert proto.returns == Int(64)
        assert types.spell(proto.params[0].id, "file") == "struct file * file"
        assert types.prototype("no_such_function") is None

    def test_tracepoints(self, types: KernelTypes) -> None:
        proto = types.tracepoint("sched_switch")
        btf = types.btf()
        assert proto is not None
        assert btf is not None
        assert [param.name for param in proto.params] == ["preempt", "prev", "next", "prev_state"]
        assert btf.name(proto.id) == "btf_trace_sched_switch"
        assert types.tracepoint("no_such_tracepoint") is None

    @pytest.mark.parametrize(
        ("declaration", "spelled"),
        [
            (("task_struct", "comm"), "char comm[16]"),
            (("task_struct", "real_parent"), "struct task_struct * real_parent"),
            (("list_head", "next"), "struct list_head * next"),
            (("sk_buff", "destructor"), "void (*destructor)(struct sk_buff *)"),
        ],
    )
    def test_spelling(self, types: KernelTypes, declaration: tuple[str, str], spelled: str) -> None:
        btf = types.btf()
        assert btf is not None
        ids = {n: id for n, id, _, _ in self.all_members(types, types.find("s", declaration[0]))}
        assert types.spell(ids[declaration[1]], declaration[1]) == spelled

    def all_members(self, types: KernelTypes, id: int) -> list[tuple[str, int, int, int]]:
        btf = types.btf()
        assert btf is not None
        found = []
        for row in btf.members(id):
            target = btf.resolve(row[1])
            found += [row] if row[0] else self.all_members(types, target)
        return found

    def test_kfuncs(self, types: KernelTypes) -> None:
        assert types.kfunc("bpf_task_acquire")
        assert not types.kfunc("no_such_kfunc")
        assert not types.kfunc("vfs_read")
