"""Runs a command under the filter and answers its program loads until it has ended.

The command is started before anything is imported that it does not wait for. What its first program will need is made
ready while it starts: the signing helper first, which takes longest, then the modules that carry programs over.
"""

from __future__ import annotations

import os

from bpfseal.runtime.bridge.filter import Command
from bpfseal.runtime.bridge.libc import call

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Sequence
    from typing import Final

    from bpfseal.runtime.bridge.carrier import Carrier
    from bpfseal.runtime.bridge.listener import Listener
    from bpfseal.runtime.sealing import Sealer
else:
    import _signal as signal

FORWARDED: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_SIGNALFD_INFO: Final = 128
_SI_KERNEL: Final = 0x80  # typed at the terminal: the whole foreground group has it already
# A command that ends before this time cannot have wanted more than to say how it is used.
_GRACE_MS: Final = 2


class Supervisor:
    """One command; `signing`, `policy` and `unsafe` as in `runtime.sealing.Signing`."""

    def __init__(self, signing: str, policy: str | None, *, unsafe: bool, verbose: bool) -> None:
        self._signing = signing
        self._policy = policy
        self._unsafe = unsafe
        self._verbose = verbose
        self._listener: Listener | None = None
        self._sealer: Sealer | None = None
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
            if self._sealer is not None:
                self._sealer.close()
            os.close(signals)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _serve(self, command: Command, signals: int) -> None:
        import select

        poll = select.poll()
        for fd in (command.listener, command.pidfd, signals):
            poll.register(fd, select.POLLIN)
        while True:
            events = poll.poll(None if self._carrier else _GRACE_MS if self._sealer is None else 0)
            if not events:
                self._prepare(command)
            ready = dict(events)
            if signals in ready:
                _forward(os.read(signals, _SIGNALFD_INFO), command)
            stopped = ready.get(command.listener, 0)
            if stopped & select.POLLIN:
                while self._carrier is None or self._listener is None:
                    self._prepare(command)
                if (call := self._listener.receive()) is not None:
                    self._carrier.answer(self._listener, call)
            elif command.pidfd in ready:
                return
            elif stopped:  # nobody is left under the filter
                poll.unregister(command.listener)

    def _prepare(self, command: Command) -> None:
        """The next step towards carrying programs over: the helper's start, then everything else."""
        if self._sealer is None:
            from bpfseal.runtime.cli import import_lightly

            import_lightly()
            from bpfseal.runtime.sealing import Sealer, Signing

            signing = Signing(mode=self._signing, policy=self._policy, unsafe=self._unsafe)
            self._sealer = Sealer(signing)
            self._sealer.start()
        elif self._carrier is None:
            from bpfseal.runtime.bridge.carrier import Carrier
            from bpfseal.runtime.bridge.listener import Listener

            self._listener = Listener(command.listener)
            self._carrier = Carrier(self._sealer, verbose=self._verbose)


def _signalfd(numbers: Sequence[int]) -> int:
    mask = sum(1 << number - 1 for number in numbers)
    return call("signalfd", -1, mask.to_bytes(128, "little"), os.O_CLOEXEC)  # sigset_t is 1024 bits


def _forward(info: bytes, command: Command) -> None:
    """`struct signalfd_siginfo`: number, errno, code."""
    import struct

    number, _errno, code = struct.unpack_from("<Iii", info)
    if code != _SI_KERNEL:
        command.signal(number)
