"""Config variables: the block of the script, then what the command line and the process's environment say."""

from __future__ import annotations

from collections.abc import Mapping

from bpfseal.dsl import ast
from bpfseal.dsl.source import NOWHERE, Diagnostic, Span
from bpfseal.dsl.table import CONFIG, ENVIRONMENT_ONLY, OBSOLETE, RENAMED, near
from bpfseal.dsl.table_types import ConfigSpec

Value = str | int | bool
PREFIX = "bpftrace_"

_TRUE, _FALSE = frozenset({"1", "true"}), frozenset({"0", "false"})


class SettingError(Exception):
    """The message, and a hint as second argument."""


def canonical(name: str) -> str:
    """The name of a variable as the table has it: lower case, without the environment's prefix."""
    return name.lower().removeprefix(PREFIX)


def convert(spec: ConfigSpec, value: Value) -> Value:
    """`value` as the variable takes it. Raises SettingError."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    match spec.kind:
        case "int":
            number = _number(text)
            if number is None:
                raise SettingError(f"{spec.name} expects a number, not '{text}'", None)
            return number
        case "bool":
            if text.lower() in _TRUE:
                return True
            if text.lower() in _FALSE or (isinstance(value, int) and value == 0):
                return False
            if isinstance(value, int):
                return True
            raise SettingError(f"{spec.name} expects true or false, not '{text}'", None)
        case "choice":
            return _choose(spec, text)
        case _:
            return text


def _number(text: str) -> int | None:
    text = text.strip().replace("_", "")
    try:
        number = int(text, 0) if text[:2].lower() == "0x" else int(text)
    except ValueError:
        return None
    return number if 0 <= number < 1 << 64 else None


def _choose(spec: ConfigSpec, text: str) -> str:
    if spec.exact:
        if text in spec.choices:
            return text
    else:
        lower = text.lower()
        if lower in spec.choices:
            return lower
        if spec.name.startswith("unstable_"):
            if lower in _TRUE:
                return "enable"
            if lower in _FALSE:
                return "error"
        if spec.name == "cache_user_symbols" and lower in _TRUE | _FALSE:
            return "none" if lower in _FALSE else str(spec.default)
    choices = ", ".join(spec.choices)
    raise SettingError(f"Invalid value for {spec.name}. Found: {text}. Valid values: {choices}.", None)


def effective(
    entries: tuple[ast.ConfigEntry, ...], overrides: Mapping[str, Value] | None
) -> tuple[dict[str, Value], list[Diagnostic]]:
    """Every variable with its value, and what is wrong with the block.

    `overrides` (environment, command line) win. In them names that are no config variables are left alone.
    """
    values: dict[str, Value] = {name: spec.default for name, spec in CONFIG.items()}
    found: list[Diagnostic] = []
    for entry in entries:
        _apply(values, entry.name, entry.value, entry.span, found)
    for name, value in (overrides or {}).items():
        if canonical(name) in CONFIG or canonical(name) in RENAMED:
            _apply(values, name, value, NOWHERE, found)
    return values, found


def _apply(values: dict[str, Value], written: str, value: Value, span: Span, found: list[Diagnostic]) -> None:
    name = canonical(written)
    if name in OBSOLETE:
        found.append(Diagnostic("warning", f"{written} is deprecated and has no effect", span))
        return
    if name in RENAMED:
        found.append(Diagnostic("warning", f"{written} has been renamed, please use {RENAMED[name]}", span))
        value = not value if name == "no_cpp_demangle" and isinstance(value, int) else value
        name = RENAMED[name]
    spec = CONFIG.get(name)
    if spec is None:
        close = near(name, list(CONFIG))
        if name in ENVIRONMENT_ONLY:
            hint: str | None = f"set BPFTRACE_{name.upper()} when starting"
            message = f"{written}: can only be set as an environment variable"
        else:
            hint = "did you mean " + " or ".join(close) + "?" if close else None
            message = f"{written}: not a known configuration option"
        found.append(Diagnostic("error", message, span, hint))
        return
    try:
        values[name] = convert(spec, value)
        _range(name, values[name])
    except SettingError as error:
        found.append(Diagnostic("error", error.args[0], span, error.args[1]))


def _range(name: str, value: Value) -> None:
    # a string needs room for its NUL; more than this no map value can hold
    if name == "max_strlen" and not 1 <= int(value) <= 1 << 20:
        raise SettingError(f"max_strlen must be between 1 and 1048576, not {value}", None)
    if name == "max_map_keys" and not 1 <= int(value) < 1 << 32:
        raise SettingError(f"max_map_keys must be between 1 and 4294967295, not {value}", None)
