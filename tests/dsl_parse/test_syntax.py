"""What is written and what it means, as the printer shows the tree: every operation in parentheses of its own."""

from __future__ import annotations

import pytest

from bpfseal.dsl import ast
from bpfseal.dsl.parse import parse
from bpfseal.dsl.printer import expression, show, type_name
from tests.dsl_parse.tools import bare, body, expr

EXPRESSIONS = {
    # precedence, loosest to tightest, and association
    "1 || 2 && 3": "1 || (2 && 3)",
    "1 && 2 | 3": "1 && (2 | 3)",
    "1 | 2 ^ 3": "1 | (2 ^ 3)",
    "1 ^ 2 & 3": "1 ^ (2 & 3)",
    "1 & 2 == 3": "1 & (2 == 3)",
    "1 == 2 < 3": "1 == (2 < 3)",
    "1 < 2 << 3": "1 < (2 << 3)",
    "1 << 2 + 3": "1 << (2 + 3)",
    "1 + 2 * 3": "1 + (2 * 3)",
    "1 - 2 - 3": "(1 - 2) - 3",
    "1 / 2 % 3 * 4": "((1 / 2) % 3) * 4",
    "1 != 2 == 3": "(1 != 2) == 3",
    "1 >= 2 <= 3 > 4": "((1 >= 2) <= 3) > 4",
    "-1 + !2": "(-1) + (!2)",
    "-$x.y[1]": "-$x.y[1]",
    "*$p.q": "*$p.q",
    "(*$p).q": "(*$p).q",
    "~-!*$p": "~ (- (! (*$p)))",
    "&$x": "&$x",
    "1 ? 2 : 3 ? 4 : 5": "1 ? 2 : (3 ? 4 : 5)",
    "1 ? 2 ? 3 : 4 : 5": "1 ? (2 ? 3 : 4) : 5",
    "1 || 2 ? 3 : 4": "(1 || 2) ? 3 : 4",
    "$x ?: 7": "$x ? $x : 7",
    "a+b-c": "(a + b) - c",
    "a-1": "a - 1",
    "5&-1": "5 & (-1)",
    "$a - -1": "$a - (-1)",
    # primaries
    "nsecs": "nsecs",
    "$1 + $#": "$1 + $#",
    "@": "@",
    "@x[1]": "@x[1]",
    "@x[1, 2]": "@x[1, 2]",
    "@x[(1, 2)]": "@x[1, 2]",
    "@x[1][2]": "@x[1][2]",
    "(@x)[2]": "(@x)[2]",
    "@[pid, (1, 2)]": "@[pid, (1, 2)]",
    "()": "()",
    "(1,)": "(1,)",
    "(1, 2)": "(1, 2)",
    "(1, 2,)": "(1, 2)",
    "((1, 2), 3)": "((1, 2), 3)",
    '(a=1, b="x")': '(a=1, b="x")',
    "(if=1, struct=2)": "(if=1, struct=2)",
    "(a == 1)": "a == 1",
    "$t.0.1": "$t.0.1",
    "$t.00": "$t.0",
    "args.filename": "args.filename",
    "args.if.struct->let": "args.if.struct->let",
    "ctx->task.comm[0]": "ctx->task.comm[0]",
    "f()": "f()",
    "f(1, g(2))": "f(1, g(2))",
    "greet!(1)": "greet!(1)",
    "f(typeof(uint8*))": "f(typeof(uint8*))",
    "$x++": "$x++",
    "--@m[1]": "--@m[1]",
    "@++ + 1": "(@++) + 1",
    "true": "true",
    "comptime 1 + 2": "(comptime 1) + 2",
    "comptime -x.y": "comptime (-x.y)",
    # literals
    "1_000_000": "1000000",
    "0x1F": "31",
    "0X_ff": "255",
    "0777": "511",
    "0": "0",
    "1e6": "1000000",
    "2E3": "2000",
    "1_2e0_1": "120",
    "5ns": "5",
    "5us": "5000",
    "5ms": "5000000",
    "5s": "5000000000",
    "1m": "60000000000",
    "1h": "3600000000000",
    "1d": "86400000000000",
    "7u + 7l + 7ul + 7LL + 7ULL + 0x7UL": "((((7 + 7) + 7) + 7) + 7) + 7",
    "18446744073709551615": "18446744073709551615",
    r'"a\n\t\r\"\\\x41\101\0z"': r'"a\n\t\r\"\\AA\x00z"',
    '"é"': r'"\xc3\xa9"',
    '"// no comment /* nor this"': '"// no comment /* nor this"',
    # casts and what only looks like one
    "(uint8)$x": "(uint8)$x",
    "(uint8)-1": "(uint8)(-1)",
    "(uint8)1 + 2": "((uint8)1) + 2",
    "(int8[8])12345": "(int8[8])12345",
    '(int8[])"abc"': '(int8[])"abc"',
    "(struct foo *)arg0": "(struct foo*)arg0",
    "((struct foo *)arg0).x->y": "((struct foo*)arg0).x->y",
    "(struct foo *)arg0.x": "(struct foo*)arg0.x",
    "(struct foo**[4]*)1": "(struct foo**[4]*)1",
    "(uint64)(uint8)$x": "(uint64)((uint8)$x)",
    "(typeof($x))2": "(typeof(($x)))2",
    "(typeof(uint8))2": "(typeof(uint8))2",
    "(typeof($x)*)2": "(typeof(($x))*)2",
    "(word)*$a": "(word)(*$a)",
    "(word)*arg0": "(word)(*arg0)",
    "(pid)*tid": "pid * tid",
    "(nsecs) - 5": "nsecs - 5",
    "(arg12)&1": "arg12 & 1",
    "(word)": "word",
    "(word) + 1": "word + 1",
    "(word) == 1": "word == 1",
    "(word) != 1": "word != 1",
    "(word) && 1": "word && 1",
    "(word)->x": "word->x",
    "f(word) - 1": "f(word) - 1",
    "f!(word) * 2": "f!(word) * 2",
    "!(word)": "!word",
    "(word[2])": "word[2]",
    "(word[2])1": "(word[2])1",
    "(word /* c */ * // d\n)1": "(word*)1",
    "a[(b)] - 1": "a[b] - 1",
    # types as operands
    "sizeof(uint64)": "sizeof(uint64)",
    "sizeof(struct foo)": "sizeof(struct foo)",
    "sizeof(uint32*[10])": "sizeof(uint32*[10])",
    "sizeof(word)": "sizeof(word)",
    "sizeof(word[1])": "sizeof(word[1])",
    "sizeof((word)[1])": "sizeof((word[1]))",
    "sizeof((word[1]))": "sizeof((word[1]))",
    "sizeof($x)": "sizeof(($x))",
    "sizeof(pid)": "sizeof((pid))",
    "sizeof({ 1 })": "sizeof(({\n  1\n}))",
    "sizeof(typeof(x))": "sizeof(typeof(x))",
    "sizeof(word(1))": "sizeof((word(1)))",
    "offsetof(struct foo, a.b.c)": "offsetof(struct foo, a.b.c)",
    "offsetof(*$p, a)": "offsetof((*$p), a)",
    "offsetof(word, a)": "offsetof(word, a)",
    "typeinfo(int8).base_type": "typeinfo(int8).base_type",
}


