"""Functions of imported C files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bpfseal import compiler
from bpfseal.dsl.check import check
from bpfseal.dsl.front import front
from bpfseal.dsl.source import DslError
from bpfseal.errors import BpfsealError
from bpfseal.signer.bundle import Bundle
from tests.compiler import harness

needs_clang = pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang")
pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host")]

LIBRARY = r"""
typedef unsigned long u64;
static u64 (*bpf_get_current_pid_tgid)(void) = (void *)14;
static const int primes[] = {2, 3, 5, 7, 11, 13};
struct pair { long a; long b; };
enum kind { SMALL, LARGE = 1000 };

static __attribute__((noinline)) long hidden(long a) { return a * 3; }
int add_one(int n) { return n + 1; }
unsigned char low(unsigned char n, signed char m) { return n + m; }
long thrice(long a, unsigned short b) { return hidden(a) + b; }
_Bool is_large(enum kind k) { return k >= LARGE; }
int prime(unsigned int n) { return n < 6 ? primes[n] : -1; }
int character(const char *text, unsigned int at) { return at < 4 ? text[at] : -1; }
u64 me(void) { return bpf_get_current_pid_tgid() >> 32; }
void add(long *to, long n) { if (to) *to += n; }
long both(struct pair *p) { return p ? p->a + p->b : 0; }
"""

CASES = [
    ("print(add_one(1)); print(add_one(-5)); $n = (int64)41; print(add_one($n));", "2\n-4\n42\n"),
    ("print(low(250, 10)); print(low(1, -3)); print(thrice(-5, 65535));", "4\n254\n65520\n"),
    ("print(is_large(5)); print(is_large(5000)); if (is_large(1000)) { print(1); }", "false\ntrue\n1\n"),
    ("$i = (uint32)4; print(prime($i)); print(prime(9));", "11\n-1\n"),
    ('print(character("abc", 1)); $s = "xyz"; print(character($s, 2)); print(character(comm, 9));', "98\n122\n-1\n"),
    ("print(me() == pid);", "true\n"),
    ("@n = (int64)5; add(&@n, 7); @m[1] = (int64)1; add(&@m[1], 2); add(&@m[9], 2);", "@m[1]: 3\n@n: 12\n"),
    ("@p = ((int64)1, (int64)2); print(both(&@p)); print(both(((int64)3, (int64)4)));", "3\n7\n@p: (1, 2)\n"),
    ("for ($i : 0..3) { @[$i] = thrice($i, 0); }", "@[0]: 0\n@[1]: 3\n@[2]: 6\n"),
    ("@x[1] = 5; for ($kv : @x) { $s = add_one($kv.1); print($s); } clear(@x);", "6\n"),
]


def compiled(text: str, folder: Path) -> Bundle:
    script, environment = front(text, "stdin", harness.environment(), folder=folder)
    return compiler.compile(check(script, environment, {}))


def run(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(harness, "compiled", lambda text, options, config: compiled(text, folder))
    return harness.run(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "library.bpf.c").write_text(LIBRARY)
    return tmp_path


@needs_clang
@pytest.mark.parametrize(("body", "expected"), CASES, ids=range(len(CASES)))
def test_calls(body: str, expected: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(f'import "library.bpf.c"; begin {{ {body} exit(); }}', folder, monkeypatch)
    assert found.replace("\n\n", "\n") == expected


@needs_clang
def test_what_the_code_does_is_declared(folder: Path) -> None:
    """The helper that the C file calls and the constants that it reads are the program's."""
    (program,) = compiled('import "library.bpf.c"; begin { @ = me(); @p = prime(2); }', folder).programs
    assert "get_current_pid_tgid" in program.declared.helpers
    assert program.declared.subprograms == 2
    assert ("read",) in [operations for _, operations in program.declared.maps]
    harness.checked(compiled('import "library.bpf.c"; begin { @ = me(); @p = prime(2); }', folder))


@needs_clang
def test_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "lib"
    library.mkdir(mode=0o755)
    (library / "a.bpf.c").write_text("int one(void) { return 1; }")
    (library / "b.bpf.c").write_text('#include "c.h"\nint two(void) { return TWO; }')
    (library / "c.h").write_text("#define TWO 2\n")
    (library / "ignored.c").write_text("this is no C")
    assert (
        run('import "lib"; import "lib/a.bpf.c"; begin { print(one() + two()); exit(); }', tmp_path, monkeypatch)
        == "3\n"
    )


@needs_clang
@pytest.mark.parametrize(
    ("source", "call", "message"),
    [
        ("int f(int a { return a; }", "f(1)", "clang cannot compile 'x.bpf.c'"),
        ("int n; int f(void) { return n++; }", "f()", "uses the global variable or map 'n'"),
        ("int f(int a) { return a; }", "f()", r"f\(\) takes 1 arguments, 0 given"),
        ("int f(int a) { return a; }", 'f("x")', "f\\(\\) expects int32 for 'a', not string"),
        ("int f(int a) { return a; }", "g(1)", "unknown function: 'g'"),
        ("int f(int a, int b, int c, int d, int e, int g) { return a; }", "f(1)", "has 6 parameters|clang cannot"),
        (
            "struct s { long a[9]; }; long f(struct s s) { return s.a[0]; }",
            "f(1)",
            "neither a number nor a pointer|clang",
        ),
        ("static int f(void) { return 1; }", "f()", "unknown function: 'f'"),
    ],
)
def test_mistakes(source: str, call: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.bpf.c").write_text(source)
    with pytest.raises(BpfsealError, match=message):
        compiled(f'import "x.bpf.c"; begin {{ print({call}); }}', tmp_path)


def test_without_clang(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLANG", "no-such-compiler")
    (folder / "y.bpf.c").write_text("int f(void) { return 1; }")
    with pytest.raises(DslError, match="needs clang") as caught:
        compiled('import "y.bpf.c"; begin { print(f()); }', folder)
    assert "install clang" in caught.value.render()
    compiled('import "library.h"; begin { print(1); }', _header(folder))


def _header(folder: Path) -> Path:
    (folder / "library.h").write_text("struct a { int b; };")
    return folder
