"""`check`: is a bundle sane, and what does it do? The checklist for bytecode, without any question of who asks.

Whatever passes is described completely by its Findings, which is what policy decides on and what the audit log
keeps. Whatever does not is refused with program, instruction, rule and attribute.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any, Final

from msgspec import Struct

from bpfseal.signer import helpers as known
from bpfseal.signer.analyse import Facts, analyse
from bpfseal.signer.attach import attach_targets, check_target
from bpfseal.signer.btf import Btf, BtfError
from bpfseal.signer.btf_check import check_func_info, check_line_info, check_program_btf, special_members
from bpfseal.signer.bundle import UNDECLARED, Attributes, Bundle, MapSpec, ProgramSpec
from bpfseal.signer.filter import system_calls
from bpfseal.signer.guard import GET_FUNC_IP, guarded
from bpfseal.signer.insn import Insn, decode
from bpfseal.signer.kernel_ids import Kernel
from bpfseal.signer.limits import (
    MAX_KEY_BYTES,
    MAX_MAPS,
    MAX_PROGRAMS,
    MAX_READER_BYTES,
    MAX_SOURCE_BYTES,
    MAX_VALUE_BYTES,
)
from bpfseal.signer.refusal import Refusal
from bpfseal.signer.verdict import decides

_NAME: Final = re.compile(r"[A-Za-z0-9_.]{1,15}", re.ASCII)  # BPF_OBJ_NAME_LEN, bpf_obj_name_cpy()
_SYMBOL: Final = re.compile(r"[A-Za-z0-9_.]{1,128}", re.ASCII)
# C0 and C1 but tab and line ends, and the marks that reorder text: a source is read by people in the audit log.
_UNPRINTABLE: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")
# Types whose context leads to packets, sockets and what is exchanged with them.
_PACKETS: Final = frozenset(
    (known.SOCKET_FILTER, known.SCHED_CLS, known.XDP, known.CGROUP_SKB, known.CGROUP_SOCK, known.CGROUP_SOCK_ADDR)
) | {known.CGROUP_SOCKOPT, known.SOCK_OPS, known.EXT}

_CPUS: Final = known.possible_cpus()  # now: a confined helper can no longer read it

Symbols = Callable[[str], Collection[int]]


class MapFindings(Struct, frozen=True):
    """One map. `size` is the memory that it may take, in bytes; `classes` what members of its values need. With an
    `id` it exists already: it takes no more memory, and what is known of it is the client's word."""

    name: str
    type: str
    size: int
    frozen: bool
    classes: frozenset[str]
    id: int = 0


class ProgramFindings(Struct, frozen=True):
    """One program, after analysis.

    attributes   declared, and so at least the found; the found if none were declared
    helpers      declared and found helper names; classes also cover kfuncs and direct reads
    targets      names that policy matches: what the program can be attached to as far as the bundle says
    enforceable  whether the targets are part of what is signed, or guarded by address
    linked       whether the loader attaches it
    guard        addresses of the guard, ascending; empty without one
    subprograms  names from BTF, empty without func_info
    """

    name: str
    type: str
    attach_type: str
    attributes: Attributes
    found: Attributes
    classes: frozenset[str]
    variables: tuple[str, ...]
    sleepable: bool
    targets: tuple[str, ...]
    enforceable: bool
    linked: bool
    guard: tuple[int, ...]
    subprograms: tuple[str, ...]