@pytest.mark.parametrize(("written", "meant"), EXPRESSIONS.items())
def test_expression(written: str, meant: str) -> None:
    found = expr(written)
    assert expression(found) == meant


@pytest.mark.parametrize("written", [w for w in EXPRESSIONS if "?:" not in w])
def test_expression_in_a_predicate(written: str) -> None:
    script = parse("kprobe:f / " + written + " / { }")
    assert bare(script.probes[0].predicate) == expr(written)


STATEMENTS = {
    "$x = 1": "$x = 1;",
    "$x = 1;": "$x = 1;",
    "$x = 1;;": "$x = 1;",
    ";": "",
    "@x += 1; @y <<= 2; $z ^= 3": "@x += 1; @y <<= 2; $z ^= 3;",
    "_ = f()": "_ = f();",
    "let $x": "let $x;",
    "let $x = 1": "let $x = 1;",
    "let $x : uint8": "let $x : uint8;",
    "let $x:struct foo* = 1": "let $x : struct foo* = 1;",
    "let $x : typeof($y)[2] = 1": "let $x : typeof(($y))[2] = 1;",
    "break; continue; return; return 1": "break; continue; return; return 1;",
    "if 1 { f() }": "if (1) { f(); }",
    "if (1) { f() } g()": "if (1) { f(); } g();",
    "if (1) { } else { }": "if (1) { } else { }",
    "if (1) { } else if (2) { } else { 3 }": "if (1) { } else if (2) { } else { 3; }",
    "if $x == 1 { }": "if ($x == 1) { }",
    "if (1) { 2 } -1": "if (1) { 2; } -1;",
    "if (1) { 2 } *$p": "if (1) { 2; } *$p;",
    "$x = if (1) { 2 } else { 3 }": "$x = if (1) { 2 } else { 3 };",
    "$x = if (1) { 2 } else if (3) { 4 } else { 5 }": "$x = if (1) { 2 } else { (if (3) { 4 } else { 5 }) };",
    "while ($i < 5) { $i++ }": "while ($i < 5) { $i++; }",
    "unroll (5) { }": "unroll (5) { }",
    "unroll 5 { f() }": "unroll (5) { f(); }",
    "for ($kv : @m) { }": "for ($kv : @m) { }",
    "for $kv : @m { }": "for ($kv : @m) { }",
    "for ($i : 0..10) { }": "for ($i : 0..10) { }",
    "for ($i : 0..ncpus) { }": "for ($i : 0..ncpus) { }",
    "for ($i : (1 + 1)..$n) { }": "for ($i : (1 + 1)..$n) { }",
    "{ 1; { 2 } }": "{ 1; { 2; } }",
    "$x = { let $y = 1; $y }": "$x = { let $y = 1; $y };",
    "{ 1 } { 2 }": "{ 1; } { 2; }",
    "defer { f() }": "defer { f(); }",
    "defer(signal) { }": "defer(signal) { }",
    "defer(x)": "defer(x);",
    "$let = 1": "$let = 1;",
    "for_each(1); letter(2); unroller": "for_each(1); letter(2); unroller;",
    "print(1) // done": "print(1);",
    "/* a */ print(/* b */ 1 /* c */) /* d */": "print(1);",
}


