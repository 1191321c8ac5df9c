"""Parts of the notebook that need neither a kernel nor privileges."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpfseal.compiler.layout import EventField, EventLayout, Member, Reader, Shape
from bpfseal.errors import BpfsealError, UsageError
from bpfseal.runtime.notebook import arguments, charts
from bpfseal.runtime.notebook.flame import flame_graph, tree
from bpfseal.runtime.notebook.interpolate import interpolate, literal
from bpfseal.runtime.notebook.magics import parser
from bpfseal.runtime.records import columns, frames
from bpfseal.runtime.records.lookup import Lookup
from bpfseal.runtime.records.stream import View
from bpfseal.runtime.render.histogram import Bucket

U32, I64 = Shape(kind="int", size=4), Shape(kind="int", size=8, signed=True)
STRING = Shape(kind="str", size=16)


# --- ${…} --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (5, "5"),
        (-5, "(-5)"),
        (True, "true"),
        (np.int16(-3), "(-3)"),
        ((1 << 64) - 1, "18446744073709551615"),
        ("plain", '"plain"'),
        ('a"); exit(); //', '"a\\"); exit(); //"'),
        ("back\\slash\n", '"back\\\\slash\\n"'),
        ("\x01\x7f", '"\\001\\177"'),
        ("ü", '"ü"'),
        ("", '""'),
    ],
)
def test_literals(value: Any, written: str) -> None:
    assert literal(value) == written


@pytest.mark.parametrize("value", ["ü\n\t\r\x01\x1f9", 'q"\\"\\\\', "%s %d", "*/ // /*", "${x}", "}"])
def test_a_string_comes_back_as_it_was(value: str) -> None:
    from bpfseal.dsl.parse_literals import decode_string

    assert decode_string(literal(value)).decode() == value


@pytest.mark.parametrize("value", [1 << 64, -(1 << 63) - 1, 1.5, None, [1], b"x", "a\0b", "\udc80", object()])
def test_what_has_no_literal(value: Any) -> None:
    with pytest.raises(BpfsealError):
        literal(value)


def test_only_dollar_braces_in_code_are_replaced() -> None:
    program = 'BEGIN { $x = ${n + 1}; printf("${n}"); /* ${n} */ @ = {1}; } // ${n}\n/pid == ${d["a"]}/'
    done = interpolate(program, lambda text: eval(text, {"n": 4, "d": {"a": 7}}))
    assert done == 'BEGIN { $x = 5; printf("${n}"); /* ${n} */ @ = {1}; } // ${n}\n/pid == 7/'


def test_braces_inside_an_expression() -> None:
    assert interpolate("${ {'a': 3}['a'] }", eval) == "3"


@pytest.mark.parametrize("program", ["${", "${}", "${1 +}", "${x", "${nothing}", "${1/0}"])
def test_expressions_that_fail(program: str) -> None:
    with pytest.raises(BpfsealError):
        interpolate(program, lambda text: eval(text, {}))


# --- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words", "rest"),
    [
        ("BEGIN { @ = 1 }", [], "BEGIN { @ = 1 }"),
        ('--for 5s BEGIN { printf("-x") }', ["--for", "5s"], 'BEGIN { printf("-x") }'),
        ("--for=5s --live k:f", ["--for=5s", "--live"], "k:f"),
        ("--cmd 'sleep 1' --pid 4 t:x", ["--cmd", "sleep 1", "--pid", "4"], "t:x"),
        ("-l", ["-l"], ""),
        ("-l kprobe:vfs_*", ["-l", "kprobe:vfs_*"], ""),
        ("-l -v", ["-l", "-v"], ""),
        ("-- -1", ["--"], "-1"),
    ],
)
def test_options_end_where_the_program_begins(line: str, words: list[str], rest: str) -> None:
    found, program = arguments.split(line, parser())
    assert (found, program) == ([w for w in words if w != "--"], rest)


@pytest.mark.parametrize("line", ["--nonsense x", "--for", "--pid"])
def test_wrong_options(line: str) -> None:
    with pytest.raises(UsageError):
        arguments.split(line, parser())


@pytest.mark.parametrize("words", [["--for", "never"], ["--for", "0"], ["--name", "a-b"], ["--signing", "maybe"]])
def test_wrong_values(words: list[str]) -> None:
    with pytest.raises(UsageError):
        arguments.parse(words, parser())


@pytest.mark.parametrize(("text", "seconds"), [("5", 5), ("5s", 5), ("250ms", 0.25), ("1.5m", 90), ("1h", 3600)])
def test_durations(text: str, seconds: float) -> None:
    assert arguments.duration(text) == seconds


# --- columns and frames --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "name"),
    [
        ("comm", "comm"),
        ("args.filename", "filename"),
        ("str(args.filename)", "filename"),
        ("(uint64)$len", "len"),
        ("str(args->name, 16)", "name"),
        ('strftime("%H", nsecs)', "nsecs"),
        ("curtask->mm.owner", "owner"),
        ("kstack", "kstack"),
        ("ustack(5)", "ustack"),
        ("5", ""),
        ('"text"', ""),
        ("@last[tid]", "last"),
        ("args.names[0]", "names"),
        ("syscall_name(args.id)", "syscall_name"),
        ("(a)(b)", "b"),
        ("f(a) + f(b)", "b"),
    ],
)
def test_short_names(expression: str, name: str) -> None:
    assert columns.short(expression) == name


def test_names_of_a_call() -> None:
    source = 'BEGIN {\n  printf("%s, %d (%d)\\n", comm, pid, pid);\n}'
    assert columns.of_call(source, "x:2:3-40", 3, format=True) == ["comm", "pid", "pid_2"]
    assert columns.of_call(source, "x:2:3-40", 2, format=True) == ["arg0", "arg1"]
    assert columns.of_call(source, "x:99:3", 1, format=True) == ["arg0"]


def test_names_of_a_key() -> None:
    assert columns.of_map("@x[comm, args.fd] = 1", "@x", 2) == ["comm", "fd"]
    assert columns.of_map("@x[(comm, pid)] = 1", "@x", 2) == ["comm", "pid"]
    assert columns.of_map("@xy[a] = 1; @x[b] = 2", "@x", 1) == ["b"]
    assert columns.of_map("", "@x", 2) == ["key0", "key1"]


class NoSession:
    """What a Lookup needs of a session when no value has to be looked up."""


def stream(fields: tuple[EventField, ...], source: str, rows: list[bytes]) -> Any:
    event = EventLayout(action="printf", size=len(rows[0]), fields=fields, where="x:1:1")
    reader = Reader(version=1, maps=(), events=(event,), probes=("p",))
    lookup = Lookup.__new__(Lookup)
    blocks, _ = frames.blocks(View([(rows, 0, len(rows))]), [0])
    return frames.of_block(blocks[0], 0, reader, source, lookup)


def test_columns_from_bytes() -> None:
    import struct

    rows = [struct.pack("<IIIxxxxq16s", 0, 0, n, -n, b"name%d\0junk" % (n % 2)) for n in (1, 2, 3)]
    fields = (
        EventField(offset=8, shape=U32),
        EventField(offset=16, shape=I64),
        EventField(offset=24, shape=STRING),
    )
    frame = stream(fields, 'printf("%d %d %s", pid, delta, comm)', rows)
    assert frame.pid.tolist() == [1, 2, 3]
    assert frame.delta.tolist() == [-1, -2, -3]
    assert frame.comm.tolist() == ["name1", "name0", "name1"]
    assert [str(frame[c].dtype) for c in frame] == ["uint32", "int64", "category"]


def test_strings_that_differ_only_behind_the_nul_are_one_category() -> None:
    rows = [bytes(8) + b"a\0" + bytes([n]) * 14 for n in (1, 2)]
    frame = stream((EventField(offset=8, shape=STRING),), 'printf("%s", s)', rows)
    assert list(frame.s.cat.categories) == ["a"]


def test_members_become_columns() -> None:
    import struct

    pair = Shape(
        kind="tuple",
        size=8,
        members=(Member(name="", offset=0, shape=U32), Member(name="", offset=4, shape=U32)),
    )
    frame = stream((EventField(offset=8, shape=pair),), 'printf("%s", p)', [struct.pack("<IIII", 0, 0, 1, 2)])
    assert frame.to_dict("records") == [{"p.0": 1, "p.1": 2}]


@pytest.mark.slow
def test_a_million_events_in_two_seconds() -> None:
    import struct
    import time

    names = [b"process%02d" % n for n in range(50)]
    rows = [struct.pack("<IIIxxxxq16s", 0, 0, n, n, names[n % 50]) for n in range(1_000_000)]
    fields = (
        EventField(offset=8, shape=U32),
        EventField(offset=16, shape=I64),
        EventField(offset=24, shape=STRING),
    )
    began = time.process_time()
    frame = stream(fields, 'printf("%d %d %s", pid, delta, comm)', rows)
    took = time.process_time() - began
    assert len(frame) == 1_000_000
    assert frame.comm[999_999] == "process49"
    assert took < 2


# --- pictures ------------------------------------------------------------------------------------------------------


def test_tree_of_stacks() -> None:
    root = tree([(("main", "read"), 3), (("main", "write"), 1), (("main",), 2), (("idle",), -4)])
    assert root.value == 6
    assert root.calls["main"].value == 6
    assert {name: frame.value for name, frame in root.calls["main"].calls.items()} == {"read": 3, "write": 1}


def test_flame_graph_is_well_formed_and_escaped() -> None:
    import xml.etree.ElementTree as xml

    html = flame_graph("@", [(("main", '<script>alert("x")</script>'), 3), (("main", "\udcff\x01&"), 1)])
    svg = xml.fromstring(html.partition("<script>")[0])
    boxes = svg.findall("{http://www.w3.org/2000/svg}g")
    assert len(boxes) == 4
    assert "<script>alert" not in html
    widths = {box.get("data-n"): float(box.get("data-w", "0")) for box in boxes}
    assert widths["all"] == widths["main"] == 1.0
    assert widths['<script>alert("x")</script>'] == 0.75


def test_deep_and_empty_flame_graphs() -> None:
    assert "<svg" in flame_graph("@", [(tuple(f"f{n}" for n in range(5000)), 1)])
    assert "no stacks" in flame_graph("@", [])


def test_histogram_bars_are_to_scale() -> None:
    import xml.etree.ElementTree as xml

    svg = xml.fromstring(charts.histogram([Bucket(1, 2, 10), Bucket(2, 4, 5), Bucket(4, 8, 0)], log=True))
    bars = [float(bar.get("width", "0")) for bar in svg.findall("{http://www.w3.org/2000/svg}rect")]
    assert bars[1] * 2 == bars[0]
    assert bars[2] == 0


# --- errors --------------------------------------------------------------------------------------------------------


def test_errors_as_html() -> None:
    from bpfseal.dsl.parse import parse
    from bpfseal.runtime.notebook import trouble

    with pytest.raises(BpfsealError) as caught:
        parse("BEGIN { @x = <b>; }", "cell")
    html = trouble.html(caught.value)
    assert "line 1, column 14" in html
    assert "&lt;</b>" in html
    assert "<b>;" not in html
    assert "cell:1:14" in trouble.text(caught.value)
    assert "<i>" not in trouble.html(BpfsealError("<i>", hint="<i>"))


# --- the lexer -----------------------------------------------------------------------------------------------------


def test_lexer_knows_the_language() -> None:
    pytest.importorskip("pygments")
    from pygments.token import Comment, Error, Keyword, Name, Number, String

    from bpfseal.runtime.notebook.lexer import BpfsealLexer

    text = """#!/usr/bin/env bpfseal
