"""A running trace: owns every kernel object of one loaded bundle, and closes them all.

    with Session(bundle, sealed) as session:
        session.start(sink)
        session.run()

Order of life, as in bpftrace: load, BEGIN, attach, let the -c child go, events until exit()/stop()/end of the target,
detach, END, the rest of the rings, then the maps are read. Nothing is pinned; a killed process leaves nothing behind.

What it consists of: `session_attach` (probes), `session_events` (rings), `session_counts` (what did not happen),
`session_stacks` (what stack numbers stand for).
"""

from __future__ import annotations

import os
import select
import struct
import time
from types import TracebackType
from typing import TYPE_CHECKING

from bpfseal.compiler import layout
from bpfseal.compiler.layout import Reader
from bpfseal.errors import BpfsealError
from bpfseal.runtime import wakeup
from bpfseal.runtime.load import Loaded, load
from bpfseal.runtime.maps import Maps
from bpfseal.runtime.session_attach import Probes
from bpfseal.runtime.session_counts import Counts
from bpfseal.runtime.session_events import Events, shows_addresses
from bpfseal.signer.bundle import Bundle, SealedBundle

if TYPE_CHECKING:
    from bpfseal.runtime.child import Child
    from bpfseal.runtime.deferred import Account
    from bpfseal.runtime.mappings import Mappings
    from bpfseal.runtime.session_sink import Consumer as Consumer
    from bpfseal.runtime.session_sink import Sink as Sink
    from bpfseal.runtime.unwind import Unwinder
    from bpfseal.runtime.values import StackValue

# How often a busy session looks whether events were lost.
_LOOK_SECONDS = 0.5


