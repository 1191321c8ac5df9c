"""Policy files: TOML text to rules, with the line of whatever is wrong."""

from __future__ import annotations

import grp
import pwd
import re
import tomllib
from collections.abc import Callable, Iterable
from typing import Any, Final

from bpfseal.signer import helpers as known
from bpfseal.signer.limits import MAX_MAPS, MAX_PROGRAMS
from bpfseal.signer.policy_rule import Patterns, PolicyError, Rule

MAX_POLICY_BYTES: Final = 1 << 20
_UNITS: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def read_rules(data: bytes, path: str) -> tuple[Rule, ...]:
    """The rules in TOML text. Raises PolicyError."""
    if len(data) > MAX_POLICY_BYTES:
        raise PolicyError(f"{path}:1: larger than {MAX_POLICY_BYTES} bytes")
    try:
        text = data.decode()
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        line = re.search(r"line (\d+)", str(error))
        raise PolicyError(f"{path}:{line[1] if line else 1}: {error}") from None
    return _Reader(path, text, table).rules()


class _Reader:
    """From a TOML table to rules. Every complaint names file and line."""

    def __init__(self, path: str, text: str, table: dict[str, Any]) -> None:
        self.path, self.table = path, table
        self.lines = _key_lines(text)
        self.section = ""

    def rules(self) -> tuple[Rule, ...]:
        table = dict(self.table)
        if table.pop("version", 1) != 1:
            raise self.error("version", "is not 1")
        defaults = table.pop("defaults", {})
        rules = table.pop("rule", [])
        if table:
            raise self.error(next(iter(table)), "is not a key of a policy")
        if not isinstance(defaults, dict) or not isinstance(rules, list):
            raise self.error("rule" if isinstance(defaults, dict) else "defaults", "is not a table")
        self.section = "defaults"
        common = self._values(defaults, {k for k in _KEYS if k not in _IDENTITY and k not in ("name", "anyone")})
        found: list[Rule] = []
        for number, rule in enumerate(rules):
            self.section = f"rule.{number}"
            if not isinstance(rule, dict):
                raise self.error("", "is not a table")
            found.append(self._rule(common | self._values(rule, set(_KEYS)), found))
        return tuple(found)

    def _rule(self, values: dict[str, Any], before: list[Rule]) -> Rule:
        name = values.setdefault("name", f"rule-{len(before) + 1}")
        if any(rule.name == name for rule in before):
            raise self.error("name", f"{name!r} is used twice")
        named = {_KEYS[key][0] for key in _IDENTITY} & values.keys()
        if bool(named) == bool(values.get("anyone")):
            raise self.error("anyone" if named else "", "names nobody: give uid, user, … or anyone = true, not both")
        return Rule(line=self.lines.get((self.section, ""), 0), **values)

    def _values(self, table: dict[str, Any], keys: set[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in table.items():
            if key not in keys:
                raise self.error(key, "is not a key of a rule" if key not in _KEYS else "cannot be a default")
            member, convert = _KEYS[key]
            try:
                converted = convert(value)
            except ValueError as error:
                raise self.error(key, str(error)) from None
            found[member] = found[member] | converted if member in found else converted
        return found

    def error(self, key: str, reason: str) -> PolicyError:
        line = self.lines.get((self.section, key)) or self.lines.get((self.section, "")) or 1
        return PolicyError(f"{self.path}:{line}: {key + ' ' if key else ''}{reason}")


def _key_lines(text: str) -> dict[tuple[str, str], int]:
    """(section, key) → line; sections are "", "defaults", "rule.0", …; key "" is the section's header."""
    found: dict[tuple[str, str], int] = {}
    section, rules = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\[?\s*([^\]]*?)\s*\]", line):
            section = header[1].strip("\"'")
            if line.lstrip().startswith("[["):
                section, rules = f"{section}.{rules}", rules + 1
            found.setdefault((section, ""), number)
            found.setdefault(("", header[1]), number)
        elif key := re.match(r"""\s*["']?([\w-]+)["']?\s*[=.]""", line):
            found.setdefault((section, key[1]), number)
    return found


def _strings(value: Any) -> list[str]:
    found = value if isinstance(value, list) else [value]
    if not found or not all(isinstance(item, str) and item and "\0" not in item for item in found):
        raise ValueError("is not a text or a list of texts")
    return found


def _names(allowed: Iterable[str]) -> Callable[[Any], frozenset[str]]:
    allowed = frozenset(allowed)

    def convert(value: Any) -> frozenset[str]:
        names = set(_strings(value)) if value != [] else set()
        if "*" in names:
            names = names - {"*"} | allowed
        if unknown := names - allowed:
            raise ValueError(f"has {min(unknown)!r}, which does not exist")
        return frozenset(names)

    return convert


def _classes(value: Any) -> frozenset[str]:
    """Who may change packets may read them."""
    names = _names(known.CLASSES)(value)
    return names | {"read-packet"} if "network" in names else names


def _digests(value: Any) -> frozenset[str]:
    found = frozenset(text.removeprefix("sha256:").lower() for text in _strings(value))
    if not all(re.fullmatch("[0-9a-f]{64}", text) for text in found):
        raise ValueError("is not a sha256 in hexadecimal")
    return found


def _number(least: int, most: int) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if isinstance(value, str) and (parts := re.fullmatch(r"(\d{1,12}) ?(KiB|MiB|GiB)", value)):
            value = int(parts[1]) * _UNITS[parts[2]]
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"is not a number from {least} to {most}")
        return value

    return convert


