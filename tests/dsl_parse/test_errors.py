"""Mistakes: the message, the text it points at, the hint."""

from __future__ import annotations

import pytest

from bpfseal.dsl.parse import MAX_TEXT, parse
from bpfseal.dsl.source import DslError

# script: (message, the text under the caret, a word of the hint or None)
WRONG: dict[str, tuple[str, str, str | None]] = {
    "begin { $x = 1 $y = 2 }": ("unexpected '$y', expected ';' or '}'", "$y", "separated by ';'"),
    "begin { f(1, }": ("unexpected '}', expected an expression", "}", None),
    "begin { f(1 }": ("unexpected '}', expected ')' or ','", "}", None),
    "begin { $x = }": ("unexpected '}', expected an expression", "}", None),
    "begin { @x[] = 1 }": ("unexpected ']', expected an expression", "]", None),
    "begin { if (1) { }": ("unexpected end of the script, expected a statement or '}'", "", "is not closed"),
    "begin { if (1) print(1) }": ("unexpected 'print', expected '{'", "print", None),
    "begin { if $x = 1 { } }": ("unexpected '=', expected '{'", "=", "use '=='"),
    "begin { if (x=1) { } }": ("a condition is one value, not a tuple or a record", "(x=1)", "use '=='"),
    "begin { while (1, 2) { } }": ("a condition is one value, not a tuple or a record", "(1, 2)", None),
    "begin { if (1) { }; else { } }": ("unexpected 'else', expected a statement or '}'", "else", "no ';'"),
    "begin { $x = if (1) { 2 }; }": ("unexpected ';', expected 'else'", ";", None),
    "begin { $x = if (1) { 2 } else if (3) { 4 }; }": ("needs an 'else'", "if (3) { 4 }", None),
    "begin { for ($i : 1) { } }": ("expected a map or a range in the for loop", "1", "0..10"),
    "begin { for ($i : @x[1]) { } }": ("expected a map or a range in the for loop", "@x[1]", "@map"),
    "begin { for (i : 1..2) { } }": ("unexpected 'i', expected a variable ($name)", "i", None),
    "begin { let x = 1 }": ("unexpected 'x', expected a variable ($name)", "x", None),
    "begin { x = 1 }": ("only a variable or a map can be assigned to", "x", "$x"),
    "begin { $x == 1 = 2 }": ("only a variable or a map can be assigned to", "$x == 1", "'=='"),
    "begin { _ += 1 }": ("only a variable or a map can be assigned to", "_", "dollar"),
    "begin { $t.0 = 1 }": ("cannot be changed", "$t.0", "create a new value"),
    "begin { $s.x += 1 }": ("cannot be changed", "$s.x", "create a new value"),
    "begin { ++1 }": ("'++' needs a variable or a map", "1", None),
    "begin { f()-- }": ("'--' needs a variable or a map", "f()", None),
    "begin { ($x = 1) }": ("unexpected '=', expected ')' or ','", "=", None),
    "begin { return 1 2 }": ("unexpected '2', expected ';' or '}'", "2", "separated"),
    "begin { 5x }": ("invalid integer suffix 'x'", "x", "suffixes"),
    "begin { 0x }": ("invalid integer suffix 'x'", "x", "suffixes"),
    "begin { 089 }": ("8 and 9 are no octal digits", "089", "octal"),
    "begin { 1_ }": ("an underscore ends the digits", "1_", None),
    "begin { 1e30 }": ("does not fit 64 bits", "1e30", None),
    "begin { 1e99999999999 }": ("does not fit 64 bits", "1e99999999999", None),
    "begin { 18446744073709551616 }": ("does not fit 64 bits", "18446744073709551616", None),
    "begin { 300000d }": ("does not fit 64 bits", "300000d", None),
    "begin { " + "9" * 5000 + " }": ("does not fit 64 bits", "9" * 5000, None),
    "begin { 1.5 }": ("floating point numbers are not supported", "1.5", None),
    'begin { "a\\qb" }': ("unknown escape '\\q'", "\\q", "escapes"),
    'begin { "\\x" }': ("'\\x' needs hexadecimal digits", "\\x", None),
    'begin { "\\777" }': ("'\\777' is more than a byte", "\\777", "\\377"),
    'begin { "abc }': ("this string is never closed", '"abc }', None),
    "begin { 'abc' }": ("strings stand in double quotes", "'", None),
    "begin { $0 }": ("there is no parameter $0", "$0", "$1"),
    "begin { $99999999999 }": ("there is no parameter $99999999999", "$99999999999", "$1"),
    "begin { $ }": ("expected a name or a number after '$'", "$", None),
    "begin { \x01 }": ("unexpected character '\\x01'", "\x01", None),
    "begin { é }": ("unexpected character 'é'", "é", None),
    "begin { /* }": ("this comment is never closed", "/*", None),
    "begin { } }": ("unexpected '}': nothing is open here", "}", None),
    "{ }": ("unexpected '{', expected a probe, a macro, a function or a map declaration", "{", None),
    "kprobe:f": ("unexpected end of the script, expected ',', '{' or a predicate", "", "{ statements }"),
    "kprobe:f x { }": ("unexpected 'x', expected ',', '{' or a predicate", "x", "[/predicate/]"),
    "kprobe:f / 1 { }": ("unexpected '{', expected '/' to close the predicate", "{", "between slashes"),
    "kprobe:f / / { }": ("unexpected '/', expected an expression", "/", None),
    "kprobe:\x00 { }": ("unexpected character '\\x00' in an attach point", "\x00", None),
    'kprobe:"f { }': ("these quotes are never closed", '"f { }', None),
    "begin { struct foo x; }": ("unexpected 'struct', expected a statement or '}'", "struct", None),
    "begin { (x=1, x=2) }": ("the record names 'x' twice", "x", None),
    "begin { defer(later) { } }": ("unknown mode 'later' of defer", "later", "resume, signal"),
    "begin { sizeof(int }": ("unexpected '}', expected ')'", "}", None),
    "begin { offsetof(struct x) }": ("unexpected ')', expected ','", ")", None),
    "macro f($x y) { }": ("unexpected 'y', expected ')' or ','", "y", None),
    "macro f(a, a) { }": ("macro parameter 'a' is given twice", "a", None),
    "macro f(pid) { }": ("'pid' is a builtin and cannot name a macro parameter", "pid", None),
    "macro f(arg3) { }": ("'arg3' is a builtin and cannot name a macro parameter", "arg3", None),
    "macro f(@) { }": ("a map parameter needs a name", "@", None),
    "fn f($a : int8, $a : int8) : int8 { }": ("parameter '$a' is given twice", "fn f", None),
    "fn f() { }": ("unexpected '{', expected ':'", "{", None),
    "let @a = hash(0)": ("a map needs room for at least one element", "0", None),
    "let @a = hash": ("unexpected end of the script, expected '('", "", None),
    "let $a = 1": ("unexpected '$a', expected a map (@name)", "$a", "let @name"),
    "config = { a = 1 b = 2 }": ("unexpected 'b', expected ';' or '}'", "b", "separated"),
    "config = { a } begin { }": ("unexpected '}', expected '='", "}", None),
    "config = { a = 1 } config = { }": ("duplicate config block", "config = { }", "merge"),
    "begin { } config = { }": ("config must appear before probes", "config = { }", None),
    'begin { } import "x";': ("import must appear before probes", 'import "x";', None),
    "begin { } #define x 1": ("C definitions must appear before everything else", "#define x 1", None),
    "begin { } struct x { int a; };": ("C definitions must appear before", "struct x { int a; };", None),
    "import x;": ("unexpected 'x', expected a string", "x", None),
}


