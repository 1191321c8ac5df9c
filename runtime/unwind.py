"""What dw_ustack() needs of its processes: the files that they have mapped, as tables in the kernel.

A `-c` child is run as far as its entry point before anything is attached, where its libraries are there and none of its
own code has run but theirs; as in bpftrace. It is stopped there by a breakpoint until `go`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from bpfseal.compiler.unwind import CHUNK, MAPPING, MAPPINGS, ROW
from bpfseal.errors import BpfsealError

if TYPE_CHECKING:
    from bpfseal.runtime.child import Child
    from bpfseal.runtime.session import Session

# include/uapi/linux/ptrace.h
_CONT, _DETACH, _SEIZE, _POKEUSER = 7, 17, 0x4206, 6
_TRACE_EXEC, _EVENT_EXEC, _EXIT_KILL = 1 << 4, 4, 1 << 20
_IP: Final = 16 * 8  # in struct user of x86-64, arch/x86/include/asm/user_64.h
_AT_ENTRY: Final = 9
_BREAKPOINT: Final = b"\xcc"
_MAPPING: Final = struct.Struct("<QQQII")
_UNUSED: Final = _MAPPING.pack((1 << 64) - 1, 0, 0, 0, 0)


class Unwinder:
    """The tables of one session. Raises BpfsealError when there is no process that they could be about."""

    def __init__(self, session: Session) -> None:
        self._mappings, self._rows = (session.map_fd(index) for index in session.reader.unwind)
        self._files: dict[tuple[int, int], tuple[int, int]] = {}
        self._last = b""  # the rows of the chunk that is not full yet
        self._count = 0
        self._child: Child | None = None
        pids = [pid for pid in (session.pid, *session.dwarf_pids) if pid]
        if session.child is not None:
            self._run_to_entry(session.child)
            if session.child.status is None:
                pids.append(session.child.pid)
        elif not pids:
            raise BpfsealError("dw_ustack requires a target process", hint="use -p, -c, or --dwarf-pid to say which")
        for pid in dict.fromkeys(pids):
            self.add(pid)

    def add(self, pid: int) -> None:
        """Everything executable that a process has mapped now. Raises BpfsealError when it is not there."""
        from bpfseal.runtime import bpf

        try:
            with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
                lines = file.read().splitlines()
        except OSError as error:
            raise BpfsealError(f"cannot read what process {pid} has mapped: {error.strerror}") from None
        found = []
        for line in lines:
            fields = line.split(None, 5)
            if len(fields) == 6 and "x" in fields[1] and fields[5].startswith("/"):
                start, end = (int(part, 16) for part in fields[0].split("-"))
                mapping = self._mapping(pid, fields[0], fields[5], start, end, int(fields[2], 16))
                if mapping:
                    found.append(mapping)
        if len(found) > MAPPINGS:
            raise BpfsealError(
                f"process {pid} has {len(found)} executable mappings, dw_ustack() knows {MAPPINGS} at most"
            )
        value = b"".join(found) + _UNUSED * (MAPPINGS - len(found))
        assert len(value) == MAPPINGS * MAPPING
        bpf.map_update(self._mappings, struct.pack("<I", pid), value)

    def _mapping(self, pid: int, span: str, path: str, start: int, end: int, offset: int) -> bytes:
        """A row of the table, empty for files that cannot be read."""
        from bpfseal.runtime.elf import Elf

        for name in (f"/proc/{pid}/map_files/{span}", f"/proc/{pid}/root{path}"):
            try:
                status = os.stat(name)
                elf = Elf(name)
                break
            except (OSError, BpfsealError):
                continue
        else:
            return b""
        address = elf.to_address(offset)
        if address is None:
            return b""
        identity = (status.st_dev, status.st_ino)
        if identity not in self._files:
            self._files[identity] = self._put(elf)
        return _MAPPING.pack(start, end, start - address, *self._files[identity])

    def _put(self, elf: object) -> tuple[int, int]:
        """The rows of a file behind those that are there; the first one's number, and how many."""
        from bpfseal.runtime import bpf
        from bpfseal.runtime.elf import Elf
        from bpfseal.runtime.unwind_tables import rows

        assert isinstance(elf, Elf)
        data = rows(elf)
        first = self._count
        self._count += len(data) // ROW
        data = self._last + data
        chunk, size = first // CHUNK, CHUNK * ROW
        for at in range(0, len(data), size):
            bpf.map_update(self._rows, struct.pack("<I", chunk), data[at : at + size].ljust(size, b"\xff"))
            chunk += 1
        self._last = data[len(data) // size * size :]
        return first, self._count - first

    # --- the child ---------------------------------------------------------------------------------------------------

    def go(self) -> None:
        """Let the child run from its entry point."""
        child, self._child = self._child, None
        if child is not None:
            with suppress(OSError):  # it was killed meanwhile
                _ptrace(_DETACH, child.pid)

    def _run_to_entry(self, child: Child) -> None:
        pid = child.pid
        try:
            _ptrace(_SEIZE, pid, 0, _TRACE_EXEC | _EXIT_KILL)
        except OSError as error:
            raise BpfsealError(f"cannot stop the command where its libraries are loaded: {error.strerror}") from None
        child.release()
        if not self._stopped(child, _EVENT_EXEC):
            return
        entry = _entry(pid)
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(entry)
            before = memory.read(1)
            memory.seek(entry)
            memory.write(_BREAKPOINT)
            _ptrace(_CONT, pid)
            if not self._stopped(child, 0):
                return
            memory.seek(entry)
            memory.write(before)
        _ptrace(_POKEUSER, pid, _IP, entry)
        self._child = child

    def _stopped(self, child: Child, event: int) -> bool:
        """Wait for the stop: at exec, or (0) at the breakpoint. False when the child ended before."""
        while True:
            _, status = os.waitpid(child.pid, 0)
            if not os.WIFSTOPPED(status):
                child.status = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                return False
            number = os.WSTOPSIG(status)
            if number == signal.SIGTRAP and status >> 16 == event:
                return True
            _ptrace(_CONT, child.pid, 0, 0 if number == signal.SIGTRAP or status >> 16 else number)


def _entry(pid: int) -> int:
    """Where the program itself begins, behind its loader."""
    with open(f"/proc/{pid}/auxv", "rb") as file:
        data = file.read()
    for kind, value in struct.iter_unpack("<QQ", data):
        if kind == _AT_ENTRY:
            return int(value)
    raise BpfsealError(f"the kernel does not tell where process {pid} begins")


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> None:
    """ptrace(2). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    words = (ctypes.c_long(pid), ctypes.c_void_p(address), ctypes.c_void_p(data))
    if libc.ptrace(ctypes.c_long(request), *words) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "ptrace")
