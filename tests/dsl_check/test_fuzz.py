"""Whatever the program: a typed script or a DslError, in time, never another exception."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpfseal.dsl.env import Target
from bpfseal.dsl.source import DslError, render
from bpfseal.dsl.table import AGGREGATES, BUILTINS, FUNCTIONS

from .env import TableEnvironment
from .kit import HERE, checked

TOKEN = re.compile(r"\s+|\"[^\"]*\"|[@$]?\w+|[^\w\s]")

PROGRAMS = [
    line
    for name in ("errors.cases", "types.cases")
    for line in (HERE / name).read_text().splitlines()
    if line and line[0] not in "!^#"
]
PROGRAMS = [line.partition(" | ")[2] or line if " | begin" in line else line for line in PROGRAMS]

VALUES = '$a $b @m @n 0 1 -1 255 65536 18446744073709551615 1s "" "text" true false RED AF_INET'
SIGNS = "( ) { } [ ] ; , . -> + - * / % & | ^ ! ~ ? : = == != < > << >> && || ++ -- += .."
KEYWORDS = "let if else while for unroll return break continue sizeof offsetof typeof comptime (uint8) (uint8[8])"
PIECES = ["struct file", "(struct shapes *)arg0", ".name", ".inner.x", "args.file", "args.filename"]
WORDS = [*BUILTINS, *FUNCTIONS, *AGGREGATES, *VALUES.split(), *SIGNS.split(), *KEYWORDS.split(), *PIECES]

KINDS = ["begin", "kprobe:vfs_read", "fentry:vfs_read", "tracepoint:syscalls:sys_enter_openat", "uprobe:/bin/bash:main"]


def outcome(program: str) -> None:
    """Run the checker; anything but success and DslError is a failure of the test."""
    start = time.process_time()
    try:
        script = checked(program, unsafe=True)
        shown = [render(warning, list(script.sources)) for warning in script.warnings]
    except DslError as error:
        shown = [error.render()]
    assert all(shown)
    assert time.process_time() - start < 2


COMMON = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=300)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A program of the tables with a few tokens removed, repeated, exchanged or replaced."""
    tokens = TOKEN.findall(draw(st.sampled_from(PROGRAMS)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(tokens) - 1)) if tokens else 0
        match draw(st.integers(0, 4)):
            case 0 if len(tokens) > 1:
                del tokens[at]
            case 1 if tokens:
                tokens.insert(at, tokens[draw(st.integers(0, len(tokens) - 1))])
            case 2 if tokens:
                tokens[at] = draw(st.sampled_from(WORDS))
            case 3:
                tokens.insert(at, " " + draw(st.sampled_from(WORDS)) + " ")
            case _:
                other = TOKEN.findall(draw(st.sampled_from(PROGRAMS)))
                cut = draw(st.integers(0, len(other)))
                tokens[at:] = other[cut:]
    return "".join(tokens)


@COMMON
@given(mutated())
def test_mutated_programs(program: str) -> None:
    outcome(program)


@COMMON
@given(st.sampled_from(KINDS), st.lists(st.sampled_from(WORDS), max_size=12))
def test_word_soup(kind: str, words: list[str]) -> None:
    outcome(f"{kind} {{ {' '.join(words)} }}")


ATOMS = (
    '1 -1 255 300 0xffffffffffffffff "ab" "" true pid comm nsecs curtask $a $b @m @n[1] @c kstack (1,"a") (x=1,y=2)'
    " RED arg0 args.file args.filename args.count"
)
OPERATORS = "+ - * / % & | ^ << >> == != < > <= >= && ||"


