"""Hypothesis strategies for syntax trees that some text has: what `parse` can return, without spans."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from bpfseal.dsl import ast

WORDS = (
    "x",
    "y",
    "comm",
    "pid",
    "args",
    "arg0",
    "retval",
    "curtask",
    "foo_bar",
    "_under",
    "AF_INET",
    "nsecs",
    "config",
)
NAMES = st.sampled_from(WORDS)
FREE = st.sampled_from(("alpha", "beta", "_c", "d9"))
TYPES = st.sampled_from(("uint8", "int64", "string", "struct task_struct", "enum e", "union u", "pid_t", "buffer"))
SUFFIXES = st.lists(st.one_of(st.just("*"), st.integers(0, 300), st.none()), max_size=3).map(tuple)
TYPE_NAMES = st.builds(ast.TypeName, TYPES, SUFFIXES)
BINARY = ("+", "-", "*", "/", "%", "<<", ">>", "&", "|", "^", "==", "!=", "<", ">", "<=", ">=", "&&", "||")
ASSIGN = ("=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<<=", ">>=")


def types(expressions: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    operands = st.one_of(TYPE_NAMES, expressions)
    return st.one_of(TYPE_NAMES, st.builds(ast.TypeOf, operands, suffixes=SUFFIXES))


LEAVES = st.one_of(
    st.builds(ast.Integer, st.integers(0, 2**64 - 1)),
    st.builds(ast.String, st.binary(max_size=12)),
    st.builds(ast.Boolean, st.booleans()),
    st.builds(ast.Identifier, NAMES),
    st.builds(ast.Positional, st.integers(0, 99)),
    st.builds(ast.Variable, FREE),
    st.builds(ast.Map, st.one_of(FREE, st.just(""))),
)


def _key(elements: list[Any]) -> Any:
    return elements[0] if len(elements) == 1 else ast.TupleExpr(tuple(elements))


def maps(expressions: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keys = st.lists(expressions, min_size=1, max_size=3).map(_key)
    return st.builds(ast.Map, FREE, st.one_of(st.none(), keys))


def places(expressions: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.builds(ast.Variable, FREE), maps(expressions))


def blocks(expressions: st.SearchStrategy[Any], valued: bool) -> st.SearchStrategy[Any]:
    """`valued`: ends in an expression that is not itself a block or an `if`, which would be taken for statements."""
    plain = st.lists(simple(expressions), max_size=2).map(tuple)
    if not valued:
        return st.builds(ast.Block, plain)
    return st.builds(ast.Block, plain, expressions.filter(lambda e: not isinstance(e, ast.Block | ast.IfExpr)))


def simple(expressions: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Statements without a block."""
    effects = expressions.filter(lambda e: not isinstance(e, ast.Block | ast.IfExpr))
    return st.one_of(
        st.builds(ast.ExprStatement, effects),
        st.builds(ast.Assign, places(expressions), st.sampled_from(ASSIGN), expressions),
        st.builds(ast.Assign, st.just(ast.Identifier("_")), st.just("="), expressions),
        st.builds(ast.Let, FREE, st.one_of(st.none(), types(expressions)), st.one_of(st.none(), expressions)),
        st.builds(ast.Jump, st.sampled_from(("break", "continue"))),
        st.builds(ast.Jump, st.just("return"), st.one_of(st.none(), expressions)),
    )


