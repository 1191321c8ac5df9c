"""Names of addresses from bcc's symbol tables (libbcc), as a program of its own: `python -I -S symbol_server.py`.

`runtime.symbol_process` starts it and says why it is one. Descriptor 0 is a stream socket; the program ends when the
other end is closed. It says b"1" once the library is loaded, or b"0" when there is none. Then, in the machine's byte
order,

    request   i32 process (-1: the kernel), u32 whether to demangle, u32 n, n × u64 addresses
    reply     u32 bytes that follow, n × (u64 offset, u32 length of the name, u32 length of the module, name, module)

An unknown address has no name; its module is there where that much is known. Imports nothing of bpfseal.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys

LIBRARY = "libbcc.so.0"
REQUEST = struct.Struct("=iII")
ANSWER = struct.Struct("=QII")
LENGTH = struct.Struct("=I")
KERNEL = -1


class Symbol(ctypes.Structure):
    """struct bcc_symbol (bcc, src/cc/bcc_syms.h)."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("demangled", ctypes.c_char_p),
        ("module", ctypes.c_char_p),
        ("offset", ctypes.c_uint64),
    )


class Tables:
    """One table per process, read when it is first asked for. Raises OSError where there is no library."""

    def __init__(self) -> None:
        self._lib = lib = ctypes.CDLL(LIBRARY)
        lib.bcc_symcache_new.restype = ctypes.c_void_p
        lib.bcc_symcache_new.argtypes = (ctypes.c_int, ctypes.c_void_p)
        for function in (lib.bcc_symcache_resolve, lib.bcc_symcache_resolve_no_demangle):
            function.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.POINTER(Symbol))
        lib.bcc_symbol_free_demangle_name.argtypes = (ctypes.POINTER(Symbol),)
        self._tables: dict[int, int | None] = {}

    def find(self, pid: int, address: int, demangle: bool) -> tuple[bytes, int, bytes]:
        """(name, offset into it, module); without a name the offset is of no use."""
        if pid not in self._tables:
            self._tables[pid] = self._lib.bcc_symcache_new(pid, None)
        table = self._tables[pid]
        if table is None:
            return b"", 0, b""
        symbol = Symbol()
        resolve = self._lib.bcc_symcache_resolve if demangle else self._lib.bcc_symcache_resolve_no_demangle
        found = resolve(table, address, ctypes.byref(symbol)) >= 0
        module = symbol.module or b""
        if not found:
            return b"", symbol.offset, module
        if not demangle:
            return symbol.name or b"", symbol.offset, module
        name = symbol.demangled or b""
        self._lib.bcc_symbol_free_demangle_name(ctypes.byref(symbol))
        return name, symbol.offset, module


def main() -> None:
    os.closerange(3, 1 << 30)  # what a shell gave to the tracer, or to whoever started it
    channel = socket.socket(fileno=0)
    try:
        tables = Tables()
    except OSError:
        channel.sendall(b"0")
        return
    channel.sendall(b"1")
    file = channel.makefile("rb")
    if len(sys.argv) > 1:
        tables.find(KERNEL, 0, False)  # by the time that anybody asks it has been read
    while len(head := file.read(REQUEST.size)) == REQUEST.size:
        pid, demangle, count = REQUEST.unpack(head)
        addresses = struct.unpack(f"={count}Q", file.read(8 * count))
        parts: list[bytes] = []
        for address in addresses:
            name, offset, module = tables.find(pid, address, bool(demangle))
            parts += (ANSWER.pack(offset, len(name), len(module)), name, module)
        reply = b"".join(parts)
        channel.sendall(LENGTH.pack(len(reply)) + reply)


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, ConnectionResetError):
        pass  # nobody listens any more
