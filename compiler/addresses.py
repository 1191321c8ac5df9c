"""Addresses: symbols, registers, stacks."""

from __future__ import annotations

from bpfseal.compiler import args
from bpfseal.compiler.arch import registers
from bpfseal.compiler.gen import Gen, Memory, Scalar, impossible
from bpfseal.compiler.ir import I32, I64, Value, const
from bpfseal.compiler.loops import may_leave
from bpfseal.compiler.unit import Unit
from bpfseal.dsl import typed, types
from bpfseal.errors import BpfsealError

_USER_STACK = 1 << 8  # BPF_F_USER_STACK
_USER_BUILD_ID = 1 << 11  # BPF_F_USER_BUILD_ID
_PSEUDO_BTF_ID = 3
_BUILD_ID = 32  # struct bpf_stack_build_id
_SEED, _FACTOR = 0x27220A95, 0x165667B19E3779F9  # odd, with bits in every part


def _tgid(g: Gen) -> Value:
    """The process as the client knows it, which looks the symbols up."""
    from bpfseal.compiler.names import pid

    return pid(g)


def store_user_symbol(g: Gen, address: Value, target: Value) -> None:
    """Sym("user"): u64 address, u32 pid, u32 probe."""
    g.fn.store(address, target, 8)
    g.fn.store(_tgid(g), g.fn.add(target, 8), 4)
    g.fn.store(const(0, I32), g.fn.add(target, 12), 4)


def _usym(g: Gen, node: typed.Call, target: Value, clean: bool) -> None:
    store_user_symbol(g, g.scalar(node.args[0]), target)


def _kaddr(g: Gen, node: typed.Call) -> Value:
    address = node.options["address"]
    assert isinstance(address, int)
    return const(address)


def _uaddr(g: Gen, node: typed.Call) -> Value:
    """The symbol's address moved as far as the file has been in this process: the traced place tells."""
    address = node.options["address"]
    assert isinstance(address, int)
    program = g.program
    if program is None or program.kind != "uprobe" or len(program.points) != 1:
        return const(address)
    place = next((value for key, value in program.points[0].params if key == "address"), None)
    if not isinstance(place, int):
        return const(address)
    return g.fn.binary("add", args.register(g, registers().ip), const(address - place))


def _percpu_kaddr(g: Gen, node: typed.Call) -> Value:
    """Address of a per-CPU variable, which the program names by its BTF id."""
    id = _variable_id(g.unit, str(node.options["symbol"]))
    handle = g.fn.pointer(g.fn.op(I64, f"call i64 @llvm.bpf.pseudo(i64 {_PSEUDO_BTF_ID}, i64 {id})"))
    if not node.args:
        return g.as_number(g.helper("this_cpu_ptr", handle))
    return g.as_number(g.helper("per_cpu_ptr", handle, g.scalar(node.args[0])))


def _variable_id(unit: Unit, name: str) -> int:
    id = unit.kernel.find("v", name)
    if not id:
        raise BpfsealError(f"the kernel's type information has no per-CPU variable {name}")
    return id


def _reg(g: Gen, node: typed.Call) -> Value:
    name = str(node.options["register"])
    offset = registers().names.get(name)
    if offset is None:
        raise impossible(f"the register {name}")
    return args.register(g, offset)


