"""Definitions of C types: struct, union, enum and typedef, as the preamble of a script and headers have them.

Why not pycparser: it needs a complete preprocessor in front of it, refuses GNU attributes and unknown type names, and
its generated parser alone takes longer to import than everything else that checking a script needs. What a preamble
can hold is declarations without bodies, and those are a small language.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bpfseal.dsl.cdefs_tokens import CError, CToken, Define, Stream, constant, substitute
from bpfseal.dsl.cdefs_types import (
    ARITHMETIC,
    STANDARD,
    WORDS,
    ArrayOf,
    CType,
    EnumRef,
    Function,
    Known,
    Layout,
    Member,
    Placed,
    Pointer,
    RecordRef,
    Scalar,
    Void,
    up,
)
from bpfseal.dsl.source import Span
from bpfseal.dsl.types import ANONYMOUS, Int, Type, size_of
from bpfseal.dsl.types import Record as RecordType

_QUALIFIERS = (
    "const volatile restrict __restrict __restrict__ __volatile__ __const __user __kernel __rcu __percpu __iomem"
    " __force __extension__ __inline inline __inline__ static extern register _Atomic __randomize_layout"
)
QUALIFIERS = frozenset(_QUALIFIERS.split())
MAX_MEMBERS = 20_000
MAX_NESTING = 60
MAX_BYTES = 1 << 31

Lookup = Callable[[str], Type | None]
Size = Callable[[str], tuple[int, int] | None]


class Scope:
    """Every name that definitions made: records, enums, typedefs, enumerators."""

    def __init__(self, type_named: Lookup, record_size: Size, constant_of: Callable[[str], int | None]) -> None:
        """The arguments ask the kernel: a type by name, (size, alignment) of a record, a constant's value."""
        self.type_named = type_named
        self.record_size = record_size
        self.constant_of = constant_of
        self.records: dict[str, Layout] = {}
        self.enums: dict[str, tuple[EnumRef, dict[int, str]]] = {}
        self.typedefs: dict[str, CType] = {}
        self.enumerators: dict[str, tuple[int, EnumRef]] = {}
        self.anonymous = 0

    def size_align(self, type: CType, span: Span) -> tuple[int, int]:
        """Bytes and alignment. Raises CError for what has no size."""
        match type:
            case Scalar(size=size) | EnumRef(size=size):
                return size, size
            case Pointer():
                return 8, 8
            case ArrayOf(element=element, count=count):
                size, align = self.size_align(element, span)
                if size * count > MAX_BYTES:
                    raise CError("this array is larger than any memory that is traced", span)
                return size * count, align
            case RecordRef(name=name):
                layout = self.records.get(name)
                if layout is not None and layout.complete:
                    return layout.size, layout.align
                found = self.record_size(name)
                if found is None:
                    raise CError(f"'{name}' is not defined", span, "define it before it is used, or use a pointer")
                return found
            case Known(type=known):
                if isinstance(known, RecordType):
                    found = self.record_size(known.name)
                    if found is not None:
                        return found
                size = size_of(known)
                return size, min(size, 8) or 1
        raise CError("a member cannot have this type", span, "use a pointer")

    def value(self, name: str) -> int | None:
        found = self.enumerators.get(name)
        return found[0] if found is not None else self.constant_of(name)


