"""path() in deferred blocks: a walk from the file's name up to the root of the task, as d_path() does in the kernel
(prepend_path() in fs/d_path.c), which only some probes may call. It takes no locks: a name that is changed meanwhile
may come out in part new, in part old. Files that have no name, pipes and sockets, give an empty text."""

from __future__ import annotations

from bpfseal.compiler.gen import Gen
from bpfseal.compiler.ir import I8, I32, I64, Value, const
from bpfseal.compiler.loops import may_leave
from bpfseal.errors import BpfsealError

_LONGEST = 255  # bytes of a file's name, NAME_MAX


def walk(g: Gen, path: Value, target: Value, size: int) -> None:
    """The text of the `struct path` at an address (i64), from right to left in a buffer of its own, then in `target`,
    which is all zeros."""
    fn = g.fn
    room = g.locate(g.reserve_scratch(size + _LONGEST + 1))
    g.clear(room, size + _LONGEST + 1)
    at, dentry, mount, rooted = fn.slot(I64), fn.slot(I64), fn.slot(I64), fn.slot(I64)
    fn.store(fn.binary("add", g.unknown_zero(), const(size - 1)), at, 8)
    fn.store(_member(g, path, "path", "dentry"), dentry, 8)
    inside = _offset(g, "mount", "mnt")
    fn.store(fn.binary("sub", _member(g, path, "path", "mnt"), const(inside)), mount, 8)
    filesystem = _member(g, fn.integer(g.helper("get_current_task_btf"), I64), "task_struct", "fs")
    root = fn.binary("add", filesystem, const(_offset(g, "fs_struct", "root")))
    top, top_mount = _member(g, root, "path", "dentry"), _member(g, root, "path", "mnt")
    again, look, compared, up, crossed, below, named, after, done = (
        fn.fresh(hint) for hint in ("path", "look", "compared", "up", "crossed", "below", "named", "after", "done")
    )
    whole = fn.fresh("whole")
    fn.start(again)
    may_leave(g, after)
    here, on = fn.load(I64, dentry, 8), fn.load(I64, mount, 8)
    visible = fn.binary("add", on, const(inside))
    fn.branch(fn.compare("eq", here, top), compared, look)
    fn.start(compared)
    fn.branch(fn.compare("eq", visible, top_mount), whole, look)
    fn.start(look)
    fn.branch(fn.compare("eq", here, _member(g, visible, "vfsmount", "mnt_root")), up, below)
    fn.start(up)
    outer = _member(g, on, "mount", "mnt_parent")
    fn.branch(fn.compare("eq", outer, on), after, crossed)
    fn.start(crossed)
    fn.store(_member(g, on, "mount", "mnt_mountpoint"), dentry, 8)
    fn.store(outer, mount, 8)
    fn.jump(again)
    fn.start(below)
    parent = _member(g, here, "dentry", "d_parent")
    fn.branch(fn.compare("eq", parent, here), after, named)
    fn.start(named)
    _prepend(g, here, room, size, at, after)
    fn.store(parent, dentry, 8)
    fn.jump(again)
    fn.start(whole)
    fn.store(const(1), rooted, 8)
    fn.start(after)
    start = g.opaque(fn.load(I64, at, 8))
    result = fn.fresh("result")
    fn.branch(fn.compare("ult", start, const(size)), result, done)
    fn.start(result)
    g.helper("probe_read_kernel_str", target, const(size), fn.index(room, start))
    alone = fn.binary("and", fn.compare("eq", start, const(size - 1)), g.truth(fn.load(I64, rooted, 8)))
    with g.when(alone, "alone"):
        fn.store(const(ord("/"), I8), target, 1)
    fn.start(done)


def _prepend(g: Gen, dentry: Value, room: Value, size: int, at: Value, full: str) -> None:
    """Put "/NAME" before what is there; go to `full` when there is no room."""
    fn = g.fn
    name = fn.binary("add", dentry, const(_offset(g, "dentry", "d_name")))
    length = fn.binary("and", _member(g, name, "qstr", "len", 4), const(_LONGEST))
    fits, put = fn.fresh("fits"), fn.fresh("put")
    have = fn.load(I64, at, 8)
    fn.branch(fn.compare("ugt", have, length), fits, full)
    fn.start(fits)
    start = g.opaque(fn.binary("sub", fn.binary("sub", have, length), const(1)))
    fn.branch(fn.compare("ult", start, const(size)), put, full)
    fn.start(put)
    fn.store(const(ord("/"), I8), fn.index(room, start), 1)
    source = _member(g, name, "qstr", "name")
    bounded = fn.binary("and", g.opaque(length), const(_LONGEST))
    g.helper("probe_read_kernel", fn.add(fn.index(room, start), 1), bounded, source)
    fn.store(start, at, 8)


def _member(g: Gen, base: Value, record: str, name: str, size: int = 8) -> Value:
    """A word of a kernel structure as an i64; 0 where there is nothing."""
    place = g.buffer(8)
    address = g.fn.binary("add", base, const(_offset(g, record, name)))
    g.helper("probe_read_kernel", place, const(size), address)
    return g.fn.integer(g.fn.load(I64 if size == 8 else I32, place, size), I64)


def _offset(g: Gen, record: str, name: str) -> int:
    found = g.unit.kernel.record(f"struct {record}")
    field = found.field(name) if found is not None else None
    if field is None:
        raise BpfsealError(f"path() needs {name} of struct {record}, which this kernel's type information lacks")
    return field.offset
