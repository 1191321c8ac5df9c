"""A Pygments lexer for the language, for documents and notebooks; its words come from the language's own table."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from pygments.lexer import RegexLexer, bygroups, include, words
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, String, Whitespace

from bpfseal.dsl.table import AGGREGATES, BUILTINS, FUNCTIONS

KEYWORDS = [
    "if",
    "else",
    "while",
    "for",
    "unroll",
    "break",
    "continue",
    "return",
    "let",
    "import",
    "macro",
    "fn",
    "config",
    "defer",
    "sizeof",
    "offsetof",
    "typeof",
    "typeinfo",
    "comptime",
    "struct",
    "union",
    "enum",
    "const",
]
TYPES = [
    "bool",
    "void",
    "char",
    "short",
    "int",
    "long",
    "unsigned",
    "signed",
    "size_t",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8_t",
    "int16_t",
    "int32_t",
    "int64_t",
    "uint8_t",
    "uint16_t",
    "uint32_t",
    "uint64_t",
    "string",
    "buffer",
]
PROBES = [
    "kprobe",
    "kretprobe",
    "uprobe",
    "uretprobe",
    "usdt",
    "tracepoint",
    "rawtracepoint",
    "fentry",
    "fexit",
    "kfunc",
    "kretfunc",
    "interval",
    "profile",
    "software",
    "hardware",
    "watchpoint",
    "asyncwatchpoint",
    "iter",
    "lsm",
    "self",
    "xdp",
    "tc",
    "k",
    "kr",
    "u",
    "ur",
    "U",
    "t",
    "rt",
    "f",
    "fr",
    "i",
    "p",
    "s",
    "h",
    "w",
    "aw",
    "it",
]


class BpfsealLexer(RegexLexer):  # type: ignore[misc]
    """Programs of bpfseal, and so those of bpftrace."""

    name = "bpfseal"
    aliases: ClassVar = ["bpfseal", "bpftrace", "bt"]
    filenames: ClassVar = ["*.bt"]
    mimetypes: ClassVar = ["text/x-bpfseal", "text/x-bpftrace"]
    url = ""
    flags = re.MULTILINE

    tokens: ClassVar[dict[str, list[Any]]] = {
        "layout": [
            (r"\s+", Whitespace),
            (r"//[^\n]*", Comment.Single),
            (r"/\*", Comment.Multiline, "comment"),
        ],
        "comment": [
            (r"[^*]+", Comment.Multiline),
            (r"\*/", Comment.Multiline, "#pop"),
            (r"\*", Comment.Multiline),
        ],
        "root": [
            (r"\A#![^\n]*", Comment.Hashbang),
            (r"%%?bpfseal\b[^\n]*", Comment.Preproc),
            (r"#[^\n]*(?:\\\n[^\n]*)*", Comment.Preproc),
            include("layout"),
            (r"\b(BEGIN|END|begin|end)\b", Keyword.Namespace),
            (rf"\b({'|'.join(PROBES)})(:)", bygroups(Keyword.Namespace, Punctuation), "point"),
            (r"\b(config|macro|fn|import|struct|union|enum|let|const)\b", Keyword.Declaration),
            (r"\{", Punctuation, "block"),
            include("values"),
            include("names"),
        ],
        # what stands behind the type of a probe: no tokens of the language
        "point": [
            (r'"(?:[^"\\\n]|\\.)*"', String.Double, "#pop"),
            (r"[^\s{},\"]+?(?=\s|[{,\"]|\Z|/\s*[^\s/{]*\s*(?:==|!=|<|>|/))", Name.Function, "#pop"),
            (r"[^\s{},\"]+", Name.Function, "#pop"),
            (r"", Punctuation, "#pop"),
        ],
        "block": [
            (r"\{", Punctuation, "#push"),
            (r"\}", Punctuation, "#pop"),
            include("values"),
            (words(KEYWORDS, prefix=r"\b", suffix=r"\b"), Keyword),
            (words(TYPES, prefix=r"\b", suffix=r"\b"), Keyword.Type),
            include("names"),
        ],
        "names": [
            (r"(\.|->)(\s*)([A-Za-z_]\w*|\d+)", bygroups(Operator, Whitespace, Name.Attribute)),
            (words(sorted({*FUNCTIONS, *AGGREGATES}), prefix=r"\b", suffix=r"(?=\s*\()"), Name.Builtin),
            (words(sorted(BUILTINS), prefix=r"\b", suffix=r"\b"), Name.Builtin.Pseudo),
            (words(sorted({*FUNCTIONS, *AGGREGATES}), prefix=r"\b", suffix=r"\b"), Name.Builtin),
            (r"[A-Za-z_]\w*", Name),
            (r"[\[\](),;:.]", Punctuation),
            (r"[-+*/%&|^~!<>=?]+", Operator),
            (r".", Punctuation),
        ],
        "values": [
            include("layout"),
            (r'"', String.Double, "string"),
            (r"'(?:[^'\\\n]|\\.)'", String.Char),
            (r"\$\{[^}\n]*\}", String.Interpol),
            (r"@[A-Za-z_]?\w*", Name.Variable.Global),
            (r"\$(?:#|\d+|[A-Za-z_]\w*)", Name.Variable),
            (r"0[xX][0-9a-fA-F_]+", Number.Hex),
            (r"\d[\d_]*(?:e\d+)?(?:ns|us|ms|s|m|h|d|[uUlL]+)?\b", Number.Integer),
            (r"\b(?:true|false)\b", Keyword.Constant),
        ],
        "string": [
            (r'"', String.Double, "#pop"),
            (r"\\(?:[0-7]{1,3}|x[0-9a-fA-F]{1,2}|.)", String.Escape),
            (r"%[-+ #0]*\d*(?:\.\d+)?(?:hh|h|ll|l|j|z|t)?(?:rh|rx|[a-zA-Z])|%%", String.Interpol),
            (r'[^"\\%\n]+', String.Double),
            (r"\n", Whitespace, "#pop"),
            (r"%", String.Double),
            (r"\\", String.Double),
        ],
    }
