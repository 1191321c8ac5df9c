"""Addresses: symbols, registers, stacks."""

from __future__ import annotations

from bpfseal.compiler import args
from bpfseal.compiler.arch import registers
from bpfseal.compiler.gen import Gen, Memory, Scalar, impossible
from bpfseal.compiler.ir import I32, I64, Value, const
from bpfseal.compiler.unit import Unit
from bpfseal.dsl import typed, types
from bpfseal.errors import BpfsealError

_USER_STACK = 1 << 8  # BPF_F_USER_STACK
_USER_BUILD_ID = 1 << 11  # BPF_F_USER_BUILD_ID
_PSEUDO_BTF_ID = 3


def _tgid(g: Gen) -> Value:
    both = g.helper("get_current_pid_tgid")
    return g.fn.integer(g.fn.binary("lshr", both, const(32)), I32)


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
    process."""
    type = node.type
    assert isinstance(type, types.Stack)
    user = type.space == "user"
    index = g.unit.stack_map(type.space, type.depth, type.mode == "build_id")
    g.declared.use(index, "write")
    map = g.unit.map(index)
    id = g.helper("get_stackid", g.ctx, map, const(_USER_STACK if user else 0))
    g.fn.store(id, target, 8)
    g.fn.store(g.fn.integer(_tgid(g), I64) if user else const(0), g.fn.add(target, 8), 8)
    frames = count_frames(g, type) if g.unit.counts_frames else const(0)
    g.fn.store(frames, g.fn.add(target, 16), 8)


def count_frames(g: Gen, type: types.Stack) -> Value:
    """Number of frames of the current stack."""
    size = type.depth * 8
    target = g.locate(g.reserve_scratch(size))
    got = g.helper("get_stack", g.ctx, target, const(size), const(_USER_STACK if type.space == "user" else 0))
    good = g.fn.compare("sgt", got, const(0))
    return g.fn.binary("lshr", g.fn.select(good, got, const(0)), const(3))


SCALARS: dict[str, Scalar] = {
    "ksym": lambda g, node: g.scalar(node.args[0]),
    "kaddr": _kaddr,
    "uaddr": _uaddr,
    "percpu_kaddr": _percpu_kaddr,
    "reg": _reg,
}
MEMORIES: dict[str, Memory] = {"usym": _usym, "kstack": _stack, "ustack": _stack}