class Parser:
    """Reads declarations of one token stream into a Scope."""

    def __init__(self, tokens: list[CToken], defines: Mapping[str, Define], scope: Scope, whole: Span) -> None:
        self.stream = Stream(substitute(tokens, defines), whole)
        self.scope = scope
        self.depth = 0

    def unit(self, tolerant: bool = False) -> None:
        """All declarations; with `tolerant` those that are not understood are skipped."""
        stream = self.stream
        while stream.peek().kind != "end":
            start = stream.at
            try:
                self.external()
            except CError:
                if not tolerant:
                    raise
                stream.at = max(start, min(stream.at, len(stream.tokens)) - 1)
                self.skip()

    def external(self) -> None:
        stream = self.stream
        if stream.accept(";"):
            return
        typedef = stream.accept("typedef")
        base = self.specifiers()[0]
        if typedef:
            while True:
                name, type = self.declarator(base)
                self.attributes()
                if not name:
                    raise CError("typedef needs a name", stream.peek().span)
                self.scope.typedefs[name] = type
                if not stream.accept(","):
                    break
            stream.expect(";", "a typedef")
            return
        if stream.accept(";") or stream.peek().kind == "end":
            return
        if isinstance(base, RecordRef | EnumRef) and stream.peek().text in ("struct", "union", "enum", "typedef"):
            return  # the semicolon after a definition may be missing
        token = stream.peek()
        raise CError(
            f"unexpected '{token.text}' among C definitions", token.span, "only types can be defined in a script's C"
        )

    def skip(self) -> None:
        """Over the rest of a declaration: to its semicolon or past a function's body."""
        stream = self.stream
        depth = 0
        while stream.peek().kind != "end":
            text = stream.next().text
            if text == "{":
                depth += 1
            elif text == "}":
                depth -= 1
                if depth <= 0 and stream.peek().text not in (";", ","):
                    return
            elif text == ";" and depth <= 0:
                return

    # --- types ------------------------------------------------------------------------------------------------------

    def specifiers(self) -> tuple[CType, bool, int]:
        """(type, packed, alignment asked for) in front of the declarators."""
        stream = self.stream
        words: list[str] = []
        found: CType | None = None
        packed, align = False, 0
        first = stream.peek()
        while True:
            token = stream.peek()
            if token.text == "__attribute__" or token.text == "__packed":
                p, a = self.attributes()
                packed, align = packed or p, max(align, a)
            elif token.text in QUALIFIERS:
                stream.next()
            elif token.text in ("struct", "union"):
                found = self.record()
            elif token.text == "enum":
                found = self.enum()
            elif token.text in WORDS:
                words.append(stream.next().text)
            elif token.text == "void":
                stream.next()
                found = Void()
            elif token.kind == "word" and found is None and not words:
                found = self.named(stream.next())
            else:
                break
        if found is not None:
            if words:
                raise CError("two types in one declaration", first.span)
            return found, packed, align
        if "__int128" in words:
            return ArrayOf(Scalar(Int(64, False), 8), 2), packed, 16
        scalar = ARITHMETIC.get(tuple(sorted(words)))
        if scalar is None:
            shown = " ".join(words) or first.text
            raise CError(f"'{shown}' is no C type" if shown else "a C type is missing", first.span)
        return scalar, packed, align

    def named(self, token: CToken) -> CType:
        """A typedef: the script's, a standard one, or the kernel's."""
        name = token.text
        if name in self.scope.typedefs:
            return self.scope.typedefs[name]
        if name in STANDARD:
            return STANDARD[name]
        known = self.scope.type_named(name)
        if known is None:
            raise CError(f"unknown C type '{name}'", token.span)
        return RecordRef(known.name, token.span) if isinstance(known, RecordType) else Known(known)

    def attributes(self) -> tuple[bool, int]:
        """(packed, alignment) of any attributes that stand here."""
        stream = self.stream
        packed, align = False, 0
        while True:
            if stream.accept("__packed"):
                packed = True
                continue
            if not stream.accept("__attribute__"):
                return packed, align
            stream.expect("(", "an attribute")
            stream.expect("(", "an attribute")
            while not stream.accept(")"):
                token = stream.next()
                word = token.text.strip("_")
                if token.kind == "end":
                    raise CError("this attribute is not closed", token.span)
                if word == "packed":
                    packed = True
                elif word == "aligned":
                    value = 16  # the largest alignment of the machine
                    if stream.accept("("):
                        value = self.constant("an alignment")
                        stream.expect(")", "an attribute")
                    if value <= 0 or value & (value - 1) or value > 1 << 20:
                        raise CError("an alignment is a power of two", token.span)
                    align = max(align, value)
                elif token.text == "(":
                    self.balanced()
            stream.expect(")", "an attribute")

    def balanced(self) -> None:
        """Past the parenthesis that closes the one just read."""
        depth = 1
        while depth:
            token = self.stream.next()
            if token.kind == "end":
                raise CError("a parenthesis is not closed", token.span)
            depth += {"(": 1, ")": -1}.get(token.text, 0)

    def constant(self, what: str) -> int:
        at = self.stream.peek().span

        def value_of(name: str, span: Span) -> int | None:
            if name == "sizeof":
                self.stream.expect("(", "sizeof")
                base, _, _ = self.specifiers()
                _, type = self.declarator(base)
                self.stream.expect(")", "sizeof")
                return self.scope.size_align(type, span)[0]
            return self.scope.value(name)

        try:
            return constant(self.stream, value_of)
        except CError as e:
            raise CError(f"{e.message} ({what})", e.span if e.span.end > e.span.start else at, e.hint) from None

    # --- records ----------------------------------------------------------------------------------------------------

    def record(self) -> RecordRef:
        stream = self.stream
        keyword = stream.next()
        packed, align = self.attributes()
        name, tag = "", stream.peek()
        if tag.kind == "word" and tag.text not in WORDS:
            name = stream.next().text
            p, a = self.attributes()
            packed, align = packed or p, max(align, a)
        if stream.peek().text != "{":
            if not name:
                raise CError(f"'{keyword.text}' needs a name or members", keyword.span)
            return RecordRef(f"{keyword.text} {name}", tag.span)
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise CError("records are nested too deeply", keyword.span)
        if not name:
            self.scope.anonymous += 1
            name = f"(anonymous #{self.scope.anonymous})"
        full = f"{keyword.text} {name}"
        earlier = self.scope.records.get(full)
        if earlier is not None and earlier.complete:
            raise CError(f"'{full}' is defined twice", tag.span)
        layout = Layout(full, keyword.text == "union", keyword.span)
        self.scope.records[full] = layout
        members = self.members()
        p, a = self.attributes()
        place(layout, members, packed or p, max(align, a), self.scope)
        self.depth -= 1
        return RecordRef(full, keyword.span)

    def members(self) -> list[Member]:
        stream = self.stream
        stream.expect("{", "a record")
        members: list[Member] = []
        while not stream.accept("}"):
            if stream.accept(";"):
                continue
            start = stream.peek()
            base, packed, align = self.specifiers()
            if stream.peek().text == ";":
                if isinstance(base, RecordRef):  # anonymous member
                    members.append(Member("", base, None, align, packed, start.span))
                continue
            while True:
                at = stream.peek().span
                name, type = ("", base) if stream.peek().text == ":" else self.declarator(base)
                bits = None
                if stream.accept(":"):
                    bits = self.width(type, at)
                p, a = self.attributes()
                members.append(Member(name, type, bits, max(align, a), packed or p, at))
                if len(members) > MAX_MEMBERS:
                    raise CError("a record has too many members", at)
                if not stream.accept(","):
                    break
            if stream.peek().text != "}":
                stream.expect(";", "a record")
        return members

    def width(self, type: CType, at: Span) -> int:
        bits = self.constant("the width of a bit-field")
        if not isinstance(type, Scalar | EnumRef | Known):
            raise CError("a bit-field needs an integer type", at)
        if not 0 <= bits <= self.scope.size_align(type, at)[0] * 8:
            raise CError(f"{bits} is no width for this bit-field", at)
        return bits

    def declarator(self, base: CType, depth: int = 0) -> tuple[str, CType]:
        """(name, type); the name is "" where there is none."""
        stream = self.stream
        if depth > MAX_NESTING:
            raise CError("a declarator is nested too deeply", stream.peek().span)
        stars = 0
        while True:
            if stream.accept("*"):
                stars += 1
                if stars > MAX_NESTING:
                    raise CError("too many stars", stream.peek().span)
                base = Pointer(base)
            elif stream.peek().text in QUALIFIERS:
                stream.next()
            elif stream.peek().text == "__attribute__":
                self.attributes()
            else:
                break
        token = stream.peek()
        if token.text == "(" and stream.peek(1).text in ("*", "("):
            # (*name)(…) or (*name)[…]: what follows the parenthesis applies first
            stream.next()
            inner = stream.at
            self.balanced()
            base = self.suffixes(base)
            end = stream.at
            stream.at = inner
            name, type = self.declarator(base, depth + 1)
            stream.expect(")", "a declarator")
            stream.at = end
            return name, type
        name = ""
        if token.kind == "word":
            name = stream.next().text
        return name, self.suffixes(base)

    def suffixes(self, base: CType) -> CType:
        stream = self.stream
        counts: list[int] = []
        while True:
            at = stream.peek().span
            if stream.accept("["):
                count = 0
                if stream.peek().text != "]":
                    count = self.constant("the length of an array")
                    if not 0 <= count <= MAX_BYTES:
                        raise CError(f"{count} is no length of an array", at)
                stream.expect("]", "an array")
                counts.append(count)
                if len(counts) > MAX_NESTING:
                    raise CError("too many dimensions", at)
            elif stream.accept("("):
                self.balanced()
                base = Function()
            else:
                break
        for count in reversed(counts):
            base = ArrayOf(base, count)
        return base

    # --- enums ------------------------------------------------------------------------------------------------------

    def enum(self) -> EnumRef:
        stream = self.stream
        keyword = stream.next()
        self.attributes()
        name = ""
        if stream.peek().kind == "word":
            name = stream.next().text
        fixed: int | None = None
        if stream.peek().text == ":" and stream.peek(1).kind == "word":
            stream.next()
            base, _, _ = self.specifiers()
            fixed = self.scope.size_align(base, keyword.span)[0]
        if not stream.accept("{"):
            if not name:
                raise CError("'enum' needs a name or values", keyword.span)
            known = self.scope.enums.get(name)
            if known is not None:
                return known[0]
            kernel = self.scope.type_named(f"enum {name}")
            if kernel is None:
                raise CError(f"'enum {name}' is not defined", keyword.span)
            return EnumRef(name, size_of(kernel), getattr(kernel, "signed", False))
        values: dict[str, int] = {}
        current = 0
        while not stream.accept("}"):
            token = stream.next()
            if token.kind != "word":
                raise CError(f"unexpected '{token.text}' in an enum, expected a name", token.span)
            if token.text in values:
                raise CError(f"'{token.text}' is given twice", token.span)
            self.attributes()
            if stream.accept("="):
                # names of this enum are known to the ones that follow
                self.scope.enumerators |= {n: (v, EnumRef(name, 4, False)) for n, v in values.items()}
                current = self.constant("a value of an enum")
            if not -(1 << 63) <= current < 1 << 64:
                raise CError("a value of an enum does not fit 64 bits", token.span)
            values[token.text] = current
            current += 1
            if not stream.accept(",") and stream.peek().text != "}":
                stream.expect("}", "an enum")
        self.attributes()
        signed = any(v < 0 for v in values.values())
        wide = any(not -(1 << 31) <= v < (1 << 31 if signed else 1 << 32) for v in values.values())
        if name in self.scope.enums:
            raise CError(f"'enum {name}' is defined twice", keyword.span)
        name = name or f"{ANONYMOUS}{keyword.span.source}.{keyword.span.start}"
        ref = EnumRef(name, fixed or (8 if wide else 4), signed)
        self.scope.enums[name] = ref, {v: n for n, v in reversed(values.items())}
        for n, v in values.items():
            self.scope.enumerators[n] = v, ref
        return ref


def place(layout: Layout, members: list[Member], packed: bool, align: int, scope: Scope) -> None:
    """Offsets, size and alignment as GCC and Clang lay records out (System V ABI; bit-fields from the low bits)."""
    at = 0  # bits
    size = 0
    widest = 1
    for member in members:
        bytes_, natural = scope.size_align(member.type, member.span)
        tight = packed or member.packed
        wanted = max(1 if tight else natural, member.align)
        if layout.union:
            at = 0
        if member.bits is None:
            at = up(at, wanted * 8)
            layout.placed.append(Placed(member, at))
            widest = max(widest, wanted)
            at += bytes_ * 8
        elif member.bits == 0:
            at = up(at, natural * 8)
        else:
            unit = bytes_ * 8
            if member.align:
                at = up(at, member.align * 8)
            elif not tight and at // unit != (at + member.bits - 1) // unit:
                at = up(at, unit)
            if member.name:
                layout.placed.append(Placed(member, at))
                widest = max(widest, wanted)
            at += member.bits
        size = max(size, at)
    layout.align = max(widest, align)
    layout.size = up(up(size, 8) // 8, layout.align)
    layout.complete = True
