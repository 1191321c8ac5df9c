"""The script's C: definitions of types and constants in its preamble and in headers.

`read` takes the preamble apart, `Definitions.over` puts what it found in front of an Environment. Types of the kernel
come from its BTF, so `#include` of a kernel header is accepted whether the header is installed or not; where it is, it
is read only when a name is known nowhere else.

No import of this module without a preamble.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

from bpfseal.dsl import ast
from bpfseal.dsl.cdefs_parse import Parser, Scope
from bpfseal.dsl.cdefs_tokens import CError, Define, Include, Preprocessor, Stream, constant, substitute
from bpfseal.dsl.cdefs_types import (
    ArrayOf,
    CType,
    EnumRef,
    Known,
    Layout,
    Pointer,
    RecordRef,
    Scalar,
    bitfield,
)
from bpfseal.dsl.cdefs_types import Void as CVoid
from bpfseal.dsl.env import Args, AttachSpec, CFunction, Environment, Point
from bpfseal.dsl.source import Diagnostic, DslError, Source, Span
from bpfseal.dsl.types import ANONYMOUS, VOID, Array, Enum, Field, Int, Ptr, Record, RecordInfo, Str, Type


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MACHINE = {"x86_64": "__x86_64__", "aarch64": "__aarch64__"}
# Folders of kernel headers: their types are in BTF, their constants mostly in kernel_constants.
KERNEL_FOLDERS = _words(
    "acpi asm asm-generic bcc bpf crypto drm dt-bindings keys kvm linux media misc net rdma scsi soc sound target trace"
    " uapi vdso video xen"
)
# Headers of the C library that scripts include for constants which are known without them.
LIBRARY_FOLDERS = _words("arpa bits gnu netinet netpacket sys")
LIBRARY_HEADERS = _words(
    "assert.h ctype.h dirent.h dlfcn.h elf.h endian.h err.h errno.h fcntl.h float.h grp.h inttypes.h limits.h locale.h"
    " math.h netdb.h poll.h pthread.h pwd.h sched.h setjmp.h signal.h stdarg.h stdbool.h stddef.h stdint.h stdio.h"
    " stdlib.h string.h strings.h syscall.h syslog.h termios.h time.h unistd.h wchar.h"
)
MAX_HEADERS = 300
MAX_HEADER_BYTES = 8 << 20


def read(
    preamble: Sequence[ast.CText],
    sources: Sequence[Source],
    environment: Environment,
    *,
    folders: Sequence[Path] = (),
    script_folder: Path | None = None,
    includes: Sequence[str] = (),
) -> Definitions:
    """What `preamble` defines. `folders` are searched for headers first (-I), then the system's.

    Headers in the script's folder and in `folders` belong to the script: they are read at once, mistakes in them are
    mistakes of the script, and their texts join `Definitions.sources`. `includes` are headers included in front.

    Raises DslError.
    """
    predefined = {"BPFTRACE_HAVE_BTF": "1", "__linux__": "1", "__LP64__": "1", "__BYTE_ORDER__": "1234"}
    machine = MACHINE.get(platform.machine())
    if machine:
        predefined[machine] = "1"
    search = Headers(folders, script_folder or Path())
    definitions = Definitions(environment, Preprocessor(predefined), search, list(sources))
    whole = preamble[0].span if preamble else Span(0, 0)
    try:
        for name in includes:
            definitions.include(Include(name, False, Span(0, 0, -1)))
        for text in preamble:
            definitions.preprocessor.feed(text.text, text.span.start, text.span.source, definitions.include)
        definitions.preprocessor.finish()
        parser = Parser(definitions.preprocessor.code, definitions.preprocessor.defines, definitions.scope, whole)
        parser.unit()
    except CError as e:
        raise DslError([Diagnostic("error", e.message, e.span, e.hint)], definitions.sources) from None
    except RecursionError:
        message = "C definitions are nested too deeply"
        raise DslError([Diagnostic("error", message, whole)], definitions.sources) from None
    return definitions


class Headers:
    """Finds and reads header files."""

    def __init__(self, folders: Sequence[Path], script_folder: Path) -> None:
        self.own = list(folders)
        self.script = script_folder
        triplet = f"{platform.machine()}-linux-gnu"
        self.system = [Path("/usr/local/include"), Path("/usr/include") / triplet, Path("/usr/include")]

    def find(self, include: Include, beside: Path | None = None) -> tuple[Path, bool] | None:
        """The file, and whether it is the script's own."""
        quoted = [] if include.system else [*([beside] if beside else []), self.script]
        for folder in [*quoted, *self.own, *self.system]:
            path = folder / include.name
            if os.path.isfile(path):  # False for names that cannot be
                return path, folder not in self.system
        return None

    def known(self, include: Include) -> bool:
        """Whether what the header says is known without it: BTF has the kernel's types."""
        first, _, rest = include.name.partition("/")
        return first in KERNEL_FOLDERS | LIBRARY_FOLDERS if rest else first in LIBRARY_HEADERS


