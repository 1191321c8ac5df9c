"""parse(show(tree)) == tree for any tree that text can have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpfseal.dsl import ast
from bpfseal.dsl.expand import expand
from bpfseal.dsl.node import Node
from bpfseal.dsl.parse import parse
from bpfseal.dsl.printer import show
from bpfseal.dsl.source import DslError
from tests.dsl_parse.strategies import EXPRESSIONS, SCRIPTS
from tests.dsl_parse.tools import bare

RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
# the strategies are large, and hypothesis says so
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")


@given(SCRIPTS)
@RELAXED
def test_scripts(script: ast.Script) -> None:
    again = bare(parse(show(script)))
    assert again.config == bare(script.config)
    assert again.imports == script.imports
    assert again.maps == script.maps
    assert again.macros == bare(script.macros)
    assert again.functions == bare(script.functions)
    assert again.probes == bare(script.probes)


@given(EXPRESSIONS)
@RELAXED
def test_expressions_in_predicates(expression: ast.Expr) -> None:
    probe = ast.Probe((ast.AttachPoint("kprobe:f"),), expression, ast.Block(()))
    again = parse(show(ast.Script((), probes=(probe,))))
    assert bare(again.probes[0].predicate) == bare(expression)


@given(SCRIPTS, st.lists(st.sampled_from(("7", "text", "-3", "")), max_size=3))
@RELAXED
def test_expansion_leaves_no_macros_and_parameters(script: ast.Script, params: list[str]) -> None:
    """Whatever macros call each other: a tree without parameters, or a diagnostic that can be shown."""
    written = parse(show(script))
    try:
        expanded = expand(ast.Script(written.sources, macros=written.macros, probes=written.probes), params=params)
    except DslError as error:
        shown = error.render()
        assert "ERROR" in shown
        return
    assert not expanded.macros
    assert not [node for node in nodes(expanded.probes) if isinstance(node, ast.Positional)]


def nodes(value: Any) -> Iterator[Node]:
    if isinstance(value, tuple):
        for item in value:
            yield from nodes(item)
    elif isinstance(value, Node):
        yield value
        for name in value.__struct_fields__:
            yield from nodes(getattr(value, name))
