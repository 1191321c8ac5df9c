"""LLVM IR that writes one line of a printf site: literals, numbers, strings, conversions by libc."""

from __future__ import annotations

from typing import Final

from bpfseal.compiler.layout import CUT, EventField, Shape

NUMBER: Final = 24  # most bytes of a number in decimal


class Lines:
    """Code of one event: each step moves `%o<n>`, the place where the output goes on."""

    def __init__(self, event: int, *, json: bool = False) -> None:
        """`json`: the line is an object, the text in it a string with escapes."""
        self.event = event
        self.json = json
        self.code: list[str] = []
        self.constants: list[str] = []
        self.bound = 0
        self.steps = 0

    def _name(self, what: str) -> str:
        return f"%{what}{self.event}_{self.steps}"

    def out(self) -> str:
        return f"%o{self.event}_{self.steps}"

    def _advance(self, call: str) -> None:
        self.steps += 1
        self.code.append(f"{self.out()} = {call}")

    def literal(self, text: bytes) -> None:
        if self.json:
            from json import dumps

            text = dumps(text.decode("utf-8", "replace"), ensure_ascii=False)[1:-1].encode()
        self.fixed(text)

    def fixed(self, text: bytes) -> None:
        """Bytes as they are."""
        if not text:
            return
        name = self._constant(text)
        self.code.append(f"call void @llvm.memcpy.p0.p0.i64(ptr {self.out()}, ptr {name}, i64 {len(text)}, i1 false)")
        self.bound += len(text)
        self._advance(f"getelementptr i8, ptr {self.out()}, i64 {len(text)}")

    def _constant(self, text: bytes) -> str:
        name = f"@s{self.event}_{len(self.constants)}"
        escaped = "".join(f"\\{byte:02x}" for byte in text)
        self.constants.append(f'{name} = private constant [{len(text)} x i8] c"{escaped}"')
        return name

    def load(self, field: EventField) -> str:
        """The field as an i64, by its own sign."""
        shape = field.shape
        size = 8 if shape.kind == "ptr" else shape.size
        self.code.append(f"{self._name('f')} = getelementptr i8, ptr %record, i64 {field.offset}")
        self.code.append(f"{self._name('n')} = load i{size * 8}, ptr {self._name('f')}, align 1")
        if size == 8:
            return self._name("n")
        extend = "sext" if shape.signed else "zext"
        self.code.append(f"{self._name('w')} = {extend} i{size * 8} {self._name('n')} to i64")
        if shape.kind != "bool":
            return self._name("w")
        self.code.append(f"{self._name('b')} = icmp ne i64 {self._name('w')}, 0")
        self.code.append(f"{self._name('v')} = zext i1 {self._name('b')} to i64")
        return self._name("v")

    def masked(self, value: str, shape: Shape, bits: int) -> str:
        """Without the sign, as a number of `bits`."""
        if shape.kind == "ptr" or bits == 64 or not shape.signed:
            return value
        self.code.append(f"{self._name('m')} = and i64 {value}, {(1 << bits) - 1}")
        return self._name("m")

    def number(self, function: str, value: str) -> None:
        self.bound += NUMBER
        self._advance(f"call ptr @{function}(ptr {self.out()}, i64 {value})")

    def string(self, field: EventField) -> None:
        at = self._name("t")
        self.code.append(f"{at} = getelementptr i8, ptr %record, i64 {field.offset}")
        self.code.append(f"{self._name('l')} = call i64 @strnlen(ptr {at}, i64 {field.shape.size})")
        self.code.append(
            f"call void @llvm.memcpy.p0.p0.i64(ptr {self.out()}, ptr {at}, i64 {self._name('l')}, i1 false)"
        )
        self.bound += field.shape.size
        step = self.steps
        self._advance(f"getelementptr i8, ptr {self.out()}, i64 {self._name('l')}")
        cut = _cut(field.shape)
        if cut and field.shape.size:
            # Written in any case: what comes next overwrites it unless the string was cut.
            whole, length = f"%whole{self.event}_{step}", f"%cut{self.event}_{step}"
            self.code.append(f"{whole} = icmp eq i64 %l{self.event}_{step}, {field.shape.size}")
            self.code.append(f"{length} = select i1 {whole}, i64 {len(cut)}, i64 0")
            text = self._constant(cut)
            self.code.append(
                f"call void @llvm.memcpy.p0.p0.i64(ptr {self.out()}, ptr {text}, i64 {len(cut)}, i1 false)"
            )
            self.bound += len(cut)
            self._advance(f"getelementptr i8, ptr {self.out()}, i64 {length}")

    def ended(self, field: EventField) -> tuple[str, int]:
        """A string as C has it, and the most bytes that it can have: where it was cut a copy that says so."""
        size, cut = field.shape.size, _cut(field.shape)
        at, mark = self._name("t"), f"{self.event}_{self.steps}"
        self.code.append(f"{at} = getelementptr i8, ptr %record, i64 {field.offset}")
        if not cut or not size:
            return at, size
        copy = f"@copy{mark}"
        self.constants.append(f"{copy} = internal global [{size + len(cut) + 1} x i8] zeroinitializer")
        self.code += [
            f"%l{mark} = call i64 @strnlen(ptr {at}, i64 {size})",
            f"%whole{mark} = icmp eq i64 %l{mark}, {size}",
            f"br label %test{mark}",
            f"test{mark}:",
            f"br i1 %whole{mark}, label %long{mark}, label %both{mark}",
            f"long{mark}:",
            f"call void @llvm.memcpy.p0.p0.i64(ptr {copy}, ptr {at}, i64 {size}, i1 false)",
            f"%end{mark} = getelementptr i8, ptr {copy}, i64 {size}",
            f"call void @llvm.memcpy.p0.p0.i64(ptr %end{mark}, ptr {self._constant(cut)}, i64 {len(cut)}, i1 false)",
            f"br label %both{mark}",
            f"both{mark}:",
            f"%p{mark} = phi ptr [ {at}, %test{mark} ], [ {copy}, %long{mark} ]",
        ]
        return f"%p{mark}", size + len(cut)

    def plain_string(self, field: EventField) -> None:
        """A string of printable ASCII that needs no escapes; a record with any other is Python's."""
        if not field.shape.size:
            return
        mark = f"{self.event}_{self.steps}"
        self.code += [
            f"%t{mark} = getelementptr i8, ptr %record, i64 {field.offset}",
            f"%j{mark} = call ptr @plain(ptr {self.out()}, ptr %t{mark}, i64 {field.shape.size})",
            f"%odd{mark} = icmp eq ptr %j{mark}, null",
            f"br i1 %odd{mark}, label %foreign, label %even{mark}",
            f"even{mark}:",
        ]
        self.bound += field.shape.size
        self._advance(f"getelementptr i8, ptr %j{mark}, i64 0")

    def character(self, value: str) -> None:
        self.code.append(f"{self._name('c')} = trunc i64 {value} to i8")
        self.code.append(f"store i8 {self._name('c')}, ptr {self.out()}")
        self.bound += 1
        self._advance(f"getelementptr i8, ptr {self.out()}, i64 1")

    def printf(self, format: bytes, arguments: str, bound: int) -> None:
        """One conversion by libc, for widths and flags."""
        name = self._constant(format + b"\0")
        self.bound += bound + 1
        self.code.append(
            f"{self._name('r')} = call i32 (ptr, i64, ptr, ...) @snprintf(ptr {self.out()}, i64 {bound + 1}, "
            f"ptr {name}, {arguments})"
        )
        self.code.append(f"{self._name('e')} = sext i32 {self._name('r')} to i64")
        self._advance(f"getelementptr i8, ptr {self.out()}, i64 {self._name('e')}")


def _cut(shape: Shape) -> bytes:
    """What follows a string that fills its place."""
    return str(shape.params[0] if shape.params else CUT).encode("utf-8", "surrogateescape")
