"""`defer { … }`: a block that runs later in the task's own context, where it may sleep and user memory is paged in.

The kernel keeps a `struct bpf_task_work` in the value of a map element; here one element per thread and block, with the
variables that the block uses behind it, and the block's own buffers, since it may be interrupted by its like. Linux
6.18 calls the functions `bpf_task_work_schedule_{resume,signal}_impl`, with a fifth argument that the verifier fills
in; later kernels drop both (kernel/bpf/helpers.c).

Every pass is accounted for (the slots below): scheduled = run + dropped + cancelled + pending. The kernel tells nobody
when it cannot hand the work to a task that is past exit_task_work(): its element would stay for good, so that the
program looks itself. Kernel threads never return to user space; they are passed over.
"""

from __future__ import annotations

from msgspec import structs

from bpfseal.compiler.analysis import unset_variables
from bpfseal.compiler.callbacks import declare_variables
from bpfseal.compiler.gen import STATEMENTS, Buffer, Element, Gen
from bpfseal.compiler.ir import I32, I64, NULL, PTR, Function, Value, const
from bpfseal.compiler.layout import (
    DEFERRED_CANCELLED,
    DEFERRED_DROPPED,
    DEFERRED_KERNEL,
    DEFERRED_RUN,
    DEFERRED_SCHEDULED,
)
from bpfseal.compiler.unit import HASH
from bpfseal.dsl import typed
from bpfseal.dsl.types import is_scalar, size_of
from bpfseal.errors import BpfsealError
from bpfseal.signer.bundle import MapSpec

_PARAMETERS = (Value(PTR, "%map"), Value(PTR, "%key"), Value(PTR, "%value"))
_WORK = 8  # struct bpf_task_work
_NOEXIST = 1
_NO_PREALLOC = 1
_ENTRIES = 4096
_PF_KTHREAD = 0x00200000  # include/linux/sched.h


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
    offsets, number_at, size = _captured(g, node)
    callback, total = _write_callback(g, node, index, offsets, number_at, size)
    spec = unit.maps[index]
    assert spec is not None
    unit.maps[index] = structs.replace(spec, value_size=total)
    dropped, after = fn.fresh("dropped"), fn.fresh("after")
    task = g.helper("get_current_task_btf")
    _leave_out(g, task, after)
    key = g.buffer(8)
    fn.store(g.helper("get_current_pid_tgid"), key, 8)
    first = g.locate(g.reserve_scratch(total))
    g.clear(first, size)
    for var, offset in offsets.items():
        _copy(g, var, fn.add(first, offset))
    if number_at:
        fn.store(g.probe_number, fn.add(first, number_at), 4)
    failed = g.helper_on_map("map_update_elem", index, "write", key, first, const(_NOEXIST))
    there, added, undo = fn.fresh("there"), fn.fresh("added"), fn.fresh("undo")
    fn.branch(fn.compare("eq", failed, const(0)), added, dropped)
    fn.start(added)
    value = g.helper_on_map("map_lookup_elem", index, "read", key)
    fn.branch(fn.is_null(value), dropped, there)
    fn.start(there)
    extra = (NULL,) if legacy else ()
    result = g.kfunc(I32, function, task, value, unit.map(index), callback, *extra)
    fn.branch(fn.compare("eq", result, const(0, I32)), after, undo)
    fn.start(undo)
    g.helper_on_map("map_delete_elem", index, "delete", key)
    fn.jump(dropped)
    fn.start(dropped)
    _count(g, DEFERRED_DROPPED)
    fn.start(after)


def _scheduler(g: Gen, mode: str) -> tuple[str, bool]:
    """Name of the kernel's function, and whether it is that of Linux 6.18."""
    name = f"bpf_task_work_schedule_{mode}"
    if g.unit.kernel.kfunc(name):
        return name, False
    if g.unit.kernel.kfunc(f"{name}_impl"):
        return f"{name}_impl", True
    written = "defer" if mode == "resume" else f"defer({mode})"
    raise BpfsealError(
        f"{written} needs {name}(), which this kernel does not have",
        hint="it came with Linux 6.18; `bpfseal doctor` shows what there is",
    )