class Definitions:
    """Types and constants of a preamble; see `read`."""

    def __init__(
        self, environment: Environment, preprocessor: Preprocessor, headers: Headers, sources: list[Source]
    ) -> None:
        self.environment = environment
        self.preprocessor = preprocessor
        self.headers = headers
        self.sources = sources
        self.scope = Scope(environment.type_named, self._kernel_size, self._constant)
        self._infos: dict[str, RecordInfo | None] = {}
        self._headers_read = False
        self._own: list[Path] = []
        self._system: list[Include] = []
        self._evaluating: set[str] = set()

    def include(self, include: Include) -> None:
        """Reads a header of the script's own; notes one of the system. Raises CError when there is none."""
        beside = self._own[-1].parent if self._own else None
        found = self.headers.find(include, beside)
        if found is None:
            if self.headers.known(include):
                self._system.append(include)
                return
            folders = ", ".join(str(f) for f in [*self.headers.own, *self.headers.system])
            raise CError(f"there is no header '{include.name}'", include.span, f"looked in {folders}; add some with -I")
        path, own = found
        if not own:
            self._system.append(include)
            return
        if path in self._own or len(self.sources) > MAX_HEADERS:
            raise CError(f"the header '{include.name}' includes itself", include.span)
        try:
            text = path.read_bytes()[:MAX_HEADER_BYTES].decode("utf-8", "surrogateescape")
        except OSError as e:
            raise CError(f"cannot read the header '{path}': {e.strerror}", include.span) from None
        self.sources.append(Source(text, str(path)))
        self._own.append(path)
        self.preprocessor.feed(text, 0, len(self.sources) - 1, self.include)
        self._own.pop()

    def defines(self) -> dict[str, tuple[str, Span]]:
        """Object-like macros of the script itself with a text, for `expand`."""
        return {
            name: (define.text, define.span)
            for name, define in self.preprocessor.defines.items()
            if define.params is None and define.text and define.span.source >= 0
        }

    def over(self, environment: Environment) -> Environment:
        """`environment` with these definitions in front."""
        return _Overlay(self, environment)

    # --- the language's view ----------------------------------------------------------------------------------------

    def record(self, name: str) -> RecordInfo | None:
        """Members of a record by "struct x", "union x", a typedef of one, or the made-up name of an anonymous one."""
        if name in self._infos:
            return self._infos[name]
        type = self.scope.typedefs.get(name)
        layout = self.scope.records.get(type.name if isinstance(type, RecordRef) else name)
        info = None
        if layout is not None and layout.complete:
            info = RecordInfo(layout.name, layout.size, tuple(self._fields(layout, 0)), layout.union)
        self._infos[name] = info
        return info

    def type_named(self, name: str) -> Type | None:
        """The type that the script's C gives this name."""
        type = self.scope.typedefs.get(name)
        if type is not None:
            return self.convert(type)
        word, _, tag = name.partition(" ")
        if word in ("struct", "union") and name in self.scope.records:
            return self.convert(RecordRef(name, Span(0, 0)))
        if word == "enum" and tag in self.scope.enums:
            return self.convert(self.scope.enums[tag][0])
        define = self.preprocessor.defines.get(name)
        if define is not None and define.params is None and define.text and define.span.source >= 0:
            return self._type_text(define)
        return None

    def constant(self, name: str) -> tuple[int, Type] | None:
        """An enumerator: (value, type)."""
        found = self.scope.enumerators.get(name)
        if found is None:
            return None
        value, ref = found
        return value, self.convert(ref)

    def convert(self, type: CType) -> Type:
        """A C type as the language's; arrays of characters are strings."""
        match type:
            case Scalar(type=known) | Known(type=known):
                return known
            case Pointer(to=to):
                inner = self.convert(to)
                return Ptr(None if inner == VOID else inner)
            case ArrayOf(element=element, count=count):
                inner = self.convert(element)
                return Str(count) if isinstance(inner, Int) and inner.bits == 8 else Array(inner, count)
            case RecordRef(name=name):
                layout = self.scope.records.get(name)
                if layout is not None:
                    return Record(name, layout.size)
                found = self.environment.record(name)
                return Record(name, found.size if found is not None else 0)
            case EnumRef(name=name, size=size, signed=signed):
                return Enum(name, size * 8, signed) if name else Int(size * 8, signed)
            case CVoid():
                return VOID
        return VOID  # functions

    def header_constant(self, name: str) -> tuple[int, Type] | None:
        """A constant that only a header has; reads the headers when first asked."""
        if not self._system:
            return None
        self._read_headers()
        found = self.constant(name)
        if found is not None:
            return found
        value = self._constant(name)
        if value is None:
            return None
        return value, Int(32) if -(1 << 31) <= value < 1 << 31 else Int(64, value < 0)

    def header_type(self, name: str) -> Type | None:
        """A type that only a header has."""
        if not self._system or self._headers_read:
            return None
        self._read_headers()
        self._infos.clear()
        return self.type_named(name)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _fields(self, layout: Layout, base: int) -> list[Field]:
        """Members with anonymous ones in their place; `base` in bits."""
        fields: list[Field] = []
        for placed in layout.placed:
            member, at = placed.member, base + placed.offset
            if not member.name and isinstance(member.type, RecordRef):
                inner = self.scope.records.get(member.type.name)
                if inner is not None:
                    fields += self._fields(inner, at)
            elif member.bits:
                type = self.convert(member.type)
                fields.append(bitfield(member.name, at, member.bits, getattr(type, "signed", False)))
            elif member.name:
                fields.append(Field(member.name, self.convert(member.type), at // 8))
        return fields

    def _kernel_size(self, name: str) -> tuple[int, int] | None:
        """(size, alignment) of one of the kernel's records; the alignment as its members suggest."""
        return _size_align(self.environment, name, 0)

    def _constant(self, name: str) -> int | None:
        """A name in a constant expression: a macro, or a constant of the kernel."""
        define = self.preprocessor.defines.get(name)
        if define is not None and define.params is None and define.text and name not in self._evaluating:
            self._evaluating.add(name)
            try:
                from bpfseal.dsl.cdefs_tokens import lex

                tokens = substitute(lex(define.text, 0, 0), self.preprocessor.defines)
                stream = Stream(tokens, Span(0, 0))
                value = constant(stream, lambda n, _: self.scope.value(n))
                return value if stream.peek().kind == "end" else None
            except CError:
                return None
            finally:
                self._evaluating.discard(name)
        found = self.environment.constant(name)
        return found[0] if found is not None else None

    def _type_text(self, define: Define) -> Type | None:
        """The type that a macro's text spells, None when it spells none."""
        from bpfseal.dsl.cdefs_tokens import lex

        try:
            tokens = lex(define.text, define.span.start, define.span.source)
            parser = Parser(tokens, self.preprocessor.defines, self.scope, define.span)
            base, _, _ = parser.specifiers()
            name, type = parser.declarator(base)
        except CError:
            return None
        if name or parser.stream.peek().kind != "end":
            return None
        return self.convert(type)

    def _read_headers(self) -> None:
        """Reads the included headers and theirs as far as they are understood. Never fails."""
        if self._headers_read:
            return
        self._headers_read = True
        reader = _HeaderReader(self)
        for include in self._system:
            reader.include(include, None)
        self.preprocessor = reader.preprocessor
        try:
            parser = Parser(reader.preprocessor.code, reader.preprocessor.defines, self.scope, Span(0, 0, -1))
            parser.unit(tolerant=True)
        except CError:
            return


class _HeaderReader:
    """Feeds headers into a preprocessor that puts up with everything; each file once."""

    def __init__(self, definitions: Definitions) -> None:
        self.headers = definitions.headers
        self.preprocessor = Preprocessor({}, tolerant=True)
        self.preprocessor.defines = dict(definitions.preprocessor.defines)
        self.seen: set[Path] = set()
        self.bytes = 0

    def include(self, include: Include, beside: Path | None) -> None:
        found = self.headers.find(include, beside)
        path = found[0] if found is not None else None
        if path is None or path in self.seen or len(self.seen) >= MAX_HEADERS or self.bytes > MAX_HEADER_BYTES:
            return
        self.seen.add(path)
        try:
            text = path.read_bytes().decode("utf-8", "replace")
        except OSError:
            return
        self.bytes += len(text)
        on_include: Callable[[Include], None] = lambda inner: self.include(inner, path.parent)  # noqa: E731
        try:
            self.preprocessor.feed(text, 0, -1, on_include)
        except CError:
            return  # too long: what was read so far has to do


class _Overlay:
    """An Environment whose types and constants are first those of the script."""

    def __init__(self, definitions: Definitions, base: Environment) -> None:
        self.definitions = definitions
        self.base = base
        self.target = base.target

    def expand(self, spec: AttachSpec) -> Sequence[Point]:
        return self.base.expand(spec)

    def args(self, point: Point) -> Args:
        return self.base.args(point)

    def record(self, name: str) -> RecordInfo | None:
        found = self.definitions.record(name)
        return found if found is not None else self.base.record(name)

    def type_named(self, name: str) -> Type | None:
        for look_up in (self.definitions.type_named, self.base.type_named, self.definitions.header_type):
            found = look_up(name)
            if found is not None:
                return found
        return None

    def enum(self, type: Enum) -> dict[int, str] | None:
        found = self.definitions.scope.enums.get(type.name)
        return found[1] if found is not None else self.base.enum(type)

    def constant(self, name: str) -> tuple[int, Type] | None:
        for look_up in (self.definitions.constant, self.base.constant, self.definitions.header_constant):
            found = look_up(name)
            if found is not None:
                return found
        return None

    def kernel_symbol(self, name: str) -> int | None:
        return self.base.kernel_symbol(name)

    def user_symbol(self, path: str, name: str) -> tuple[int, int] | None:
        return self.base.user_symbol(path, name)

    def c_functions(self, path: str, text: str) -> Sequence[CFunction]:
        return self.base.c_functions(path, text)

    def cgroup_id(self, path: str) -> int | None:
        return self.base.cgroup_id(path)

    def kfunc(self, name: str) -> bool:
        return self.base.kfunc(name)

    def suggest(self, what: str, name: str) -> list[str]:
        from difflib import get_close_matches

        scope = self.definitions.scope
        enums = [f"enum {name}" for name in scope.enums if not name.startswith(ANONYMOUS)]
        own = {
            "type": [*scope.records, *scope.typedefs, *enums],
            "constant": [*scope.enumerators, *self.definitions.defines()],
        }.get(what, [])
        return [*get_close_matches(name, own, 3), *self.base.suggest(what, name)]


def _size_align(environment: Environment, name: str, depth: int) -> tuple[int, int] | None:
    info = environment.record(name)
    if info is None or depth > 20:
        return None
    align = 1
    for field in info.fields:
        type = field.type
        while isinstance(type, Array):
            type = type.element
        if isinstance(type, Record):
            inner = _size_align(environment, type.name, depth + 1)
            align = max(align, inner[1] if inner is not None else 8)
        elif isinstance(type, Ptr):
            align = 8
        elif isinstance(type, Int | Enum):
            align = max(align, type.bits // 8)
    while info.size % align:  # packed
        align //= 2
    return info.size, align
