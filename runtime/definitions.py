"""Kernel types as C definitions, for listings: `-l 'struct sk_buff'`, `-lv` with members."""

from __future__ import annotations

from collections.abc import Iterator

from bpfseal.compiler.kernel import KernelTypes
from bpfseal.compiler.kernel_names import spelled
from bpfseal.runtime.probes import is_wild, matcher
from bpfseal.signer import btf as raw
from bpfseal.signer.btf import Btf

_KINDS = {"struct": (raw.STRUCT,), "union": (raw.UNION,), "enum": (raw.ENUM, raw.ENUM64)}


def definitions(types: KernelTypes, pattern: str, verbose: bool) -> Iterator[str]:
    """Names that match "struct PATTERN" (union, enum), sorted, or with `verbose` their definitions line by line."""
    word, _, name = pattern.partition(" ")
    name = name.strip() or "*"
    btf = types.btf()
    assert btf is not None
    if not is_wild(name):
        id = types.find(word[0], name)
        found = {name: id} if id else {}
    else:
        matches = matcher(name)
        found = {}
        for kind in _KINDS[word]:
            for candidate, id in btf.all_named(kind):
                if matches(candidate):
                    found.setdefault(candidate, id)
    for candidate in sorted(found):
        if verbose:
            yield from _definition(btf, found[candidate], f"vmlinux: {word} {candidate}", "", ";")
            yield ""
        else:
            yield f"{word} {candidate}"


def _definition(btf: Btf, id: int, head: str, indent: str, tail: str) -> Iterator[str]:
    """Anonymous members are written out in their place."""
    yield f"{indent}{head} {{"
    inner = indent + "\t"
    if btf.kind(id) in (raw.ENUM, raw.ENUM64):
        for name, value in btf.enumerators(id):
            yield f"{inner}{name} = {value},"
    else:
        for name, member, _, bits in btf.members(id):
            target = btf.resolve(member)
            if btf.kind(target) in (raw.STRUCT, raw.UNION) and not btf.name(target) and member == target:
                word = "struct" if btf.kind(target) == raw.STRUCT else "union"
                yield from _definition(btf, target, word, inner, f" {name};" if name else ";")
            else:
                yield f"{inner}{spelled(btf, member, name, tight=True)}{f': {bits}' if bits else ''};"
    yield f"{indent}}}{tail}"
