"""Runs a command under the filter and answers its program loads until it has ended."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from bpfseal.runtime.bridge.filter import Command
from bpfseal.runtime.bridge.listener import Listener

if TYPE_CHECKING:
    from bpfseal.runtime.bridge.carrier import Carrier

FORWARDED: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_SIGNALFD_INFO: Final = 128
_SI_KERNEL: Final = 0x80  # typed at the terminal: the whole foreground group has it already
# A command that is still there after this time, and has loaded nothing, has the helper started for it.
_IDLE_MS: Final = 100


class Supervisor:
    """One command; `signing`, `policy` and `unsafe` as in `runtime.sealing.Signing`."""

    def __init__(self, signing: str, policy: str | None, *, unsafe: bool, verbose: bool) -> None:
        self._signing = signing
        self._policy = policy
        self._unsafe = unsafe
        self._verbose = verbose
        self._carrier: Carrier | None = None

    def run(self, argv: Sequence[str]) -> int:
        """Starts `argv`, serves it; its exit status. Raises BpfsealError if it cannot be started or watched, or no
        helper can be had."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        signals = _signalfd(FORWARDED)
        try:
            command = Command(list(argv), before)
            try:
                self._serve(command, signals)
                return command.status()
            finally:
                command.close()
        finally:
            if self._carrier is not None:
                self._carrier.close()
            os.close(signals)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _serve(self, command: Command, signals: int) -> None:
        listener = Listener(command.listener)
        poll = select.poll()
        for fd in (command.listener, command.pidfd, signals):
            poll.register(fd, select.POLLIN)
        while True:
            events = poll.poll(None if self._carrier else _IDLE_MS)
            if not events:
                self._start()
            ready = dict(events)
            if signals in ready:
                _forward(os.read(signals, _SIGNALFD_INFO), command)
            stopped = ready.get(command.listener, 0)
            if stopped & select.POLLIN:
                if (call := listener.receive()) is not None:
                    self._start().answer(listener, call)
            elif command.pidfd in ready:
                return
            elif stopped:  # nobody is left under the filter
                poll.unregister(command.listener)

    def _start(self) -> Carrier:
        if self._carrier is None:
            from bpfseal.runtime.bridge.carrier import Carrier
            from bpfseal.runtime.sealing import Signing

            signing = Signing(mode=self._signing, policy=self._policy, unsafe=self._unsafe)
            self._carrier = Carrier(signing, verbose=self._verbose)
        return self._carrier


def _signalfd(numbers: Sequence[int]) -> int:
    mask = sum(1 << number - 1 for number in numbers)
    libc = ctypes.CDLL(None, use_errno=True)
    words = (ctypes.c_uint64 * 16)(mask)  # sigset_t
    fd: int = libc.signalfd(-1, words, os.O_CLOEXEC)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "signalfd")
    return fd


def _forward(info: bytes, command: Command) -> None:
    """`struct signalfd_siginfo`: number, errno, code."""
    number, _errno, code = struct.unpack_from("<Iii", info)
    if code != _SI_KERNEL:
        command.signal(number)
