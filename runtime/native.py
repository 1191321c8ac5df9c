"""A consumer of the event ring in machine code, for traces that say more than Python can format.

Formatting a line takes Python about two microseconds; a busy trace produces one in half of that. So when batches get
large the session has a small function compiled (llvmlite, which is here anyway) that walks the ring and writes the
lines of its printf sites into a buffer. Records of other kinds, and of formats that it does not know, it leaves to
Python one by one, so that the order of the output stays that of the ring.

Its text is Python's to the byte; tests/session/test_native.py holds the two against each other.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any, Final

from bpfseal.runtime.native_code import Program, program
from bpfseal.runtime.ring import RingReader

EMPTY, FOREIGN, FULL = 0, 1, 2

_ROOM: Final = 1 << 18
# Members of the state, in 64-bit words; native_walk knows them too.
_POSITION, _USED, _COUNT = 4, 7, 8


class NativeConsumer:
    """Walks one ring. Raises nothing but what writing raises once it is made; making it raises ImportError, OSError
    or RuntimeError where there is no compiler for this machine."""

    def __init__(self, ring: RingReader, events: Any, descriptor: int, *, json: bool = False) -> None:
        """`events`: Reader.events; `descriptor`: where the lines go; `json`: lines of JSON instead of text."""
        made = program(events, json=json)
        if made is None:
            raise RuntimeError("no event that could be written natively")
        self._descriptor = descriptor
        self._ring = ring
        self._engine, address = _compile(made)
        self._consume = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(address)
        # The producer's pages may be mapped for reading only, and Python does not tell where such a mapping is.
        self._size = mmap.PAGESIZE + 2 * ring.size
        self._pages = map_ring(ring.fd, self._size)
        self._consumer = (ctypes.c_char * 8).from_buffer(ring.consumer)
        self._room = _ROOM + made.bound
        self._out = ctypes.create_string_buffer(self._room)
        self._view = memoryview(self._out).cast("B")
        self._state = (ctypes.c_uint64 * 10)(
            self._pages + mmap.PAGESIZE, ring.size - 1, self._pages, ctypes.addressof(self._consumer),
            0, ctypes.addressof(self._out), self._room, 0, 0, ring.size >> 2,
        )  # fmt: skip

    def run(self) -> tuple[int, int]:
        """Write what is there, at most a buffer full. (EMPTY, FULL, or FOREIGN when Python has to handle the next
        record; records that were handled)."""
        state = self._state
        state[_POSITION], state[_USED], state[_COUNT] = self._ring.position, 0, 0
        reason: int = self._consume(ctypes.addressof(state))
        self._ring.position = state[_POSITION]
        at, end = 0, state[_USED]
        while at < end:
            at += os.write(self._descriptor, self._view[at:end])
        return reason, state[_COUNT]

    def close(self) -> None:
        if self._pages:
            del self._consumer
            self._view.release()
            unmap_ring(self._pages, self._size)
            self._pages = 0


def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


def map_ring(fd: int, size: int) -> int:
    """Address of the producer's page and the data behind it, for reading. Raises OSError."""
    found: int | None = _libc().mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, mmap.PAGESIZE)
    if found is None or found == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found


def unmap_ring(address: int, size: int) -> None:
    _libc().munmap(address, size)


def _compile(made: Program) -> tuple[Any, int]:
    return compile_function(made.text, "consume")


def compile_function(text: str, name: str) -> tuple[Any, int]:
    """(what keeps the code alive, address of the function `name` of the IR `text`)."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(text)
    machine = llvm.Target.from_default_triple().create_target_machine(opt=2)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine, engine.get_function_address(name)
