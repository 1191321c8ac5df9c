"""What one program does, from its instructions alone.

A may-analysis over registers and stack slots. A value is a set of origins, kept as the bits of one integer: number,
stack pointer, context, memory handed out by the kernel, kernel object, and for each map of the bundle its pointer and
pointers into its values, for each subprogram its address. Sets grow only and are joined where paths meet, so every
origin that a value can have on some path is in its set: what a call or a store *may* touch is never less than what
it does.

- A map argument whose set holds anything but maps of the bundle is refused: the call cannot be told.
- Stack addresses are origins too, by frame and offset, as far as offsets are constants. A slot of the own frame (there
  is one: recursion is refused) is followed step by step; a slot of another one gives whatever was ever stored there, a
  pointer at an unknown offset whatever was ever stored on any stack.
- What a lookup in a map of maps gives is a map or, after another lookup, a value of one: all that is done with either
  is done to the map of maps, whose contents nobody can tell.
- Behind an instruction that stands for what this kernel does not have (`helpers.is_poison`) registers have no values,
  and using one is no offence: the verifier lets nothing get there.
- Pointers leave the tracked world when stored in maps, ring buffers or the context: the kernel gives back a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from operator import or_
from typing import Final

from msgspec import Struct

from bpfseal.signer.bundle import Attributes, MapSpec
from bpfseal.signer.cfg import Flow, split
from bpfseal.signer.helpers import FORBIDDEN_HELPERS, HELPERS, KFUNC_CLASSES, MAP_TYPES, Helper, is_poison
from bpfseal.signer.insn import (
    ADD,
    CMPXCHG,
    DW,
    FETCH,
    FORMS,
    LOAD_ACQ,
    OP_ATOMIC,
    OP_BRANCH,
    OP_CALL,
    OP_EXIT,
    OP_HELPER,
    OP_JUMP,
    OP_KEEP,
    OP_KFUNC,
    OP_LD_IMM64,
    OP_LOAD,
    OP_MOVE,
    OP_PACKET,
    OP_PTR_ADD,
    OP_SPILL,
    OP_STORE,
    PSEUDO_BTF_ID,
    PSEUDO_FUNC,
    PSEUDO_MAP_IDX,
    PSEUDO_MAP_IDX_VALUE,
    STORE_REL,
    Insn,
)
from bpfseal.signer.kernel_ids import Kernel
from bpfseal.signer.refusal import Refusal

NUMBER, STACK, CONTEXT, MEMORY, OBJECT = 1, 2, 4, 8, 16  # OBJECT: a number, or a kernel pointer with a type
_FIRST_MAP: Final = 5  # bit of map 0's pointer

_MAX_ADDRESSES: Final = 256  # stack addresses that are told apart
_MAX_PLACES: Final = 8  # in one value

_ARRAY: Final = 2
_FOR_EACH, _LOOP, _TIMER_CALLBACK, _FIND_VMA = 164, 181, 170, 180
_TAIL_CALL: Final = 12
_GIVES_MEMORY: Final = frozenset((131, 203))  # ringbuf_reserve, dynptr_data


class Facts(Struct, frozen=True):
    """What was found in one program.

    found      in the form of the declared attributes
    classes    keys of helpers.CLASSES: of the helpers and kfuncs, and for direct reads
    variables  kernel variables whose address is taken
    starts     first slot of each subprogram
    flow       its shape
    """

    found: Attributes
    classes: frozenset[str]
    variables: tuple[str, ...]
    starts: tuple[int, ...]
    flow: Flow


def analyse(
    insns: list[Insn], maps: Sequence[MapSpec], kernel: Kernel, *, packets: bool = False, replaces: bool = False
) -> Facts:
    """Facts about a decoded program that uses maps of `maps`. `packets`: the program type gives access to packets,
    so that loads through loaded pointers are not kernel memory. `replaces`: it stands in for a function of another
    program, and has that one's arguments, whatever they are.

    Raises Refusal with the slot for everything that breaks a rule or cannot be determined. Time is linear: a
    program whose sets do not settle in a few rounds is refused.
    """
    flow = split(insns)
    tracker = _Tracker(insns, flow, maps, kernel)
    tracker.run([CONTEXT | OBJECT, *[OBJECT] * 4] if replaces else [CONTEXT, 0, 0, 0, 0])
    classes = {name for id in tracker.helpers for name in HELPERS[id].classes}
    classes |= {KFUNC_CLASSES[name] for name in tracker.kfuncs if name in KFUNC_CLASSES}
    if packets and (tracker.reads_packet or tracker.reads_pointer):
        classes.add("read-packet")
    if tracker.reads_packet if not packets else tracker.changes_object:
        classes.add("network")
    if tracker.reads_pointer and (replaces or not packets):
        classes.add("read-kernel")
    found = Attributes(
        insns=len(insns),
        subprograms=len(flow.starts) - 1,
        helpers=tuple(sorted([HELPERS[id].name for id in tracker.helpers])),
        kfuncs=tuple(sorted(tracker.kfuncs)),
        maps=tracker.operations(),
    )
    return Facts(found, frozenset(classes), tuple(sorted(tracker.variables)), tuple(flow.starts), flow)


class _Tracker:
    """The worklist. Blocks are identified by their first slot and run from there to the next leader."""

    def __init__(self, insns: list[Insn], flow: Flow, maps: Sequence[MapSpec], kernel: Kernel) -> None:
        self.insns, self.flow, self.maps, self.kernel = insns, flow, maps, kernel
        count = len(maps)
        self.shift = count
        self.map_bits = ((1 << count) - 1) << _FIRST_MAP
        self.value_bits = self.map_bits << count
        kinds = [MAP_TYPES.get(spec.type) for spec in maps]
        self.inner_bits = sum(1 << _FIRST_MAP + count + i for i, kind in enumerate(kinds) if kind and kind.maps)
        self.object_bits = sum(1 << _FIRST_MAP + i for i, kind in enumerate(kinds) if kind and kind.objects)
        self.first_function = _FIRST_MAP + 2 * count
        self.first_address = self.first_function + len(flow.starts)
        self.address_floor = 1 << self.first_address
        self.functions = self.address_floor - (1 << self.first_function)
        self.addresses: list[tuple[int, int]] = []  # (number of the subprogram, offset from its r10)
        self.address_bits: dict[tuple[int, int], int] = {}
        self.places: dict[int, tuple[int, int]] = {}
        self.function_of = {start: number for number, start in enumerate(flow.starts)}
        self.entries: dict[int, list[int]] = {}
        self.slots: dict[int, dict[int, int]] = {}
        self.returns = [0] * len(flow.starts)
        self.callers: dict[int, set[int]] = {}
        self.work: list[int] = []
        self.queued: set[int] = set()
        self.memory: dict[tuple[int, int], int] = {}  # ever stored at a stack address
        self.weak: dict[tuple[int, int], int] = {}  # of that, through other pointers than r10
        self.spilled = self.scattered = 0  # ever stored on any stack; of that, at unknown offsets
        self.grown = self.weak_grown = False
        self.readers: set[int] = set()  # blocks that read stacks through other pointers than r10
        self.reads_packet = self.reads_pointer = False
        self.poisoned = False  # a call that the verifier lets nobody reach is there
        self.changes_object = False  # or the context: of a packet program both are the packet
        self.written = 0
        self.operated: dict[str, int] = dict.fromkeys(("read", "write", "delete", "iterate", "output"), 0)
        self.helpers: set[int] = set()
        self.kfuncs: set[str] = set()
        self.variables: set[str] = set()

    def operations(self) -> tuple[tuple[int, tuple[str, ...]], ...]:
        self.operated["write"] |= (self.written & self.value_bits) >> self.shift
        found = []
        for number in range(self.shift):
            bit = 1 << number + _FIRST_MAP
            if names := sorted([name for name, bits in self.operated.items() if bits & bit]):
                found.append((number, tuple(names)))
        return tuple(found)

    def run(self, arguments: list[int]) -> None:
        """`arguments`: what r1 to r5 are in the beginning."""
        budget = 8 * len(self.insns) + 65536
        self._join(0, [0, *arguments, 0, 0, 0, 0, self._address(0, 0)], {})
        while self.work:
            while self.work:
                start = heappop(self.work)
                self.queued.discard(start)
                try:
                    budget -= self._block(start)
                except Refusal as error:
                    raise error.at("", self.at) from None
                if budget < 0:
                    raise Refusal("complexity", "values do not settle: too many paths join", insn=start)
            if self.grown:
                for start in self.entries if self.weak_grown else self.readers:
                    self._queue(start)
                self.grown = self.weak_grown = False
        leaders, entries = self.flow.leaders, self.entries
        at = leaders.find(1)
        while at >= 0:
            if at not in entries:
                raise Refusal("unreachable", "no path reaches this instruction", insn=at)
            at = leaders.find(1, at + 1)

    def _queue(self, start: int) -> None:
        if start not in self.queued:
            self.queued.add(start)
            heappush(self.work, start)

    def _join(self, target: int, regs: list[int], slots: dict[int, int]) -> None:
        """Adds a state to a block's entry; queues the block if that told it something new."""
        known = self.entries.get(target)
        if known is None:
            self.entries[target], self.slots[target] = regs[:], slots
            self._queue(target)
            return
        changed = False
        if known != regs:
            merged = list(map(or_, known, regs))
            if merged != known:
                self.entries[target], changed = merged, True
        have = self.slots[target]
        if slots is not have:
            new = {k: v | have.get(k, 0) for k, v in slots.items() if v & ~have.get(k, 0)}
            if new:
                self.slots[target], changed = have | new, True
        if changed:
            self._queue(target)

    def _block(self, start: int) -> int:
        """Runs one block; returns the number of slots looked at."""
        insns, forms, leaders, targets = self.insns, FORMS, self.flow.leaders, self.flow.targets
        regs = self.entries[start][:]
        slots = self.slots[start]
        owned = False
        stored_bits, address_floor = self.value_bits | OBJECT | CONTEXT, self.address_floor
        own = self.places
        frame, self.block = self.flow.subprogram(start), start
        at = start
        while True:
            self.at = at
            head, off, imm = insns[at]
            kind, dst, src, _uses = forms[head]
            if kind == OP_LOAD:
                base = regs[src]
                if base >= address_floor and (place := own.get(base)) and place[0] == frame:
                    off += place[1]
                    src = 10
                if src != 10:
                    regs[dst] = self._load(base, off)
                elif head & 0x18 != DW:
                    regs[dst] = NUMBER
                else:
                    value = slots.get(off, NUMBER) | self.scattered
                    regs[dst] = value | self.weak.get((frame, off), 0) if self.weak else value
            elif kind == OP_MOVE:
                regs[dst] = regs[src]
            elif kind == 0:  # OP_SCALAR
                regs[dst] = NUMBER
            elif kind == OP_KEEP:
                if regs[dst] >= address_floor:
                    regs[dst] = self._move(regs[dst], imm if head & 0xF0 == ADD else -imm)
            elif kind == OP_PTR_ADD:
                left, right = regs[dst], regs[src]
                both = left | right
                if both >= address_floor:
                    both = both & (address_floor - 1) | STACK
                if both & ~(NUMBER | OBJECT):
                    both &= ~OBJECT | (left & right)  # an offset does not make a pointer another object
                regs[dst] = both
            elif kind == OP_BRANCH:
                self._join(targets[at], regs, slots)
                owned = False
            elif kind == OP_SPILL:
                value, base = regs[src], regs[dst]
                if base >= address_floor and (place := own.get(base)) and place[0] == frame:
                    off += place[1]
                    dst = 10
                if dst == 10:
                    if value > NUMBER or off in slots:
                        if not owned:
                            slots, owned = slots.copy(), True
                        slots[off] = value
                        if value > NUMBER:
                            self._remember(self.memory, (frame, off), value)
                else:
                    self._store(base, off, value)
            elif kind == OP_STORE:
                if regs[dst] & stored_bits:
                    self._stored(regs[dst])
            elif kind == OP_HELPER:
                self._helper(imm, regs)
            elif kind == OP_LD_IMM64:
                regs[dst] = self._constant(at, src, imm)
                at += 1
            elif kind == OP_EXIT:
                self._return(regs[0])
                return at - start + 1
            elif kind >= OP_JUMP:
                self._join(targets[at], regs, slots)
                return at - start + 1
            elif kind == OP_ATOMIC:
                self._atomic(insns[at], dst, src, regs)
            elif kind == OP_CALL:
                self._call(targets[at], start, regs)
            elif kind == OP_KFUNC:
                self._kfunc(imm, regs)
            elif kind == OP_PACKET:
                self.reads_packet = True
                regs[0:6] = [OBJECT, 0, 0, 0, 0, 0]
            at += 1
            if leaders[at]:
                self._join(at, regs, slots)
                return at - start

    def _address(self, frame: int, offset: int) -> int:
        """The bit of a stack address; STACK when there are too many."""
        bit = self.address_bits.get((frame, offset))
        if bit is None:
            if len(self.addresses) >= _MAX_ADDRESSES + len(self.flow.starts) or not -8192 <= offset <= 8192:
                return STACK
            bit = self.address_bits[frame, offset] = 1 << self.first_address + len(self.addresses)
            self.addresses.append((frame, offset))
            self.places[bit] = frame, offset
        return bit

    def _places(self, value: int) -> list[tuple[int, int]]:
        """The stack addresses that a value may be."""
        bits, found = value >> self.first_address, []
        while bits:
            low = bits & -bits
            found.append(self.addresses[low.bit_length() - 1])
            bits ^= low
        return found

    def _told(self, value: int) -> int:
        """The value; one with many stack addresses becomes one at an unknown offset, so that steps stay cheap."""
        if value >= self.address_floor and (value >> self.first_address).bit_count() > _MAX_PLACES:
            return value & (self.address_floor - 1) | STACK
        return value

    def _move(self, value: int, delta: int) -> int:
        """A value with stack addresses in it, plus a constant."""
        if place := self.places.get(value):
            return self._address(place[0], place[1] + delta)
        value = self._told(value)
        result = value & (self.address_floor - 1)
        for frame, offset in self._places(value):
            result |= self._address(frame, offset + delta)
        return result

    def _remember(self, where: dict[tuple[int, int], int], place: tuple[int, int], value: int) -> None:
        known = where.get(place, 0)
        if value & ~known:
            where[place] = known | value
            self.spilled |= value
            self.grown = True

    def _load(self, base: int, off: int) -> int:
        """What a load through anything but r10 can give."""
        result, base = NUMBER, self._told(base)
        if base & OBJECT:
            self.reads_pointer = True
        if base & (OBJECT | CONTEXT | self.map_bits | self.inner_bits):
            result = OBJECT
        if base & STACK:
            self.readers.add(self.block)
            return result | self.spilled
        if base >= self.address_floor:
            self.readers.add(self.block)
            result |= self.scattered
            for frame, offset in self._places(base):
                result |= self.memory.get((frame, offset + off), 0)
        return result

    def _store(self, base: int, off: int, value: int) -> None:
        """A store through anything but r10."""
        self._stored(base)
        if value <= NUMBER:
            return
        base = self._told(base)
        if base & STACK and value & ~self.scattered:
            self.scattered |= value
            self.spilled |= value
            self.grown = self.weak_grown = True
        for frame, offset in self._places(base):
            place = frame, offset + off
            self.weak_grown |= bool(value & ~self.weak.get(place, 0))
            self._remember(self.weak, place, value)
            self._remember(self.memory, place, value)

    def _stored(self, base: int) -> None:
        """What a store through `base` changes besides stacks."""
        if base & self.value_bits:
            self.written |= base
        if base & (OBJECT | CONTEXT):
            self.changes_object = True

    def _atomic(self, insn: Insn, dst: int, src: int, regs: list[int]) -> None:
        imm = insn.imm
        if imm == LOAD_ACQ:
            regs[dst] = self._load(regs[src], insn.off)
            return
        self._store(regs[dst], insn.off, regs[src])
        if imm != STORE_REL and imm & FETCH:
            regs[0 if imm == CMPXCHG else src] = self._load(regs[dst], insn.off)

    def _constant(self, at: int, source: int, imm: int) -> int:
        """The value of an ld_imm64."""
        if source == 0:
            return NUMBER
        if source in (PSEUDO_MAP_IDX, PSEUDO_MAP_IDX_VALUE):
            if not 0 <= imm < self.shift:
                raise Refusal("map-index", f"map index {imm} is not below {self.shift}")
            bit = 1 << imm + _FIRST_MAP
            if source == PSEUDO_MAP_IDX:
                return bit
            spec, offset = self.maps[imm], self.insns[at + 1].imm & 0xFFFFFFFF
            if spec.type != _ARRAY or spec.max_entries != 1:
                raise Refusal("map-value", "direct access to a map that is not an array of one", attribute=spec.name)
            if offset >= spec.value_size and not spec.id:  # of an existing map only the kernel knows the size
                raise Refusal(
                    "map-value", f"offset {offset} is past the value of {spec.value_size} bytes", attribute=spec.name
                )
            self.operated["read"] |= bit
            return bit << self.shift
        if source == PSEUDO_FUNC:
            return 1 << self.first_function + self.function_of[self.flow.targets[at]]
        if source == PSEUDO_BTF_ID:
            self.variables.add(self.kernel.variable(imm))
            return OBJECT
        raise Refusal("pseudo", "raw map file descriptor: maps are named by their index in the bundle")

    def _call(self, target: int, block: int, regs: list[int]) -> None:
        number = self.function_of[target]
        self.callers.setdefault(number, set()).add(block)
        self._join(target, [0, *regs[1:6], 0, 0, 0, 0, self._address(number, 0)], {})
        regs[0:6] = [self.returns[number], 0, 0, 0, 0, 0]

    def _return(self, value: int) -> None:
        number = self.flow.subprogram(self.at)
        if value & ~self.returns[number]:
            self.returns[number] |= value
            for block in self.callers.get(number, ()):
                self._queue(block)

    def _helper(self, id: int, regs: list[int]) -> None:
        helper = HELPERS.get(id)
        if helper is None and is_poison(id):  # nothing runs behind it, so registers have no values there
            self.poisoned = True
            regs[0:10] = [0] * 10
            return
        if helper is None:
            raise Refusal("helper", f"unknown helper {id}", attribute=str(id))
        if helper.name in FORBIDDEN_HELPERS:
            raise Refusal("helper", f"{helper.name} reaches what the analysis does not cover", attribute=helper.name)
        self.helpers.add(id)
        if id == _TAIL_CALL:  # in a subprogram its caller goes on with what the other program returned
            self._return(NUMBER)
        result = MEMORY if id in _GIVES_MEMORY else OBJECT
        if helper.map_arg:
            used = regs[helper.map_arg]
            used = regs[helper.map_arg] = used & ~self.inner_bits | (used & self.inner_bits) >> self.shift
            if used & ~self.map_bits or not (used or self.poisoned):
                raise Refusal("map-unknown", f"cannot tell which map {helper.name} gets", attribute=helper.name)
            for name in helper.map_ops:
                self.operated[name] |= used
            if helper.value:
                result = used << self.shift | (OBJECT if used & self.object_bits else 0)
        if helper.writes:
            for number in (1, 2, 3, 4):
                if helper.writes >> number & 1 and regs[number] & self.value_bits:
                    self.written |= regs[number]
        if helper.callback_arg:
            self._helper_callback(helper, regs)
        regs[0:6] = [result, 0, 0, 0, 0, 0]

    def _helper_callback(self, helper: Helper, regs: list[int]) -> None:
        if helper.id == _FOR_EACH:  # (map, key, value, context)
            arguments = [regs[1], MEMORY, regs[1] << self.shift, regs[3]]
        elif helper.id == _LOOP:  # (index, context)
            arguments = [NUMBER, regs[3]]
        elif helper.id == _TIMER_CALLBACK:  # (map, key, value), of the map that the timer is in
            arguments = [(regs[1] & self.value_bits) >> self.shift, MEMORY, regs[1] & self.value_bits]
        elif helper.id == _FIND_VMA:  # (task, vma, context)
            arguments = [OBJECT, OBJECT, regs[4]]
        else:
            raise Refusal("callback", f"callback of {helper.name} is not modelled", attribute=helper.name)
        self._enter_callbacks(regs[helper.callback_arg], helper.name, arguments)

    def _enter_callbacks(self, functions: int, caller: str, arguments: list[int]) -> None:
        chosen = functions & self.functions
        if functions != chosen or not (chosen or self.poisoned):
            raise Refusal("callback", f"cannot tell which subprogram {caller} calls back", attribute=caller)
        chosen >>= self.first_function
        for number, start in enumerate(self.flow.starts):
            if chosen >> number & 1:
                state = [0, *arguments, 0, 0, 0, 0, 0, 0, 0, 0]
                state[10:] = [self._address(number, 0)]
                self._join(start, state, {})

    def _kfunc(self, id: int, regs: list[int]) -> None:
        kfunc = self.kernel.kfunc(id)
        self.kfuncs.add(kfunc.name)
        seen = functions = 0
        for number in range(1, kfunc.arguments + 1):
            value = regs[number]
            seen |= value
            functions |= value & self.functions
            if value & self.value_bits and kfunc.writes >> number & 1:
                self.written |= value
        values = seen & self.value_bits
        used = seen & self.map_bits | values >> self.shift
        self.operated["read"] |= used
        if functions:  # work queues, deferred work: (map, key, value); others get kernel objects
            self._enter_callbacks(functions, kfunc.name, [used or OBJECT, MEMORY, used << self.shift or OBJECT])
        regs[0:6] = [OBJECT, 0, 0, 0, 0, 0]
