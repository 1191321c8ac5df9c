"""Layouts of random records compared with those of the C compiler."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from bpfseal.dsl.env import Environment
from bpfseal.dsl.front import front
from bpfseal.dsl.types import RecordInfo
from tests.fuzz.world import EmptyEnvironment

SCALARS = {
    "char": 8,
    "unsigned char": 8,
    "short": 16,
    "unsigned short": 16,
    "int": 32,
    "unsigned int": 32,
    "long": 64,
    "unsigned long long": 64,
}
RECORDS = 120

compiler = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")


class Maker:
    """Random definitions; `paths` are the plain members of each record, `bits` its bit-fields."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.text: list[str] = []
        self.paths: dict[str, list[str]] = {}
        self.bits: dict[str, list[tuple[str, int]]] = {}

    def record(self, number: int) -> None:
        word = self.random.choice(("struct", "struct", "struct", "union"))
        name = f"{word} r{number}"
        self.paths[name], self.bits[name] = [], []
        members = self.members(name, number, 0)
        # not two alignments at once: compilers differ on which one counts
        attribute = self.random.choice(("", "", "", "packed", "aligned(16)", "packed, aligned(2)"))
        self.text.append(f"{name} {{\n{members}}} __attribute__(({attribute}));")

    def members(self, name: str, number: int, depth: int) -> str:
        lines = []
        for i in range(self.random.randint(1, 7)):
            member = f"m{depth}_{i}_{self.random.randrange(1 << 20)}"
            kind = self.random.choice(list(SCALARS))
            choice = self.random.randrange(12)
            extra = self.random.choice((" __attribute__((aligned(8)))", " __attribute__((packed))", "", "", "", ""))
            if choice < 4:
                lines.append(f"  {kind} {member}{extra};")
                self.paths[name].append(member)
            elif choice < 7:
                width = self.random.randint(1, SCALARS[kind])
                lines.append(f"  {kind} {member} : {width}{extra if 'packed' in extra else ''};")
                self.bits[name].append((member, width))
            elif choice == 7:
                lines.append(f"  {kind} : {self.random.choice((0, 0, 3))};")
            elif choice == 8:
                lines.append(f"  {kind} {member}[{self.random.randint(0, 5)}][2], *p{member}, (*f{member})(int);")
                self.paths[name] += [member, f"p{member}", f"f{member}"]
            elif choice == 9 and number:
                inner = self.random.choice([n for n in self.paths if n != name])
                lines.append(f"  {inner} {member}{extra};")
                self.paths[name].append(member)
            elif depth < 2:
                word = self.random.choice(("struct", "union"))
                tail = self.random.choice(("", " __attribute__((packed))"))
                lines.append(f"  {word} {{\n{self.members(name, number, depth + 1)}  }}{tail};")
        return "\n".join(lines) + "\n"

    def program(self) -> str:
        """C that prints `record size`, `record member offset` and `record bit-field first-bit width`."""
        lines = ["#include <stddef.h>", "#include <stdio.h>", "#include <string.h>", *self.text, "int main(void) {"]
        for name, paths in self.paths.items():
            lines.append(f'  printf("{name}|size|%zu\\n", sizeof({name}));')
            lines += [f'  printf("{name}|{p}|%zu\\n", offsetof({name}, {p}));' for p in paths]
            for member, _ in self.bits[name]:
                # the bits that change when all of the field's are set
                lines.append(
                    f"  {{ {name} r; unsigned char *b = (void *)&r; memset(&r, 0, sizeof r); r.{member} = ~0ULL;"
                    " long at = -1, count = 0; for (size_t i = 0; i < sizeof r * 8; i++) if (b[i / 8] >> (i % 8) & 1)"
                    f' {{ if (at < 0) at = i; count++; }} printf("{name}|{member}|%ld %ld\\n", at, count); }}'
                )
        return "\n".join([*lines, "  return 0;", "}"])


@pytest.mark.skipif(compiler is None, reason="needs a C compiler")
@pytest.mark.parametrize("seed", range(3))
def test_layouts_are_the_compilers(seed: int, tmp_path: Path) -> None:
    maker = Maker(seed)
    for number in range(RECORDS):
        maker.record(number)
    (tmp_path / "layout.c").write_text(maker.program())
    assert compiler is not None
    subprocess.run([compiler, "-w", "-o", tmp_path / "layout", tmp_path / "layout.c"], check=True, timeout=60)
    output = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True, timeout=10).stdout
    environment: Environment
    _, environment = front("\n".join(maker.text) + "\nbegin { }", "x.bt", EmptyEnvironment())
    compared = 0
    for line in output.splitlines():
        name, member, value = line.split("|")
        info = environment.record(name)
        assert info is not None
        if member == "size":
            assert info.size == int(value), name
        else:
            assert place(info, member) == value, f"{name}.{member}"
        compared += 1
    assert compared > RECORDS * 3


def place(info: RecordInfo, member: str) -> str:
    field = info.field(member)
    assert field is not None, member
    if field.bits:
        return f"{field.offset * 8 + field.bit_offset} {field.bits}"
    return str(field.offset)
