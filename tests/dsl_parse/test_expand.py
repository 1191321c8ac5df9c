"""Macros, parameters, constants and imports: what the checker gets to see."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfseal.dsl import ast
from bpfseal.dsl.expand import expand
from bpfseal.dsl.expand_params import split_arguments
from bpfseal.dsl.expand_stdlib import FOLDER, INDEX
from bpfseal.dsl.front import front
from bpfseal.dsl.parse import parse
from bpfseal.dsl.printer import show
from bpfseal.dsl.source import DslError
from bpfseal.errors import UsageError
from tests.fuzz.world import EmptyEnvironment


def expanded(text: str, *params: str, **named: str | None) -> str:
    """Probes after expansion, on one line."""
    script = expand(parse(text), params=params, named=named)
    assert not script.macros
    return " ".join(show(ast.Script((), probes=script.probes)).split())


MACROS = {
    "macro one() { 1 } begin { f(one()); f(one) }": "begin { f({ 1 }); f({ 1 }); }",
    "macro one { 1 } begin { f(one) }": "begin { f({ 1 }); }",
    "macro inc($x) { $x += 1; $x } begin { $a = 1; $b = inc($a) }": "begin { $a = 1; $b = { $a += 1; $a }; }",
    "macro set(@m, k) { @m[k] = 2; } begin { set(@a, pid) }": "begin { { @a[pid] = 2; } }",
    "macro add(x) { x + 1 } begin { $a = add(2 * 3) }": "begin { $a = { (2 * 3) + 1 }; }",
    "macro add(x) { x + 1 } begin { $a = add(add(1)) }": "begin { $a = { ({ 1 + 1 }) + 1 }; }",
    "macro twice(x) { x; x; } begin { twice(f()) }": "begin { { f(); f(); } }",
    "macro show(x) { print(x) } begin { show(@a); show($b) }": "begin { { print({ @a }); } { print({ $b }); } }",
    "macro a(x) { b(x) } macro b(y) { y } begin { $z = a(1) }": "begin { $z = { ({ 1 }) }; }",
    "macro a(@m, $v) { b(@m, $v) } macro b(x, y) { x + y } begin { $z = a(@k, $l) }": (
        "begin { $z = { ({ ({ @k }) + ({ $l }) }) }; }"
    ),
    # names of the body are its own
    "macro f(x) { $y = x; $y } begin { $y = 1; $z = f($y) }": "begin { $y = 1; $z = { $y#1 = { $y }; $y#1 }; }",
    "macro f(x) { let $y : typeof(x) = x; $y } begin { $z = f(1) }": (
        "begin { $z = { let $y#1 : typeof((1)) = 1; $y#1 }; }"
    ),
    "macro f(@m) { for ($kv : @m) { print($kv) } } begin { f(@a) }": "begin { { for ($kv#1 : @a) { print($kv#1); } } }",
    "macro f(x) { $t = x; $t } begin { $z = f(f(1)) }": "begin { $z = { $t#2 = { $t#1 = 1; $t#1 }; $t#2 }; }",
    # a parameter hides a macro of its name
    "macro add() { 2 } macro id(add) { add } begin { $z = id(1) }": "begin { $z = { 1 }; }",
    # definitions by number and kind of parameters
    "macro n() { 0 } macro n(x) { 1 } macro n(x, y) { 2 } begin { f(n, n(7), n(7, 8)) }": (
        "begin { f({ 0 }, { 1 }, { 2 }); }"
    ),
    "macro k($x) { 1 } macro k(@x) { 2 } macro k(x) { 3 } begin { f(k($a), k(@a), k(@a[1]), k(1)) }": (
        "begin { f({ 1 }, { 2 }, { 3 }, { 3 }); }"
    ),
    # types
    "macro c(t, e) { (t*)e } begin { $z = c(typeof(uint8), -1) }": "begin { $z = { (uint8*)(-1) }; }",
    "macro c(t) { sizeof(t) + sizeof(t*) + sizeof(t[2]) } begin { $z = c(typeof(struct a*)) }": (
        "begin { $z = { (sizeof(struct a*) + sizeof(struct a**)) + sizeof(struct a*[2]) }; }"
    ),
    "macro c(t) { sizeof(struct t) } begin { $z = c(a) + c(typeof(b)) }": (
        "begin { $z = ({ sizeof(struct a) }) + ({ sizeof(struct b) }); }"
    ),
    "macro c(t) { sizeof(t) } begin { $z = c(1 + 2) }": "begin { $z = { sizeof((1 + 2)) }; }",
    "macro m(t) { sizeof(t) } macro n(z) { m(typeof(z)) } begin { $z = n(typeof(uint64*)) }": (
        "begin { $z = { ({ sizeof(uint64*) }) }; }"
    ),
    "macro o(t, m) { offsetof(t, m) } begin { $z = o(typeof(struct s), a) + o(typeof(struct s), a.b) }": (
        "begin { $z = ({ offsetof(struct s, a) }) + ({ offsetof(struct s, a.b) }); }"
    ),
    # builtins and functions keep their meaning where no macro fits
    "macro len($x) { 1 } begin { f(len(@a), len($a)) }": "begin { f(len(@a), { 1 }); }",
    "begin { print(__builtin_pid, __builtin_comm()) }": "begin { print(pid, comm()); }",
    "macro f(x) { x ? 1 : 2 } begin { if (f(3)) { } }": "begin { if ({ 3 ? 1 : 2 }) { } }",
    "macro f() { 1 } kprobe:x /f()/ { }": "kprobe:x /{ 1 }/ { }",
}


@pytest.mark.parametrize(("text", "meant"), MACROS.items())
def test_macros(text: str, meant: str) -> None:
    assert expanded(text) == meant


WRONG = {
    "macro f(x) { 1 } begin { f() }": "macro 'f' takes 1 argument, not 0",
    "macro f(x, y) { 1 } begin { f }": "macro 'f' takes 2 arguments, not 0",
    "macro f($x) { 1 } begin { f(1) }": "macro 'f' expects a variable for $x, not an expression",
    "macro f($x) { 1 } begin { f(@a) }": "macro 'f' expects a variable for $x, not a map",
    "macro f(@x) { 1 } begin { f($a) }": "macro 'f' expects a map for @x, not a variable",
    "macro f(@x) { 1 } begin { f(@a[1]) }": "macro 'f' expects a map for @x, not an element of a map",
    "macro f() { @x } begin { f() }": "macro 'f' uses the map @x, which was not passed to it",
    "macro f($x) { let $x = 1; } begin { f($a) }": "'let' hides the parameter $x of macro 'f'",
    "macro f() { g() } macro g() { f() } begin { f() }": "macro 'f' calls itself: f > g > f",
    "macro f() { f() } begin { f() }": "macro 'f' calls itself: f > f",
    "macro f() { 1 } macro f() { 2 } begin { }": "macro 'f' is defined already",
    "macro f(x) { 1 } macro f($x) { 2 } begin { }": "macro 'f' is defined already",
    "macro f(t) { t + 1 } begin { f(typeof(uint8)) }": "'t' was passed a type",
    "macro f(t) { sizeof(struct t) } begin { f(typeof(struct b)) }": "cannot stand in the type 'struct t'",
    "macro f(t) { (t*)1 } begin { f(1 + 2) }": "cannot stand in the type 't'",
    "macro f(m) { offsetof(struct s, m) } begin { f(1) }": "no path of members",
    "kprobe:$x { }": "'$x' is no positional parameter",
    "begin { getopt(1) }": "the first argument of getopt must be a string literal",
    "begin { getopt() }": "getopt takes one to three arguments",
    'begin { getopt("a", pid) }': "the default of getopt must be",
    'begin { getopt("a", 1, 2) }': "the description of getopt must be",
    'begin { getopt("a", 1); getopt("a", 2) }': "the default of parameter 'a' must be the same",
    'begin { getopt("a", 1, "x"); getopt("a", 1, "y") }': "the description of parameter 'a' must be the same",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(DslError) as caught:
        expand(parse(text))
    assert message in caught.value.diagnostics[0].message


def test_a_message_from_a_macro_shows_every_call() -> None:
    with pytest.raises(DslError) as caught:
        expand(parse("macro inner() {\n  @m = 1\n}\nmacro outer() { inner() }\nbegin { outer() }", "x.bt"))
    assert caught.value.render().split("\n") == [
        "x.bt:2:3-5: ERROR: macro 'inner' uses the map @m, which was not passed to it",
        "  @m = 1",
        "  ~~",
        "HINT: make it a parameter: macro inner(@m)",
        "x.bt:4:17-24: NOTE: expanded from",
        "macro outer() { inner() }",
        "                ~~~~~~~",
        "x.bt:5:9-16: NOTE: expanded from",
        "begin { outer() }",
        "        ~~~~~~~",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(f"macro m{i}(x) {{ m{i + 1}(x) + m{i + 1}(x) }}" for i in range(30))
        + "macro m30(x) { x } begin { m0(1) }",
        "\n".join(f"macro m{i}(x) {{ m{i + 1}(x + x) }}" for i in range(30)) + "macro m30(x) { x } begin { m0(1) }",
        "\n".join(f"macro m{i}(x) {{ m{i + 1}(-x) }}" for i in range(300)) + "macro m300(x) { x } begin { m0(1) }",
        "begin { " + "unroll (100) { " * 6 + "f() " + "} " * 6 + "}",
    ],
    ids=["calls", "arguments", "height", "loops"],
)
def test_growth_without_end_is_refused(text: str) -> None:
    with pytest.raises(DslError):
        expand(parse(text))


def test_positional_parameters() -> None:
    text = "begin { f($1, $2, $3, $4, $#, str($1), str($2), str($4), str($2 + 1)) }"
    assert (
        expanded(text, "42", "ab", "-7") == 'begin { f(42, "ab", -7, 0, 3, str("42"), str("ab"), str(""), str("b")); }'
    )
    assert expanded("kprobe:$1 /pid == $2/ { }", "vfs_read", "0x10") == "kprobe:vfs_read /pid == 16/ { }"
    assert expanded("begin { unroll ($1) { f() } }", "2") == "begin { { { f(); } { f(); } } }"
    script = expand(parse("begin { $x = $3 }"))
    assert [w.message for w in script.warnings] == ["positional parameter $3 is empty or not provided"]


def test_unroll() -> None:
    assert expanded("begin { unroll (2) { f() } }") == "begin { { { f(); } { f(); } } }"
    for count in ("0", "101", "$x", "1 + 1"):
        assert "unroll" in expanded(f"begin {{ unroll ({count}) {{ }} }}")


def test_named_parameters() -> None:
    text = 'begin { f(getopt("a", 10), getopt("b", -1), getopt("c", "x"), getopt("d"), getopt("e", true)) }'
    assert expanded(text) == 'begin { f(10, -1, "x", false, true); }'
    given = {"a": "0xff", "b": "-10", "c": "y=z", "d": None, "e": "False"}
    assert expanded(text, **given) == 'begin { f(255, -10, "y=z", true, false); }'
    script = expand(parse('begin { getopt("a", 10, "how many"); getopt("a", 10) }'))
    (option,) = script.options
    assert (option.name, option.default, option.description) == ("a", 10, "how many")


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"z": "1", "y": None}, "unexpected program command line options: --z, --y"),
        ({"a": None}, "option --a expects an integer (value: true)"),
        ({"a": "x"}, "option --a invalid integer (value: x)"),
        ({"a": "-1"}, "option --a invalid integer (value: -1)"),
        ({"s": None}, "option --s expects a string (value: true)"),
        ({"d": "maybe"}, "option --d expects true or false (value: maybe)"),
        ({"help": None}, "the options of this script were asked for"),
    ],
)
def test_wrong_named_parameters(named: dict[str, str | None], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        expand(parse('begin { getopt("a", 1, "how many"); getopt("s", "x"); getopt("d") }'), named=named)
    assert message in caught.value.message
    if "help" in named:
        assert caught.value.hint == "expected program options:\n--a: how many\n--s\n--d"
    assert caught.value.status == 2


def test_a_command_line_is_divided() -> None:
    before, after = ["one", "--two"], ["--aa=20", "three", "--bb=", "--cc", "--", "-x"]
    assert split_arguments(before, after) == (
        ["one", "--two", "three", "--", "-x"],
        {"aa": "20", "bb": "", "cc": None},
    )


def test_constants_of_the_preamble() -> None:
    text = """#define ONE 1