class Session:
    """See the module docstring. Not safe for use from several threads, except for `stop()`."""

    events: Events
    probes: Probes
    counts: Counts

    def __init__(
        self,
        bundle: Bundle,
        sealed: SealedBundle,
        *,
        pid: int = 0,
        command: str | None = None,
        dwarf_pids: tuple[int, ...] = (),
        log_level: int = 0,
    ) -> None:
        """Load the bundle; nothing runs yet. `dwarf_pids`: further processes for dw_ustack(). Raises BpfsealError
        (VerifierRejected and others)."""
        from bpfseal.compiler.layout import decode

        self.bundle = bundle
        self.sealed = sealed
        self.reader: Reader = decode(bundle.reader)
        self.sink: Sink | None = None
        self.status = 0
        self.started_ns = 0
        self.mappings: Mappings | None = None  # of processes, for scripts that show their addresses
        self.hurried = False
        self.pid = pid
        self.dwarf_pids = dwarf_pids
        self._unwinder: Unwinder | None = None
        self._iterating = self._exits = False
        self.child: Child | None = None
        self._looked = 0.0
        self._stopping = False
        self._finished = False
        self._closed = False
        self._opened = False
        self._epoll: select.epoll | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._target_fd = -1
        self._signal_fd = -1
        self._loaded: Loaded | None = None
        try:
            if command is not None:
                from bpfseal.runtime.child import Child

                self.child = Child(command)
            self._loaded = load(bundle, sealed, log_level=log_level)
            self.maps = Maps(self.reader, tuple(self._loaded.map_fds))
            self.probes = Probes(self)
            self.counts = Counts(self)
            self.events = Events(self)
            self._opened = True
            self._epoll = select.epoll()
            self._epoll.register(self._wake, select.EPOLLIN)
            for ring in self.events.rings:
                self._epoll.register(ring.fd, select.EPOLLIN)
            self._signal_fd = wakeup.acquire()
            if self._signal_fd >= 0:
                self._epoll.register(self._signal_fd, select.EPOLLIN)
        except BaseException:
            self.close()
            raise

    # --- life ----------------------------------------------------------------------------------------------------

    def rehearse(self, sink: Sink) -> None:
        """Attach everything and be done with it: nothing of the script runs for its own sake. Raises BpfsealError."""
        self.sink = sink
        self.events.bind(sink)
        self._write_session_map()
        self.probes.attached = self.probes.count("begin")
        self.probes.attach(exited=False)
        sink.attached(self.attached)
        self._finished = self._stopping = True
        self.probes.detach()

    def start(self, sink: Sink) -> None:
        """Run BEGIN, attach everything, let the child go. Raises BpfsealError, after which `close()` is due."""
        if self.reader.unwind:
            from bpfseal.runtime.unwind import Unwinder

            self._unwinder = Unwinder(self)
        self.begin(sink)
        held = self.events.hold()
        if not self.events.exited:
            self._follow_mappings()  # of whatever process the first event will be
        self.probes.attach(exited=self.events.exited)
        sink.attached(self.attached)
        self.events.replay(held)
        if not self._stopping:
            self._iterating = True
            alone = self.probes.iterate(self.events.drain)
            self._iterating = False
            if self._exits or (alone and self.child is None):
                self._stopping = True
        if self.child is not None:
            self.child.release()
            if self._unwinder is not None:
                self._unwinder.go()
            self._watch(self.child.pidfd)
        elif self.pid:
            self._watch(_pidfd(self.pid))
        if not self.probes.any and self.child is None:
            self._stopping = True  # nothing is left that could happen: begin and end were all there is
        self.events.idle()

    def _follow_mappings(self) -> None:
        """Where the script shows stacks or symbols of processes: they may have ended when these are printed."""
        if not shows_addresses(self.reader):
            return
        from bpfseal.runtime.mappings import Mappings

        target = self.child.pid if self.child is not None else self.pid
        try:
            self.mappings = Mappings(target) if target else Mappings()
        except OSError:
            return  # names of what has ended will be missing
        assert self._epoll is not None
        for fd in self.mappings.descriptors:
            self._epoll.register(fd, select.EPOLLIN)

    def begin(self, sink: Sink, *, again: bool = False) -> None:
        """Run BEGIN and send events to `sink`. For trials, which do not `start()`; `again`: only change the sink."""
        self.sink = sink
        self.events.bind(sink)
        if not again:
            self._write_session_map()
            self.probes.run("begin")

    def settle(self) -> int:
        """Handle all events there are, and go on as if exit() had not been called; the status that it was given."""
        self.events.drain_all()
        status, self.status = self.status, 0
        self.events.exited = self._stopping = False
        return status

    def run(self, timeout: float | None = None) -> None:
        """Handle events until the trace is stopped, then detach, run END and drain; or until `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._stopping:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            self.poll(left)
        self.finish()

    def poll(self, timeout: float | None = None) -> bool:
        """Wait for events at most `timeout` seconds and handle what is there. False once the trace is stopping."""
        assert self._epoll is not None
        if not self.events.drain():
            if self.mappings is not None:
                timeout = _LOOK_SECONDS if timeout is None else min(timeout, _LOOK_SECONDS)
            ready = self._epoll.poll(timeout)
            for fd, _ in ready:
                if fd == self._wake:
                    self._stopping = True
                elif fd == self._signal_fd:
                    wakeup.drain(fd)
                elif fd == self._target_fd:
                    self._target_ended()
                elif self.mappings is not None and fd in self.mappings.descriptors:
                    self.mappings.read()
            self.events.drain()
        if self._stopping:
            return False  # what follows can wait until probes are off: `finish` does it
        self.events.idle()
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = time.monotonic()
            if self.mappings is not None:
                self.mappings.read()
            self.count_deferred()
            self.counts.count_lost(self.sink)
        return not self._stopping

    def interrupt(self) -> None:
        """End the trace as somebody wishes who does not want to wait: commands of system() that are due are not run."""
        self.hurried = True
        self.stop()

    def fileno(self) -> int:
        """A descriptor that is readable when `poll(0)` has something to do."""
        assert self._epoll is not None
        return self._epoll.fileno()

    def stop(self, status: int = 0) -> None:
        """End the trace soon; callable from handlers, signal handlers and other threads."""
        self.status = self.status or status
        self._stopping = True
        os.eventfd_write(self._wake, 1)

    def exit(self, status: int) -> None:
        """exit() of the script: what was produced behind it is passed over, as in bpftrace; END still speaks. Iterators
        go on to their end, as there, where they print into what is read of them."""
        if self._iterating:
            self._exits, self.status = True, self.status or status
            return
        self.events.exited = True
        self.stop(status)

    def unwatch(self, address: int) -> None:
        """unwatch() of the script."""
        self.probes.unwatch(address)

    @property
    def stopping(self) -> bool:
        return self._stopping

    def finish(self) -> None:
        """Detach, run END, read what is left in the rings. Idempotent."""
        if self._finished:
            return
        self._finished = True
        events, counts = self.events, self.counts
        counts.keep_missed()
        self.probes.detach()
        events.drain_all()
        counts.wait_for_deferred()
        events.exited = self.hurried = False
        self.probes.run("end", events.drain)
        events.drain_all()
        counts.count_deferred(self.sink, last=True)
        events.drain_all()
        counts.count_lost(self.sink, last=True)
        counts.tell_skipped(self.sink)
        events.idle()

    def close(self) -> None:
        """Give back every kernel object and the child. Idempotent; never raises."""
        if self._closed:
            return
        self._closed = True
        if self._opened:
            self.probes.detach()
        if self.mappings is not None:
            self.mappings.close()
        if self._opened:
            self.events.close()
        if self._loaded is not None:
            self._loaded.close()
        if self._unwinder is not None:
            self._unwinder.go()
        if self.child is not None:
            self.child.close()
        if self._target_fd >= 0 and self.child is None:
            os.close(self._target_fd)
        if self._epoll is not None:
            self._epoll.close()
        if self._signal_fd >= 0:
            wakeup.release()
        os.close(self._wake)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- counts --------------------------------------------------------------------------------------------------

    @property
    def attached(self) -> int:
        """Points that probes are attached to, those of begin and end among them."""
        return self.probes.attached

    @property
    def lost(self) -> int:
        """Events that the kernel could not put into the ring, as last counted."""
        return self.counts.lost

    @property
    def deferred(self) -> Account | None:
        """What became of deferred blocks, as last counted; None for scripts without."""
        return self.counts.deferred

    def count_deferred(self) -> Account | None:
        """As `deferred`, counted now while the trace runs; its end leaves the final account."""
        return self.counts.deferred if self._finished else self.counts.count_deferred(self.sink)

    # --- kernel objects ------------------------------------------------------------------------------------------

    def map_fd(self, index: int) -> int:
        """Fd of Bundle.maps[index]; stays the session's."""
        assert self._loaded is not None
        return self._loaded.map_fds[index]

    def take_link(self, index: int) -> int:
        """Fd of the link that the loader has made of Bundle.programs[index], the caller's from now on; -1 for none."""
        assert self._loaded is not None
        return self._loaded.links.pop(index, -1)

    def program_fd(self, index: int) -> int:
        assert self._loaded is not None
        return self._loaded.prog_fds[index]

    def _write_session_map(self) -> None:
        from bpfseal.runtime import bpf

        self.started_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if self.reader.session < 0:
            return
        value = bytearray(layout.SESSION_SIZE)
        struct.pack_into("<QQQ", value, 0, self.started_ns, self.child.pid if self.child else 0, os.getpid())
        offset = time.clock_gettime_ns(time.CLOCK_REALTIME) - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        struct.pack_into("<Q", value, layout.SESSION_WALL_OFFSET_NS, offset & (1 << 64) - 1)
        bpf.map_update(self.map_fd(self.reader.session), b"\0\0\0\0", bytes(value))

    # --- look-ups for rendering ----------------------------------------------------------------------------------

    def stack_frames(self, value: StackValue) -> list[int]:
        """Return addresses of a stack, innermost first; empty when the kernel could not store it."""
        from bpfseal.runtime.session_stacks import frames

        return frames(self, value)

    def build_id_frames(self, value: StackValue) -> list[tuple[str, int]]:
        """A stack in the mode build_id: (build id in hexadecimal, offset in that file), or ("", address) where the
        kernel found no build id."""
        from bpfseal.runtime.session_stacks import build_ids

        return build_ids(self, value)

    def strftime_format(self, number: int) -> str:
        """Text that a value names by number."""
        return self.reader.formats[number].decode("utf-8", "surrogateescape")

    # --- target --------------------------------------------------------------------------------------------------

    def _watch(self, pidfd: int) -> None:
        assert self._epoll is not None
        self._target_fd = pidfd
        self._epoll.register(pidfd, select.EPOLLIN)

    def _target_ended(self) -> None:
        if self.child is not None:
            self.child.poll()
        self._stopping = True


def _pidfd(pid: int) -> int:
    from bpfseal.signer.syscall import syscall

    try:
        return syscall("pidfd_open", pid, 0)
    except OSError as error:
        raise BpfsealError(f"cannot watch process {pid}: {error.strerror}") from None


__all__ = ["Session"]
