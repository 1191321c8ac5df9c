"""What all programs of a bundle share while they are written: maps, events, constants, declared attributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct, field, structs

from bpfseal.compiler.ir import PTR, Function, Value
from bpfseal.compiler.layout import EventLayout, MapLayout
from bpfseal.compiler.options import Options
from bpfseal.compiler.shapes import Shapes
from bpfseal.dsl.typed import MapDef, TypedScript
from bpfseal.errors import BpfsealError
from bpfseal.signer.bundle import MapSpec

if TYPE_CHECKING:
    from bpfseal.compiler.kernel import KernelTypes
    from bpfseal.compiler.mapping import ScriptMap

# Map types, enum bpf_map_type in include/uapi/linux/bpf.h
HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY, LRU_HASH, LRU_PERCPU_HASH = 1, 2, 5, 6, 9, 10
RINGBUF = 27

_STACK_ENTRIES = 1 << 17
_NO_PREALLOC = 1 << 0  # BPF_F_NO_PREALLOC
_CONTROL_BYTES = 1 << 16
_CACHE_LINE = 64


class Declared(Struct):
    """What one function does, noted while it is written; carried through LLVM in a section of the object."""

    helpers: set[str] = field(default_factory=set)
    kfuncs: set[str] = field(default_factory=set)
    maps: dict[int, set[str]] = field(default_factory=dict)

    def use(self, index: int, *operations: str) -> None:
        self.maps.setdefault(index, set()).update(operations)

    def line(self, name: str) -> str:
        maps = ";".join(f"{index}:{','.join(sorted(done))}" for index, done in sorted(self.maps.items()))
        return f"{name} {','.join(sorted(self.helpers))} {','.join(sorted(self.kfuncs))} {maps}"


class Unit:
    """The bundle in the making. Map indexes are given out in the order in which maps are first asked for, the
    script's own first, so that the same script gives the same bundle."""

    def __init__(self, script: TypedScript, options: Options, kernel: KernelTypes | None = None) -> None:
        self.script = script
        self.options = options
        self.shapes = Shapes(script.records, str(script.config["str_trunc_trailer"]), int(script.config["max_strlen"]))
        self.maps: list[MapSpec | None] = []
        self.layouts: list[MapLayout] = []
        self.script_maps: dict[MapDef, ScriptMap] = {}
        self.events: list[EventLayout] = []
        self.probes: list[str] = []
        self.formats: list[bytes] = []
        self.functions: list[str] = []
        self.signatures: dict[str, tuple[str, tuple[str, ...]]] = {}
        self.declared: dict[str, Declared] = {}
        self.externals: set[str] = set()
        self.kfuncs: set[str] = set()
        self.stacks: dict[str, int] = {}
        self.ring = self.control = self.counters = self.session = self.deferred = -1
        self.unwind: tuple[int, int] | None = None  # maps of dw_ustack()
        self.value_types: dict[int, str] = {}  # maps whose values the kernel has to know by BTF: name of the struct
        self.on_stack_limit = 32
        self.stack_budget = 320
        self.zero_at = -1  # offset of a word in the first CPU's scratch memory that nobody writes
        self._kernel = kernel
        self._names = 0
        self._constants = bytearray()
        self._constant_at: dict[tuple[bytes, int], int] = {}
        self._constants_index = -1
        self._scratch_size = 0
        self._scratch_index = -1

    @property
    def kernel(self) -> KernelTypes:
        """Kernel types; raises BpfsealError on a kernel without BTF."""
        if self._kernel is None:
            from bpfseal.compiler.kernel import KernelTypes

            self._kernel = KernelTypes()
        return self._kernel

    # Maps

    def add_map(self, spec: MapSpec) -> int:
        self.maps.append(spec)
        return len(self.maps) - 1

    def map(self, index: int) -> Value:
        """The map itself, as helpers take it."""
        self.externals.add(f"m{index}")
        return Value(PTR, f"@m{index}")

    def value(self, index: int) -> Value:
        """The value of an ARRAY of one element."""
        self.externals.add(f"v{index}")
        return Value(PTR, f"@v{index}")

    def ring_index(self) -> int:
        if self.ring < 0:
            spec = MapSpec(
                name="ring", type=RINGBUF, key_size=0, value_size=0, max_entries=self.options.ring_bytes(self.script)
            )
            self.ring = self.add_map(spec)
        return self.ring

    def control_index(self) -> int:
        if self.control < 0:
            spec = MapSpec(name="control", type=RINGBUF, key_size=0, value_size=0, max_entries=_CONTROL_BYTES)
            self.control = self.add_map(spec)
        return self.control

    def counters_index(self) -> int:
        """Slot 0 lost events, slot 1 + n failed updates of the map with index n."""
        if self.counters < 0:
            self.counters = self.add_map(
                MapSpec(
                    name="counters",
                    type=PERCPU_ARRAY,
                    key_size=4,
                    value_size=8,
                    max_entries=1 + len(self.script.maps),
                )
            )
        return self.counters

    def session_index(self) -> int:
        if self.session < 0:
            from bpfseal.compiler.layout import SESSION_SIZE

            self.session = self.add_map(
                MapSpec(name="session", type=ARRAY, key_size=4, value_size=SESSION_SIZE, max_entries=1)
            )
        return self.session

    def deferred_index(self) -> int:
        if self.deferred < 0:
            from bpfseal.compiler.layout import DEFERRED_SLOTS

            spec = MapSpec(name="deferred", type=PERCPU_ARRAY, key_size=4, value_size=8, max_entries=DEFERRED_SLOTS)
            self.deferred = self.add_map(spec)
        return self.deferred

    def stack_map(self, space: str, depth: int, build_id: bool) -> int:
        """The map of stacks: u64 hash to frames. Memory is taken when there is something to keep."""
        key = f"{space}_{depth}" + ("_build_id" if build_id else "")
        if key not in self.stacks:
            self.stacks[key] = self.add_map(
                MapSpec(
                    name=f"stacks_{key}"[:15],
                    type=HASH,
                    key_size=8,
                    value_size=max(depth, 1) * (32 if build_id else 8),
                    max_entries=_STACK_ENTRIES,
                    flags=_NO_PREALLOC,
                )
            )
        return self.stacks[key]

    # Constants

    def constants_index(self) -> int:
        if self._constants_index < 0:
            self._constants_index = len(self.maps)
            self.maps.append(None)
        return self._constants_index

    def constant(self, data: bytes, align: int = 8) -> int:
        """Offset of `data` in the map of constants."""
        self.constants_index()
        at = self._constant_at.get((data, align))
        if at is None:
            self._constants += bytes(-len(self._constants) % align)
            at = self._constant_at[data, align] = len(self._constants)
            self._constants += data
        return at

    def format(self, text: bytes) -> int:
        """Number of a text that values name."""
        if text not in self.formats:
            self.formats.append(text)
        return self.formats.index(text)

    # Scratch memory: one array element, cut in a part per CPU, since per-CPU maps hold at most 32 KiB a value

    def scratch(self, size: int) -> int:
        """Offset of `size` new bytes in each CPU's part."""
        if self._scratch_index < 0:
            self._scratch_index = len(self.maps)
            self.maps.append(None)
        at = self._scratch_size
        self._scratch_size += (size + 7) & -8
        return at

    @property
    def scratch_index(self) -> int:
        return self._scratch_index

    @property
    def scratch_stride(self) -> int:
        """Bytes of a CPU's part. Known when everything is written: the code has it as a symbol."""
        return max((self._scratch_size + _CACHE_LINE - 1) & -_CACHE_LINE, _CACHE_LINE)

    def finish_maps(self) -> tuple[MapSpec, ...]:
        """All maps, with the sizes of those that have been filled while writing."""
        if self._scratch_index >= 0:
            size = self.scratch_stride * self.options.cpu_slots
            self.maps[self._scratch_index] = MapSpec(
                name="scratch", type=ARRAY, key_size=4, value_size=size, max_entries=1
            )
        if self._constants_index >= 0:
            data = bytes(self._constants) + bytes(-len(self._constants) % 8)
            self.maps[self._constants_index] = MapSpec(
                name="constants",
                type=ARRAY,
                key_size=4,
                value_size=len(data),
                max_entries=1,
                flags=1 << 7,  # BPF_F_RDONLY_PROG
                initial=data,
                frozen=True,
            )
        return _distinct([spec for spec in self.maps if spec is not None])

    # Functions

    def kfunc_id(self, name: str) -> int:
        """BTF id of a kernel function."""
        found = self.kernel.find("f", name)
        if not found:
            raise BpfsealError(f"this kernel has no function {name} for programs to call")
        return found

    def add_function(self, function: Function, declared: Declared) -> None:
        self.functions.append(function.text())
        self.signatures[function.name] = function.returns, tuple(p.type for p in function.params)
        self.declared[function.name] = declared

    def fresh_name(self, hint: str) -> str:
        """A name for a subprogram."""
        self._names += 1
        return f"{hint}_{self._names}"

    def probe_numbers(self, names: Sequence[str]) -> int:
        """Number in Reader.probes of the first of these probes; the others follow."""
        first = len(self.probes)
        self.probes += names
        return first


def _distinct(specs: list[MapSpec]) -> tuple[MapSpec, ...]:
    """Names cut to the kernel's 15 characters, made different where that made them the same."""
    seen: set[str] = set()
    found = []
    for spec in specs:
        name, number = spec.name, 0
        while name in seen:
            number += 1
            name = f"{spec.name[: 14 - len(str(number))]}_{number}"
        seen.add(name)
        found.append(spec if name == spec.name else structs.replace(spec, name=name))
    return tuple(found)
