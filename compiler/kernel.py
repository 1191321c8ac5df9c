"""`KernelTypes`: the kernel's BTF as `dsl.types`.

Types are converted when asked for and kept. Names are C's: "struct task_struct", "union sigval", "enum pid_type", a
typedef. Records without a name get one: their typedef's, or "struct #ID" ("struct #MODULE:ID"), which only means
something to the KernelTypes that made it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

from bpfseal.compiler import kernel_index
from bpfseal.compiler.kernel_names import C_WORDS, c_integer, spelled
from bpfseal.dsl.types import ANONYMOUS, BOOL, VOID, Array, Enum, Field, Int, Ptr, Record, RecordInfo, Str, Type, Void
from bpfseal.signer import btf as raw
from bpfseal.signer.btf import Btf, BtfError

_SYSFS: Final = Path("/sys/kernel/btf")
_DEPTH: Final = 64  # of typedefs, of anonymous members in each other: the kernel's own limits are lower
_SIGNED, _BOOL = 1, 4  # BTF_INT_SIGNED, BTF_INT_BOOL


class Parameter(Struct, frozen=True):
    """`id` is its BTF type, `spelled` its type in C."""

    name: str
    type: Type
    id: int


class Prototype(Struct, frozen=True):
    """A function (`id` of the FUNC; for a tracepoint the id of its btf_trace_ typedef). `returns` None for void."""

    name: str
    id: int
    module: str
    params: tuple[Parameter, ...]
    returns: Type | None
    return_id: int
    variadic: bool = False


class _Unit(Struct):
    """BTF of vmlinux (module "") or of one module. `names`: (kind letter, name) → id, modules only."""

    module: str
    btf: Btf
    index: kernel_index.Index | None = None
    names: dict[tuple[str, str], int] | None = None


class KernelTypes:
    """Types of the running kernel. Raises BtfError where it has no BTF; look-ups give None for "not there".

    Opening costs about 1 ms when the index is cached, 0.4 s on a kernel's first use.
    """

    def __init__(self, cache: Path | None = None) -> None:
        """`cache` is the directory of the index, by default the user's."""
        data = _open_vmlinux()
        index = kernel_index.load(data, cache)
        self._vmlinux = _Unit("", Btf(data, positions=index.positions), index)
        self._modules: dict[str, _Unit | None] = {}
        self._types: dict[tuple[str, int], Type] = {}
        self._records: dict[str, RecordInfo | None] = {}
        self._named: dict[str, Type | None] = {}
        self._loaded_names: list[str] | None = None

    # Names → ids

    def find(self, letter: str, name: str, module: str = "") -> int:
        """Lowest id of a type by kind letter (s struct, u union, e enum, t typedef, f function, i int or float,
        v variable); of module types when `module` names one and vmlinux has none. 0 if there is none."""
        unit = self._unit(module)
        return self._find(unit, letter, name) if unit is not None else 0

    def btf(self, module: str = "") -> Btf | None:
        """Raw BTF of vmlinux or a module, None where there is none."""
        unit = self._unit(module)
        return unit.btf if unit is not None else None

    def modules(self) -> list[str]:
        """Modules with BTF that were loaded when this was first asked."""
        if self._loaded_names is None:
            try:
                self._loaded_names = sorted(name for name in os.listdir(_SYSFS) if name != "vmlinux")
            except OSError:
                self._loaded_names = []
        return self._loaded_names

    def add_program(self, name: str, data: bytes) -> None:
        """Take the types of a BPF program, from its BTF, as a module of that name. Raises BtfError."""
        if name not in self._modules:
            self._modules[name] = _Unit(name, Btf(data), names={})

    def function_names(self) -> bytes:
        """Names of all functions in vmlinux BTF, sorted, each between newlines."""
        assert self._vmlinux.index is not None
        text = self._vmlinux.index.functions()
        if text is None:
            names = {name for name, _ in self._vmlinux.btf.all_named(raw.FUNC)}
            text = "\n".join(["", *sorted(names), ""]).encode()
        return text

    def module_functions(self, module: str) -> list[str]:
        """Names of the functions in a module's BTF, sorted."""
        unit = self._unit(module)
        return sorted({name for name, _ in unit.btf.all_named(raw.FUNC)}) if unit is not None and module else []

    def type_names(self) -> list[str]:
        """ "struct X", "union X", "enum X" and typedefs of vmlinux; 30 ms, for suggestions only."""
        words = {raw.STRUCT: "struct ", raw.UNION: "union ", raw.ENUM: "enum ", raw.TYPEDEF: ""}
        return [word + name for kind, word in words.items() for name, _ in self._vmlinux.btf.all_named(kind)]

    def constant_names(self) -> list[str]:
        """Every enumerator of vmlinux; 40 ms, for suggestions only."""
        btf = self._vmlinux.btf
        return [name for id in _ids(btf, (raw.ENUM, raw.ENUM64)) for name, _ in btf.enumerators(id)]

    # The language's questions

    def record(self, name: str) -> RecordInfo | None:
        """Members of "struct X", "union X", a typedef of one, or a name that a Record of ours has."""
        if name not in self._records:
            found = self._locate_record(name)
            self._records[name] = self._members(found[0], found[1], name) if found is not None else None
        return self._records[name]

    def type_named(self, name: str) -> Type | None:
        """The type a C name stands for: "unsigned long", "pid_t", "struct sock *", "const char *"."""
        if name not in self._named:
            self._named[name] = self._type_named(name)
        return self._named[name]

    def _type_named(self, name: str) -> Type | None:
        words = name.replace("*", " * ").replace("const ", " ").replace("volatile ", " ").split()
        stars = 0
        while words and words[-1] in ("*", "const", "__user"):
            stars += words.pop() == "*"
        if not words or "*" in words:
            return None
        base = self._base_type(words)
        if base is None:
            return None
        for _ in range(stars):
            base = Ptr(None if isinstance(base, Void) else base)
        return base

    def enum(self, name: str) -> dict[int, str] | None:
        """Names by value of "enum NAME" (name without "enum")."""
        if name.startswith(ANONYMOUS):
            # Made of the BTF id of an enum of vmlinux, by `_convert`.
            number = int(name.removeprefix(ANONYMOUS)) if name.removeprefix(ANONYMOUS).isdigit() else 0
            known = 0 < number < len(self._vmlinux.btf) and self._vmlinux.btf.kind(number) in (raw.ENUM, raw.ENUM64)
            return self._names(self._vmlinux, number) if known else None
        for unit, id in self._everywhere("e", name):
            return self._names(unit, id)
        return None

    @staticmethod
    def _names(unit: _Unit, id: int) -> dict[int, str]:
        return {value: word for word, value in reversed(unit.btf.enumerators(id))}

    def constant(self, name: str) -> tuple[int, Type] | None:
        """Value and type of an enumerator. Anonymous enums of modules give integers."""
        assert self._vmlinux.index is not None
        for id in self._vmlinux.index.candidates("c", name):
            if (found := self._enumerator(self._vmlinux, id, name)) is not None:
                return found
        for unit in self._loaded():
            for id in _ids(unit.btf, (raw.ENUM, raw.ENUM64)):
                if (found := self._enumerator(unit, id, name)) is not None:
                    return found
        return None

    def prototype(self, function: str, module: str = "") -> Prototype | None:
        """Parameters and result of a function; of the module's own when `module` is given."""
        unit = self._unit(module)
        id = self._find(unit, "f", function) if unit is not None else 0
        return self._prototype(unit, function, id, unit.btf.size_or_type(id)) if unit is not None and id else None

    def tracepoint(self, name: str, module: str = "") -> Prototype | None:
        """What a BTF-typed raw tracepoint gets. `id` is that of the typedef btf_trace_NAME, which is the target.

        The typedef knows types only; names come from the probe stub that the tracing macros define beside it
        (include/linux/tracepoint.h, include/trace/bpf_probe.h). The first parameter, void *__data, is left out.
        """
        unit = self._unit(module)
        id = self._find(unit, "t", f"btf_trace_{name}") if unit is not None else 0
        if unit is None or not id:
            return None
        proto = unit.btf.resolve(unit.btf.size_or_type(unit.btf.resolve(id)))
        for prefix in ("__probestub_", "__traceiter_", "__bpf_trace_"):
            function = self._find(unit, "f", prefix + name)
            if function and unit.btf.vlen(unit.btf.size_or_type(function)) == unit.btf.vlen(proto):
                proto = unit.btf.size_or_type(function)
                break
        whole = self._prototype(unit, name, id, proto)
        params = tuple(
            Parameter(p.name or f"arg{n}", p.type, p.id) for n, p in enumerate(whole.params[1:]) if whole.params
        )
        return Prototype(name, id, module, params, None, 0)

    def kfunc(self, name: str) -> bool:
        """Whether the kernel marks the function as callable from BPF; where it marks none, whether it exists."""
        id = self._find(self._vmlinux, "f", name)
        if not id:
            return False
        return self._vmlinux.btf.is_kfunc(id) or not self._marks_kfuncs()

    def type_of(self, id: int, module: str = "") -> Type:
        """The type with a BTF id. Raises BtfError for ids that are none."""
        unit = self._unit(module)
        if unit is None:
            raise BtfError(f"no type information for module {module}")
        return self._convert(unit, id)

    def spell(self, id: int, name: str = "", module: str = "") -> str:
        """A declaration in C of `name` with that type, as listings show it: "struct sock * sk", "char comm[16]"."""
        unit = self._unit(module)
        if unit is None:
            return name
        return spelled(unit.btf, id, name)

    # Inside

    def _unit(self, module: str) -> _Unit | None:
        if module in ("", "vmlinux"):
            return self._vmlinux
        if module not in self._modules:
            self._modules[module] = None
            if "/" not in module and module not in (".", ".."):
                try:
                    data = (_SYSFS / module).read_bytes()
                    self._modules[module] = _Unit(module, Btf(data, self._vmlinux.btf), names={})
                except OSError:
                    pass
        return self._modules[module]

    def _loaded(self) -> Iterator[_Unit]:
        for module in self.modules():
            unit = self._unit(module)
            if unit is not None:
                yield unit

    def _find(self, unit: _Unit, letter: str, name: str) -> int:
        if not name:
            return 0
        if unit.index is not None:
            for id in unit.index.candidates(letter, name):
                if unit.btf.name(id) == name and kernel_index.letter(unit.btf.kind(id)) == letter:
                    return id
            return 0
        if unit.names is not None and not unit.names:
            for kind in kernel_index.KINDS:
                for word, id in unit.btf.all_named(kind):
                    unit.names.setdefault((kernel_index.letter(kind), word), id)
        found = (unit.names or {}).get((letter, name), 0)
        return found or self._find(self._vmlinux, letter, name)

    def _everywhere(self, letter: str, name: str) -> Iterator[tuple[_Unit, int]]:
        if id := self._find(self._vmlinux, letter, name):
            yield self._vmlinux, id
            return
        for unit in self._loaded():
            if id := self._find(unit, letter, name):
                yield unit, id

    def _locate_record(self, name: str) -> tuple[_Unit, int] | None:
        word, _, rest = name.partition(" ")
        if word in ("struct", "union") and rest:
            if "#" in rest:
                _, _, tail = rest.partition("#")
                module, _, number = tail.rpartition(":")
                unit = self._unit(module)
                return (unit, int(number)) if unit is not None and number.isdecimal() else None
            for unit, id in self._everywhere(word[0], rest):
                return unit, id
            return None
        for unit, id in self._everywhere("t", name):
            target = unit.btf.resolve(id)
            return (unit, target) if unit.btf.kind(target) in (raw.STRUCT, raw.UNION) else None
        return None

    def _members(self, unit: _Unit, id: int, name: str) -> RecordInfo | None:
        try:
            fields = tuple(self._fields(unit, id, 0, _DEPTH))
            return RecordInfo(name, unit.btf.size_or_type(id), fields, unit.btf.kind(id) == raw.UNION)
        except BtfError:
            return None

    def _fields(self, unit: _Unit, id: int, base: int, depth: int) -> Iterator[Field]:
        """Members in order, those of anonymous members in their place. `base` in bits."""
        if not depth:
            raise BtfError("anonymous members are nested too deep")
        for name, member, offset, bits in unit.btf.members(id):
            target = unit.btf.resolve(member)
            if not name and unit.btf.kind(target) in (raw.STRUCT, raw.UNION):
                yield from self._fields(unit, target, base + offset, depth - 1)
            elif not name:
                continue
            elif bits:
                yield _bitfield(name, base + offset, bits, self._convert(unit, member))
            else:
                yield Field(name, self._convert(unit, member), (base + offset) // 8)

    def _convert(self, unit: _Unit, id: int) -> Type:
        key = (unit.module, id)
        found = self._types.get(key)
        if found is None:
            found = self._types[key] = self._converted(unit, id)
        return found

    def _converted(self, unit: _Unit, id: int) -> Type:
        btf, alias = unit.btf, ""
        for _ in range(_DEPTH):
            kind = btf.kind(id)
            if kind == raw.TYPEDEF:
                alias = btf.name(id)
            elif kind not in (raw.VOLATILE, raw.CONST, raw.RESTRICT, raw.TYPE_TAG):
                break
            id = btf.size_or_type(id)
        if kind == raw.INT:
            encoding, _, bits = btf.int_info(id)
            if encoding & _BOOL:
                return BOOL
            return _integer(btf.size_or_type(id), bits, bool(encoding & _SIGNED))
        if kind == raw.PTR:
            return self._pointer(unit, btf.size_or_type(id))
        if kind == raw.ARRAY:
            element_id, _, count = btf.array(id)
            element = self._convert(unit, element_id)
            # The reference shows arrays of 8-bit integers of either sign as strings.
            return Str(count) if isinstance(element, Int) and element.bits == 8 else Array(element, count)
        if kind in (raw.STRUCT, raw.UNION):
            return Record(self._record_name(unit, id, alias), btf.size_or_type(id))
        if kind in (raw.ENUM, raw.ENUM64):
            name, bits = btf.name(id), btf.size_or_type(id) * 8
            if not name and unit is self._vmlinux:
                name = f"{ANONYMOUS}{id}"
            return Enum(name, bits, btf.kflag(id)) if name else Int(bits, btf.kflag(id))
        if kind == raw.FWD:
            return Record(f"{'union' if btf.kflag(id) else 'struct'} {btf.name(id)}", 0)
        if kind == raw.FLOAT:
            return _integer(btf.size_or_type(id), btf.size_or_type(id) * 8, False)
        return VOID  # void, and functions: there is nothing to read

    def _pointer(self, unit: _Unit, target: int) -> Ptr:
        """Pointers inside records have the space "none" unless BTF says "user": who reads the record knows."""
        space, id = "none", target
        for _ in range(_DEPTH):
            if unit.btf.kind(id) == raw.TYPE_TAG and unit.btf.name(id) == "user":
                space = "user"
            if unit.btf.kind(id) not in (raw.VOLATILE, raw.CONST, raw.RESTRICT, raw.TYPE_TAG):
                break
            id = unit.btf.size_or_type(id)
        to = self._convert(unit, id)
        return Ptr(None if isinstance(to, Void) else to, space)

    def _record_name(self, unit: _Unit, id: int, alias: str) -> str:
        word = "struct" if unit.btf.kind(id) == raw.STRUCT else "union"
        name = unit.btf.name(id)
        if name:
            # Two records of one name exist (static types of different files); all but the first go by id.
            if next(self._everywhere(word[0], name), (None, 0))[1] == id:
                return f"{word} {name}"
        elif alias and (found := self._locate_record(alias)) is not None and found[1] == id:
            return alias
        return f"{word} {name}#{unit.module + ':' if unit.module else ''}{id}"

    def _prototype(self, unit: _Unit, name: str, id: int, proto: int) -> Prototype:
        btf = unit.btf
        params = btf.params(proto)
        variadic = bool(params) and params[-1] == ("", 0)
        if variadic:
            params = params[:-1]
        result = btf.size_or_type(proto)
        returns = self._convert(unit, result)
        return Prototype(
            name,
            id,
            unit.module,
            tuple(Parameter(word, self._convert(unit, type), type) for word, type in params),
            None if isinstance(returns, Void) else returns,
            result,
            variadic,
        )

    def _enumerator(self, unit: _Unit, id: int, name: str) -> tuple[int, Type] | None:
        if unit.btf.kind(id) not in (raw.ENUM, raw.ENUM64):
            return None
        for word, value in unit.btf.enumerators(id):
            if word == name:
                return value, self._convert(unit, id)
        return None

    def _base_type(self, words: list[str]) -> Type | None:
        if words[0] in ("struct", "union", "enum") and len(words) == 2:
            letter = words[0][0]
            for unit, id in self._everywhere(letter, words[1]):
                return self._convert(unit, id)
            return None
        if len(words) == 1 and words[0] not in C_WORDS:
            if words[0] == "void":
                return VOID
            for unit, id in self._everywhere("t", words[0]):
                return self._convert(unit, id)
        return c_integer(words)

    def _marks_kfuncs(self) -> bool:
        """pahole writes the tag "bpf_kfunc" since 1.26; bpf_obj_new_impl is a kfunc of every kernel since 6.3."""
        btf = self._vmlinux.btf
        return any(
            btf.is_kfunc(id)
            for name in ("bpf_obj_new_impl", "bpf_cgroup_acquire", "bpf_task_acquire")
            if (id := self._find(self._vmlinux, "f", name))
        )


def _open_vmlinux() -> bytes | mmap.mmap:
    """Mapped where the kernel allows it (6.16), else read (5 MB, 7 ms)."""
    path = _SYSFS / "vmlinux"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise BtfError(
            f"no kernel type information: {path}: {error.strerror}", hint="needs a kernel with CONFIG_DEBUG_INFO_BTF"
        ) from None
    try:
        size = os.fstat(fd).st_size
        try:
            return mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        except (OSError, ValueError):
            return path.read_bytes()
    finally:
        os.close(fd)


def _ids(btf: Btf, kinds: tuple[int, ...]) -> Iterator[int]:
    first = len(btf.base) if btf.base is not None else 1
    return (id for id in range(first, len(btf)) if btf.kind(id) in kinds)


def _integer(size: int, bits: int, signed: bool) -> Type:
    if size in (1, 2, 4, 8):
        return Int(size * 8 if bits % 8 or bits not in (8, 16, 32, 64) else bits, signed)
    return Array(Int(64, False), size // 8)  # __int128, long double: shown, not computed with


def _bitfield(name: str, at: int, bits: int, type: Type) -> Field:
    """A bit-field whose first bit is bit `at` of the record: the smallest aligned unit that holds it."""
    signed = isinstance(type, Int | Enum) and type.signed
    for size in (1, 2, 4, 8):
        offset = at // 8 // size * size
        if at + bits <= (offset + size) * 8:
            break
    else:
        offset, size = at // 8, 8
    return Field(name, Int(size * 8, signed), offset, bits, at - offset * 8)
