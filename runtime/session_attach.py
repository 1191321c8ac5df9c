"""The probes of a session: those of begin and end are run, the others attached, and all are taken away again."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from bpfseal.errors import BpfsealError

if TYPE_CHECKING:
    from bpfseal.runtime.attach import AttachContext, Link
    from bpfseal.runtime.session import Session
    from bpfseal.signer.bundle import Attach


class Probes:
    """Of one loaded session, whose descriptors these are. `attached`: points that are, or will have been at the end."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.attached = 0
        self._skipped = 0
        self.specs = [(i, attach) for i, program in enumerate(session.bundle.programs) for attach in program.attach]
        self._links: list[Link] = []
        self._watchpoints: dict[int, list[Link]] = {}  # by the address, for unwatch()
        self._signals: list[tuple[Attach, int]] = []
        self._previous: dict[int, Any] = {}

    @property
    def any(self) -> bool:
        """Whether one is attached that something can happen to."""
        return len(self._links) > self._skipped or bool(self._signals)

    def run(self, phase: str, after: Callable[[], object] | None = None) -> None:
        """Run the probes of `phase` (begin, end) in their order, `after` behind each."""
        from bpfseal.runtime.attach import run_once

        for index, attach in self.specs:
            if attach.phase == phase and attach.kind == "test_run":
                run_once(attach, self._session.program_fd(index))
                self.attached += phase == "begin"
                if after is not None:
                    after()

    def count(self, phase: str) -> int:
        return sum(attach.phase == phase for _, attach in self.specs)

    def attach(self, *, exited: bool) -> None:
        """Attach all that are. Where the script has `exited` they are counted and no more. Raises BpfsealError."""
        from bpfseal.runtime.attach import AttachContext, Link

        session = self._session
        context = AttachContext(
            pid=session.child.pid if session.child else session.pid,
            child=session.child is not None,
            map_fd=session.map_fd,
        )
        places: set[tuple[int, str]] = set()  # a usdt probe counts once, in however many places it is
        for index, spec in self.specs:
            if spec.phase == "attach":
                if session.stopping:
                    break
                if spec.kind == "signal":
                    self._signals.append((spec, index))
                elif not exited:
                    made = session.take_link(index)
                    link = Link(spec.probe, [made]) if made >= 0 else self._attach(spec, index, context)
                    self._links.append(link)
                    if spec.kind == "watchpoint":
                        self._watchpoints.setdefault(spec.params.get("address", 0), []).append(link)
                if spec.kind != "usdt" or (index, spec.probe) not in places:
                    self.attached += max(1, len(spec.symbols), len(spec.offsets))
                places.add((index, spec.probe))
            elif spec.phase == "end":
                self.attached += 1
        if self._signals and not exited:
            self._listen()

    def _attach(self, spec: Attach, index: int, context: AttachContext) -> Link:
        """One probe. Where config missing_probes allows that the kernel does not take it, without those functions that
        it cannot trace, or a link without anything: the types that the kernel tells of have functions that the compiler
        has put into others. Raises AttachError."""
        from bpfseal.runtime.attach import AttachError, Link, attach

        program = self._session.program_fd(index)
        try:
            return attach(spec, program, context)
        except AttachError as error:
            if self._session.reader.config.get("missing_probes", "error") == "error":
                raise
            failure = error
        left = _existing(spec) if spec.kind == "kprobe_multi" and failure.code == errno.ESRCH else None
        if left is not None:
            try:
                link = attach(left, program, context)
            except AttachError as error:
                failure = error
            else:
                gone = (f"{spec.probe.partition(':')[0]}:{name}" for name in spec.symbols if name not in left.symbols)
                self._skip(f"Unable to attach probe: {', '.join(gone)}", len(spec.symbols) - len(left.symbols))
                return link
        self._skip(failure.message, max(1, len(spec.symbols), len(spec.offsets)))
        self._skipped += 1
        return Link(spec.probe)

    def _skip(self, message: str, count: int) -> None:
        self.attached -= count
        if self._session.reader.config.get("missing_probes") == "warn":
            sys.stderr.write(f"WARNING: {message}. Skipping.\n")

    def _listen(self) -> None:
        """Run the probes of signals when the signals come; only the main thread can."""
        import signal
        import threading

        if threading.current_thread() is not threading.main_thread():
            raise BpfsealError("probes of signals need the main thread")
        for number in {spec.params.get("signal", signal.SIGUSR1) for spec, _ in self._signals}:
            self._previous[number] = signal.signal(number, lambda number, frame: self._signalled(number))

    def _signalled(self, number: int) -> None:
        from bpfseal.runtime.attach import run_once

        for spec, index in self._signals:
            if spec.params.get("signal", 10) == number and not self._session.stopping:
                run_once(spec, self._session.program_fd(index))

    def iterate(self, after: Callable[[], object]) -> bool:
        """Read the iterators to their ends, calling `after` behind each piece; whether there was nothing but
        iterators."""
        iterators = [link for link in self._links if link.iterator >= 0]
        for link in iterators:
            while not self._session.stopping:
                try:
                    data = os.read(link.iterator, 1 << 16)
                except InterruptedError:
                    continue
                after()
                if not data:
                    break
        return bool(iterators) and len(iterators) == len(self._links)

    def unwatch(self, address: int) -> None:
        """Take the watchpoints at `address` away, if there are any."""
        from bpfseal.runtime.attach import detach_all

        gone = self._watchpoints.pop(address, [])
        self._links = [link for link in self._links if not any(link is one for one in gone)]
        detach_all(gone)

    def missed(self) -> dict[str, int]:
        """What the kernel has counted on links, by the probe: functions that were reached while another such probe was
        handled on that CPU (bpf_link_info, since Linux 6.7). It goes with the links."""
        if not any(spec.kind in ("kprobe", "kprobe_multi") for _, spec in self.specs):
            return {}
        from bpfseal.runtime.bpf_info import link_info

        found: dict[str, int] = {}
        for link in self._links:
            for fd in link.fds:
                try:
                    missed = link_info(fd).missed
                except OSError:  # a descriptor that is no link
                    continue
                if missed:
                    found[link.probe] = found.get(link.probe, 0) + missed
        return found

    def detach(self) -> None:
        """Idempotent."""
        if self._previous:
            import signal

            for number, handler in self._previous.items():
                signal.signal(number, handler)
            self._previous.clear()
        links, self._links = self._links, []
        if links:
            from bpfseal.runtime.attach import detach_all

            detach_all(links)


def _existing(spec: Attach) -> Attach | None:
    """A link to many functions without those that cannot be traced; None when nothing is left, or nothing is gone."""
    from bpfseal.runtime.probes.world import World

    functions = World().functions
    kept = [n for n, name in enumerate(spec.symbols) if functions.has(name, None)]
    if len(kept) in (0, len(spec.symbols)):
        return None
    symbols = tuple(spec.symbols[n] for n in kept)
    return replace(spec, symbols=symbols, cookies=tuple(spec.cookies[n] for n in kept if n < len(spec.cookies)))