def _stack(g: Gen, node: typed.Call, target: Value, clean: bool) -> None:
    """i64 id in the stack map, u32 pid, u32 probe, u64 frames. Kernel stacks have no pid: they are the same in every
    process.

    The id is a hash of the frames, over 63 bits. The kernel's own stack maps have one place per hash of a few bits and
    drop a stack whose place is taken, which loses a percent of them soon and most of them in the end."""
    fn, type = g.fn, node.type
    assert isinstance(type, types.Stack)
    build_id = type.mode == "build_id"
    buffer, size, got = _get_stack(g, type, node.name)
    words = fn.binary("lshr", got, const(3))
    id = _hash(g, buffer, words, size // 8)
    key = g.buffer(8)
    fn.store(id, key, 8)
    index = g.unit.stack_map(type.space, type.depth, build_id)
    known = g.helper_on_map("map_lookup_elem", index, "read", key)
    with g.when(fn.is_null(known), "unknown"):
        g.helper_on_map("map_update_elem", index, "write", key, buffer, const(0))
    fn.store(id, target, 8)
    user = type.space == "user"
    fn.store(fn.integer(_tgid(g), I64) if user else const(0), fn.add(target, 8), 8)
    frames = fn.binary("lshr", words, const(2)) if build_id else words
    fn.store(frames, fn.add(target, 16), 8)


def _get_stack(g: Gen, type: types.Stack, how: str) -> tuple[Value, int, Value]:
    """(buffer, its size, bytes in it). What is behind the frames is zero."""
    size = max(type.depth, 1) * (_BUILD_ID if type.mode == "build_id" else 8)
    flags = (_USER_STACK if type.space == "user" else 0) | (_USER_BUILD_ID if type.mode == "build_id" else 0)
    buffer = g.locate(g.reserve_scratch(size))
    if how == "dw_ustack":
        from bpfseal.compiler.unwind import user_stack as walk

        return buffer, size, walk(g, buffer, max(type.depth, 1))
    if g.deferred:
        from bpfseal.compiler.deferred_reads import user_stack

        if type.space != "user" or type.mode == "build_id" or g.element is None or not g.element.faults:
            raise BpfsealError(
                "a deferred block can take the user's stack only, as addresses, and not in a loop over a map",
                hint="take the others in the probe: a variable keeps them for the block",
            )
        return buffer, size, user_stack(g, buffer, type.depth)
    got = g.helper("get_stack", g.ctx, buffer, const(size), const(flags))
    return buffer, size, g.fn.select(g.fn.compare("sgt", got, const(0)), got, const(0))


def _hash(g: Gen, buffer: Value, words: Value, most: int) -> Value:
    """A positive number for the words of a buffer."""
    fn = g.fn
    state, at = fn.slot(I64), fn.slot(I64)
    fn.store(const(_SEED), state, 8)
    fn.store(g.unknown_zero(), at, 8)
    again, inside, bounded, after = (fn.fresh(h) for h in ("hash", "word", "bounded", "hashed"))
    fn.start(again)
    may_leave(g, after)
    here = fn.load(I64, at, 8)
    fn.branch(fn.compare("ult", here, words), inside, after)
    fn.start(inside)
    fn.branch(fn.compare("ult", here, const(most)), bounded, after)
    fn.start(bounded)
    frame = fn.load(I64, fn.index(buffer, fn.binary("shl", here, const(3))), 8)
    mixed = fn.binary("mul", fn.binary("xor", fn.load(I64, state, 8), frame), const(_FACTOR))
    fn.store(fn.binary("xor", mixed, fn.binary("lshr", mixed, const(32))), state, 8)
    fn.store(fn.binary("add", here, const(1)), at, 8)
    fn.jump(again)
    fn.start(after)
    return fn.binary("lshr", fn.load(I64, state, 8), const(1))


def count_frames(g: Gen, type: types.Stack, how: str) -> Value:
    """Number of frames of the current stack."""
    _, _, got = _get_stack(g, type, how)
    return g.fn.binary("lshr", got, const(5 if type.mode == "build_id" else 3))


SCALARS: dict[str, Scalar] = {
    "ksym": lambda g, node: g.scalar(node.args[0]),
    "kaddr": _kaddr,
    "uaddr": _uaddr,
    "percpu_kaddr": _percpu_kaddr,
    "reg": _reg,
}
MEMORIES: dict[str, Memory] = {"usym": _usym, "kstack": _stack, "ustack": _stack, "dw_ustack": _stack}
