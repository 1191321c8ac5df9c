"""Types as C writes them: names of arithmetic types to types, and BTF types to declarations."""

from __future__ import annotations

from typing import Final

from bpfseal.dsl.types import BOOL, Int, Type
from bpfseal.signer import btf as raw
from bpfseal.signer.btf import Btf

C_WORDS: Final = frozenset(("signed", "unsigned", "char", "short", "int", "long", "_Bool", "bool", "float", "double"))
# fmt: off
_FIXED: Final = {
    "u8": Int(8, False), "u16": Int(16, False), "u32": Int(32, False), "u64": Int(64, False),
    "s8": Int(8), "s16": Int(16), "s32": Int(32), "s64": Int(64),
    "size_t": Int(64, False), "ssize_t": Int(64), "intptr_t": Int(64), "uintptr_t": Int(64, False), "off_t": Int(64),
}
# fmt: on


def c_integer(words: list[str]) -> Type | None:
    """The arithmetic type that C specifiers name in any order, for LP64."""
    if len(words) == 1 and words[0] in _FIXED:
        return _FIXED[words[0]]
    if len(words) == 1 and words[0].endswith("_t"):
        return _FIXED.get(words[0].replace("uint", "u").replace("int", "s")[:-2])
    if not set(words) <= C_WORDS or "float" in words or "double" in words:
        return None
    if "_Bool" in words or "bool" in words:
        return BOOL if len(words) == 1 else None
    signed = "unsigned" not in words
    if "char" in words:
        return Int(8, signed)
    if "short" in words:
        return Int(16, signed)
    return Int(64 if "long" in words else 32, signed)


def spelled(btf: Btf, id: int, name: str, tight: bool = False) -> str:
    """C's inside-out declarators; qualifiers kept, type tags shown as the kernel's own words (__user)."""
    space = f" {name}" if name else ""
    kind = btf.kind(id)
    if id == 0:
        return f"void{space}"
    target = btf.size_or_type(id)
    if kind == raw.PTR:
        star = f"*{name}" if tight or not name or name[0] == "*" else f"* {name}"
        if btf.kind(target) in (raw.ARRAY, raw.FUNC_PROTO):
            return spelled(btf, target, f"({star.replace(' ', '')})", tight)
        return spelled(btf, target, star, tight)
    if kind == raw.ARRAY:
        element, _, count = btf.array(id)
        return spelled(btf, element, f"{name}[{count}]", tight)
    if kind == raw.FUNC_PROTO:
        params = ", ".join(spelled(btf, p, "", tight) if p else "..." for _, p in btf.params(id)) or "void"
        return spelled(btf, target, f"{name}({params})", tight)
    words = {raw.CONST: "const", raw.VOLATILE: "volatile", raw.RESTRICT: "restrict"}
    if kind in words:
        if btf.kind(target) == raw.PTR:
            return spelled(btf, target, f"{words[kind]}{space}", tight)
        return f"{words[kind]} {spelled(btf, target, name, tight)}"
    if kind == raw.TYPE_TAG:
        return spelled(btf, target, f"__{btf.name(id)}{space}", tight)
    tag = {raw.STRUCT: "struct ", raw.UNION: "union ", raw.ENUM: "enum ", raw.ENUM64: "enum "}.get(kind, "")
    if kind == raw.FWD:
        tag = "union " if btf.kflag(id) else "struct "
    return f"{tag}{btf.name(id) or '(anon)'}{space}"
