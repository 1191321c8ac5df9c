"""Calls of libc without `ctypes`."""

from __future__ import annotations

import ctypes
import errno
import os
import signal

import pytest

from bpfseal.runtime.bridge.libc import Memory, call


def test_integers_bytes_and_results() -> None:
    assert call("getppid") == os.getppid()
    words, said = os.pipe()
    try:
        assert call("write", said, b"hello", 5) == 5
        assert os.read(words, 8) == b"hello"
        copy = call("pidfd_getfd", pidfd := os.pidfd_open(os.getpid()), words, 0)
        assert os.fstat(copy) == os.fstat(words)
        for fd in (copy, pidfd):
            os.close(fd)
    finally:
        os.close(words)
        os.close(said)


def test_errors_are_the_kernels() -> None:
    with pytest.raises(OSError, match="seccomp") as failed:
        call("seccomp", 99, 0, b"")
    assert failed.value.errno == errno.EINVAL
    with pytest.raises(ProcessLookupError):
        call("kill", 1 << 30, signal.SIGCONT)
    with pytest.raises(OSError, match="pidfd_getfd") as failed:
        call("pidfd_getfd", -1, 0, 0)
    assert failed.value.errno == errno.EBADF


def test_memory_is_a_copy() -> None:
    data = bytes(range(256))
    memory = Memory(data)
    assert ctypes.string_at(memory.address, len(data)) == data
