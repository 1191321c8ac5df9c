"""C in the preamble: types, constants, conditions, headers."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfseal.dsl import ast
from bpfseal.dsl.env import Environment
from bpfseal.dsl.front import front
from bpfseal.dsl.printer import show
from bpfseal.dsl.source import DslError
from bpfseal.dsl.types import BOOL, Array, Enum, Field, Int, Ptr, Record, RecordInfo, Str, Type
from tests.fuzz.world import EmptyEnvironment

I32, U32, U64, I8 = Int(32), Int(32, False), Int(64, False), Int(8)


class Kernel(EmptyEnvironment):
    """A kernel with one record, one typedef, one enum and one constant."""

    def record(self, name: str) -> RecordInfo | None:
        if name == "struct list_head":
            self_pointer = Ptr(Record(name, 16))
            return RecordInfo(name, 16, (Field("next", self_pointer), Field("prev", self_pointer, 8)))
        return None

    def type_named(self, name: str) -> Type | None:
        return {"struct list_head": Record("struct list_head", 16), "dma_addr_t": U64, "enum rq": Enum("rq", 32)}.get(
            name
        )

    def constant(self, name: str) -> tuple[int, Type] | None:
        return {"TASK_COMM_LEN": (16, I32)}.get(name)


def defined(text: str, folder: Path | None = None, **more: object) -> Environment:
    _, environment = front(text, "x.bt", Kernel(), folder=folder, **more)  # type: ignore[arg-type]
    return environment


def fields(environment: Environment, name: str) -> dict[str, tuple[Type, int]]:
    info = environment.record(name)
    assert info is not None
    return {f.name: (f.type, f.offset) for f in info.fields}


def test_members_of_every_kind() -> None:
    env = defined(
        """
