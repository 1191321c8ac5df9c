"""Functions of C files for BPF that scripts import: clang compiles them, their BTF says what they take and give.

The code is joined with the script's by `link`, like that of our own subprograms. It is held to what the signing helper
reads in it, as everything is. State is not shared: constants come along, other global data is refused.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from bpfseal.compiler import link
from bpfseal.compiler.unit import Declared
from bpfseal.dsl import types
from bpfseal.dsl.env import CFunction
from bpfseal.dsl.types import Type
from bpfseal.errors import BpfsealError
from bpfseal.signer import btf as raw
from bpfseal.signer.btf import Btf, BtfError

if TYPE_CHECKING:
    from bpfseal.compiler.kernel import KernelTypes
    from bpfseal.compiler.unit import Unit

_SECTION: Final = ".text."  # of each function, with -ffunction-sections
_SECONDS: Final = 60
_ARGUMENTS: Final = 5  # registers that BPF passes arguments in
_GLOBAL: Final = 1
_LD_IMM64, _CALL = 0x18, 0x85
_R_64_64, _R_64_32 = 1, 10
_SLOT: Final = struct.Struct("<BBhi")
_ARCHITECTURES: Final = {"x86_64": "x86", "aarch64": "arm64"}


@dataclass(frozen=True)
class External:
    """`sections`: an object file's; `prototypes` of its functions that are not static."""

    path: str
    object: bytes
    prototypes: dict[str, CFunction]


