"""What the checker's tests share."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from bpfseal.dsl import typed
from bpfseal.dsl.check import check, walk
from bpfseal.dsl.env import Target
from bpfseal.dsl.expand import expand
from bpfseal.dsl.parse import parse
from bpfseal.dsl.source import Diagnostic, DslError

from .env import TableEnvironment

T = TypeVar("T")
HERE = Path(__file__).parent


def checked(
    program: str, *, unsafe: bool = False, checking: bool = False, pid: int = 0, **config: str | int | bool
) -> typed.TypedScript:
    """The typed script of a program in the made-up kernel; `checking`: as `bpfseal check` has it; `pid`: as -p has."""
    target = Target(unsafe=unsafe, checking=checking, pid=pid)
    return check(expand(parse(program)), TableEnvironment(target), config)


def errors(program: str, *, unsafe: bool = False, **config: str | int | bool) -> list[Diagnostic]:
    """The errors of a wrong program; fails when it is right."""
    try:
        checked(program, unsafe=unsafe, **config)
    except DslError as error:
        return [d for d in error.diagnostics if d.severity == "error"]
    raise AssertionError("no error was found")


def warnings(program: str, **config: str | int | bool) -> list[str]:
    return [d.message for d in checked(program, **config).warnings]


def all_of(kind: type[T], root: object) -> list[T]:
    """Every node of a class below `root`, in no particular order."""
    return [node for node in walk.nodes(root) if isinstance(node, kind)]


def variable(script: typed.TypedScript, name: str) -> typed.Var:
    for body in (*(p.body for p in script.probes), *(f.body for f in script.functions)):
        for var in all_of(typed.Var, body):
            if var.name == name:
                return var
    raise AssertionError(f"there is no variable ${name}")
