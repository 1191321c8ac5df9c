"""ELF files: what other tools say about the same file, and what damaged files do (nothing but ElfError)."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from bpfseal.runtime.demangle import available, demangle, is_mangled, without_parameters
from bpfseal.runtime.elf import Elf, ElfError
from bpfseal.runtime.instructions import AARCH64, X86_64, boundary, length_x86_64
from tests.probes import kit, programs

X86 = os.uname().machine == "x86_64"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elf")


@pytest.fixture(scope="module")
def program(folder: Path) -> Path:
    return kit.compile_c(folder / "types", programs.TYPES, "-g")


@pytest.fixture(scope="module")
def usdt(folder: Path) -> Path:
    return kit.compile_c(folder / "usdt", programs.USDT, "-O2")


def nm(path: Path) -> dict[str, int]:
    out = subprocess.run(["nm", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in out.splitlines())
    return {row[2]: int(row[0], 16) for row in rows if len(row) == 3 and row[1] in "tTiW"}


def test_symbols_are_those_of_nm(program: Path) -> None:
    symbols = {symbol.name: symbol.address for symbol in Elf(str(program)).symbols}
    expected = {name: address for name, address in nm(program).items() if name in symbols}
    assert symbols == expected
    assert {"main", "simple", "result", "many"} <= set(symbols)


def test_a_name_alone_gives_the_same(program: Path) -> None:
    elf = Elf(str(program))
    for symbol in elf.symbols:
        assert symbol in Elf(str(program)).named(symbol.name)
        assert not symbol.size or elf.function_at(symbol.address) is not None
    with pytest.raises(ElfError, match="has no function nothing"):
        elf.symbol("nothing")
    assert elf.named("") == []


def test_offsets_lead_to_the_code(program: Path) -> None:
    elf, data = Elf(str(program)), program.read_bytes()
    for symbol in elf.symbols:
        assert elf.to_offset(symbol.address) == symbol.offset
        assert elf.to_address(symbol.offset) == symbol.address
        assert elf.read(symbol.offset, 4) == data[symbol.offset : symbol.offset + 4]
    assert elf.to_offset(1 << 60) is None


def test_variables(program: Path, usdt: Path) -> None:
    found = Elf(str(usdt)).object_named("global_value")
    assert found is not None
    assert found.size == 4
    assert Elf(str(program)).object_named("no_such_variable") is None


@pytest.mark.skipif(not shutil.which("strip"), reason="needs binutils")
class TestStripped:
    def test_without_symbols(self, program: Path, tmp_path: Path) -> None:
        path = tmp_path / "stripped"
        subprocess.run(["strip", "-o", path, program], check=True)
        assert not any(symbol.name == "simple" for symbol in Elf(str(path)).symbols)

    def test_separate_debug_file(self, program: Path, tmp_path: Path) -> None:
        """By .gnu_debuglink, beside the program and in .debug."""
        for place in (tmp_path, tmp_path / ".debug"):
            place.mkdir(exist_ok=True)
            path, debug = tmp_path / f"linked{len(str(place))}", place / f"extra{len(str(place))}.debug"
            subprocess.run(["objcopy", "--only-keep-debug", program, debug], check=True)
            subprocess.run(["strip", "-o", path, program], check=True)
            subprocess.run(["objcopy", f"--add-gnu-debuglink={debug}", path], check=True)
            assert Elf(str(path)).named("simple") == Elf(str(program)).named("simple")

    def test_debug_file_of_another_build(self, program: Path, usdt: Path, tmp_path: Path) -> None:
        path, debug = tmp_path / "linked", tmp_path / "extra.debug"
        subprocess.run(["objcopy", "--only-keep-debug", usdt, debug], check=True)
        subprocess.run(["strip", "-o", path, program], check=True)
        subprocess.run(["objcopy", f"--add-gnu-debuglink={debug}", path], check=True)
        assert Elf(str(path)).debug_file is None

    def test_packed_symbols(self, program: Path, tmp_path: Path) -> None:
        import lzma

        path, packed = tmp_path / "mini", tmp_path / "symbols.xz"
        packed.write_bytes(lzma.compress(program.read_bytes()))
        subprocess.run(["strip", "-o", path, program], check=True)
        subprocess.run(["objcopy", f"--add-section=.gnu_debugdata={packed}", path], check=True)
        assert Elf(str(path)).named("simple") == Elf(str(program)).named("simple")
        packed.write_bytes(b"\xfd7zXZ\0 not really")
        subprocess.run(["objcopy", f"--update-section=.gnu_debugdata={packed}", path], check=True)
        assert Elf(str(path)).named("simple") == []


def test_usdt_notes(usdt: Path) -> None:
    notes = Elf(str(usdt)).usdt
    assert [(n.provider, n.name) for n in notes].count(("app", "memory")) == 2
    assert {(n.provider, n.name) for n in notes} == {
        ("app", "registers"), ("app", "memory"), ("app", "guarded"), ("lib", "inlined"),
    }  # fmt: skip
    elf = Elf(str(usdt))
    for note in notes:
        offset = elf.to_offset(note.address)
        assert offset is not None
        assert elf.read(offset, 1) == b"\x90"
    (guarded,) = (n for n in notes if n.name == "guarded")
    counted = elf.object_named("counted")
    assert counted is not None
    assert guarded.semaphore == counted.address
    assert all(not n.semaphore for n in notes if n.name != "guarded")


class TestNoElf:
    @pytest.mark.parametrize(
        "content", [b"", b"\x7fELF", b"#!/bin/sh\n", b"\x7fELF\x02\x01\x01" + bytes(20), b"x" * 999]
    )
    def test_other_files(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(ElfError):
            Elf(str(path))

    def test_missing_and_directory(self, tmp_path: Path) -> None:
        for path in (tmp_path / "missing", tmp_path, Path("/dev/null")):
            with pytest.raises(ElfError):
                Elf(str(path))

    def test_random_damage(self, program: Path, usdt: Path) -> None:
        rng = random.Random(3)
        for original in (program.read_bytes(), usdt.read_bytes()):
            interesting = [*range(64), *range(len(original) - 3000, len(original)), *range(64, 1200)]
            for _ in range(400):
                data = bytearray(original)
                for _ in range(rng.randrange(1, 12)):
                    data[rng.choice(interesting)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
                if rng.random() < 0.2:
                    del data[rng.randrange(len(data)) :]
                try:
                    elf = Elf.from_bytes(bytes(data))
                    assert len(elf.symbols) < 10_000
                    assert len(elf.usdt) < 100
                    elf.named("main")
                    elf.function_at(0x1139)
                    elf.object_named("counted")
                    assert len(elf.build_id) < 1000
                except ElfError:
                    continue


@pytest.mark.skipif(not X86, reason="x86-64 code")
class TestInstructions:
    @pytest.mark.skipif(not shutil.which("objdump"), reason="needs binutils")
    def test_lengths_are_those_of_objdump(self) -> None:
        import re

        library = next(path for path in ("/lib/x86_64-linux-gnu/libm.so.6", "/lib64/libm.so.6") if os.path.exists(path))
        out = subprocess.run(["objdump", "-dw", "--insn-width=16", library], capture_output=True, text=True).stdout
        checked = 0
        for line in out.splitlines():
            match = re.match(r"\s+[0-9a-f]+:\t((?:[0-9a-f]{2} )+)\s*\t?(.*)", line)
            if match is None or "(bad)" in line or match[1].startswith("9b "):  # 9b: a wait shown with what follows
                continue
            code = bytes.fromhex(match[1])
            assert length_x86_64(code + bytes(16), 0) == len(code), line
            checked += 1
        assert checked > 100_000

    def test_boundaries(self) -> None:
        code = bytes.fromhex("55 4889e5 b805000000 c3")
        inside = [offset for offset in range(len(code)) if boundary(X86_64, code, offset)]
        assert inside == [0, 1, 4, 9]
        assert boundary(X86_64, bytes.fromhex("06 90"), 1) is None  # invalid in 64-bit mode
        assert boundary(X86_64, bytes.fromhex("e8 00"), 1) is None  # cut short

    def test_noise(self) -> None:
        rng = random.Random(5)
        for _ in range(20_000):
            code = rng.randbytes(rng.randrange(20))
            assert 0 <= length_x86_64(code, 0) <= min(15, len(code))

    def test_other_machines(self) -> None:
        assert boundary(AARCH64, bytes(16), 8) is True
        assert boundary(AARCH64, bytes(16), 6) is False
        assert boundary(40, bytes(16), 4) is None


@pytest.mark.skipif(not available(), reason="no C++ runtime library")
@pytest.mark.parametrize(
    ("symbol", "name", "short"),
    [
        ("_ZN3app6Server6handleEi", "app::Server::handle(int)", "app::Server::handle"),
        ("_ZNK3app6ServerplEi", "app::Server::operator+(int) const", "app::Server::operator+"),
        ("_ZN3app5twiceIiEET_S1_", "int app::twice<int>(int)", "int app::twice<int>"),
        ("_Z1fPFivE", "f(int (*)())", "f"),
        ("_ZTV3Foo", "vtable for Foo", "vtable for Foo"),
    ],
)
def test_demangling(symbol: str, name: str, short: str) -> None:
    assert is_mangled(symbol)
    assert demangle(symbol) == name
    assert without_parameters(name) == short


def test_names_that_are_not_mangled() -> None:
    for name in ("main", "_Znonsense", "", "_Z", "_ZN3fooE\udcff"):
        assert demangle(name) is None or is_mangled(name)