@pytest.mark.parametrize(("written", "meant"), STATEMENTS.items())
def test_statement(written: str, meant: str) -> None:
    text = show(ast.Script((), probes=(ast.Probe((ast.AttachPoint("p"),), None, ast.Block(body(written))),)))
    assert " ".join(text.split()) == " ".join(f"p {{ {meant} }}".split())


POINTS = {
    "kprobe:f { }": ["kprobe:f"],
    "kprobe:f{ }": ["kprobe:f"],
    "k:a,k:b , k:c\n,\nk:d { }": ["k:a", "k:b", "k:c", "k:d"],
    "k:a, k:b, { }": ["k:a", "k:b"],
    "k:a, /1/ { }": ["k:a"],
    "kprobe:f /1/ { }": ["kprobe:f"],
    "kprobe:f/1/{ }": ["kprobe:f"],
    "BEGIN/pid/{ }": ["BEGIN"],
    "kprobe:tcp_*,kretprobe:*socket* { }": ["kprobe:tcp_*", "kretprobe:*socket*"],
    "uprobe:/bin/sh:f { }": ["uprobe:/bin/sh:f"],
    "uprobe:/usr/*/x:f+0x10 /pid / { }": ["uprobe:/usr/*/x:f+0x10"],
    'uprobe:"/a b,{}/c":"f(int, char)" { }': ['uprobe:"/a b,{}/c":"f(int, char)"'],
    'u:./x:cpp:"A::f" { }': ['u:./x:cpp:"A::f"'],
    "uprobe:/bin/sh@a/b.c:12:3 { }": ["uprobe:/bin/sh@a/b.c:12:3"],
    "iter:task:/sys/fs/bpf/x { }": ["iter:task:/sys/fs/bpf/x"],
    "$1:$2 { }": ["$1:$2"],
    "begin // c\n{ }": ["begin"],
    "begin /* c */ /* d */ { }": ["begin"],
    "struct:x { }": ["struct:x"],
    "struct\xe9 { }": ["struct\xe9"],
    "config:x { }": ["config:x"],
    "fn:x { }": ["fn:x"],
}