struct inner { short s; };
struct all {
  char c, d[4], *e, *f[2], (*g)[3];
  const unsigned long long int u;
  signed char sc; _Bool flag;
  struct inner in, ins[2];
  struct later *next;
  union { int a; long b; };
  struct { int x; struct { char y; }; } named;
  void *v; int (*fn)(int, char *), (*fns[2])(void);
  int matrix[2][3];
  u8 bytes[6]; __u32 w; uint16_t h; size_t z;
  double dbl; float flt;
  enum { P, Q } pq;
  struct list_head list; dma_addr_t dma; enum rq rq;
  int flexible[];
};
begin { }"""
    )
    found = fields(env, "struct all")
    assert found["c"] == (I8, 0)
    assert found["d"] == (Str(4), 1)
    assert found["e"] == (Ptr(I8), 8)
    assert found["f"] == (Array(Ptr(I8), 2), 16)
    assert found["g"] == (Ptr(Str(3)), 32)
    assert found["u"] == (U64, 40)
    assert found["sc"] == (I8, 48)
    assert found["flag"] == (BOOL, 49)
    assert found["in"] == (Record("struct inner", 2), 50)
    assert found["ins"] == (Array(Record("struct inner", 2), 2), 52)
    assert found["next"] == (Ptr(Record("struct later", 0)), 56)
    assert found["a"] == (I32, 64)
    assert found["b"] == (Int(64), 64)
    named, at = found["named"]
    assert at == 72
    assert isinstance(named, Record)
    assert named.size == 8
    assert fields(env, named.name) == {"x": (I32, 0), "y": (I8, 4)}
    assert found["v"] == (Ptr(None), 80)
    assert found["fn"] == (Ptr(None), 88)
    assert found["fns"] == (Array(Ptr(None), 2), 96)
    assert found["matrix"] == (Array(Array(I32, 3), 2), 112)
    assert found["bytes"] == (Str(6), 136)
    assert found["w"] == (U32, 144)
    assert found["h"] == (Int(16, False), 148)
    assert found["z"] == (U64, 152)
    assert found["dbl"] == (U64, 160)
    assert found["flt"] == (U32, 168)
    type, offset = found["pq"]
    assert isinstance(type, Enum)
    assert (type.bits, type.signed, str(type), offset) == (32, False, "enum", 172)
    assert env.enum(type) == {0: "P", 1: "Q"}
    assert found["list"] == (Record("struct list_head", 16), 176)
    assert found["dma"] == (U64, 192)
    assert found["rq"] == (Enum("rq", 32), 200)
    assert found["flexible"] == (Array(I32, 0), 204)
    info = env.record("struct all")
    assert info is not None
    assert info.size == 208
    assert env.type_named("struct all") == Record("struct all", 208)
    assert env.constant("Q") == (1, type)


def test_bit_fields() -> None:
    env = defined("struct b { int a:3; unsigned b:7; int :0; char c:1; long d:33; unsigned long e:5; }; begin { }")
    info = env.record("struct b")
    assert info is not None
    assert info.size == 16
    assert {f.name: (f.offset, f.bit_offset, f.bits, f.type) for f in info.fields} == {
        "a": (0, 0, 3, I8),
        "b": (0, 3, 7, Int(16, False)),
        "c": (4, 0, 1, I8),
        "d": (8, 0, 33, Int(64)),
        "e": (12, 1, 5, Int(8, False)),
    }


def test_enums() -> None:
    env = defined(
        "#define BASE 0x10\nenum color { RED, GREEN = BASE, BLUE, LAST = (GREEN | 1) + sizeof(long), };\n"
        "enum neg { MINUS = -1, };\nenum big { HUGE = 1ULL << 40 };\nenum small : unsigned char { S };\nbegin { }"
    )
    color = Enum("color", 32, False)
    assert env.constant("BLUE") == (17, color)
    assert env.constant("LAST") == (25, color)
    assert env.enum(color) == {0: "RED", 16: "GREEN", 17: "BLUE", 25: "LAST"}
    assert env.constant("MINUS") == (-1, Enum("neg", 32, True))
    assert env.constant("HUGE") == (1 << 40, Enum("big", 64, False))
    assert env.type_named("enum small") == Enum("small", 8, False)
    assert env.enum(Enum("other", 32)) is None


def test_typedefs() -> None:
    env = defined(
        "typedef struct { int x; } anon_t; typedef struct tagged { anon_t *a; } tagged_t, *tagged_p;"
        "typedef int (*handler)(void); typedef unsigned int word; typedef word words[4];\n"
        "#define u64_alias unsigned long\n#define pointer struct tagged *\nbegin { }"
    )
    anon = env.type_named("anon_t")
    assert isinstance(anon, Record)
    assert fields(env, "anon_t") == fields(env, anon.name) == {"x": (I32, 0)}
    assert env.type_named("tagged_t") == Record("struct tagged", 8)
    assert env.type_named("tagged_p") == Ptr(Record("struct tagged", 8))
    assert env.type_named("handler") == Ptr(None)
    assert env.type_named("words") == Array(U32, 4)
    assert env.type_named("u64_alias") == U64
    assert env.type_named("pointer") == Ptr(Record("struct tagged", 8))
    assert env.type_named("dma_addr_t") == U64
    assert env.type_named("nothing") is None


def test_attributes() -> None:
    env = defined(
        "struct a { char c; int i; } __attribute__((packed));\n"
        "struct __attribute__((packed, aligned(4))) b { char c; long l; }\n"
        "struct c { char c; int i __attribute__((aligned(16))); short s __attribute__((packed)); };\n"
        "struct d { char c; } __attribute__((aligned)) __attribute__((unused(1, (2))));\nbegin { }"
    )
    sizes = {name: env.record(f"struct {name}") for name in "abcd"}
    assert {n: i.size for n, i in sizes.items() if i} == {"a": 5, "b": 12, "c": 32, "d": 16}
    assert fields(env, "struct c")["i"][1] == 16


def test_conditions() -> None:
    env = defined(
        """
