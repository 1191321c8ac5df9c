"""Signals reach a trace in which nothing happens, whatever the moment at which they come."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

import bpfseal

pytestmark = pytest.mark.host


def test_a_signal_that_interrupts_nothing(bpf_permitted: None) -> None:
    """A handler runs between two instructions of the interpreter. A signal that comes after the last of them, before
    the thread sleeps in the kernel, interrupts nothing; here every time: another thread takes it."""
    came: list[float] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: came.append(time.monotonic()))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        with bpfseal.trace("interval:s:1000 { @ = count(); }") as trace:

            def send() -> None:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
                time.sleep(0.3)
                os.kill(os.getpid(), signal.SIGUSR1)
                time.sleep(0.1)

            thread = threading.Thread(target=send)
            thread.start()
            begin = time.monotonic()
            while not came and time.monotonic() - begin < 20:
                trace.poll(20)
            thread.join()
            assert came
            assert came[0] - begin < 10
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGUSR1, before)
    assert signal.set_wakeup_fd(-1) == -1


def test_somebody_elses_loop_keeps_its_wake_up(bpf_permitted: None) -> None:
    """An event loop that waits for signals itself (asyncio's) goes on to."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write)
    try:
        with bpfseal.trace("interval:s:1000 { @ = count(); }"):
            assert signal.set_wakeup_fd(write) == write
        assert signal.set_wakeup_fd(-1) == write
    finally:
        signal.set_wakeup_fd(-1)
        os.close(read)
        os.close(write)