@lru_cache(maxsize=16)
def compile_c(path: str, text: str) -> External:
    """Compile a file that contains `text`; includes are looked for beside `path` first. Raises BpfsealError."""
    name = os.path.basename(path)
    clang = shutil.which(os.environ.get("CLANG", "clang"))
    if clang is None:
        raise BpfsealError(
            f"'{name}' is C, which needs clang, and that is not installed",
            hint="install clang, or write the function in the script: fn name($a : int64) : int64 { … }",
        )
    with tempfile.TemporaryDirectory(prefix="bpfseal-c-") as folder:
        target = os.path.join(folder, "object")
        machine = os.uname().machine
        headers = f"/usr/include/{machine}-linux-gnu"
        command = [
            clang, "-target", "bpf", "-mcpu=v3", "-O2", "-g", "-ffunction-sections", "-fno-color-diagnostics",
            f"-D__TARGET_ARCH_{_ARCHITECTURES.get(machine, machine)}", "-DBPF_NO_PRESERVE_ACCESS_INDEX",
            "-I", os.path.dirname(path) or ".", "-I", folder,
            *(("-I", headers) if os.path.isdir(headers) else ()),
            "-x", "c", "-c", "-o", target, "-",
        ]  # fmt: skip
        if "vmlinux.h" in text and not os.path.exists(os.path.join(os.path.dirname(path), "vmlinux.h")):
            _write_kernel_header(os.path.join(folder, "vmlinux.h"))
        try:
            done = subprocess.run(
                command,
                input=text.encode("utf-8", "surrogateescape"),
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BpfsealError(f"clang did not compile '{name}' within {_SECONDS} seconds") from None
        if done.returncode:
            told = done.stderr.decode("utf-8", "replace").replace("<stdin>", name).strip()
            raise BpfsealError(f"clang cannot compile '{name}'", hint=told[:2000] or "it says nothing about why")
        with open(target, "rb") as file:
            data = file.read()
    return External(path, data, _prototypes(name, data))


def _write_kernel_header(target: str) -> None:
    """The running kernel's types as C. Without bpftool it is left to clang to say that the file is missing."""
    tool = shutil.which("bpftool") or shutil.which("bpftool", path="/usr/sbin:/sbin")
    if tool is None:
        return
    with open(target, "wb") as file:
        subprocess.run(
            [tool, "btf", "dump", "file", "/sys/kernel/btf/vmlinux", "format", "c"],
            stdout=file, stderr=subprocess.DEVNULL, timeout=_SECONDS, check=False,
        )  # fmt: skip


# --- what functions take and give ---------------------------------------------------------------------------------


def _prototypes(name: str, data: bytes) -> dict[str, CFunction]:
    from bpfseal.compiler import llvm

    content = dict(llvm.sections(data)).get(".BTF", b"")
    if not content:
        return {}
    try:
        btf = Btf(content)
        found = {}
        for function, id in btf.all_named(raw.FUNC):
            if btf.linkage(id) != _GLOBAL:
                continue
            proto = btf.size_or_type(id)
            params = btf.params(proto)
            if len(params) > _ARGUMENTS:
                raise BpfsealError(
                    f"{function}() in '{name}' has {len(params)} parameters", hint="BPF passes at most 5"
                )
            found[function] = CFunction(
                function,
                tuple((word, _type(btf, id, f"{function}() in '{name}'")) for word, id in params),
                _type(btf, btf.size_or_type(proto), f"{function}() in '{name}'"),
            )
    except BtfError as error:
        raise BpfsealError(f"the types of '{name}' cannot be read: {error.message}") from None
    return found


def _type(btf: Btf, id: int, where: str) -> Type:
    """Of a parameter or result, which are in registers."""
    id = btf.resolve(id) if id else 0
    match btf.kind(id):
        case 0:
            return types.VOID
        case raw.INT:
            encoding, _, _ = btf.int_info(id)
            size = btf.size_or_type(id)
            if encoding & 4:
                return types.BOOL
            if size in (1, 2, 4, 8):
                return types.Int(8 * size, bool(encoding & 1))
        case raw.ENUM | raw.ENUM64:
            return types.Int(8 * btf.size_or_type(id), btf.kflag(id))
        case raw.PTR:
            return types.Ptr(_pointed(btf, btf.size_or_type(id)), "kernel")
        case _:
            pass
    raise BpfsealError(f"{where} takes or gives something that is neither a number nor a pointer")


def _pointed(btf: Btf, id: int) -> Type | None:
    id = btf.resolve(id) if id else 0
    match btf.kind(id):
        case raw.INT if btf.size_or_type(id) in (1, 2, 4, 8):
            return types.Int(8 * btf.size_or_type(id), bool(btf.int_info(id)[0] & 1))
        case raw.STRUCT | raw.UNION as kind if btf.name(id):
            word = "struct" if kind == raw.STRUCT else "union"
            return types.Record(f"{word} {btf.name(id)}", btf.size_or_type(id))
        case _:
            return None


# --- code ---------------------------------------------------------------------------------------------------------


def add(unit: Unit, functions: dict[str, link.Function]) -> None:
    """The functions of the script's C files to those of the module: what they use is declared, constants are placed.
    Raises BpfsealError for what cannot come along."""
    for path, text in unit.script.c_files:
        external = compile_c(path, text)
        added, data = link.read_functions(external.object, _SECTION)
        for function in added.values():
            if function.name in functions:
                raise BpfsealError(f"'{function.name}' in '{os.path.basename(path)}' exists twice", hint="rename it")
            declared = Declared()
            _place_constants(unit, function, data, declared, os.path.basename(path), added)
            _declare(unit.kernel, function, declared, added)
            unit.declared[function.name] = declared
            prototype = external.prototypes.get(function.name)
            count = len(prototype.params) if prototype is not None else _ARGUMENTS
            unit.signatures[function.name] = "i64", ("i64",) * count
        functions |= added


def _place_constants(
    unit: Unit,
    function: link.Function,
    data: dict[str, tuple[str, int, bytes]],
    declared: Declared,
    name: str,
    others: dict[str, link.Function],
) -> None:
    """References to read-only data become such to our map of constants."""
    for number, (slot, kind, symbol) in enumerate(function.references):
        if kind == _R_64_32 or symbol in others:
            continue
        section, at, content = data.get(symbol, ("", 0, b""))
        if kind != _R_64_64 or not section.startswith(".rodata"):
            raise BpfsealError(
                f"{function.name}() in '{name}' uses the global variable or map '{symbol}'",
                hint="only functions and constants are imported: keep state in maps of the script, or pass pointers",
            )
        index = unit.constants_index()
        start = unit.constant(content) + at
        opcode, registers, offset, addend = _SLOT.unpack_from(function.code, 8 * slot)
        _SLOT.pack_into(function.code, 8 * slot, opcode, registers, offset, addend + start)
        function.references[number] = (slot, kind, f"v{index}")
        declared.use(index, "read")


def _declare(
    kernel: KernelTypes, function: link.Function, declared: Declared, others: dict[str, link.Function]
) -> None:
    """Helpers by the numbers in the code, under the names that the kernel's BTF has for them."""
    names = kernel.enum("bpf_func_id") or {}
    called = {slot: symbol for slot, kind, symbol in function.references if kind == _R_64_32}
    wide = False
    for slot, (opcode, registers, _, immediate) in enumerate(_SLOT.iter_unpack(function.code)):
        if wide:
            wide = False
            continue
        wide = opcode == _LD_IMM64
        if opcode != _CALL:
            continue
        symbol = called.get(slot)
        if symbol is None and registers >> 4 == 0:
            declared.helpers.add(names.get(immediate, f"#{immediate}").removeprefix("BPF_FUNC_"))
        elif symbol is not None and symbol not in others:
            declared.kfuncs.add(symbol)
