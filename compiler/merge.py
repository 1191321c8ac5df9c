"""Blocks that name `probe` come as one typed probe per point, alike but for the name. Here they become one again, with
the name looked up by number when it runs: one program and, for system calls or functions that can share a link, one
link, instead of hundreds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from bpfseal.dsl import typed
from bpfseal.dsl.types import Str, size_of

_KINDS: Final = frozenset({"tracepoint", "kprobe", "kretprobe", "uprobe", "uretprobe"})


def merged(probes: Sequence[typed.Probe]) -> list[typed.Probe]:
    """The probes, with runs of those that only differ by their names made one. In a merged one the name is
    `Builtin("probe")`."""
    found: list[typed.Probe] = []
    at = 0
    while at < len(probes):
        end = at + 1
        while end < len(probes) and _alike(probes[at], probes[end]):
            end += 1
        run = probes[at:end]
        found += [_one(run)] if len(run) > 1 else run
        at = end
    return found


def in_one_program(probes: Sequence[typed.Probe]) -> list[tuple[typed.Probe, list[tuple[typed.Stmt, ...]]]]:
    """Each probe with the bodies that its programs run one after the other: its own, and for xdp, of which an interface
    takes only one program, those of all probes on the same interfaces. The probe's body is then all of them."""
    found: list[tuple[typed.Probe, list[tuple[typed.Stmt, ...]]]] = []
    place: dict[tuple[str, ...], int] = {}
    for probe in probes:
        names = tuple(p.name for p in probe.points)
        at = place.get(names) if probe.points and probe.points[0].kind == "xdp" else None
        if at is None:
            place[names] = len(found)
            found.append((probe, [probe.body]))
            continue
        first, bodies = found[at]
        args = first.args if first.args.fields is not None else probe.args
        found[at] = replace(first, body=first.body + probe.body, args=args), [*bodies, probe.body]
    return found


def _alike(a: typed.Probe, b: typed.Probe) -> bool:
    return (
        a.uses_probe_name
        and b.uses_probe_name
        and len(a.points) == len(b.points) == 1
        and a.points[0].kind == b.points[0].kind
        and a.points[0].kind in _KINDS
        and a.points[0].name != b.points[0].name
        and a.span == b.span
        and a.args == b.args
        and _same(a.body, b.body, (a.points[0].name.encode(), b.points[0].name.encode()), {})
    )


def _same(a: Any, b: Any, names: tuple[bytes, bytes], variables: dict[typed.Var, typed.Var]) -> bool:
    """Whether two trees differ by nothing but the names of their probes, and variables of their own."""
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(_same(x, y, names, variables) for x, y in zip(a, b, strict=True))
    if isinstance(a, typed.Var):
        return variables.setdefault(a, b) is b and (a.type == b.type or _names_only(a.type, b.type, names))
    if isinstance(a, typed.StrLit) and (a.value, b.value) == names:
        return True
    if isinstance(a, typed.MapDef | typed.Function):
        return a is b
    if isinstance(a, Struct):
        if a.__module__ == typed.__name__:
            return all(_same(getattr(a, name), getattr(b, name), names, variables) for name in a.__struct_fields__)
        return a == b or _names_only(a, b, names)
    return bool(a == b)


def _names_only(a: Any, b: Any, names: tuple[bytes, bytes]) -> bool:
    """Whether two types differ as the lengths of the names do."""
    return isinstance(a, Str) and isinstance(b, Str) and (a.size, b.size) == (len(names[0]) + 1, len(names[1]) + 1)


def _one(run: Sequence[typed.Probe]) -> typed.Probe:
    """The longest-named probe's body stands for all: every string in it has room for every name."""
    longest = max(run, key=lambda p: len(p.points[0].name))
    name = longest.points[0].name.encode()
    body = _renamed(longest.body, name)
    return replace(longest, points=tuple(p.points[0] for p in run), body=body)


def _renamed(tree: Any, name: bytes) -> Any:
    """The tree with the name as a builtin."""
    if isinstance(tree, tuple):
        return tuple(_renamed(part, name) for part in tree)
    if isinstance(tree, typed.StrLit) and tree.value == name:
        return typed.Builtin("probe", Str(size_of(tree.type)), tree.span)
    if isinstance(tree, typed.Var | typed.MapDef | typed.Function) or not isinstance(tree, Struct):
        return tree
    if tree.__module__ != typed.__name__:
        return tree
    changed = {
        field: new
        for field in tree.__struct_fields__
        if (new := _renamed(old := getattr(tree, field), name)) is not old
    }
    return replace(tree, **changed) if changed else tree


__all__ = ["merged"]