@pytest.mark.parametrize(("written", "points"), POINTS.items())
def test_attach_points(written: str, points: list[str]) -> None:
    (probe,) = parse(written).probes
    assert [p.text for p in probe.points] == points
    for point in probe.points:
        assert written[point.span.start : point.span.end] == point.text


def test_predicates() -> None:
    script = bare(parse("k:f /1 / 2 == 3 / 4/ { } k:g / { 1 } / {} k:h /@x[1]/\n{}"))
    assert [expression(p.predicate) for p in script.probes] == ["(1 / 2) == (3 / 4)", "{\n  1\n}", "@x[1]"]


def test_probe_names() -> None:
    script = parse("one = kprobe:f { } two=kprobe:g { } uprobe:./a=b:f { }")
    assert [(p.name, p.points[0].text) for p in script.probes] == [
        ("one", "kprobe:f"),
        ("two", "kprobe:g"),
        ("", "uprobe:./a=b:f"),
    ]


def test_everything_on_the_top_level() -> None:
    script = parse(
        """#!/usr/bin/env bpfseal
#include <linux/sched.h>
#define TWO \\
   2
struct __attribute__((packed)) a { struct { int x; } y; /* } */ } __attribute__((aligned(4)))
enum e { A, B }
union u;
typedef struct { int z; } t;
config = { stack_mode=perf; max_map_keys = 1e3;; cpp_demangle=false; license="GPL" }
import "one.bt";
import "two";
let @m = lruhash(100)
let @n;
macro nothing { } macro three(a, $b, @c) { a }
fn add($a : int64, $b : struct a*) : uint8[4] { return $a; }
begin { import "late.h"; }
"""
    )
    assert [t.text.split()[0] for t in script.preamble] == ["#include", "#define", "struct", "enum", "union", "typedef"]
    assert [(e.name, e.value) for e in script.config] == [
        ("stack_mode", "perf"),
        ("max_map_keys", 1000),
        ("cpp_demangle", False),
        ("license", "GPL"),
    ]
    assert [i.path for i in script.imports] == ["one.bt", "two", "late.h"]
    assert [(m.name, m.kind, m.max_entries) for m in script.maps] == [("m", "lruhash", 100), ("n", "", None)]
    assert [(m.name, m.params) for m in script.macros] == [("nothing", ()), ("three", ("a", "$b", "@c"))]
    (function,) = script.functions
    assert [(n, type_name(t)) for n, t in function.params] == [("a", "int64"), ("b", "struct a*")]
    assert type_name(function.returns) == "uint8[4]"
    assert len(script.probes) == 1
    assert script.probes[0].body.statements == ()


def test_nothing_is_a_script_too() -> None:
    for text in ("", " \n\t", "// only a comment", "#!/bin/bpfseal\n", "/* x */"):
        assert parse(text).probes == ()


def test_values_of_blocks() -> None:
    (macro,) = bare(parse("macro f(x) { let $y = x; if ($y) { 1 } else { 2 } }")).macros
    assert isinstance(macro.body.result, ast.IfExpr)
    (macro,) = bare(parse("macro f(x) { if (x) { 1 } else { 2; } }")).macros
    assert macro.body.result is None
    (macro,) = bare(parse("macro f(x) { { x } }")).macros
    assert macro.body.result == ast.Block((), ast.Identifier("x"))
    (macro,) = bare(parse("macro f(x) { x; }")).macros
    assert macro.body.result is None


def test_spans_are_of_the_text() -> None:
    text = "begin { $x = foo(1, 2) + @y[3]; if ($x) { } }"
    (probe,) = parse(text).probes
    assign, branch = probe.body.statements
    assert isinstance(assign, ast.Assign)
    assert isinstance(assign.value, ast.Binary)
    call = assign.value.left
    assert isinstance(call, ast.Call)

    def at(node: ast.Node) -> str:
        span = node.span  # type: ignore[attr-defined]
        return text[span.start : span.end]

    assert at(assign) == "$x = foo(1, 2) + @y[3]"
    assert at(assign.value) == "foo(1, 2) + @y[3]"
    assert at(call) == "foo(1, 2)"
    assert text[call.name_span.start : call.name_span.end] == "foo"
    assert at(branch) == "if ($x) { }"
    assert at(probe) == "begin"