@pytest.mark.parametrize("text", WRONG)
def test_message_and_place(text: str) -> None:
    message, place, hint = WRONG[text]
    with pytest.raises(DslError) as caught:
        parse(text, "x.bt")
    (diagnostic,) = caught.value.diagnostics
    assert message in diagnostic.message
    span = diagnostic.span
    assert text[span.start : span.end] == place
    assert (diagnostic.hint is None) if hint is None else (hint in (diagnostic.hint or ""))
    shown = caught.value.render()
    assert shown.startswith("x.bt:1:")
    assert "\n" not in diagnostic.message


def test_the_caret_stands_under_its_text() -> None:
    with pytest.raises(DslError) as caught:
        parse("begin {\n\tprint(1);\n\t$x = )\n}")
    assert caught.value.render().split("\n") == [
        "stdin:3:7-8: ERROR: unexpected ')', expected an expression",
        "\t$x = )",
        "\t     ~",
    ]


def test_only_the_first_mistake_is_reported() -> None:
    """What follows a mistake is not even lexed."""
    with pytest.raises(DslError) as caught:
        parse('begin { ) } begin { "never closed')
    assert "unexpected ')'" in caught.value.diagnostics[0].message


DEEP = {
    "parentheses": "begin { $x = " + "(" * 100_000,
    "blocks": "begin " + "{" * 100_000,
    "balanced": "begin { $x = " + "(" * 500 + "1" + ")" * 500 + " }",
    "unary": "begin { $x = " + "- " * 5_000 + "1 }",
    "sum": "begin { $x = " + "1 + " * 5_000 + "1 }",
    "ternary": "begin { $x = " + "1 ? 2 : " * 5_000 + "3 }",
    "members": "begin { $x = a" + ".b" * 5_000 + " }",
    "casts": "begin { $x = " + "(uint8)" * 5_000 + "1 }",
    "else if": "begin { if (1) { }" + " else if (1) { }" * 5_000 + " }",
    "if": "begin { " + "if (1) {" * 300 + "}" * 300 + " }",
    "calls": "begin { " + "f(" * 300 + ")" * 300 + " }",
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_deep_nesting_is_refused_in_words(text: str) -> None:
    with pytest.raises(DslError) as caught:
        parse(text)
    assert "too deeply" in caught.value.diagnostics[0].message
    assert len(caught.value.render()) < 1000


def test_nesting_that_people_write_is_fine() -> None:
    parse("begin { " + "if (1) { " * 40 + "} " * 40 + "$x = " + "(" * 60 + "1" + ")" * 60 + " + 1" * 100 + "; }")


def test_a_script_without_end_is_refused() -> None:
    with pytest.raises(DslError, match="more than 100000 words and signs"):
        parse("begin { " + "@x = 1; " * 50_000 + "}")
    with pytest.raises(DslError, match="too long"):
        parse(" " * (MAX_TEXT + 1))


@pytest.mark.parametrize(
    "text",
    [
        "begin" + " " * 1_000_000,
        "begin" + " " * 1_000_000 + "= x",
        "kprobe:f " + "/*x*/" * 200_000,
        "begin { " + "/ " * 100_000,
        "struct a" + " a" * 300_000,
        "struct a" + "(" * 300_000,
        "let @a " * 30_000,
        '"' * 1_000_000,
        "begin { " + "(a" * 300_000,
        "begin { sizeof(a" + "*" * 500_000,
    ],
    ids=lambda text: text[:12],
)
def test_no_text_takes_long(text: str) -> None:
    import time

    started = time.process_time()
    try:
        parse(text)
    except DslError as error:
        error.render()
    assert time.process_time() - started < 2
