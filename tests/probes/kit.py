"""Hand-made programs that count, so that attaching is tested without the compiler."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpfseal.runtime import bpf
from bpfseal.signer import asm
from bpfseal.signer.asm import Asm, R
from bpfseal.signer.bpf import map_create, prog_load

KPROBE, TRACEPOINT, XDP, PERF_EVENT, RAW_TRACEPOINT, TRACING, SCHED_CLS = 2, 5, 6, 7, 17, 26, 3
GET_CURRENT_PID_TGID, GET_ATTACH_COOKIE = 14, 174


def can_trace() -> bool:
    """Whether this process may load a program at all."""
    try:
        os.close(prog_load(RAW_TRACEPOINT, _exit_code()))
    except OSError:
        return False
    return True


def _exit_code() -> bytes:
    program = Asm()
    program.ret(0)
    return program.code()


needs_bpf = pytest.mark.skipif(not can_trace(), reason="needs root and bpf(2)")


@dataclass
class Counter:
    """A loaded program and the map that it counts in: runs, then the sum of cookies."""

    prog: int
    map: int

    @property
    def count(self) -> int:
        return self._slot(0)

    @property
    def cookies(self) -> int:
        return self._slot(1)

    def _slot(self, index: int) -> int:
        value = bpf.map_lookup(self.map, bytes(4), 16)
        assert value is not None
        words: tuple[int, int] = struct.unpack("<QQ", value)
        return words[index]


@contextmanager
def counter(
    type: int,
    *,
    attach_type: int = 0,
    btf_id: int = 0,
    pid: int = 0,
    context_word: tuple[int, int] | None = None,
    cookie: bool = False,
    result: int = 0,
) -> Iterator[Counter]:
    """A program of `type` that adds one for each run; with `pid` only in that process, with `context_word` only when
    the u64 at that offset of the context has that value."""
    fd = map_create(2, 4, 16, 1)
    try:
        code = Asm()
        code.mov(R.R6, R.R1)
        if pid:
            code.call(GET_CURRENT_PID_TGID)
            code.alu("rsh", R.R0, 32)
            code.jump_if(R.R0, "!=", pid, "out")
        if context_word is not None:
            code.ldx(8, R.R1, R.R6, context_word[0])
            code.jump_if(R.R1, "!=", context_word[1], "out")
        code.ld_pseudo(R.R7, asm.PSEUDO_MAP_VALUE, fd, 0)
        code.mov(R.R1, 1)
        code.atomic_add(8, R.R7, 0, R.R1)
        if cookie:
            code.mov(R.R1, R.R6)
            code.call(GET_ATTACH_COOKIE)
            code.ld_pseudo(R.R7, asm.PSEUDO_MAP_VALUE, fd, 8)
            code.atomic_add(8, R.R7, 0, R.R0)
        code.label("out")
        code.ret(result)
        log = ctypes.create_string_buffer(65536)
        try:
            prog = prog_load(
                type, code.code(), expected_attach_type=attach_type, attach_btf_id=btf_id, log=log, log_level=1
            )
        except OSError as error:
            raise AssertionError(f"{error}: {log.value.decode()}") from error
        try:
            yield Counter(prog, fd)
        finally:
            os.close(prog)
    finally:
        os.close(fd)


def compile_c(path: Path, source: str, *flags: str) -> Path:
    """An executable (or whatever the flags make) from C source."""
    path.with_suffix(".c").write_text(source)
    subprocess.run(["gcc", "-O0", "-o", str(path), str(path.with_suffix(".c")), *flags], check=True)
    return path