def _compound(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    named = st.lists(inner, min_size=1, max_size=3).flatmap(
        lambda items: st.just(ast.TupleExpr(tuple(items), ("n0", "n1", "n2")[: len(items)]))
    )
    bases = inner.filter(lambda e: not isinstance(e, ast.Integer))
    return st.one_of(
        st.builds(ast.Unary, st.sampled_from("-!~*&"), inner),
        st.builds(ast.IncDec, st.sampled_from(("++", "--")), places(inner), st.booleans()),
        st.builds(ast.Binary, st.sampled_from(BINARY), inner, inner),
        st.builds(ast.Ternary, inner, inner, inner),
        st.builds(ast.Member, bases, st.sampled_from(("a", "if", "comm", "struct")), arrow=st.booleans()),
        st.builds(ast.Member, bases, st.sampled_from(("0", "17"))),
        st.builds(ast.Index, inner, inner),
        st.builds(ast.Cast, types(inner), inner),
        st.builds(ast.SizeOf, st.one_of(types(inner), inner)),
        st.builds(ast.TypeInfo, st.one_of(types(inner), inner)),
        st.builds(ast.OffsetOf, st.one_of(TYPE_NAMES, inner), st.lists(FREE, min_size=1, max_size=3).map(tuple)),
        st.builds(ast.TupleExpr, st.lists(inner, max_size=3).map(tuple)),
        named,
        st.builds(
            ast.Call,
            FREE,
            st.lists(st.one_of(inner, st.builds(ast.TypeOf, TYPE_NAMES)), max_size=3).map(tuple),
            bang=st.booleans(),
        ),
        st.builds(ast.Comptime, inner),
        maps(inner),
        blocks(inner, True),
        st.builds(ast.IfExpr, inner.filter(_condition), blocks(inner, True), blocks(inner, True)),
    )


def _condition(node: Any) -> bool:
    return not isinstance(node, ast.TupleExpr)


EXPRESSIONS = st.recursive(LEAVES, _compound, max_leaves=12)
BODIES = st.recursive(
    st.lists(simple(EXPRESSIONS), max_size=3).map(lambda s: ast.Block(tuple(s))),
    lambda inner: st.lists(
        st.one_of(
            simple(EXPRESSIONS),
            inner,
            st.builds(ast.If, EXPRESSIONS.filter(_condition), inner, st.one_of(st.none(), inner)),
            st.builds(ast.While, EXPRESSIONS.filter(_condition), inner),
            st.builds(ast.ForMap, st.builds(ast.Variable, FREE), st.builds(ast.Map, FREE), inner),
            st.builds(ast.ForRange, st.builds(ast.Variable, FREE), LEAVES, EXPRESSIONS, inner),
            st.builds(ast.Unroll, EXPRESSIONS, inner),
            st.builds(ast.Defer, st.sampled_from(("resume", "signal")), inner),
        ),
        max_size=3,
    ).map(lambda s: ast.Block(tuple(s))),
    max_leaves=4,
)
POINTS = st.sampled_from(
    ("begin", "kprobe:vfs_*", "t:syscalls:sys_enter_open", 'uprobe:"/opt/a b":main', "interval:s:1", "u:/bin/sh:f+0x10")
).map(ast.AttachPoint)
PROBES = st.builds(
    ast.Probe,
    st.lists(POINTS, min_size=1, max_size=3).map(tuple),
    st.one_of(st.none(), EXPRESSIONS),
    BODIES,
    name=st.one_of(st.just(""), FREE),
)
PARAMS = st.lists(st.sampled_from(("$a", "@b", "c", "$d", "e")), unique=True, max_size=3).map(tuple)
CONFIG = st.builds(ast.ConfigEntry, FREE, st.one_of(st.integers(0, 9), st.booleans(), st.text(max_size=5)))
FUNCTIONS = st.builds(
    ast.Function,
    FREE,
    st.lists(st.tuples(FREE, TYPE_NAMES), max_size=2, unique_by=lambda p: p[0]).map(tuple),
    TYPE_NAMES,
    BODIES,
)
SCRIPTS = st.builds(
    ast.Script,
    st.just(()),
    config=st.lists(CONFIG, max_size=2).map(tuple),
    imports=st.lists(st.builds(ast.Import, st.sampled_from(("a.bt", "dir"))), max_size=2).map(tuple),
    maps=st.lists(st.builds(ast.MapDecl, FREE, st.just("lruhash"), st.integers(1, 99)), max_size=2).map(tuple),
    macros=st.lists(st.builds(ast.Macro, FREE, PARAMS, blocks(EXPRESSIONS, True)), max_size=2).map(tuple),
    functions=st.lists(FUNCTIONS, max_size=1).map(tuple),
    probes=st.lists(PROBES, max_size=3).map(tuple),
)