def _grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = st.sampled_from(OPERATORS.split())
    types = st.sampled_from(["uint8", "int16", "uint64", "bool", "uint8[]", "int8[8]", "struct shapes *", "string[64]"])
    functions = st.sampled_from(sorted({*FUNCTIONS, *AGGREGATES}))
    return st.one_of(
        st.tuples(inner, operators, inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(st.sampled_from(["-", "!", "~", "*", "&"]), inner).map(lambda t: f"{t[0]}{t[1]}"),
        st.tuples(types, inner).map(lambda t: f"(({t[0]}){t[1]})"),
        st.tuples(inner, inner, inner).map(lambda t: f"({t[0]} ? {t[1]} : {t[2]})"),
        st.tuples(inner, st.sampled_from(["0", "1", "x", "name", "inner", "pid", "f_path"])).map(
            lambda t: f"{t[0]}.{t[1]}"
        ),
        st.tuples(inner, inner).map(lambda t: f"{t[0]}[{t[1]}]"),
        st.tuples(functions, st.lists(inner, max_size=3)).map(lambda t: f"{t[0]}({', '.join(t[1])})"),
        st.lists(inner, min_size=2, max_size=3).map(lambda t: f"({', '.join(t)})"),
        inner.map(lambda t: f"{{ let $z = {t}; $z }}"),
    )


EXPRESSIONS = st.recursive(st.sampled_from(ATOMS.split()), _grow, max_leaves=6)
STATEMENTS = st.one_of(
    st.tuples(st.sampled_from(["$a", "$b", "@m", "@n[1]", "@n[pid]", "@c", "_"]), EXPRESSIONS).map(
        lambda t: f"{t[0]} = {t[1]};"
    ),
    st.tuples(st.sampled_from(["@m", "$a"]), st.sampled_from(["+=", "-=", "<<=", "|="]), EXPRESSIONS)
    .map(" ".join)
    .map(lambda t: t + ";"),
    EXPRESSIONS.map(lambda t: f"print({t});"),
    EXPRESSIONS.map(lambda t: f'printf("%d %s\\n", {t}, {t});'),
    EXPRESSIONS.map(lambda t: f"if ({t}) {{ $a = 1; @m++; }}"),
    EXPRESSIONS.map(lambda t: f"for ($i : 0..{t}) {{ @n[$i] = $i; }}"),
    EXPRESSIONS.map(lambda t: f"@c = hist({t});"),
    st.just("for ($kv : @n) { print($kv.1); delete(@n, $kv.0); }"),
)


@COMMON
@given(st.sampled_from(KINDS), st.lists(STATEMENTS, max_size=5))
def test_generated_programs(kind: str, statements: list[str]) -> None:
    outcome(f"{kind} {{ $a = 1; $b = comm; {' '.join(statements)} }}")


@pytest.mark.parametrize(
    "program",
    [
        "begin { $x = " + "(" * 150 + "1" + ")" * 150 + "; }",
        "begin { $x = " + " + ".join(["pid"] * 1500) + "; }",
        "begin { $x = " + "-" * 180 + "pid; }",
        "begin { $x = (" + ", ".join(["1"] * 2000) + "); }",
        "begin { " + "if (pid) { " * 150 + "print(1);" + " }" * 150 + " }",
        "begin { " + "print(pid); " * 4000 + "}",
        "begin { " + "".join(f"$v{n} = {n}; " for n in range(3000)) + "}",
        "".join(f"begin {{ @m{n}[pid] = count(); }} " for n in range(800)),
        "begin { " + "".join(f"$a{n} = $a{n - 1}; " if n else "$a0 = 1; " for n in range(300)) + "$a0 = (uint64)2; }",
        'begin { @a = "' + "x" * 1000 + '"; }',
    ],
    ids=lambda text: text[:30],
)
def test_large_programs(program: str) -> None:
    outcome(program)


def test_growth_through_many_maps_ends() -> None:
    """A chain written backwards needs a walk for each of its links."""
    chain = " ".join(f"@m{n} = @m{n + 1};" for n in range(40))
    script = checked(f"begin {{ {chain} @m40 = (uint16)1; }}")
    assert {str(m.value) for m in script.maps} == {"uint16"}


def test_the_environment_is_asked_once_for_each_point() -> None:
    from bpfseal.dsl.check import check
    from bpfseal.dsl.parse import parse

    env = TableEnvironment(Target())
    check(parse("kprobe:vfs_* { @x = @y; @y = @z; @z = pid; print(@x); }"), env)
    assert env.asked == 1


def test_trees_deeper_than_any_text() -> None:
    """Macros can nest what the parser would not have let through."""
    from bpfseal.dsl import ast
    from bpfseal.dsl.check import check

    value: ast.Expr = ast.Integer(1)
    for _ in range(3000):
        value = ast.Unary("-", ast.Member(ast.TupleExpr((value,)), "0"))
    script = ast.Script(
        (), probes=(ast.Probe((ast.AttachPoint("begin"),), None, ast.Block((ast.ExprStatement(value),))),)
    )
    with pytest.raises(DslError, match="nested too deeply"):
        check(script, TableEnvironment(Target()))