#define TWO (ONE + ONE) // not three
#define TEXT "x\\n"
#define FIELD $task
#define CALL(x) x
#define EMPTY
#define BOTH TWO, TWO
begin { $task = ONE; f(TWO, TEXT, FIELD, EMPTY, $TWO, @ONE, x.TWO); }
"""
    script, _ = front(text, "x.bt", EmptyEnvironment())
    shown = " ".join(show(ast.Script((), probes=script.probes)).split())
    assert shown == 'begin { $task = 1; f(1 + 1, "x\\n", $task, EMPTY, $TWO, @ONE, x.TWO); }'
    with pytest.raises(DslError) as caught:
        front(text.replace("f(TWO", "f(BOTH"), "x.bt", EmptyEnvironment())
    assert "#define BOTH is no expression" in caught.value.diagnostics[0].message


def test_constants_that_refer_to_themselves() -> None:
    with pytest.raises(DslError) as caught:
        front("#define A B + 1\n#define B A\nbegin { f(A) }", "x.bt", EmptyEnvironment())
    assert caught.value.diagnostics[0].message == "#define A refers to itself: A > B > A"


def test_the_standard_library_is_read_when_used() -> None:
    assert len(expand(parse("begin { delta }")).sources) == 2
    script = expand(parse("begin { $d = delta(@start, tid) }"))
    assert [s.name for s in script.sources] == ["stdin", "stdlib/time.bt"]
    assert "delete(@start, $key#1)" in show(ast.Script((), probes=script.probes))
    assert len(expand(parse("begin { print(1) }")).sources) == 1


def test_own_macros_come_before_the_library() -> None:
    assert expanded("macro delta(@m, k) { 7 } begin { $x = delta(@a, 1) }") == "begin { $x = { 7 }; }"


def test_the_index_of_the_library_is_complete() -> None:
    found = {m.name: f.stem for f in FOLDER.glob("*.bt") for m in parse(f.read_text()).macros}
    assert found == INDEX


# --- imports --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that only its owner may write to, as its parents."""
    inner = tmp_path / "scripts"
    inner.mkdir(mode=0o700)
    return inner


