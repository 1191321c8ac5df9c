"""C++ names as people write them, by the C++ runtime's own demangler (Itanium C++ ABI, __cxa_demangle)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Final

_LIBRARIES: Final = ("libstdc++.so.6", "libc++abi.so.1", "libbcc.so.0")


def is_mangled(symbol: str) -> bool:
    """Whether a symbol can be a C++ name: _Z…, and ___Z… for blocks."""
    return symbol.startswith(("_Z", "____Z"))


def demangle(symbol: str) -> str | None:
    """`ns::Class::method(int)`; None when it is no C++ name or there is no demangler."""
    function = _demangler()
    return function(symbol) if function is not None and is_mangled(symbol) else None


def available() -> bool:
    """Whether one of the libraries is there."""
    return _demangler() is not None


def without_parameters(name: str) -> str:
    """A demangled name up to its parameter list: "a::f(int)::g() const" gives "a::f(int)::g"."""
    if not name.rstrip().endswith(")") and ")" not in name:
        return name
    end = name.rfind(")")
    depth = 0
    for at in range(end, -1, -1):
        if name[at] == ")":
            depth += 1
        elif name[at] == "(":
            depth -= 1
            if not depth:
                return name[:at]
    return name


@lru_cache(maxsize=1)
def _demangler() -> Callable[[str], str | None] | None:
    for name in _LIBRARIES:
        try:
            return _bind(ctypes.CDLL(name))
        except (OSError, AttributeError):
            continue
    return None


def _bind(library: ctypes.CDLL) -> Callable[[str], str | None]:
    function, free = library.__cxa_demangle, ctypes.CDLL(None).free
    function.restype = ctypes.c_void_p
    function.argtypes = (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))
    free.argtypes = (ctypes.c_void_p,)

    def call(symbol: str) -> str | None:
        status = ctypes.c_int()
        pointer = function(os.fsencode(symbol), None, None, ctypes.byref(status))
        if not pointer:
            return None
        try:
            return ctypes.string_at(pointer).decode("utf-8", "replace") if status.value == 0 else None
        finally:
            free(pointer)

    return call
