"""Config variables: the block, its old names, what wins."""

from __future__ import annotations

import pytest

from bpfseal.dsl.table import CONFIG

from .kit import checked, errors, warnings


def config(program: str, **overrides: str | int | bool) -> dict[str, str | int | bool]:
    return checked(program + " begin { }", **overrides).config


def test_defaults() -> None:
    assert config("") == {name: spec.default for name, spec in CONFIG.items()}


@pytest.mark.parametrize(
    ("block", "name", "value"),
    [
        ("max_strlen = 100", "max_strlen", 100),
        ("BPFTRACE_MAX_STRLEN = 100", "max_strlen", 100),
        ("MAX_STRLEN = 100", "max_strlen", 100),
        ("print_maps_on_exit = 0", "print_maps_on_exit", False),
        ("print_maps_on_exit = false", "print_maps_on_exit", False),
        ('print_maps_on_exit = "true"', "print_maps_on_exit", True),
        ("stack_mode = perf", "stack_mode", "perf"),
        ('stack_mode = "raw"', "stack_mode", "raw"),
        ('str_trunc_trailer = ""', "str_trunc_trailer", ""),
        ('license = "Dual MIT/GPL"', "license", "Dual MIT/GPL"),
        ("cache_user_symbols = PER_PROGRAM", "cache_user_symbols", "per_program"),
        ("cache_user_symbols = 0", "cache_user_symbols", "none"),
        ("unstable_tseries = 1", "unstable_tseries", "enable"),
        ("missing_probes = warn", "missing_probes", "warn"),
        ("strlen = 64", "max_strlen", 64),
    ],
)
def test_values(block: str, name: str, value: str | int | bool) -> None:
    assert config(f"config = {{ {block} }}")[name] == value


def test_overrides_win() -> None:
    assert config("config = { max_strlen = 100 }", max_strlen=200)["max_strlen"] == 200
    assert config("", BPFTRACE_MAX_STRLEN="300")["max_strlen"] == 300


def test_foreign_names_among_the_overrides_are_left_alone() -> None:
    assert "path" not in config("", PATH="/bin")


def test_old_names() -> None:
    assert warnings("config = { strlen = 64 } begin { }") == ["strlen has been renamed, please use max_strlen"]
    assert warnings("config = { symbol_source = 1 } begin { }") == ["symbol_source is deprecated and has no effect"]


def test_wrong_overrides_are_errors() -> None:
    (error,) = errors("begin { }", max_strlen="many")
    assert error.message == "max_strlen expects a number, not 'many'"


def test_kernel_symbols_that_only_this_machine_lacks() -> None:
    """Addresses are hidden from those who may not see them: no reason to call a program wrong that is not run."""
    program = 'begin { $a = kaddr("nothing_of_the_kind"); print(*$a); }'
    assert [d.message for d in errors(program)] == ["Failed to resolve kernel symbol: nothing_of_the_kind"]
    script = checked(program, checking=True)
    assert [d.message for d in script.warnings] == ["Failed to resolve kernel symbol: nothing_of_the_kind"]