/* two
   lines */
tracepoint:syscalls:sys_enter_openat, kprobe:vfs_* /pid == $1 && comm != "x"/ {
    @opens[comm] = count(); printf("%-5d %s\\n", args.fd, str(args.filename)); // why
    if (elapsed > 5s) { exit(); }
}
uprobe:/bin/bash:readline { @ = hist(0xff); }
"""
    found = list(BpfsealLexer().get_tokens(text))
    assert "".join(value for _, value in found) == text
    assert not [value for kind, value in found if kind is Error]
    kinds = {value: kind for kind, value in found}
    assert kinds["tracepoint"] is Keyword.Namespace
    assert kinds["syscalls:sys_enter_openat"] is Name.Function
    assert kinds["vfs_*"] is Name.Function
    assert kinds["/bin/bash:readline"] is Name.Function
    assert kinds["@opens"] is Name.Variable.Global
    assert kinds["$1"] is Name.Variable
    assert kinds["count"] is Name.Builtin
    assert kinds["comm"] is Name.Builtin.Pseudo
    assert kinds["filename"] is Name.Attribute
    assert kinds["%-5d"] is String.Interpol
    assert kinds["\\n"] is String.Escape
    assert kinds["// why"] is Comment.Single
    assert kinds["5s"] is Number.Integer
    assert kinds["0xff"] is Number.Hex
    assert kinds["if"] is Keyword


@pytest.mark.parametrize("text", ['"open', "/* open", "k:", "t:a:b{", "}}}}", "\\", "\udcff", "${", "'a", "@", "$"])
def test_lexer_takes_anything(text: str) -> None:
    pytest.importorskip("pygments")
    from bpfseal.runtime.notebook.lexer import BpfsealLexer

    assert "".join(value for _, value in BpfsealLexer(ensurenl=False, stripnl=False).get_tokens(text)) == text


# --- imports -------------------------------------------------------------------------------------------------------


def test_loading_the_extension_imports_next_to_nothing(tmp_path: Path) -> None:
    """Nothing but the magics themselves: neither language, compiler, signer nor frames, whose time would be a wait."""
    text = (
        "import sys\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        "shell.history_manager.enabled = False\n"
        "before = set(sys.modules)\n"
        "shell.run_line_magic('load_ext', 'bpfseal')\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", text],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "IPYTHONDIR": str(tmp_path)},
    )
    found = set(done.stdout.split())
    ours = {name for name in found if name.partition(".")[0] == "bpfseal"}
    notebook = {f"bpfseal.runtime.notebook.{name}" for name in ("magics", "arguments", "completion", "inspection")}
    assert ours == {"bpfseal", "bpfseal.errors", "bpfseal.runtime", "bpfseal.runtime.notebook", *notebook}
    heavy = {"pandas", "numpy", "matplotlib", "lark", "llvmlite", "cryptography", "msgspec", "bcc", "elftools", "rich"}
    assert not heavy & {name.partition(".")[0] for name in found}


def test_import_of_bpfseal_stays_free() -> None:
    text = (
        "import sys, bpfseal; bpfseal.load_ipython_extension\n"
        "print('IPython' in sys.modules, len([m for m in sys.modules if m.startswith('bpfseal')]))"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == "False 1\n"


def test_the_registered_lexer_is_there() -> None:
    pytest.importorskip("pygments")
    import tomllib
    from importlib import import_module
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["pygments.lexers"]["bpfseal"].partition(":")
    assert "bpftrace" in getattr(import_module(module), name).aliases