def _leave_out(g: Gen, task: Value, after: str) -> None:
    """Go to `after` where the block can never run: in kernel threads, and in tasks that are past exit_task_work(). The
    end of those tasks' list of work is `work_exited` (kernel/task_work.c), which is all zeros; what others have in
    their lists has a function."""
    fn = g.fn
    kernel, user, ended, alive = fn.fresh("kernel"), fn.fresh("user"), fn.fresh("ended"), fn.fresh("alive")
    listed = fn.fresh("listed")
    flags = fn.load(I32, fn.add(task, _offset(g, "task_struct", "flags")), 4)
    fn.branch(g.truth(fn.binary("and", flags, const(_PF_KTHREAD, I32))), kernel, user)
    fn.start(kernel)
    _count(g, DEFERRED_KERNEL)
    fn.jump(after)
    fn.start(user)
    _count(g, DEFERRED_SCHEDULED)
    work = fn.load(PTR, fn.add(task, _offset(g, "task_struct", "task_works")), 8)
    fn.branch(fn.is_null(work), alive, listed)
    fn.start(listed)
    called = fn.load(I64, fn.add(work, _offset(g, "callback_head", "func")), 8)
    fn.branch(fn.compare("eq", called, const(0)), ended, alive)
    fn.start(ended)
    _count(g, DEFERRED_CANCELLED)
    fn.jump(after)
    fn.start(alive)


def _offset(g: Gen, record: str, member: str) -> int:
    found = g.unit.kernel.record(f"struct {record}")
    field = found.field(member) if found is not None else None
    if field is None:
        raise BpfsealError(f"defer needs {member} of struct {record}, which this kernel's type information lacks")
    return field.offset


def _captured(g: Gen, node: typed.Defer) -> tuple[dict[typed.Var, int], int, int]:
    """Where the block's variables are in the element's value, where the probe's number is (0 where that is a constant),
    and the size of all."""
    offsets, at = {}, _WORK
    for var in node.captures:
        offsets[var] = at
        at += 8 if is_scalar(var.type) else (size_of(var.type) + 7) & -8
    number_at = 0
    if not g.probe_number.text.isdigit():
        number_at, at = at, at + 8
    return offsets, number_at, max(at, _WORK + 8)


def _copy(g: Gen, var: typed.Var, target: Value) -> None:
    reference = typed.VarRef(var, var.type)
    if is_scalar(var.type):
        value = g.scalar(reference)
        g.fn.store(value, target, 8 if value.type == PTR else max(1, int(value.type[1:]) // 8))
    else:
        g.store(reference, target)


def _write_callback(
    g: Gen, node: typed.Defer, index: int, offsets: dict[typed.Var, int], number_at: int, size: int
) -> tuple[Value, int]:
    """The block as a subprogram that the kernel calls in the task, and the size of an element's value."""
    unit = g.unit
    name = unit.fresh_name("deferred")
    fn = Function(name, I32, _PARAMETERS, "internal ", f'section ".f.{name}" ')
    inner = Gen(unit, fn, g.program, g.probe)
    inner.deferred = True
    inner.element = Element(Value(PTR, "%value"), size)
    inner.probe_number = g.probe_number
    if number_at:
        inner.probe_number = fn.load(I32, fn.add(inner.element.value, number_at), 4)
    inner.vars = {var: Buffer(None, offset) for var, offset in offsets.items()}
    end = fn.fresh("end")
    inner.leave = lambda value: fn.jump(end)
    declare_variables(inner, node.body, unset_variables(node.body) - set(offsets))
    inner.statements(node.body)
    fn.start(end)
    _count(inner, DEFERRED_RUN)
    key = inner.fn.alloca(8)
    fn.store(fn.load(I64, Value(PTR, "%key"), 8), key, 8)
    inner.helper_on_map("map_delete_elem", index, "delete", key)
    inner.declared.use(index, "read", "write")
    fn.ret(const(0, I32))
    unit.add_function(fn, inner.declared)
    return Value(PTR, f"@{name}"), inner.element.size


def _count(g: Gen, slot: int) -> None:
    """Add one to a slot. Blocks of several tasks run at the same time, and probes interrupt each other."""
    index = g.unit.deferred_index()
    g.declared.use(index, "write")
    key = g.fn.alloca(4, 4)
    g.fn.store(const(slot, I32), key, 4)
    found = g.helper_on_map("map_lookup_elem", index, "read", key)
    with g.unless(g.fn.is_null(found), "found"):
        g.fn.atomic_add(const(1), found)


STATEMENTS[typed.Defer] = defer
