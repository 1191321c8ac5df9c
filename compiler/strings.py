"""Strings and buffers: reading, comparing, searching, joining."""

from __future__ import annotations

from bpfseal.compiler.gen import Gen, Memory, Scalar, Statement
from bpfseal.compiler.ir import FALSE, I1, I8, I32, I64, TRUE, Value, const
from bpfseal.compiler.loops import may_leave
from bpfseal.compiler.memory import address_operand, pieces, place_of, read_bytes, read_text
from bpfseal.dsl import typed, types
from bpfseal.dsl.types import is_scalar, size_of

_UNROLLED = 64  # bytes that are compared without a loop


# --- reading ----------------------------------------------------------------------------------------------------


def _source(g: Gen, pointer: typed.Expr) -> tuple[str, Value]:
    """Space and address of what a pointer argument points to."""
    assert isinstance(pointer.type, types.Ptr)
    return pointer.type.space, g.scalar(pointer)


def read_string(g: Gen, node: typed.Call, target: Value, clean: bool) -> Value:
    """str(); the helper's result: bytes with the NUL, negative when it could not be read."""
    return _read_string(g, node, target, clean)[0]


def _read_string(g: Gen, node: typed.Call, target: Value, clean: bool) -> tuple[Value, Value]:
    """The result and the address."""
    size = size_of(node.type)
    space, address = _source(g, node.args[0])
    count = const(size)
    if len(node.args) > 1:
        wanted = g.scalar(node.args[1])
        short = g.fn.compare("ult", wanted, const(size))
        count = g.fn.select(short, g.fn.binary("add", wanted, const(1)), const(size))
        # in a register the verifier has seen bounded
        count = g.fn.select(g.fn.compare("ugt", count, const(size)), const(size), count)
    if clean:
        g.clear(target, size)
    return read_text(g, space, target, count, address), address


def _str(g: Gen, node: typed.Call, target: Value, clean: bool) -> None:
    """A string that max_strlen cuts has no NUL, which is how those who show it see that it was cut."""
    result, address = _read_string(g, node, target, clean)
    if not node.options.get("cut"):
        return
    assert isinstance(node.args[0].type, types.Ptr)
    size = size_of(node.type)
    with g.when(g.fn.compare("eq", g.fn.integer(result, I64, signed=True), const(size)), "cut"):
        last = g.fn.binary("add", g.fn.integer(address, I64), const(size - 1))
        read_bytes(g, node.args[0].type.space, g.fn.add(target, size - 1), const(1), last)


def _buf(g: Gen, node: typed.Call, target: Value, clean: bool) -> None:
    """u32 length, then the bytes; those that are not there are zero."""
    most = size_of(node.type) - 4
    data = g.fn.add(target, 4)
    source = node.args[0]
    if len(node.args) > 1:
        wanted = g.scalar(node.args[1])
        count = g.fn.select(g.fn.compare("ult", wanted, const(most)), wanted, const(most))
        g.clear(target, most + 4)
    else:
        count = const(most)
    g.fn.store(g.fn.integer(count, I32), target, 4)
    if isinstance(source.type, types.Ptr):
        space, address = _source(g, source)
        read_bytes(g, space, data, count, address)
        return
    place = place_of(g, source)
    if place.space == "bpf" and len(node.args) == 1:
        g.copy(data, g.fn.add(place.base, place.offset), most, 1)
        return
    read_bytes(g, place.space, data, count, address_operand(g, place))


def _strlen(g: Gen, node: typed.Call) -> Value:
    """Through a string read, whose result is the length."""
    (text,) = node.args
    size = size_of(text.type)
    if isinstance(text, typed.Call) and text.name == "str":
        result = g.fn.integer(read_string(g, text, g.buffer(size), False), I64, signed=True)
    else:
        array = isinstance(text.type, types.Array)
        place = place_of(g, text)
        copy = g.buffer(size + 1 if array else size)
        room = size + 1 if array else size
        result = g.fn.integer(read_text(g, place.space, copy, const(room), address_operand(g, place)), I64, signed=True)
    good = g.fn.compare("sgt", result, const(0))
    return g.fn.select(good, g.fn.binary("sub", result, const(1)), const(0))


# --- comparing --------------------------------------------------------------------------------------------------


def equal_values(g: Gen, left: typed.Expr, right: typed.Expr) -> Value:
    """== of two values in memory, an i1."""
    if isinstance(left.type, types.Str) and isinstance(right.type, types.Str):
        return _equal_strings(g, left, right, max(size_of(left.type), size_of(right.type)))
    a, b = g.address(left), g.address(right)
    size = min(size_of(left.type), size_of(right.type))
    if isinstance(left.type, types.Buf):
        return _equal_buffers(g, a, b, size - 4)
    return equal_bytes(g, a, b, size)


