"""`defer { … }`: a block that runs later in the task's own context, where it may sleep and user memory is paged in.

The kernel keeps a `struct bpf_task_work` in the value of a map element; here one element per thread and block, with the
variables that the block uses behind it, and the block's own buffers, since it may be interrupted by its like. Linux
6.18 calls the functions `bpf_task_work_schedule_{resume,signal}_impl`, with a fifth argument that the verifier fills
in; later kernels drop both (kernel/bpf/helpers.c).
"""

from __future__ import annotations

from msgspec import structs

from bpfseal.compiler.analysis import unset_variables
from bpfseal.compiler.callbacks import declare_variables
from bpfseal.compiler.gen import STATEMENTS, Buffer, Element, Gen
from bpfseal.compiler.ir import I32, I64, NULL, PTR, Function, Value, const
from bpfseal.compiler.unit import HASH
from bpfseal.dsl import typed
from bpfseal.dsl.types import is_scalar, size_of
from bpfseal.errors import BpfsealError
from bpfseal.signer.bundle import MapSpec

_PARAMETERS = (Value(PTR, "%map"), Value(PTR, "%key"), Value(PTR, "%value"))
_WORK = 8  # struct bpf_task_work
_SCHEDULED, _RUN, _DROPPED = 0, 1, 2
_NOEXIST = 1
_NO_PREALLOC = 1
_ENTRIES = 4096


def defer(g: Gen, node: typed.Defer) -> None:
    unit, fn = g.unit, g.fn
    if g.deferred:
        raise BpfsealError("defer cannot be used inside of defer")
    function, legacy = _scheduler(g, node.mode)
    index = unit.add_map(
        MapSpec(
            name=f"work_{len(unit.maps)}", type=HASH, key_size=8, value_size=8, max_entries=_ENTRIES, flags=_NO_PREALLOC
        )
    )
    unit.value_types[index] = "bpf_task_work"
    offsets, size = _captured(node)
    callback, total = _write_callback(g, node, index, offsets, size)
    spec = unit.maps[index]
    assert spec is not None
    unit.maps[index] = structs.replace(spec, value_size=total)
    key = g.buffer(8)
    fn.store(g.helper("get_current_pid_tgid"), key, 8)
    first = g.locate(g.reserve_scratch(total))
    g.clear(first, size)
    for var, offset in offsets.items():
        _copy(g, var, fn.add(first, offset))
    failed = g.helper_on_map("map_update_elem", index, "write", key, first, const(_NOEXIST))
    dropped, scheduled, after = fn.fresh("dropped"), fn.fresh("scheduled"), fn.fresh("after")
    there, added = fn.fresh("there"), fn.fresh("added")
    fn.branch(fn.compare("eq", failed, const(0)), added, dropped)
    fn.start(added)
    value = g.helper_on_map("map_lookup_elem", index, "read", key)
    fn.branch(fn.is_null(value), dropped, there)
    fn.start(there)
    task = g.helper("get_current_task_btf")
    extra = (NULL,) if legacy else ()
    result = g.kfunc(I32, function, task, value, unit.map(index), callback, *extra)
    undo = fn.fresh("undo")
    fn.branch(fn.compare("eq", result, const(0, I32)), scheduled, undo)
    fn.start(undo)
    g.helper_on_map("map_delete_elem", index, "delete", key)
    fn.jump(dropped)
    fn.start(scheduled)
    _count(g, _SCHEDULED)
    fn.jump(after)
    fn.start(dropped)
    _count(g, _DROPPED)
    fn.start(after)


def _scheduler(g: Gen, mode: str) -> tuple[str, bool]:
    """Name of the kernel's function, and whether it is that of Linux 6.18."""
    name = f"bpf_task_work_schedule_{mode}"
    if g.unit.kernel.kfunc(name):
        return name, False
    if g.unit.kernel.kfunc(f"{name}_impl"):
        return f"{name}_impl", True
    raise BpfsealError(f"defer needs {name}, which this kernel does not have", hint="it came with Linux 6.18")


def _captured(node: typed.Defer) -> tuple[dict[typed.Var, int], int]:
    """Where the block's variables are in the element's value, and the size of all."""
    offsets, at = {}, _WORK
    for var in node.captures:
        offsets[var] = at
        at += 8 if is_scalar(var.type) else (size_of(var.type) + 7) & -8
    return offsets, max(at, _WORK + 8)


def _copy(g: Gen, var: typed.Var, target: Value) -> None:
    reference = typed.VarRef(var, var.type)
    if is_scalar(var.type):
        value = g.scalar(reference)
        g.fn.store(value, target, 8 if value.type == PTR else max(1, int(value.type[1:]) // 8))
    else:
        g.store(reference, target)


def _write_callback(
    g: Gen, node: typed.Defer, index: int, offsets: dict[typed.Var, int], size: int
) -> tuple[Value, int]:
    """The block as a subprogram that the kernel calls in the task, and the size of an element's value."""
    unit = g.unit
    name = unit.fresh_name("deferred")
    fn = Function(name, I32, _PARAMETERS, "internal ", f'section ".f.{name}" ')
    inner = Gen(unit, fn, g.program, g.probe)
    inner.probe_number = const(0, I32)
    inner.deferred = True
    inner.element = Element(fn, Value(PTR, "%value"), size)
    for var, offset in offsets.items():
        inner.vars[var] = Buffer(fn.add(Value(PTR, "%value"), offset))
    end = fn.fresh("end")
    inner.leave = lambda value: fn.jump(end)
    declare_variables(inner, node.body, unset_variables(node.body) - set(offsets))
    inner.statements(node.body)
    fn.start(end)
    _count(inner, _RUN)
    key = inner.fn.alloca(8)
    fn.store(fn.load(I64, Value(PTR, "%key"), 8), key, 8)
    inner.helper_on_map("map_delete_elem", index, "delete", key)
    inner.declared.use(index, "read", "write")
    fn.ret(const(0, I32))
    unit.add_function(fn, inner.declared)
    return Value(PTR, f"@{name}"), inner.element.size


def _count(g: Gen, slot: int) -> None:
    index = g.unit.deferred_index()
    g.declared.use(index, "write")
    key = g.fn.alloca(4, 4)
    g.fn.store(const(slot, I32), key, 4)
    found = g.helper_on_map("map_lookup_elem", index, "read", key)
    with g.unless(g.fn.is_null(found), "found"):
        g.fn.store(g.fn.binary("add", g.fn.load(I64, found, 8), const(1)), found, 8)


STATEMENTS[typed.Defer] = defer