def imported(folder: Path, text: str) -> ast.Script:
    return expand(parse(text, "main.bt"), imports_from=folder)


def test_imports_come_first_and_once(folder: Path) -> None:
    (folder / "a.bt").write_text('import "sub/b.bt"; macro from_a() { 1 } begin { a() } let @m = hash(3);')
    (folder / "sub").mkdir()
    (folder / "sub" / "b.bt").write_text('import "c.bt"; begin { b() }')
    (folder / "sub" / "c.bt").write_text("begin { c() }")
    (folder / "dir").mkdir()
    (folder / "dir" / "x.bt").write_text("end { x() }")
    (folder / "dir" / "y.h").write_text("struct y { int z; };")
    (folder / "dir" / "readme.txt").write_text("no script")
    script = imported(folder, 'import "a.bt"; import "a.bt"; import "dir"; import "stdlib"; begin { from_a() }')
    shown = " ".join(show(ast.Script((), probes=script.probes)).split())
    assert shown == "begin { c(); } begin { b(); } begin { a(); } end { x(); } begin { { 1; } }"
    assert [m.name for m in script.maps] == ["m"]
    assert [Path(s.name).name for s in script.sources] == ["main.bt", "a.bt", "b.bt", "c.bt", "x.bt", "y.h"]
    assert [script.sources[p.span.source].name.rpartition("/")[2] for p in script.probes] == [
        "c.bt",
        "b.bt",
        "a.bt",
        "x.bt",
        "main.bt",
    ]
    assert [t.text for t in script.preamble] == ["struct y { int z; };"]


