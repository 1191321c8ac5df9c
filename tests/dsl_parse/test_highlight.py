"""Pieces of text and what they are."""

from __future__ import annotations

from bpfseal.dsl.highlight import pieces
from tests.fuzz.seeds import SEEDS


def classes(text: str) -> list[tuple[str, str]]:
    return [(text[start:end], kind) for start, end, kind in pieces(text)]


def test_every_class() -> None:
    assert classes(
        '#!/bin/x\n#define A 1\nkprobe:f /pid > 1/ { // why\n if ($x) { @m[A] = f("s", (uint8)1); } } /* end */'
    ) == [
        ("#!/bin/x", "comment"),
        ("#define A 1", "preprocessor"),
        ("kprobe:f", "probe"),
        ("pid", "name"),
        ("1", "number"),
        ("// why", "comment"),
        ("if", "keyword"),
        ("$x", "variable"),
        ("@m", "map"),
        ("A", "name"),
        ("f", "function"),
        ('"s"', "string"),
        ("uint8", "type"),
        ("1", "number"),
        ("/* end */", "comment"),
    ]


def test_a_mistake_ends_it() -> None:
    assert classes('begin { print("x) }') == [("begin", "probe"), ("print", "function"), ('"x) }', "error")]


def test_pieces_are_apart_and_in_order() -> None:
    for text in SEEDS:
        at = 0
        for start, end, kind in pieces(text):
            assert at <= start < end <= len(text)
            assert kind != "error"
            at = end