def _equal_strings(g: Gen, left: typed.Expr, right: typed.Expr, count: int) -> Value:
    """Up to the first NUL, or `count` bytes."""
    if isinstance(left, typed.StrLit):
        left, right = right, left
    if isinstance(right, typed.StrLit):
        wanted = (right.value.split(b"\0")[0] + b"\0")[:count]
        have = size_of(left.type)
        if len(wanted) > have:
            if b"\0" not in wanted[:have]:
                # the literal is longer than the other can be: equal only as far as the other reaches
                return _equal_constant(g, _readable(g, left), wanted[:have]) if count <= have else FALSE
            wanted = wanted[:have]
        return _equal_constant(g, _readable(g, left), wanted)
    size = min(size_of(left.type), size_of(right.type), count)
    return equal_bytes(g, g.address(left), g.address(right), size)


def _readable(g: Gen, expr: typed.Expr) -> Value:
    """As `Gen.address`, of what the program itself reads: that may be in the kernel, too."""
    if isinstance(expr, typed.Builtin) and expr.name == "comm":
        from bpfseal.compiler.names import own_name

        found = own_name(g)
        if found is not None:
            return found
    return g.address(expr)


def _equal_constant(g: Gen, place: Value, wanted: bytes) -> Value:
    fn = g.fn
    slot = fn.slot(I1)
    after = fn.fresh("after")
    for at, word, width in _compared(wanted):
        same = fn.fresh("same")
        have = fn.load(f"i{8 * width}", fn.add(place, at), width)
        fn.branch(fn.compare("eq", have, const(word, f"i{8 * width}")), same, after)
        fn.start(same)
    fn.store(TRUE, slot, 1)
    fn.start(after)
    return fn.load(I1, slot, 1)


def _compared(data: bytes) -> list[tuple[int, int, int]]:
    """Pieces of at most 4 bytes, which comparisons take as they are."""
    found = []
    at = 0
    for width in (4, 2, 1):
        while len(data) - at >= width:
            found.append((at, int.from_bytes(data[at : at + width], "little"), width))
            at += width
    return found


def equal_bytes(g: Gen, a: Value, b: Value, size: int) -> Value:
    """Whether `size` bytes are the same, 8-byte aligned on both sides."""
    fn = g.fn
    slot = fn.slot(I1)
    after = fn.fresh("after")
    whole = size & -8
    if whole > _UNROLLED:
        _equal_words(g, a, b, whole, after)
        start = whole
    else:
        start = 0
    for at, width in pieces(size, start):
        same = fn.fresh("same")
        x, y = (fn.load(f"i{8 * width}", fn.add(p, at), width) for p in (a, b))
        fn.branch(fn.compare("eq", x, y), same, after)
        fn.start(same)
    fn.store(TRUE, slot, 1)
    fn.start(after)
    return fn.load(I1, slot, 1)