def test_c_files(folder: Path) -> None:
    """They are kept for the checker, each once, whoever imports them."""
    (folder / "lib").mkdir(mode=0o755)
    (folder / "lib" / "f.bpf.c").write_text("int f(void) { return 1; }")
    (folder / "inner.bt").write_text('import "lib/f.bpf.c"; macro m() { 1 }')
    script = imported(folder, 'import "inner.bt"; import "lib"; begin { print(m()); }')
    assert [(Path(file.path).name, file.text) for file in script.c_files] == [("f.bpf.c", "int f(void) { return 1; }")]


def test_wrong_imports(folder: Path) -> None:
    (folder / "bad.bt").write_text("begin {\n  1 +\n}")
    (folder / "config.bt").write_text("config = { a = 1 } begin { }")
    (folder / "lib.c").write_text("int f(void) { return 1; }")
    (folder / "x.py").write_text("")
    (folder / "open").mkdir()
    (folder / "open" / "x.bt").write_text("begin { }")
    (folder / "open").chmod(0o777)
    for path, message in {
        "none.bt": "there is no file 'none.bt' to import",
        "bad.bt": "unexpected '}', expected an expression",
        "config.bt": "a config block cannot be imported",
        "lib.c": "'lib.c' is of no kind that can be imported",
        "x.py": "'x.py' is of no kind that can be imported",
        "open": "everybody may write to it",
        "open/x.bt": "everybody may write to it",
        "": "the path of this import is empty",
        "x" * 5000: "there is no file",
    }.items():
        with pytest.raises(DslError) as caught:
            imported(folder, f'import "{path}"; begin {{ }}')
        assert message in caught.value.diagnostics[0].message
    with pytest.raises(DslError) as caught:
        imported(folder, 'import "bad.bt"; begin { }')
    assert f"{folder}/bad.bt:3:1-2: ERROR" in caught.value.render()
    assert "main.bt:1:1-17: NOTE: imported from here" in caught.value.render()
