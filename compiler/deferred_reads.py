"""Reads of deferred blocks: of user memory, which is paged in, and the user's stack."""

from __future__ import annotations

from collections.abc import Callable

from bpfseal.compiler.arch import registers
from bpfseal.compiler.gen import Gen
from bpfseal.compiler.ir import I32, I64, Value, const
from bpfseal.compiler.loops import counted


def read_bytes(g: Gen, space: str, target: Value, count: Value, address: Value) -> Value:
    """As `memory.read_bytes` for foreign memory; negative if it failed, when `target` is all zeros."""

    def user() -> Value:
        return g.reading_helper("copy_from_user", target, count, g.fn.integer(address, I64))

    return _by_address(g, space, address, user, lambda: g.reading_helper("probe_read_kernel", target, count, address))


def read_text(g: Gen, space: str, target: Value, count: Value, address: Value) -> Value:
    """As `memory.read_text`, likewise."""

    def user() -> Value:
        size = g.fn.integer(count, I32)
        found = g.kfunc(I32, "bpf_copy_from_user_str", target, size, g.fn.pointer(address), const(0))
        result = g.fn.integer(found, I64, signed=True)
        if g.unit.options.helper_errors > 1:
            g.report_failure("bpf_copy_from_user_str", result)
        return result

    return _by_address(
        g, space, address, user, lambda: g.reading_helper("probe_read_kernel_str", target, count, address)
    )


def _by_address(g: Gen, space: str, address: Value, user: Callable[[], Value], kernel: Callable[[], Value]) -> Value:
    """Where an address is not said to be the user's, it tells itself: those of the kernel are negative."""
    if space == "user":
        return user()
    fn = g.fn
    slot = fn.slot(I64)
    low, high, after = fn.fresh("user"), fn.fresh("kernel"), fn.fresh("after")
    fn.branch(fn.compare("slt", fn.integer(address, I64), const(0)), high, low)
    fn.start(low)
    fn.store(user(), slot, 8)
    fn.jump(after)
    fn.start(high)
    fn.store(kernel(), slot, 8)
    fn.start(after)
    return fn.load(I64, slot, 8)


def user_stack(g: Gen, buffer: Value, depth: int) -> Value:
    """Write the return addresses of the user's stack to `buffer`, which has room for `depth`; the number of bytes.

    By frame pointers from where the task entered the kernel, as perf_callchain_user() does (arch/x86/events/core.c),
    but with reads that may fault.
    """
    fn, regs = g.fn, registers()
    g.clear(buffer, 8 * depth)
    saved = g.helper("task_pt_regs", g.helper("get_current_task_btf"))
    fn.store(fn.load(I64, fn.add(saved, regs.ip), 8), buffer, 8)
    frame, found = fn.slot(I64), fn.slot(I64)
    fn.store(fn.load(I64, fn.add(saved, regs.names["bp" if "bp" in regs.names else "fp"]), 8), frame, 8)
    fn.store(const(8), found, 8)
    pair = g.buffer(16)
    stop = fn.fresh("stop")
    if depth > 1:
        with counted(g, depth - 1) as number:
            known, more = fn.fresh("known"), fn.fresh("more")
            here = fn.load(I64, frame, 8)
            fn.branch(g.truth(here), known, stop)
            fn.start(known)
            failed = g.helper("copy_from_user", pair, const(16), here)
            fn.branch(g.truth(failed), stop, more)
            fn.start(more)
            fn.store(fn.load(I64, pair, 8), frame, 8)
            at = fn.binary("add", fn.binary("shl", number, const(3)), const(8))
            fn.store(fn.load(I64, fn.add(pair, 8), 8), fn.index(buffer, at), 8)
            fn.store(fn.binary("add", at, const(8)), found, 8)
    fn.start(stop)
    return fn.load(I64, found, 8)