def _equal_words(g: Gen, a: Value, b: Value, size: int, differ: str) -> None:
    """Goes to `differ` at the first word that is not the same, falls through behind the last."""
    fn = g.fn
    counter = fn.slot(I64)
    fn.store(g.unknown_zero(), counter, 8)
    again, inside, equal, done = (fn.fresh(h) for h in ("words", "word", "equal", "words_done"))
    fn.start(again)
    may_leave(g, differ)
    number = fn.load(I64, counter, 8)
    fn.branch(fn.compare("ult", number, const(size // 8)), inside, done)
    fn.start(inside)
    at = fn.binary("shl", number, const(3))
    x, y = fn.load(I64, fn.index(a, at), 8), fn.load(I64, fn.index(b, at), 8)
    fn.store(fn.binary("add", number, const(1)), counter, 8)
    fn.branch(fn.compare("eq", x, y), equal, differ)
    fn.start(equal)
    fn.jump(again)
    fn.start(done)


def _equal_buffers(g: Gen, a: Value, b: Value, capacity: int) -> Value:
    fn = g.fn
    slot = fn.slot(I1)
    lengths = fn.compare("eq", fn.load(I32, a, 4), fn.load(I32, b, 4))
    with g.when(lengths, "as_long"):
        fn.store(_equal_unaligned(g, fn.add(a, 4), fn.add(b, 4), capacity), slot, 1)
    return fn.load(I1, slot, 1)


def _equal_unaligned(g: Gen, a: Value, b: Value, size: int) -> Value:
    """As `equal_bytes` for memory behind a 4-byte length."""
    return compare_bytes(g, a, b, size)[0]


def compare_bytes(g: Gen, a: Value, b: Value, size: int) -> tuple[Value, Value]:
    """(equal, difference of the first bytes that differ as an i32), byte by byte."""
    fn = g.fn
    counter, difference = fn.slot(I64), fn.slot(I32)
    fn.store(g.unknown_zero(), counter, 8)
    again, inside, equal, after = (fn.fresh(h) for h in ("bytes", "byte", "equal", "after"))
    fn.start(again)
    may_leave(g, after)
    at = fn.load(I64, counter, 8)
    fn.branch(fn.compare("ult", at, const(size)), inside, after)
    fn.start(inside)
    x = fn.integer(fn.load(I8, fn.index(a, at), 1), I32)
    y = fn.integer(fn.load(I8, fn.index(b, at), 1), I32)
    fn.store(fn.binary("sub", x, y), difference, 4)
    fn.store(fn.binary("add", at, const(1)), counter, 8)
    fn.branch(fn.compare("eq", x, y), equal, after)
    fn.start(equal)
    fn.jump(again)
    fn.start(after)
    result = fn.load(I32, difference, 4)
    return fn.compare("eq", result, const(0, I32)), result


def _strncmp(g: Gen, node: typed.Call) -> Value:
    """0 when the first n characters are the same, else 1."""
    left, right = node.args
    count = node.options["n"]
    assert isinstance(count, int)
    if not count:
        return const(0)
    longest = max(size_of(left.type), size_of(right.type))
    same = _equal_strings(g, left, right, min(count, longest))
    return g.fn.integer(g.fn.binary("xor", same, TRUE), I64)


def _memcmp(g: Gen, node: typed.Call) -> Value:
    left, right = node.args
    count = node.options["count"]
    assert isinstance(count, int)
    return compare_bytes(g, _bytes_of(g, left), _bytes_of(g, right), count)[1]


def _bytes_of(g: Gen, expr: typed.Expr) -> Value:
    if isinstance(expr.type, types.Ptr):
        return g.fn.pointer(g.scalar(expr))
    if is_scalar(expr.type):
        place = g.buffer(8)
        g.store(expr, place)
        return place
    return g.address(expr)


# --- searching and joining --------------------------------------------------------------------------------------


def _find(g: Gen, node: typed.Call) -> Value:
    """Index of the first place of the needle in the haystack, -1 for none; by trying every place."""
    fn = g.fn
    haystack, needle = (g.address(a) for a in node.args)
    text_size, part_size = (size_of(a.type) for a in node.args)
    result, start, at = fn.slot(I64), fn.slot(I64), fn.slot(I64)
    outer, inner, here, more, go_on, found, next_start, after = (
        fn.fresh(h) for h in ("outer", "inner", "here", "more", "go_on", "found", "next", "after")
    )
    fn.store(const(-1), result, 8)
    fn.store(g.unknown_zero(), start, 8)
    fn.start(outer)
    may_leave(g, after)
    first = fn.load(I64, start, 8)
    fn.store(g.unknown_zero(), at, 8)
    fn.branch(fn.compare("ult", first, const(text_size)), inner, after)
    fn.start(inner)
    may_leave(g, after)
    n = fn.load(I64, at, 8)
    fn.branch(fn.compare("ult", n, const(part_size)), here, found)
    fn.start(here)
    wanted = fn.load(I8, fn.index(needle, n), 1)
    fn.branch(g.truth(wanted), more, found)
    fn.start(more)
    position = fn.binary("add", fn.load(I64, start, 8), n)
    fn.branch(fn.compare("ult", position, const(text_size)), go_on, after)
    fn.start(go_on)
    have = fn.load(I8, fn.index(haystack, position), 1)
    fn.store(fn.binary("add", n, const(1)), at, 8)
    differ = fn.fresh("differ")
    fn.branch(fn.compare("eq", have, wanted), inner, differ)
    fn.start(differ)  # at the end of the text there is no more to come
    fn.branch(g.truth(have), next_start, after)
    fn.start(next_start)
    fn.store(fn.binary("add", fn.load(I64, start, 8), const(1)), start, 8)
    fn.jump(outer)
    fn.start(found)
    fn.store(fn.load(I64, start, 8), result, 8)
    fn.start(after)
    return fn.load(I64, result, 8)


def _contains(g: Gen, node: typed.Call) -> Value:
    return g.fn.compare("sge", _find(g, node), const(0))


def _concat(g: Gen, node: typed.Call, target: Value, clean: bool) -> None:
    """The second is read to where the first ends, in room enough for both, which is what the verifier asks for."""
    fn = g.fn
    size = size_of(node.type)
    room = g.locate(g.reserve_scratch(2 * size))
    g.clear(room, size)
    first, second = (g.address(a) for a in node.args)
    read = g.helper("probe_read_kernel_str", room, const(size), first)
    good = fn.compare("sgt", read, const(0))
    end = fn.select(good, fn.binary("sub", read, const(1)), const(0))
    end = fn.select(fn.compare("ult", end, const(size)), end, const(size - 1))
    g.helper("probe_read_kernel_str", fn.index(room, end), const(size), second)
    fn.store(const(0, I8), fn.add(room, size - 1), 1)
    g.copy(target, room, size)


# --- numbers as words -------------------------------------------------------------------------------------------


def _named(g: Gen, node: typed.Call, target: Value, clean: bool) -> None:
    """strerror() and the like: a table of names; other numbers as decimal digits."""
    names = node.options["names"]
    assert isinstance(names, dict)
    fn = g.fn
    size = size_of(node.type)
    value = fn.integer(g.scalar(node.args[0]), I32)
    width = (max(map(len, names.values()), default=0) + 8) & -8
    last = max(names, default=-1)
    index = g.unit.constants_index()
    g.declared.use(index, "read")
    table = b"".join(names.get(n, b"").ljust(width, b"\0") for n in range(last + 1))
    base = fn.add(g.unit.value(index), g.unit.constant(table))
    g.clear(target, size)
    listed, digits, known, after = (fn.fresh(h) for h in ("listed", "digits", "known", "after"))
    number = g.opaque(fn.integer(value, I64))
    fn.branch(fn.compare("ult", number, const(last + 1)), listed, digits)
    fn.start(listed)
    place = fn.index(base, fn.binary("mul", number, const(width)))
    fn.branch(g.truth(fn.load(I8, place, 1)), known, digits)
    fn.start(known)
    g.helper("probe_read_kernel_str", target, const(min(size, width)), place)
    fn.jump(after)
    fn.start(digits)
    _decimal(g, value, target)
    fn.start(after)


def _decimal(g: Gen, value: Value, target: Value) -> None:
    """An i32 as text: ten digits in fixed places, then read from the first that counts."""
    fn = g.fn
    room = g.locate(g.reserve_scratch(32))
    negative = fn.compare("slt", value, const(0, I32))
    rest = fn.select(negative, fn.binary("sub", const(0, I32), value), value)
    fn.store(const(0, I8), fn.add(room, 11), 1)
    for n in range(10, 0, -1):
        digit = fn.integer(fn.binary("add", fn.binary("urem", rest, const(10, I32)), const(ord("0"), I32)), I8)
        fn.store(digit, fn.add(room, n), 1)
        rest = fn.binary("udiv", rest, const(10, I32))
    first = fn.slot(I64)
    fn.store(fn.binary("add", g.unknown_zero(), const(1)), first, 8)
    again, inside, skip, after = (fn.fresh(h) for h in ("digit", "more", "skip", "digits"))
    fn.start(again)
    may_leave(g, after)
    at = fn.load(I64, first, 8)
    fn.branch(fn.compare("ult", at, const(10)), inside, after)
    fn.start(inside)
    zero = fn.compare("eq", fn.load(I8, fn.index(room, at), 1), const(ord("0"), I8))
    fn.branch(zero, skip, after)
    fn.start(skip)
    fn.store(fn.binary("add", at, const(1)), first, 8)
    fn.jump(again)
    fn.start(after)
    with g.when(negative, "negative"):
        before = fn.binary("and", fn.binary("sub", fn.load(I64, first, 8), const(1)), const(15))
        fn.store(const(ord("-"), I8), fn.index(room, before), 1)
        fn.store(before, first, 8)
    start = fn.binary("and", fn.load(I64, first, 8), const(15))
    g.helper("probe_read_kernel_str", target, const(16), fn.index(room, start))


SCALARS: dict[str, Scalar] = {
    "strncmp": _strncmp,
    "strlen": _strlen,
    "strcontains": _contains,
    "strstr": _find,
    "memcmp": _memcmp,
}
MEMORIES: dict[str, Memory] = {
    "str": _str,
    "buf": _buf,
    "str_concat": _concat,
    "strerror": _named,
    "signal_name": _named,
    "syscall_name": _named,
}
EFFECTS: dict[str, Statement] = {}