class Findings(Struct, frozen=True):
    """A bundle that passed: what is in it, in numbers and names. `insns` is the total over all programs."""

    programs: tuple[ProgramFindings, ...]
    maps: tuple[MapFindings, ...]
    insns: int
    map_bytes: int
    source: bool

    def record(self) -> dict[str, Any]:
        """The part of an audit record that describes the bundle: plain, ordered, JSON-ready. Long lists of targets
        are cut, beside their length."""
        limit = max(4, 256 // len(self.programs))
        return {
            "insns": self.insns,
            "map_bytes": self.map_bytes,
            "programs": [_program_record(p, self.maps, limit) for p in self.programs],
            "maps": [_map_record(m) for m in self.maps],
        }


def _map_record(m: MapFindings) -> dict[str, Any]:
    if m.id:
        return {"name": m.name, "existing": m.id, "type_by_client": m.type}
    return {"name": m.name, "type": m.type, "bytes": m.size} | ({"frozen": True} if m.frozen else {})


def _program_record(p: ProgramFindings, maps: tuple[MapFindings, ...], limit: int) -> dict[str, Any]:
    record: dict[str, Any] = {
        "name": p.name,
        "type": p.type,
        "attach_type": p.attach_type,
        "targets": [target[:256] for target in p.targets[:limit]],
        "target_count": len(p.targets),
        "enforceable": p.enforceable,
        "linked": p.linked,
        "insns": p.found.insns,
        "subprograms": p.found.subprograms,
        "helpers": list(p.attributes.helpers),
        "kfuncs": list(p.attributes.kfuncs),
        "maps": {maps[number].name: list(operations) for number, operations in p.attributes.maps},
        "classes": sorted(p.classes),
        "sleepable": p.sleepable,
        "variables": list(p.variables),
        "guard": [f"{address:#x}" for address in p.guard[:limit]],
    }
    return {key: value for key, value in record.items() if value not in ("", [], {}, False) or key == "enforceable"}


def check(
    bundle: Bundle, *, kernel: Kernel | None = None, symbols: Symbols | None = None, max_insns: int = 1_000_000
) -> Findings:
    """Findings about a bundle.

    `kernel` resolves ids (default: the running kernel); `symbols` gives the addresses of a function and makes
    guards comparable with the functions that the bundle names; `max_insns` is the limit for all programs together,
    looked at before any of them is decoded.

    Raises Refusal.
    """
    kernel = kernel or _running
    _check_size(bundle, max_insns)
    btf = _program_btf(bundle.btf)
    maps = _check_maps(bundle.maps, btf)
    programs = tuple(_check_program(p, bundle, maps, btf, kernel, symbols) for p in bundle.programs)
    return Findings(
        programs, maps, sum(p.found.insns for p in programs), sum(m.size for m in maps), bool(bundle.source)
    )


_running: Final = Kernel()


def _check_size(bundle: Bundle, max_insns: int) -> None:
    if not 0 < len(bundle.programs) <= MAX_PROGRAMS:
        raise Refusal("size", f"{len(bundle.programs)} programs: at least one, at most {MAX_PROGRAMS}")
    if len(bundle.maps) > MAX_MAPS:
        raise Refusal("size", f"{len(bundle.maps)} maps are over the limit of {MAX_MAPS}")
    if (insns := sum(len(p.insns) for p in bundle.programs) // 8) > max_insns:
        raise Refusal("size", f"{insns} instructions are over the limit of {max_insns}", attribute="insns")
    if len(bundle.reader) > MAX_READER_BYTES:
        raise Refusal("size", f"reader layout of {len(bundle.reader)} bytes is over the limit of {MAX_READER_BYTES}")
    if len(bundle.source) > MAX_SOURCE_BYTES:
        raise Refusal("source", f"source of {len(bundle.source)} characters is over the limit of {MAX_SOURCE_BYTES}")
    if found := _UNPRINTABLE.search(bundle.source):
        line = bundle.source.count("\n", 0, found.start()) + 1
        raise Refusal("source", f"source has the control character U+{ord(found[0]):04X} in line {line}")


def _program_btf(data: bytes) -> Btf | None:
    if not data:
        return None
    try:
        return check_program_btf(data)
    except BtfError as error:
        raise Refusal("btf", error.message) from None


def _u32(value: int, what: str, name: str) -> None:
    if not 0 <= value < 1 << 32:
        raise Refusal("number", f"{what} {value} is not a 32-bit number", program=name, attribute=what)


def _check_maps(maps: tuple[MapSpec, ...], btf: Btf | None) -> tuple[MapFindings, ...]:
    found: list[MapFindings] = []
    names: set[str] = set()
    for spec in maps:
        if not _NAME.fullmatch(spec.name):
            raise Refusal("name", f"bad map name {spec.name[:64]!r}", attribute=spec.name[:64])
        if spec.name in names:
            raise Refusal("name", f"two maps are named {spec.name}", program=spec.name, attribute=spec.name)
        names.add(spec.name)
        if not spec.id and any(m.id for m in found):
            raise Refusal("map-existing", "a new map after an existing one", program=spec.name, attribute="id")
        found.append(_check_map(spec, btf))
    return tuple(found)


def _check_map(spec: MapSpec, btf: Btf | None) -> MapFindings:
    def refuse(rule: str, reason: str, attribute: str = "") -> Refusal:
        return Refusal(rule, reason, program=spec.name, attribute=attribute)

    kind = known.MAP_TYPES.get(spec.type)
    if kind is None:
        why = known.REFUSED_MAP_TYPES.get(spec.type, f"unknown map type {spec.type}")
        raise refuse("map-type", why, why.partition(":")[0])
    if kind.new and not spec.id:
        raise refuse("map-type", f"{kind.name}: {kind.new}", kind.name)
    for what in ("key_size", "value_size", "max_entries", "flags", "key_btf", "value_btf", "id"):
        _u32(getattr(spec, what), what, spec.name)
    if spec.id:  # the kernel made it: sizes and flags were fine
        if spec.initial or spec.frozen or spec.key_btf or spec.value_btf:
            raise refuse("map-existing", "an existing map with contents or types", "id")
        return MapFindings(spec.name, kind.name, 0, False, frozenset(), spec.id)
    if spec.flags & ~kind.flags:
        raise refuse("map-flags", f"flags {spec.flags & ~kind.flags:#x} are not known for {kind.name}", "flags")
    if (spec.key_size != kind.key) if kind.key >= 0 else not 0 < spec.key_size <= MAX_KEY_BYTES:
        raise refuse("map-size", f"key of {spec.key_size} bytes in {kind.name}", "key_size")
    if (spec.value_size != kind.value) if kind.value >= 0 else not 0 < spec.value_size <= MAX_VALUE_BYTES:
        raise refuse("map-size", f"value of {spec.value_size} bytes in {kind.name}", "value_size")
    if (spec.max_entries == 0) != (kind.shape == "storage"):
        raise refuse("map-size", f"{spec.max_entries} entries in {kind.name}", "max_entries")
    if kind.shape == "ring" and (spec.max_entries & (spec.max_entries - 1) or spec.max_entries < 4096):
        raise refuse("map-size", f"ring of {spec.max_entries} bytes is not a power of two of pages", "max_entries")
    constant = spec.frozen or spec.flags & known.RDONLY_PROG
    if (spec.initial or constant) and (kind.name != "array" or spec.max_entries != 1):
        raise refuse("map-initial", "only an array of one can have an initial value or be frozen", "initial")
    if spec.initial and len(spec.initial) != spec.value_size:
        raise refuse("map-initial", f"initial value of {len(spec.initial)} bytes for {spec.value_size}", "initial")
    if constant and not spec.frozen:
        raise refuse("map-frozen", "a constant that is not frozen can be changed from outside", "frozen")
    if spec.frozen and not spec.initial:
        raise refuse("map-frozen", "a frozen map without a value", "frozen")
    return MapFindings(spec.name, kind.name, map_bytes(spec), spec.frozen, _map_classes(spec, btf))


def _map_classes(spec: MapSpec, btf: Btf | None) -> frozenset[str]:
    """Type ids of key and value are sane; what special members of the value need."""
    if not spec.key_btf and not spec.value_btf:
        return frozenset()
    if btf is None or max(spec.key_btf, spec.value_btf) >= len(btf):
        raise Refusal("btf", "type ids of key and value are not in the bundle's BTF", program=spec.name)
    try:
        return special_members(btf, spec.value_btf)
    except BtfError as error:
        raise Refusal("btf", error.message, program=spec.name) from None
    except Refusal as error:
        raise error.at(spec.name) from None


def map_bytes(spec: MapSpec) -> int:
    """Memory that a map takes when it is full, in bytes: an upper estimate, with 64 bytes of bookkeeping for an
    element. Local storage counts as 1,024 objects."""
    kind = known.MAP_TYPES[spec.type]
    if kind.shape == "ring":
        return spec.max_entries
    value = (spec.value_size + 7) // 8 * 8 * (_CPUS if kind.percpu else 1)
    if kind.shape in ("hash", "storage"):
        value += (spec.key_size + 7) // 8 * 8 + 64
    return value * (spec.max_entries or 1024)


def _check_program(
    spec: ProgramSpec,
    bundle: Bundle,
    maps: tuple[MapFindings, ...],
    btf: Btf | None,
    kernel: Kernel,
    symbols: Symbols | None,
) -> ProgramFindings:
    if not _NAME.fullmatch(spec.name):
        raise Refusal("name", f"bad program name {spec.name[:64]!r}", attribute=spec.name[:64])
    try:
        _check_header(spec)
        targets, enforceable = attach_targets(spec)
        check_target(spec, kernel)
        insns = decode(spec.insns)
        facts = analyse(insns, bundle.maps, kernel, packets=spec.type in _PACKETS, replaces=spec.type == known.EXT)
        _check_constants(facts, maps)
        names = _check_debug_info(spec, insns, facts, btf)
        _check_declared(spec.declared, facts.found, len(maps))
        guard = _check_guard(spec, insns, facts, symbols)
        targets = system_calls(targets, insns, facts.flow, bundle.maps)
    except Refusal as error:
        raise error.at(spec.name) from None
    extra = {c for n in spec.declared.helpers for c in known.HELPER_BY_NAME[n].classes}
    extra |= {known.KFUNC_CLASSES[n] for n in spec.declared.kfuncs if n in known.KFUNC_CLASSES}
    if spec.expected_attach_type == known.MODIFY_RETURN or decides(spec.type, insns, facts.flow):
        extra.add("override")
    return ProgramFindings(
        name=spec.name,
        type=known.PROGRAM_TYPES[spec.type],
        attach_type=known.ATTACH_TYPES[spec.expected_attach_type],
        attributes=facts.found if spec.declared == UNDECLARED else spec.declared,
        found=facts.found,
        classes=facts.classes | extra,
        variables=facts.variables,
        sleepable=bool(spec.flags & known.SLEEPABLE),
        targets=targets,
        enforceable=enforceable or bool(guard),
        linked=spec.linked,
        guard=guard,
        subprograms=names,
    )


def _check_header(spec: ProgramSpec) -> None:
    for what in ("type", "expected_attach_type", "flags", "attach_btf_id"):
        _u32(getattr(spec, what), what, spec.name)
    if spec.type not in known.PROGRAM_TYPES:
        raise Refusal("program-type", f"program type {spec.type} is not one that can be signed", attribute="type")
    if spec.flags & ~known.PROGRAM_FLAGS:
        raise Refusal("program-flags", f"flags {spec.flags & ~known.PROGRAM_FLAGS:#x} are not known", attribute="flags")
    if spec.license not in known.GPL_LICENSES:
        raise Refusal("license", f"licence {spec.license[:32]!r} is not compatible with the GPL", attribute="license")


def _check_constants(facts: Facts, maps: tuple[MapFindings, ...]) -> None:
    for number, operations in facts.found.maps:
        if maps[number].frozen and not {"write", "delete"}.isdisjoint(operations):
            raise Refusal("map-frozen", f"writes to the constant map {maps[number].name}", attribute=maps[number].name)


def _check_debug_info(spec: ProgramSpec, insns: list[Insn], facts: Facts, btf: Btf | None) -> tuple[str, ...]:
    if not spec.func_info and not spec.line_info:
        return ()
    if btf is None:
        raise Refusal("btf", "func_info or line_info without BTF")
    names = check_func_info(spec.func_info, facts.starts, btf) if spec.func_info else ()
    check_line_info(spec.line_info, insns, btf)
    return names


def _check_declared(declared: Attributes, found: Attributes, maps: int) -> None:
    """Found attributes are among the declared, and the declared are names that exist. UNDECLARED declares nothing."""
    if declared == UNDECLARED:
        return
    for number, operations in declared.maps:
        if not 0 <= number < maps or not known.MAP_OPS.issuperset(operations):
            raise Refusal("attributes", f"declares {str(operations)[:64]} on map {number}", attribute="maps")
    for name in declared.helpers:
        if name not in known.HELPER_BY_NAME or name in known.FORBIDDEN_HELPERS:
            raise Refusal("attributes", f"declares the unknown helper {name[:64]!r}", attribute=name[:64])
    if len(declared.kfuncs) > 256 or not all(map(_SYMBOL.fullmatch, declared.kfuncs)):
        raise Refusal("attributes", "declares something that is not the name of a kfunc", attribute="kfuncs")
    for what, more in (("helper", declared.helpers), ("kfunc", declared.kfuncs)):
        have = found.helpers if what == "helper" else found.kfuncs
        if missing := set(have).difference(more):
            name = min(missing)
            raise Refusal("attributes", f"calls the {what} {name} but does not declare it", attribute=name)
    if declared.insns < found.insns or declared.subprograms < found.subprograms:
        raise Refusal(
            "attributes",
            f"declares {declared.insns} instructions, {declared.subprograms} subprograms; "
            f"has {found.insns} and {found.subprograms}",
            attribute="insns" if declared.insns < found.insns else "subprograms",
        )
    allowed = dict(declared.maps)
    for number, operations in found.maps:
        if missing := set(operations).difference(allowed.get(number, ())):
            raise Refusal(
                "attributes", f"does {min(missing)} on map {number} but does not declare it", attribute=min(missing)
            )


def _check_guard(spec: ProgramSpec, insns: list[Insn], facts: Facts, symbols: Symbols | None) -> tuple[int, ...]:
    if spec.type != known.KPROBE or known.HELPERS[GET_FUNC_IP].name not in facts.found.helpers:
        return ()
    addresses = guarded(insns, facts.flow)
    if not addresses:
        return ()
    named = {name for a in spec.attach if a.kind.startswith("kprobe") for name in (a.symbols or (a.target,)) if name}
    if symbols is not None and named:
        allowed = {address for name in named for address in symbols(name)}
        if foreign := addresses - allowed:
            where = f"{min(foreign):#x}"
            raise Refusal("guard", f"guard lets {where} pass, which is no function that it names", attribute=where)
    return tuple(sorted(addresses))