def _ids(value: Any) -> frozenset[int]:
    found = value if isinstance(value, list) else [value]
    if not found or not all(type(item) is int and 0 <= item < 1 << 32 for item in found):
        raise ValueError("is not a number or a list of numbers")
    return frozenset(found)


def _users(value: Any) -> frozenset[int]:
    return frozenset(_look_up(lambda name: pwd.getpwnam(name).pw_uid, name, "user") for name in _strings(value))


def _groups(value: Any) -> frozenset[int]:
    return frozenset(_look_up(lambda name: grp.getgrnam(name).gr_gid, name, "group") for name in _strings(value))


def _look_up(find: Callable[[str], int], name: str, what: str) -> int:
    try:
        return find(name)
    except (KeyError, OSError):
        raise ValueError(f"names the {what} {name!r}, which does not exist") from None


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is not true or false")
    return value


def _patterns(value: Any) -> Patterns:
    return Patterns(_strings(value) if value != [] else ())


def _text(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[\w.-]{1,64}", value):
        raise ValueError("is not a short name")
    return value


# Key in the file → (member of Rule, conversion)
_KEYS: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "name": ("name", _text),
    "anyone": ("anyone", _flag),
    "uid": ("uid", _ids),
    "user": ("uid", _users),
    "gid": ("gid", _ids),
    "group": ("gid", _groups),
    "cgroup": ("cgroup", _patterns),
    "exe": ("exe", _patterns),
    "exe_sha256": ("exe_sha256", _digests),
    "exe_verity": ("exe_verity", _digests),
    "probes": ("probes", _patterns),
    "deny_probes": ("deny_probes", _patterns),
    "classes": ("classes", _classes),
    "helpers": ("helpers", _names(known.HELPER_BY_NAME.keys() - known.FORBIDDEN_HELPERS)),
    "kfuncs": ("kfuncs", _patterns),
    "variables": ("variables", _patterns),
    "map_types": ("map_types", _names(known.MAP_TYPE_BY_NAME)),
    "sleepable": ("sleepable", _flag),
    "existing_maps": ("existing_maps", _flag),
    "enforceable": ("enforceable", _flag),
    "require_source": ("require_source", _flag),
    "max_programs": ("max_programs", _number(1, MAX_PROGRAMS)),
    "max_insns": ("max_insns", _number(1, 1_000_000)),
    "max_maps": ("max_maps", _number(0, MAX_MAPS)),
    "max_map_bytes": ("max_map_bytes", _number(0, 1 << 40)),
    "max_targets": ("max_targets", _number(1, 1 << 20)),
    "lifetime": ("lifetime", _number(1, 7 * 86400)),
    "per_minute": ("per_minute", _number(0, 1_000_000)),
}
_IDENTITY: Final = ("uid", "user", "gid", "group", "cgroup", "exe", "exe_sha256", "exe_verity")
assert {member for member, _ in _KEYS.values()} == set(Rule.__struct_fields__) - {"line"}
