"""LLVM through llvmlite's library itself, without llvmlite's Python.

Importing `llvmlite.binding` costs seven times what loading its library does, a sixth of the start of a one-liner. What
is needed of it is a dozen C functions, of which this is a binding of our own; it is used for versions of llvmlite that
it has been tried with, and `llvm` goes the ordinary way for all others.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from ctypes import POINTER, byref, c_bool, c_char, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, Final

_VERSIONS: Final = ("0.50.",)

# name: result, arguments
_FUNCTIONS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "InitializeAllTargetInfos": (None, ()),
    "InitializeAllTargets": (None, ()),
    "InitializeAllTargetMCs": (None, ()),
    "InitializeAllAsmPrinters": (None, ()),
    "SetCommandLine": (None, (c_char_p, c_char_p)),
    "GetTargetFromTriple": (c_void_p, (c_char_p, POINTER(c_char_p))),
    "CreateTargetMachine": (
        c_void_p,
        (c_void_p, c_char_p, c_char_p, c_char_p, c_int, c_char_p, c_char_p, c_int, c_int, c_char_p),
    ),
    "ContextCreate": (c_void_p, ()),
    "ContextDispose": (None, (c_void_p,)),
    "ParseAssembly": (c_void_p, (c_void_p, c_char_p, POINTER(c_char_p))),
    "VerifyModule": (c_bool, (c_void_p, POINTER(c_char_p))),
    "DisposeModule": (None, (c_void_p,)),
    "DisposeString": (None, (c_char_p,)),
    "CreatePipelineTuningOptions": (c_void_p, ()),
    "DisposePipelineTuningOptions": (None, (c_void_p,)),
    "CreatePassBuilder": (c_void_p, (c_void_p, c_void_p)),
    "DisposePassBuilder": (None, (c_void_p,)),
    "CreateNewModulePassManager": (c_void_p, ()),
    **{
        f"module_Add{name}Pass": (None, (c_void_p,))
        for name in ("SROA", "SimplifyCFG", "InstCombine", "NewGVN", "DSE", "ADCE")
    },
    "RunNewModulePassManager": (None, (c_void_p, c_void_p, c_void_p)),
    "DisposeNewModulePassManger": (None, (c_void_p,)),  # sic
    "TargetMachineEmitToMemory": (c_void_p, (c_void_p, c_void_p, c_int, POINTER(c_char_p))),
    "GetBufferStart": (c_void_p, (c_void_p,)),
    "GetBufferSize": (c_size_t, (c_void_p,)),
    "DisposeMemoryBuffer": (None, (c_void_p,)),
    "CreateObjectFile": (c_void_p, (c_char_p, c_size_t)),
    "DisposeObjectFile": (None, (c_void_p,)),
    "GetSections": (c_void_p, (c_void_p,)),
    "DisposeSectionIterator": (None, (c_void_p,)),
    "MoveToNextSection": (None, (c_void_p,)),
    "IsSectionIteratorAtEnd": (c_bool, (c_void_p, c_void_p)),
    "GetSectionName": (c_char_p, (c_void_p,)),
    "GetSectionSize": (c_uint64, (c_void_p,)),
    "GetSectionContents": (POINTER(c_char), (c_void_p,)),
}


class DirectError(Exception):
    """What LLVM has against a module."""


class _Library:
    """The functions by their names without prefix."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, f"LLVMPY_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def _path() -> Path | None:
    """Where the library is, if it is of a version that we know."""
    spec = importlib.util.find_spec("llvmlite")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    path = folder / "binding" / "libllvmlite.so"
    try:
        version = re.search(r"version_version = '([^']+)'", (folder / "_version.py").read_text())
    except OSError:
        return None
    if version is None or not version[1].startswith(_VERSIONS) or not path.exists():
        return None
    return path


class Direct:
    """One target machine. Not for several threads at once."""

    def __init__(
        self, library: _Library, triple: str, cpu: str, options: tuple[str, ...], passes: tuple[str, ...]
    ) -> None:
        self._lib = library
        self._passes = passes
        for name in ("TargetInfos", "Targets", "TargetMCs", "AsmPrinters"):
            getattr(library, f"InitializeAll{name}")()
        for option in options:
            library.SetCommandLine(b"", option.encode())
        error = c_char_p()
        target = library.GetTargetFromTriple(triple.encode(), byref(error))
        self._machine = target and library.CreateTargetMachine(
            target, triple.encode(), cpu.encode(), b"", 2, b"default", b"default", 0, 0, b""
        )
        if not self._machine:
            raise DirectError(f"no target machine for {triple}")

    def compile(self, text: str) -> bytes:
        """The object file of a module, optimised. Raises DirectError."""
        lib = self._lib
        context = lib.ContextCreate()
        error = c_char_p()
        try:
            module = lib.ParseAssembly(context, text.encode(), byref(error))
            if error.value:
                raise DirectError(error.value.decode(errors="replace"))
            try:
                if lib.VerifyModule(module, byref(error)):
                    raise DirectError((error.value or b"").decode(errors="replace"))
                self._optimise(module)
                return self._emit(module)
            finally:
                lib.DisposeModule(module)
        finally:
            lib.ContextDispose(context)

    def _optimise(self, module: int) -> None:
        lib = self._lib
        options = lib.CreatePipelineTuningOptions()
        builder = lib.CreatePassBuilder(self._machine, options)
        passes = lib.CreateNewModulePassManager()
        for name in self._passes:
            getattr(lib, f"module_Add{name}Pass")(passes)
        lib.RunNewModulePassManager(passes, module, builder)
        lib.DisposeNewModulePassManger(passes)
        lib.DisposePassBuilder(builder)
        lib.DisposePipelineTuningOptions(options)

    def _emit(self, module: int) -> bytes:
        lib = self._lib
        error = c_char_p()
        buffer = lib.TargetMachineEmitToMemory(self._machine, module, 1, byref(error))
        if not buffer:
            raise DirectError((error.value or b"").decode(errors="replace"))
        found = ctypes.string_at(lib.GetBufferStart(buffer), lib.GetBufferSize(buffer))
        lib.DisposeMemoryBuffer(buffer)
        return found

    def sections(self, data: bytes) -> list[tuple[str, bytes]]:
        """(name, contents) of an object file's sections, in order, the null section included."""
        lib = self._lib
        object = lib.CreateObjectFile(data, len(data))
        at = lib.GetSections(object)
        found = []
        while not lib.IsSectionIteratorAtEnd(object, at):
            size = lib.GetSectionSize(at)
            content = ctypes.string_at(lib.GetSectionContents(at), size) if size else b""
            found.append(((lib.GetSectionName(at) or b"").decode(), content))
            lib.MoveToNextSection(at)
        lib.DisposeSectionIterator(at)
        lib.DisposeObjectFile(object)
        return found


@cache
def direct(triple: str, cpu: str, options: tuple[str, ...], passes: tuple[str, ...]) -> Direct | None:
    """The binding, None where it does not fit the installed llvmlite. `passes`: of the optimiser, by LLVM's names."""
    path = _path()
    if path is None:
        return None
    try:
        return Direct(_Library(path), triple, cpu, options, passes)
    except (OSError, AttributeError, DirectError):
        return None
