"""The few calls that are made before a command runs, without `ctypes`: its classes take longer to make than all that
has to happen before that. `_ctypes`, the part of it in C, is enough for calling functions of libc.
"""

from __future__ import annotations

import _ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_ARM: Final = os.uname().machine == "aarch64"
_NUMBERS: Final = {"seccomp": 277 if _ARM else 317, "pidfd_getfd": 438}
_LIBC: Final = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "l"


class _Char(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "c"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Int


def call(name: str, *args: int | bytes) -> int:
    """The function `name` of libc, or the system call where libc has none. Integers are passed as `long`, bytes by
    address: they must only be read. Raises OSError."""
    number = _NUMBERS.get(name)
    function = _Function(_ctypes.dlsym(_LIBC, name if number is None else "syscall"))
    given = args if number is None else (number, *args)
    result: int = function(*[_Long(a) if isinstance(a, int) else a for a in given])
    if result == -1:
        code = _ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
    return result


class Memory:
    """A copy of `data` at `address`, as long as this object lives."""

    def __init__(self, data: bytes) -> None:
        array = type("_Array", (_ctypes.Array,), {"_type_": _Char, "_length_": len(data)})
        self._copy = array.from_buffer_copy(data)  # type: ignore[attr-defined]
        self.address: int = _ctypes.addressof(self._copy)
