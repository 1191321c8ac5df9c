"""Debug information that is not in the program: files of their own, split units, packages of those."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from bpfseal.runtime.dwarf import Dwarf, DwarfError, has_debug_info
from bpfseal.runtime.elf import Elf, search_debug_files

_SOURCE = """
struct inner { short low; char text[6]; };
struct outer { int number; struct inner part; };
__attribute__((noinline)) int first(struct outer *it, char sign)
{
    return it->number + sign;
}
int main(int argc, char **argv)
{
    struct outer o = { argc, { 1, "five" } };
    return first(&o, 'x') == 0;
}
"""
_SECOND = """
struct other { long wide; };
int second(struct other *it) { return it->wide != 0; }
"""

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


@pytest.fixture(autouse=True)
def no_folders() -> Iterator[None]:
    yield
    search_debug_files([])


def _build(folder: Path, *flags: str) -> Path:
    for name, text in (("one.c", _SOURCE), ("two.c", _SECOND)):
        (folder / name).write_text(text)
    target = folder / "program"
    subprocess.run(["gcc", "-g", "-gdwarf-5", "-O0", *flags, "one.c", "two.c", "-o", target], check=True, cwd=folder)
    return target


def _check(path: Path) -> None:
    dwarf = Dwarf(Elf(str(path)))
    assert dwarf.describe("first") == ["struct outer* it", "char sign"]
    assert dwarf.describe("second") == ["struct other* it"]
    outer = dwarf.record("struct outer")
    assert outer is not None
    assert [(f.name, f.offset) for f in outer.fields] == [("number", 0), ("part", 4)]
    other = dwarf.record("struct other")
    assert other is not None
    assert other.size == 8
    assert dwarf.line_address("one.c", 6) == _address(path, "first") + _prologue(dwarf, path)


def _address(path: Path, name: str) -> int:
    return Elf(str(path)).named(name)[0].address


def _prologue(dwarf: Dwarf, path: Path) -> int:
    """From the line of the brace to the first statement: both are in the line table."""
    return dwarf.line_address("one.c", 6) - dwarf.line_address("one.c", 5)


def test_split_units(tmp_path: Path) -> None:
    program = _build(tmp_path, "-gsplit-dwarf")
    assert list(tmp_path.glob("*.dwo"))
    _check(program)


def test_split_units_that_are_gone(tmp_path: Path) -> None:
    program = _build(tmp_path, "-gsplit-dwarf")
    for file in tmp_path.glob("*.dwo"):
        file.unlink()
    dwarf = Dwarf(Elf(str(program)))
    assert dwarf.describe("first") == []
    assert dwarf.record("struct outer") is None
    assert dwarf.line_address("one.c", 6) > 0, "the table of lines stays in the program"


def test_split_units_beside_the_program(tmp_path: Path) -> None:
    built = tmp_path / "built"
    built.mkdir()
    program = _build(built, "-gsplit-dwarf")
    moved = tmp_path / "moved"
    built.rename(moved)
    _check(moved / program.name)


@pytest.mark.skipif(shutil.which("llvm-dwp") is None, reason="needs llvm-dwp")
def test_a_package_of_split_units(tmp_path: Path) -> None:
    program = _build(tmp_path, "-gsplit-dwarf")
    subprocess.run(["llvm-dwp", "-e", program, "-o", f"{program}.dwp"], check=True)
    for file in tmp_path.glob("*.dwo"):
        file.unlink()
    _check(program)


def test_damaged_split_files(tmp_path: Path) -> None:
    """Nothing but DwarfError comes of them."""
    program = _build(tmp_path, "-gsplit-dwarf")
    (file,) = tmp_path.glob("*one.dwo")
    whole = file.read_bytes()
    random = Random(5)
    outcomes = set()
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(random.choice((1, 4, 32))):
            data[random.randrange(0x40, len(data))] = random.randrange(256)
        file.write_bytes(bytes(data))
        try:
            dwarf = Dwarf(Elf(str(program)))
            outcomes.add(bool(dwarf.describe("first")))
            dwarf.record("struct outer")
        except DwarfError:
            outcomes.add(None)
    assert len(outcomes) > 1


@pytest.mark.skipif(shutil.which("objcopy") is None, reason="needs objcopy")
@pytest.mark.parametrize("folder", ["debug", "relative"])
def test_a_folder_of_debug_files(tmp_path: Path, folder: str) -> None:
    program = _build(tmp_path)
    (tmp_path / "debug").mkdir()
    subprocess.run(["objcopy", "--only-keep-debug", program, tmp_path / "debug" / "program.debug"], check=True)
    subprocess.run(["objcopy", "--strip-debug", program], check=True)
    assert not has_debug_info(Elf(str(program)))
    # a relative folder is meant to be beside the program
    search_debug_files([str(tmp_path / "debug") if folder == "debug" else "./debug"])
    _check(program)


@pytest.mark.skipif(shutil.which("objcopy") is None, reason="needs objcopy")
def test_the_debug_file_of_another_build_is_not_taken(tmp_path: Path) -> None:
    program = _build(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "debug").mkdir()
    changed = _build(other, "-O1")
    subprocess.run(["objcopy", "--only-keep-debug", changed, tmp_path / "debug" / "program.debug"], check=True)
    subprocess.run(["objcopy", "--strip-debug", program], check=True)
    search_debug_files([str(tmp_path / "debug")])
    assert not has_debug_info(Elf(str(program)))
