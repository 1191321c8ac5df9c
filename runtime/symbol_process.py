"""bcc's symbol tables in a process of their own, `symbol_server`.

- libbcc before 0.33 closes descriptors of the process that it is used in: `ProcSyms::ModulePath` (src/cc/syms.h) has no
  value for `fd_` where a name is used as it is, as with the perf map that bcc_procutils_each_module tries for every
  process, and closes that number if it is positive. Seen: one run of some hundreds lost its standard output. In a
  tracer it could be a map, a link or the helper's socket. The server has one descriptor, 0, which that test spares.
- It reads files that anybody may have written, in C++. If it dies, the trace does not.
- It gets ready (libLLVM is mapped, the kernel's table sorted: 170 ms) while programs are compiled, signed, attached.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import weakref
from _thread import allocate_lock
from contextlib import suppress
from typing import Final

from bpfseal.signer.syscall import syscall

_SERVER: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "symbol_server.py")
_TRIES: Final = 2
_KERNEL: Final = -1


class SymbolProcess:
    """The server, started by `start` or when it is first asked; it ends with this object, or with this process however
    that ends. Safe to use from several threads."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._owner = 0  # who started it: a forked process must not talk to it in between
        self._ready = False
        self._trouble = ""
        self._lock = allocate_lock()
        self._end: weakref.finalize[..., SymbolProcess] | None = None

    def start(self, *, kernel: bool = False) -> None:
        """Begin to get ready, with the kernel's table if it will be asked for. Does not wait; never raises."""
        with self._lock:
            if self._socket is None and not self._trouble:
                with suppress(OSError):  # `look_up` tries again
                    self._spawn(kernel)

    def look_up(self, pid: int, addresses: list[int], *, demangle: bool) -> list[tuple[str, int, str]] | None:
        """(name, offset into it, module) for each address, "" for what is unknown; pid -1 for the kernel. None where
        there is none to be had, see `trouble`, or it dies of these addresses."""
        with self._lock:
            for _ in range(_TRIES):
                if self._trouble:
                    break
                try:
                    if self._owner != os.getpid():
                        self._close()
                    if self._socket is None:
                        self._spawn(pid == _KERNEL)
                except OSError as error:
                    self._trouble = f"cannot start {error.filename or 'a process'}: {error.strerror}"
                    break
                try:
                    return self._ask(pid, addresses, demangle)
                except OSError:
                    self._close()
            return None

    def close(self) -> None:
        """End it. It is started again when something is looked up."""
        with self._lock:
            self._close()

    @property
    def trouble(self) -> str:
        """Why there will be no names, "" for nothing."""
        return self._trouble

    def _close(self) -> None:
        self._socket = None
        self._ready = False
        if self._end is not None:
            self._end()
            self._end = None

    def _spawn(self, kernel: bool) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            child = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", _SERVER, *(["kernel"] if kernel else [])],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
                setpgroup=0,  # Ctrl-C is for us; it ends with us
                setsigmask=[],
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            pidfd = syscall("pidfd_open", child, 0)
        except OSError:  # it ends with the socket
            ours.close()
            os.waitpid(child, 0)
            raise
        self._owner = os.getpid()
        self._end = weakref.finalize(self, _end, ours, child, pidfd, self._owner)
        self._socket, self._ready = ours, False

    def _ask(self, pid: int, addresses: list[int], demangle: bool) -> list[tuple[str, int, str]]:
        from bpfseal.runtime.symbol_server import ANSWER, LENGTH, REQUEST

        if not self._ready:
            if self._read(1) == b"0":
                self._trouble = "install libbpfcc to see names instead of addresses"
                raise OSError("no libbcc")
            self._ready = True
        assert self._socket is not None
        words = b"".join(address.to_bytes(8, sys.byteorder) for address in addresses)
        self._socket.sendall(REQUEST.pack(pid, demangle, len(addresses)) + words, socket.MSG_NOSIGNAL)
        data = self._read(LENGTH.unpack(self._read(LENGTH.size))[0])
        found, at = [], 0
        for _ in addresses:
            offset, name, module = ANSWER.unpack_from(data, at)
            at += ANSWER.size
            texts = (data[at : at + name], data[at + name : at + name + module])
            at += name + module
            found.append(
                (texts[0].decode("utf-8", "surrogateescape"), offset, texts[1].decode("utf-8", "surrogateescape"))
            )
        return found

    def _read(self, size: int) -> bytes:
        assert self._socket is not None
        data = self._socket.recv(size, socket.MSG_WAITALL) if size else b""
        if len(data) != size:
            raise ConnectionResetError("the symbol server has ended")
        return data


def _end(ours: socket.socket, child: int, pidfd: int, owner: int) -> None:
    """Nothing of it is left when this returns; in a process forked since, it is left alone."""
    ours.close()
    if os.getpid() == owner:
        with suppress(OSError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        with suppress(OSError):
            os.waitpid(child, 0)
    os.close(pidfd)
