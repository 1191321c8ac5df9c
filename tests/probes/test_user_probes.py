"""uprobe and usdt: which files and functions are meant, and that exactly those are probed."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bpfseal.dsl.env import Args, Point, Target
from bpfseal.dsl.points import specs
from bpfseal.dsl.types import BOOL, Array, Int, Ptr, Record, Str
from bpfseal.errors import BpfsealError
from bpfseal.runtime import bpf, bpf_link
from bpfseal.runtime.attach import AttachContext, attach
from bpfseal.runtime.environment import RealEnvironment
from bpfseal.runtime.probes import usdt as usdt_provider
from bpfseal.runtime.probes.binaries import find_library, mapped_files, resolve
from bpfseal.signer import asm
from bpfseal.signer.asm import Asm, R
from bpfseal.signer.bpf import map_create, prog_load
from bpfseal.signer.bundle import Attach
from tests.probes import kit, programs


def points(text: str, target: Target | None = None) -> list[Point]:
    target = target or Target()
    environment = RealEnvironment(target)
    return [p for s in specs(text, pid=bool(target.pid), unsafe=target.unsafe) for p in environment.expand(s)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("user")


@pytest.fixture(scope="module")
def types(folder: Path) -> Path:
    return kit.compile_c(folder / "types", programs.TYPES, "-g")


@pytest.fixture(scope="module")
def usdt(folder: Path) -> Path:
    return kit.compile_c(folder / "usdt", programs.USDT, "-O2")


@pytest.fixture(scope="module")
def cpp(folder: Path) -> Path:
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler")
    source = folder / "cpp.cc"
    source.write_text(programs.CPP)
    subprocess.run(["g++", "-O0", "-g", "-o", folder / "cpp", source], check=True)
    return folder / "cpp"


WAITS = r"""
#include <stdio.h>
__attribute__((noinline)) int first(int x) { return x + 1; }
int main(void) {
    int sum = 0;
    putchar('m');
    fflush(stdout);
    getchar();
    for (int i = 0; i < 12; i++) sum += first(i);
    return sum == 0;
}
"""


class TestFiles:
    def test_by_path_and_on_path(self, types: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert resolve(str(types)) == [str(types)]
        monkeypatch.setenv("PATH", f"/nonexistent:{types.parent}")
        assert resolve("types") == [f"{types.parent}/types"]
        monkeypatch.chdir(types.parent)
        assert resolve("types")[0] == "types"
        assert resolve("./types") == ["./types"]

    def test_patterns(self, types: Path, usdt: Path) -> None:
        assert set(resolve(f"{types.parent}/*")) >= {str(types), str(usdt)}
        assert not any(path.endswith(".c") for path in resolve(f"{types.parent}/*"))
        assert resolve(f"{types.parent}/[tu]*") == []  # brackets are letters

    def test_what_is_no_binary(self, types: Path, tmp_path: Path) -> None:
        script = tmp_path / "script"
        script.write_text("#!/bin/sh\n")
        script.chmod(0o755)
        assert resolve(str(script)) == []
        assert resolve(str(script), unsafe=True) == [str(script)]
        assert resolve("/nonexistent") == []
        assert resolve(str(tmp_path)) == []

    def test_libraries_by_short_name(self) -> None:
        found = find_library("libc")
        assert found
        assert os.path.basename(found[0]).startswith("libc.so")
        assert find_library("libc.so.6") == find_library("libc")
        assert find_library("libnosuchlibrary") == []
        assert resolve("libc")[0] == found[0]

    def test_files_of_a_process(self) -> None:
        mine = mapped_files(os.getpid())
        assert os.path.realpath("/proc/self/exe") in [os.path.realpath(path) for path in mine]
        assert any("libc" in path for path in mine)
        with pytest.raises(BpfsealError, match="no process"):
            mapped_files(1 << 22)


class TestProcesses:
    def test_another_mount_namespace(self, folder: Path) -> None:
        """The file is where only the process sees it; the probe counts all the same."""
        if os.geteuid() or not shutil.which("unshare"):
            pytest.skip("needs root and unshare")
        path = kit.compile_c(folder / "waits", WAITS)
        script = f"mount -t tmpfs none /mnt && cp {path} /mnt/hidden && echo ready && exec /mnt/hidden"
        with subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            assert process.stdout.read(1) == b"m"  # main runs
            assert not os.path.exists("/mnt/hidden")
            target = Target(pid=process.pid)
            (point,) = points("u:/mnt/hidden:first", target)
            assert point.module == f"/proc/{process.pid}/root/mnt/hidden"
            assert [p.module for p in points("u:first", target)] == [point.module]
            spec = Attach(kind="uprobe", probe=point.name, target=point.module, params={"offset": point.number})
            with kit.counter(kit.KPROBE) as program:
                link = attach(spec, program.prog, AttachContext())
                process.communicate(b"\n")
                link.close()
                assert program.count == 12

    def test_deleted_program(self, folder: Path) -> None:
        path = kit.compile_c(folder / "deleted", WAITS)
        with subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.read(1) == b"m"
            path.unlink()
            (point,) = points("u:first", Target(pid=process.pid))
            assert point.module == f"/proc/{process.pid}/exe"
            spec = Attach(kind="uprobe", probe=point.name, target=point.module, params={"offset": point.number})
            with kit.counter(kit.KPROBE) as program:
                link = attach(spec, program.prog, AttachContext())
                process.communicate(b"\n")
                link.close()
                assert program.count == 12

    def test_process_that_is_gone(self) -> None:
        process = subprocess.Popen(["true"])
        process.wait()
        with pytest.raises(BpfsealError, match=f"of process {process.pid}"):
            points("u:first", Target(pid=process.pid))
        with pytest.raises(BpfsealError, match="no process"):
            points("usdt:x", Target(pid=process.pid))

    @pytest.mark.skipif(not shutil.which("strip"), reason="needs binutils")
    def test_stripped_program(self, types: Path, tmp_path: Path) -> None:
        path = tmp_path / "stripped"
        subprocess.run(["strip", "-o", path, types], check=True)
        with pytest.raises(BpfsealError, match="it is stripped"):
            points(f"u:{path}:simple")


class TestUprobe:
    def test_names(self, types: Path) -> None:
        (point,) = points(f"uprobe:{types}:simple")
        assert point.name == f"uprobe:{types}:simple"
        assert (point.module, point.function) == (str(types), "simple")
        assert [p.function for p in points(f"u:{types}:m*")] == ["main", "many"]
        assert points(f"u:{types}:nothing") == []
        assert points(f"u:{types}:nothing*") == []

    def test_missing_file(self) -> None:
        with pytest.raises(BpfsealError, match="does not exist or is not executable"):
            points("uprobe:/nonexistent:main")

    @pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86-64 code")
    def test_offsets_must_be_instructions(self, types: Path) -> None:
        (start,) = points(f"u:{types}:simple")
        (point,) = points(f"u:{types}:simple+1")  # push %rbp is one byte long
        assert point.number == start.number + 1
        assert point.name == f"uprobe:{types}:simple+1"
        with pytest.raises(BpfsealError, match="middle of an instruction"):
            points(f"u:{types}:simple+2")
        assert points(f"u:{types}:simple+2", Target(unsafe=True))[0].number == start.number + 2
        with pytest.raises(BpfsealError, match="outside the function bounds"):
            points(f"u:{types}:simple+4000")

    def test_addresses(self, types: Path) -> None:
        (by_name,) = points(f"u:{types}:simple")
        address = dict(by_name.params)["address"]
        (by_address,) = points(f"u:{types}:{address}")
        assert by_address.number == by_name.number
        assert by_address.name == f"uprobe:{types}:{address}"
        with pytest.raises(BpfsealError, match="Could not resolve address"):
            points(f"u:{types}:{1 << 40}")
        with pytest.raises(BpfsealError, match="start of a function"):
            points(f"ur:{types}:{int(address) + 1}")

    def test_source_lines(self, types: Path) -> None:
        line = 1 + programs.TYPES[: programs.TYPES.index("int simple")].count("\n")
        (by_line,) = points(f"u:{types}@types.c:{line}")
        (by_name,) = points(f"u:{types}:simple")
        assert by_line.number == by_name.number
        with pytest.raises(BpfsealError, match="no instruction"):
            points(f"u:{types}@types.c:2")
        with pytest.raises(BpfsealError, match="no source file"):
            points(f"u:{types}@other.c:2")

    def test_no_debug_information(self, usdt: Path) -> None:
        with pytest.raises(BpfsealError, match="no debug information"):
            points(f"u:{usdt}@usdt.c:3")

    def test_cpp_names(self, cpp: Path) -> None:
        def found(pattern: str) -> set[str]:
            return {p.function for p in points(f'u:{cpp}:cpp:"{pattern}"')}

        assert found("app::Server::handle") == {"_ZN3app6Server6handleEi", "_ZN3app6Server6handleEPKc"}
        assert found("app::Server::handle(int)") == {"_ZN3app6Server6handleEi"}
        assert found("app::Server::*") == {
            "_ZN3app6Server6handleEi",
            "_ZN3app6Server6handleEPKc",
            "_ZNK3app6ServerplEi",
        }
        assert found("*twice<long>*") == {"_ZN3app5twiceIlEET_S1_"}
        assert found("plain") == {"plain"}
        assert found("nothing::*") == set()
        assert {p.function for p in points(f"u:{cpp}:_ZN3app6Server6handleEi")} == {"_ZN3app6Server6handleEi"}

    def test_processes_may_go_without_a_path(self) -> None:
        found = points("u:main", Target(pid=os.getpid()))
        assert all(os.path.realpath(p.module) == os.path.realpath("/proc/self/exe") for p in found)


class TestArguments:
    def args(self, path: Path, function: str, kind: str = "uprobe") -> Args:
        environment = RealEnvironment()
        (spec,) = specs(f"{kind}:{path}:{function}")
        (point,) = environment.expand(spec)
        self.environment = environment
        return environment.args(point)

    def fields(self, path: Path, function: str) -> dict[str, tuple[object, int]]:
        info = self.args(path, function).fields
        assert info is not None
        return {field.name: (field.type, field.argument) for field in info.fields}

    def test_simple(self, types: Path) -> None:
        char = Int(8, os.uname().machine == "x86_64")
        fields = self.fields(types, "simple")
        assert fields["n"] == (Int(32), 0)
        assert fields["c"] == (char, 1)
        assert fields["text"] == (Ptr(char, "user"), 2)
        pointer = fields["o"][0]
        assert isinstance(pointer, Ptr)
        assert isinstance(pointer.to, Record)
        info = self.environment.record(pointer.to.name)
        assert info is not None
        members = {f.name: f for f in info.fields}
        assert members["next"].type == Ptr(pointer.to, "user")
        assert (members["low"].bits, members["low"].bit_offset) == (3, 0)
        assert (members["high"].bits, members["high"].bit_offset) == (5, 3)
        inner = self.environment.record("struct inner")
        assert inner is not None
        assert [(f.name, f.offset) for f in inner.fields] == [("text", 0), ("number", 12), ("real", 12)]
        assert inner.fields[0].type == Str(10)

    def test_floating_point_takes_no_integer_register(self, types: Path) -> None:
        assert self.fields(types, "floating") == {"after": (Int(32), 0), "last": (Int(64), 1)}

    def test_records_by_value(self, types: Path) -> None:
        assert self.fields(types, "by_value") == {"after": (Int(32), 2)}

    @pytest.mark.skipif(os.uname().machine != "x86_64", reason="System V ABI of x86-64")
    def test_registers_of_the_abi(self, types: Path) -> None:
        assert self.fields(types, "in_memory") == {"n": (Int(32), 1)}
        assert list(self.fields(types, "many")) == list("abcdef")

    def test_other_types(self, types: Path) -> None:
        fields = self.fields(types, "others")
        assert fields["color"][0] == Int(32, False)
        assert fields["flag"][0] == BOOL
        assert fields["byte"][0] == Int(8, False)
        assert fields["where"][0] == Ptr(Record("point_t", 16), "user")
        assert fields["grid"][0] == Ptr(Array(Int(64), 3), "user")
        assert self.environment.record("point_t") is not None

    @pytest.mark.skipif(not shutil.which("objcopy"), reason="needs binutils")
    def test_without_a_table_of_ranges(self, types: Path, tmp_path: Path) -> None:
        path = tmp_path / "plain"
        subprocess.run(["objcopy", "--remove-section=.debug_aranges", types, path], check=True)
        assert self.fields(path, "simple") == self.fields(types, "simple")

    def test_results(self, types: Path) -> None:
        assert self.args(types, "simple", "uretprobe").returns == Int(32)
        assert self.args(types, "result", "uretprobe").returns == Ptr(Record("struct outer", 40), "user")

    def test_names_that_the_kernel_has_too(self, folder: Path) -> None:
        path = kit.compile_c(
            folder / "clash", "struct file { int mine; };\nint f(struct file *x) { return x->mine; }\n"
            "int main(void) { struct file x = {0}; return f(&x); }\n", "-g",
        )  # fmt: skip
        pointer = self.fields(path, "f")["x"][0]
        assert isinstance(pointer, Ptr)
        assert isinstance(pointer.to, Record)
        info = self.environment.record(pointer.to.name)
        assert info is not None
        assert [f.name for f in info.fields] == ["mine"]
        kernel = self.environment.record("struct file")
        assert kernel is not None
        assert "mine" not in [f.name for f in kernel.fields]

    def test_damaged_debug_information(self, types: Path, tmp_path: Path) -> None:
        import random

        rng = random.Random(11)
        original = types.read_bytes()
        for number in range(40):
            data = bytearray(original)
            start = original.find(b"GNU C") - 2000
            for _ in range(40):
                data[rng.randrange(max(start, 0), len(data))] = rng.randrange(256)
            path = tmp_path / f"damaged{number}"
            path.write_bytes(data)
            path.chmod(0o755)
            try:
                for point in points(f"u:{path}:*"):
                    environment = RealEnvironment()
                    environment.args(point)
                    environment.record("struct outer")
            except BpfsealError:
                continue


class TestUsdt:
    def test_expansion(self, usdt: Path) -> None:
        assert {p.name for p in points(f"usdt:{usdt}:*")} == {
            f"usdt:{usdt}:app:registers",
            f"usdt:{usdt}:app:memory",
            f"usdt:{usdt}:app:guarded",
            f"usdt:{usdt}:lib:inlined",
        }
        assert len(points(f"usdt:{usdt}:app:memory")) == 2
        assert len(points(f"usdt:{usdt}:inlined")) == 2
        assert points(f"usdt:{usdt}:app:inlined") == []
        assert {p.category for p in points(f"usdt:{usdt}:l*:*")} == {"lib"}

    def test_no_probes(self, types: Path) -> None:
        with pytest.raises(BpfsealError, match="no USDT probes"):
            points(f"usdt:{types}:x")
        with pytest.raises(BpfsealError, match="does not exist"):
            points("usdt:/nonexistent:x")

    @pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86-64 operands")
    @pytest.mark.parametrize(
        ("operand", "location"),
        [
            ("-4@%eax", "s4 reg 80"),
            ("8@%rdi", "u8 reg 112"),
            ("-1@%al", "s1 reg 80"),
            ("1@%ah", "u1 reg 80 8"),
            ("2@%r12w", "u2 reg 24"),
            ("4@%r8d", "u4 reg 72"),
            ("-4@$-5", "s4 const -5"),
            ("8@$0x10", "u8 const 16"),
            ("-4@-20(%rbp)", "s4 mem 32 -20"),
            ("8@(%rax)", "u8 mem 80 0"),
            ("-4@0x10(%rsp)", "s4 mem 152 16"),
            ("-4@-20(%rbp,%rcx,8)", "s4 mem 32 -20 88 8"),
            ("-4@(%rbp,%rcx)", "s4 mem 32 0 88 1"),
            ("%rdi", "u8 reg 112"),
            ("8f@%xmm0", None),
            ("8@%xmm0", None),
            ("3@%eax", None),
            ("8@nothing(%rip)", None),
            ("8@", None),
            ("", None),
            ("@@@", None),
            ("8@(%rax", None),
        ],
    )
    def test_operands(self, usdt: Path, operand: str, location: str | None) -> None:
        from bpfseal.runtime.elf import Elf

        elf = Elf(str(usdt))
        assert usdt_provider.location(elf, elf.usdt[0], operand) == location

    @pytest.mark.parametrize(
        ("operand", "location"),
        [
            ("x0", "reg 0"),
            ("w19", "reg 152"),
            ("5", "const 5"),
            ("[sp, 12]", "mem 248 12"),
            ("[x29, #-8]", "mem 232 -8"),
            ("[x0]", "mem 0 0"),
            ("[x1, x2]", "mem 8 0 16 1"),
            ("[x1, x2, lsl #3]", "mem 8 0 16 8"),
            ("v0", None),
            ("[v0]", None),
        ],
    )
    def test_operands_of_arm(self, operand: str, location: str | None) -> None:
        assert usdt_provider._arm(operand) == location

    def test_splitting(self) -> None:
        assert usdt_provider.split("-4@%eax 8@(%rdi) -4@[sp, 12] 8@x1") == [
            "-4@%eax",
            "8@(%rdi)",
            "-4@[sp, 12]",
            "8@x1",
        ]
        assert usdt_provider.split("") == []


@contextmanager
def summing(location: str) -> Iterator[tuple[int, int]]:
    """(program, map): counts runs and sums up the argument at `location`, as `Args.extra` words it."""
    fd = map_create(2, 4, 16, 1)
    code = Asm()
    code.mov(R.R6, R.R1)
    words = location.split()
    size = int(words[0][1:])
    if words[1] == "const":
        code.ld_imm64(R.R8, int(words[2]))
    elif words[1] == "reg":
        code.ldx(8, R.R8, R.R6, int(words[2]))
    else:
        code.ldx(8, R.R3, R.R6, int(words[2]))
        code.add(R.R3, int(words[3]))
        code.st(8, R.R10, -8, 0)
        code.mov(R.R1, R.R10)
        code.add(R.R1, -8)
        code.mov(R.R2, size)
        code.call(112)  # probe_read_user
        code.ldx(8, R.R8, R.R10, -8)
    if size < 8:
        code.alu("lsh", R.R8, 64 - 8 * size)
        code.alu("arsh" if words[0][0] == "s" else "rsh", R.R8, 64 - 8 * size)
    code.ld_pseudo(R.R7, asm.PSEUDO_MAP_VALUE, fd, 0)
    code.mov(R.R1, 1)
    code.atomic_add(8, R.R7, 0, R.R1)
    code.atomic_add(8, R.R7, 8, R.R8)
    code.ret(0)
    prog = prog_load(kit.KPROBE, code.code())
    try:
        yield prog, fd
    finally:
        os.close(prog)
        os.close(fd)


def read(fd: int) -> tuple[int, int]:
    value = bpf.map_lookup(fd, bytes(4), 16)
    assert value is not None
    count, total = struct.unpack("<Qq", value)
    return count, total


@pytest.mark.host
@kit.needs_bpf
class TestUsdtAttached:
    @pytest.mark.parametrize(
        ("name", "argument", "count", "total"),
        [
            ("registers", "arg0", 100, sum(range(100))),
            ("registers", "arg1", 100, sum(range(1000, 1100))),
            ("registers", "arg2", 100, -500),
            ("memory", "arg0", 50, sum(range(50))),
            ("guarded", "arg0", 30, sum(range(30))),
        ],
    )
    def test_arguments(self, usdt: Path, name: str, argument: str, count: int, total: int) -> None:
        environment = RealEnvironment()
        point = points(f"usdt:{usdt}:app:{name}")[0]
        location = str(environment.args(point).extra[argument])
        params = {"offset": point.number, "semaphore": int(dict(point.params)["semaphore"])}
        spec = Attach(kind="usdt", probe=point.name, target=point.module, params=params)
        with summing(location) as (prog, fd):
            link = attach(spec, prog, AttachContext())
            subprocess.run([usdt], input=b"\n", check=True)
            link.close()
            assert read(fd) == (count, total)

    def test_global_variable(self, usdt: Path) -> None:
        environment = RealEnvironment()
        point = points(f"usdt:{usdt}:app:memory")[1]
        location = str(environment.args(point).extra["arg0"])
        params = {"offset": point.number}
        spec = Attach(kind="usdt", probe=point.name, target=point.module, params=params)
        with summing(location) as (prog, fd):
            link = attach(spec, prog, AttachContext())
            subprocess.run([usdt], input=b"\n", check=True)
            link.close()
            assert read(fd) == (50, 350)

    def test_semaphore_goes_down_again(self, usdt: Path) -> None:
        (point,) = points(f"usdt:{usdt}:guarded")
        semaphore = int(dict(point.params)["semaphore"])
        assert semaphore
        without = Attach(kind="usdt", probe=point.name, target=point.module, params={"offset": point.number})
        with kit.counter(kit.KPROBE) as program:
            link = attach(without, program.prog, AttachContext())
            subprocess.run([usdt], input=b"\n", check=True)
            link.close()
            assert program.count == 0

    def test_running_process(self, usdt: Path) -> None:
        """The counter of a process that runs already is raised too, and only of the one that is named."""
        (point,) = points(f"usdt:{usdt}:guarded")
        params = {"offset": point.number, "semaphore": int(dict(point.params)["semaphore"]), "pid": -1}
        spec = Attach(kind="usdt", probe=point.name, target=point.module, params=params)
        with (
            subprocess.Popen([usdt], stdin=subprocess.PIPE) as process,
            kit.counter(kit.KPROBE) as program,
        ):
            link = attach(spec, program.prog, AttachContext(pid=process.pid))
            process.communicate(b"\n")
            link.close()
            assert program.count == 30

    def test_two_thousand_uprobes(self, folder: Path) -> None:
        """One link for all, attached and detached in seconds."""
        import time

        count = 2000
        functions = "".join(f"__attribute__((noinline)) int f{n}(int x) {{ return x + {n}; }}\n" for n in range(count))
        calls = "".join(f"s += f{n}(s);" for n in range(count))
        path = kit.compile_c(folder / "many", f"{functions}int main(void) {{ int s = 0; {calls} return s == 1; }}\n")
        found = points(f"u:{path}:f*")
        offsets = tuple(p.number for p in found if p.function[1:].isdecimal())
        assert len(offsets) == count
        spec = Attach(kind="uprobe_multi", probe="many", target=str(path), offsets=offsets)
        with kit.counter(kit.KPROBE, attach_type=bpf_link.TRACE_UPROBE_MULTI) as program:
            before = time.monotonic()
            link = attach(spec, program.prog, AttachContext())
            attached = time.monotonic()
            subprocess.run([path], check=False)
            called = time.monotonic()
            link.close()
            assert program.count == count
            assert attached - before + time.monotonic() - called < 5
