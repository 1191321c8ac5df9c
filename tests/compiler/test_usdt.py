"""Arguments of static probes as programs read them, all twelve that there can be."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bpfseal.dsl.source import DslError
from bpfseal.errors import BpfsealError
from tests.compiler.harness import compiled, run

needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host"), needs_compiler]

# systemtap's note format by hand (sys/sdt.h): argument 10 is eight signed bytes in memory, argument 11 one signed byte.
PROGRAM = r"""
int main(void) {
    volatile long far = -10000000000L;
    volatile signed char small = -11;
    volatile unsigned short half = 60009;
    asm volatile("990: nop\n"
                 ".pushsection .note.stapsdt,\"\",\"note\"\n"
                 ".balign 4\n .4byte 992f-991f, 994f-993f, 3\n"
                 "991: .asciz \"stapsdt\"\n 992: .balign 4\n"
                 "993: .8byte 990b, 0, 0\n"
                 ".asciz \"app\"\n .asciz \"twelve\"\n"
                 ".asciz \"8@$0 -4@$1 4@$2 8@$3 8@$4 8@$5 8@$6 8@$7 -1@$-8 2@%[h] -8@%[f] -1@%[s]\"\n"
                 "994: .balign 4\n .popsection\n"
                 ::[h] "m"(half), [f] "m"(far), [s] "m"(small));
    return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("usdt")
    source = folder / "twelve.c"
    source.write_text(PROGRAM)
    subprocess.run(["gcc", "-O1", "-o", folder / "twelve", source], check=True)
    return folder / "twelve"


def test_twelve_arguments(program: Path) -> None:
    numbers = ", ".join(f"(int64)arg{n}" for n in range(12))
    found = run(
        f'usdt:{program}:app:twelve {{ printf("{" %ld" * 12}\\n", {numbers}); }}',
        act=lambda: subprocess.run([program], check=True),  # type: ignore[arg-type,return-value]
    )
    assert found.split() == "0 1 2 3 4 5 6 7 -8 60009 -10000000000 -11".split()


def test_last_arguments_in_keys(program: Path) -> None:
    found = run(
        f"usdt:{program}:app:twelve /arg10 == -10000000000 && arg11 == -11/ {{ @[(int8)arg11, probe] = count(); }}",
        act=lambda: subprocess.run([program], check=True),  # type: ignore[arg-type,return-value]
    )
    assert found == f"@[-11, usdt:{program}:app:twelve]: 1\n"


def test_an_argument_that_is_not_there(program: Path, tmp_path: Path) -> None:
    source = tmp_path / "eleven.c"
    source.write_text(PROGRAM.replace(" -1@%[s]", ""))
    subprocess.run(["gcc", "-O1", "-o", tmp_path / "eleven", source], check=True)
    compiled(f"usdt:{tmp_path}/eleven:app:twelve {{ @ = arg10; }}")
    with pytest.raises(BpfsealError, match="has no argument arg11"):
        compiled(f"usdt:{tmp_path}/eleven:app:twelve {{ @ = arg11; }}")
    with pytest.raises(DslError, match="arg12"):
        compiled(f"usdt:{program}:app:twelve {{ @ = arg12; }}")
