"""Nodes are frozen values, and so are types."""

from __future__ import annotations

import copy
import pickle

import pytest
from msgspec.structs import replace

from bpfseal.dsl import ast, types
from bpfseal.dsl.source import Source, Span


def test_values() -> None:
    one, other = ast.Integer(1, Span(2, 3)), ast.Integer(1, span=Span(2, 3))
    assert one == other
    assert hash(one) == hash(other)
    assert one != ast.Integer(2, Span(2, 3))
    assert ast.Variable("x") != ast.Identifier("x")
    assert repr(ast.Variable("x", Span(0, 2))) == "Variable(name='x', span=Span(start=0, end=2, source=0, via=None))"
    assert copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(AttributeError):
        one.value = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del one.value
    with pytest.raises(TypeError):
        ast.Variable()  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        one.other = 1  # type: ignore[attr-defined]


def test_fields() -> None:
    one = ast.Integer(1, unsigned=True)
    assert one.__struct_fields__ == ast.Integer.__match_args__ == ("value", "span", "unsigned", "text")
    assert replace(one, value=5) == ast.Integer(5, unsigned=True)


def test_remarks_of_the_checker_do_not_tell_integers_apart() -> None:
    assert types.Int(64, True, flexible=True, space="user") == types.I64
    assert len({types.Int(64, True, True), types.I64, types.U64}) == 2
    assert types.Int(8) != types.Str(8)
    assert repr(types.Int(8, space="user")) == "Int(bits=8, signed=True)"


def test_patterns() -> None:
    match ast.Binary("+", ast.Integer(1), ast.Integer(2)):
        case ast.Binary("+", ast.Integer(left), right=ast.Integer(value=right)):
            assert (left, right) == (1, 2)
        case _:
            raise AssertionError


def test_sources_count_lines() -> None:
    source = Source("a\n\tb\n", "x")
    assert source.position(0) == (1, 1)
    assert source.position(3) == (2, 2)
    assert source.position(5) == (3, 1)
    assert (source.line(2), source.line(3)) == ("\tb", "")
    assert source == Source("a\n\tb\n", "x") != Source("", "x")