#ifndef BPFTRACE_HAVE_BTF
#include <no/such/header.h>
struct wrong { nothing_known x; };
#endif
#define VERSION 5
#if VERSION >= 5 && defined(VERSION) && !defined OTHER
enum { YES = 1 };
#elif 1
enum { NO = 1 };
#else
enum { NEVER = 1 };
#endif
#if 0
# if 1
enum { INNER = 1 };
# endif
#else
enum { ELSE = 1 };
#endif
#undef VERSION
#ifdef VERSION
enum { GONE = 1 };
#endif
#if (1 ? 2 : 0) == 2 && 'A' == 65 && -1 < 0 && (~0 & 0xff) == 255 && 7 / -2 == -3 && UNKNOWN == 0
enum { ARITHMETIC = 1 };
#endif
begin { }"""
    )
    known = ("YES", "ELSE", "ARITHMETIC")
    assert all(env.constant(name) is not None for name in known)
    assert all(env.constant(name) is None for name in ("NO", "NEVER", "INNER", "GONE"))


def test_comments_around_constants() -> None:
    text = """#define A 1 /* one
   #define NO 2 */
#define B /* in */ "http://x /* no */" // out
#define C 3 // three
begin { f(A, B, C, NO) }"""
    script, _ = front(text, "x.bt", Kernel())
    assert " ".join(show(ast.Script((), probes=script.probes)).split()) == (
        'begin { f(1, "http://x /* no */", 3, NO); }'
    )


def test_macros_within_definitions() -> None:
    env = defined(
        "#define LEN (TASK_COMM_LEN * 2)\n#define word unsigned int\n#define FIELDS int a; word b;\n"
        "struct s { char name[LEN]; FIELDS };\nbegin { }"
    )
    assert fields(env, "struct s") == {"name": (Str(32), 0), "a": (I32, 32), "b": (U32, 36)}


WRONG = {
    "struct s { int x; } struct s { int y; };": "'struct s' is defined twice",
    "enum e { A } enum e { B };": "'enum e' is defined twice",
    "enum e { A, A };": "'A' is given twice",
    "struct s { struct t x; };": "'struct t' is not defined",
    "struct s { struct s x; };": "'struct s' is not defined",
    "struct s { foo_t x; };": "unknown C type 'foo_t'",
    "struct s { void x; };": "a member cannot have this type",
    "struct s { int f(void); };": "a member cannot have this type",
    "struct s { int x[N]; };": "'N' is no constant (the length of an array)",
    "struct s { int x[-1]; };": "-1 is no length of an array",
    "struct s { int x[1/0]; };": "division by zero",
    "struct s { int x[1 << 70]; };": "shifted by more than 63 bits",
    "struct s { int x:40; };": "40 is no width",
    "struct s { int *x:4; };": "a bit-field needs an integer type",
    "struct s { char x[1 << 40]; };": "no length of an array",
    "struct s { int a[1 << 20][1 << 20]; };": "larger than any memory",
    "struct s { int x int y; };": "unexpected 'int' in a record, expected ';'",
    "struct s { int short char x; };": "'int short char' is no C type",
    "struct s { int x; } __attribute__((aligned(3)));": "an alignment is a power of two",
    "typedef int;": "typedef needs a name",
    "#if 1\nstruct s { int x; };": "this condition has no #endif",
    "#endif": "#endif without #if",
    "#frob x": "unknown directive #frob",
    "#error stop here": "#error stop here",
    "#include nothing": "#include needs",
    '#include "no/such.h"': "there is no header 'no/such.h'",
    "#include <no/such.h>": "there is no header 'no/such.h'",
    "#define": "#define needs a name",
    "#if 1 +": "unexpected '' in a constant expression",
    "struct s { int x; `};": "unexpected character '`'",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(DslError) as caught:
        defined(text + "\nbegin { }")
    assert message in caught.value.diagnostics[0].message
    assert caught.value.render().startswith("x.bt:")


def test_kernel_headers_need_not_be_there() -> None:
    defined("#include <linux/sched.h>\n#include <net/sock.h>\n#include <errno.h>\n#include <sys/types.h>\nbegin { }")


def test_headers_of_the_script(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.h").write_text('#pragma once\n#include "b.h"\nstruct a { struct b b; int x; };\n')
    (tmp_path / "own" / "b.h").write_text("#ifndef B_H\n#define B_H 1\nstruct b { char c[B_H]; };\n#endif\n")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "c.h").write_text("#define FROM_C 7\nenum in_c { C1 = FROM_C };\n")
    text = '#include "own/a.h"\n#include <c.h>\n#include "own/b.h"\nbegin { print(FROM_C) }'
    script, env = front(text, "x.bt", Kernel(), folder=tmp_path, include_folders=[tmp_path / "lib"])
    assert fields(env, "struct a") == {"b": (Record("struct b", 1), 0), "x": (I32, 4)}
    assert env.constant("C1") == (7, Enum("in_c", 32))
    assert [Path(s.name).name for s in script.sources] == ["x.bt", "a.h", "b.h", "c.h", "b.h"]
    (tmp_path / "own" / "b.h").write_text("struct b { char c[NO]; };\n")
    with pytest.raises(DslError) as caught:
        front(text, "x.bt", Kernel(), folder=tmp_path, include_folders=[tmp_path / "lib"])
    assert f"{tmp_path}/own/b.h:1:19-21: ERROR: 'NO' is no constant" in caught.value.render()
    (tmp_path / "own" / "b.h").write_text('#include "a.h"\n')
    with pytest.raises(DslError) as caught:
        front(text, "x.bt", Kernel(), folder=tmp_path, include_folders=[tmp_path / "lib"])
    assert "includes itself" in caught.value.diagnostics[0].message


def test_headers_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "d.h").write_text("enum { FROM_D = 4 };\n")
    env = defined("begin { }", tmp_path, includes=["d.h"])
    value, type = env.constant("FROM_D") or (0, U32)
    assert (value, env.enum(type) if isinstance(type, Enum) else None) == (4, {4: "FROM_D"})


def test_imported_headers(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir(mode=0o700)
    (folder / "types.h").write_text("#define SIZE 3\nstruct t { char x[SIZE]; };")
    env = defined('import "types.h"; begin { }', folder)
    assert fields(env, "struct t") == {"x": (Str(3), 0)}


def test_headers_of_the_system_are_read_when_needed() -> None:
    path = Path("/usr/include/linux/if_arp.h")
    if not path.exists():
        pytest.skip("needs the kernel's exported headers in /usr/include")
    env = defined("#include <linux/if_arp.h>\nbegin { }")
    assert env.constant("ARPHRD_LOOPBACK") == (772, I32)
    assert env.constant("ARPHRD_NOT_THERE") is None
    assert env.type_named("struct arphdr") == Record("struct arphdr", 8)
    assert fields(env, "struct arphdr")["ar_op"][1] == 6


def test_names_are_suggested() -> None:
    env = defined("struct something { int x; }; enum { ALPHA }; begin { }")
    assert env.suggest("type", "struct somthing") == ["struct something"]
    assert env.suggest("constant", "ALPA") == ["ALPHA"]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(f"#define A{i} A{i + 1} A{i + 1}" for i in range(40)) + "\nstruct s { A0 x; };",
        "#define A A\nstruct s { A x; };",
        "struct s { " * 500,
        "struct s { int " + "(" * 5000 + "x; };",
        "struct s { int " + "*" * 5000 + "x; };",
        "struct s { int x[" + "(" * 5000 + "1]; };",
        "struct s { int x" + "[2]" * 5000 + "; };",
        "#if 1\n" * 5000,
        "#if " + "-" * 5000 + "1\n#endif",
        "typedef int a; " * 60_000,
    ],
    ids=range(10),
)
def test_growth_without_end_is_refused(text: str) -> None:
    with pytest.raises(DslError):
        defined(text + "\nbegin { }")
