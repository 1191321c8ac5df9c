"""A running trace: owns every kernel object of one loaded bundle, and closes them all.

    with Session(bundle, sealed) as session:
        session.start(sink)
        session.run()

Order of life, as in bpftrace: load, BEGIN, attach, let the -c child go, events until exit()/stop()/end of the target,
detach, END, the rest of the rings, then the maps are read. Nothing is pinned; a killed process leaves nothing behind.
"""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from bpfseal.compiler import layout
from bpfseal.compiler.layout import Reader
from bpfseal.errors import BpfsealError
from bpfseal.runtime.load import Loaded, load
from bpfseal.runtime.maps import Maps
from bpfseal.runtime.ring import RingReader
from bpfseal.runtime.values import StackValue
from bpfseal.signer.bundle import Attach, Bundle, SealedBundle

if TYPE_CHECKING:
    from bpfseal.runtime.attach import Link
    from bpfseal.runtime.child import Child
    from bpfseal.runtime.deferred import Account, Deferred
    from bpfseal.runtime.mappings import Mappings

# How often a busy session looks whether events were lost.
_LOOK_SECONDS = 0.5
# Events in one batch from which on compiling a consumer (0.1 s) is worth it, and buffers that it fills in one go.
_BUSY_BATCH = 2000
_NATIVE_ROUNDS = 16
_EVENT = struct.Struct("I")
_MAP_ACTIONS = frozenset(("clear", "zero", "print_map"))


class Sink(Protocol):
    """Where events go. `handlers` are built once, one per event number; the session calls them with the record.

    A handler may call `session.stop(status)`; maps may be read from it through `session.maps`.
    """

    def bind(self, session: Session) -> list[Callable[[memoryview], None]]:
        """One handler for each of `session.reader.events`."""

    def lost(self, events: int, total: int, *, last: bool) -> None:
        """`events` more were lost, `total` in all; called when there are more, and once at the end (`last`)."""

    def full(self, name: str, failed: int, entries: int) -> None:
        """`failed` more updates of the map `name`, which has room for `entries` keys, have failed."""

    def skipped(self, probe: str, times: int) -> None:
        """At the end: the kernel skipped the program of `probe`, which would have interrupted itself."""

    def deferred(self, account: Account, dropped: int, *, last: bool) -> None:
        """Deferred blocks: `dropped` more were; called when there are more, and at the end (`last`), when all of the
        account is final. Not for scripts without."""

    def attached(self, probes: int) -> None:
        """Everything is attached: `probes` points; what begin probes had to say comes after it."""

    def native(self) -> int | Callable[[RingReader, Any], Consumer] | None:
        """The descriptor that lines of printf may be written to past the sink (see `runtime.sink.Output.native`), or
        what makes a consumer of the sink's own for the ring and `Reader.events`."""

    def idle(self) -> None:
        """Called when the rings are empty: time to flush."""


class Consumer(Protocol):
    """Takes a busy ring from Python; see `runtime.native`."""

    def run(self) -> tuple[int, int]: ...

    def close(self) -> None: ...


class Session:
    """See the module docstring. Not safe for use from several threads, except for `stop()`."""

    def __init__(
        self,
        bundle: Bundle,
        sealed: SealedBundle,
        *,
        pid: int = 0,
        command: str | None = None,
        log_level: int = 0,
    ) -> None:
        """Load the bundle; nothing runs yet. Raises BpfsealError (VerifierRejected and others)."""
        from bpfseal.compiler.layout import decode

        self.bundle = bundle
        self.sealed = sealed
        self.reader: Reader = decode(bundle.reader)
        self.sink: Sink | None = None
        self.status = 0
        self.started_ns = 0
        self.attached = 0
        self.lost = 0
        self.deferred: Account | None = None  # of scripts with deferred blocks, as last read
        self._deferred: Deferred | None = None
        self._failed: dict[str, int] = {}
        self._looked = 0.0
        self.mappings: Mappings | None = None  # of the target, for scripts that show its addresses
        self._signals: list[tuple[Attach, int]] = []
        self._previous: dict[int, Any] = {}
        self.hurried = False
        self._stopping = False
        self._exited = False
        self._finished = False
        self._closed = False
        self._rings: list[RingReader] = []
        self._links: list[Link] = []
        self._watchpoints: dict[int, list[Link]] = {}  # by the address, for unwatch()
        self._missed: dict[str, int] = {}
        self._epoll: select.epoll | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._target_fd = -1
        self.pid = pid
        self.child: Child | None = None
        self._native: Consumer | None = None
        self._tried_native = False
        self._handlers: list[Callable[[memoryview], None]] = []
        self._last_words: frozenset[int] = frozenset()  # events that end the trace, where maps are worked on besides
        self._loaded: Loaded | None = None
        try:
            if command is not None:
                from bpfseal.runtime.child import Child

                self.child = Child(command)
            self._loaded = load(bundle, sealed, log_level=log_level)
            self.maps = Maps(self.reader, tuple(self._loaded.map_fds))
            if self.reader.deferred >= 0:
                from bpfseal.runtime.deferred import Deferred

                self._deferred = Deferred(self.reader, self.map_fd)
            self._open_rings()
        except BaseException:
            self.close()
            raise

    # --- life ----------------------------------------------------------------------------------------------------

    def rehearse(self, sink: Sink) -> None:
        """Attach everything and be done with it: nothing of the script runs for its own sake. Raises BpfsealError."""
        self.sink = sink
        self._handlers = sink.bind(self)
        self._write_session_map()
        self.attached = sum(a.phase == "begin" for _, a in self._attaches())
        self._attach_all()
        sink.attached(self.attached)
        self._finished = self._stopping = True
        self._detach()

    def start(self, sink: Sink) -> None:
        """Run BEGIN, attach everything, let the child go. Raises BpfsealError, after which `close()` is due."""
        self.begin(sink)
        held = self._hold()
        self._attach_all()
        sink.attached(self.attached)
        self._replay(held)
        if not self._stopping:
            self._iterate()
        self._follow_mappings()
        if self.child is not None:
            self.child.release()
            self._watch(self.child.pidfd)
        elif self.pid:
            self._watch(_pidfd(self.pid))
        if not self._links and not self._signals and self.child is None:
            self._stopping = True  # nothing is left that could happen: begin and end were all there is
        self._idle()

    def _follow_mappings(self) -> None:
        """Of a target whose stacks or symbols the script shows: it may have ended when they are printed."""
        target = self.child.pid if self.child is not None else self.pid
        if not target:
            return
        from bpfseal.runtime.mappings import Mappings, wanted

        if wanted(self.reader):
            try:
                self.mappings = Mappings(target)
            except OSError:
                return  # names of what has ended will be missing

    def begin(self, sink: Sink, *, again: bool = False) -> None:
        """Run BEGIN and send events to `sink`. For trials, which do not `start()`; `again`: only change the sink."""
        self.sink = sink
        self._handlers = sink.bind(self)
        actions = [event.action for event in self.reader.events]
        if not _MAP_ACTIONS.isdisjoint(actions):
            self._last_words = frozenset(number for number, action in enumerate(actions) if action == "exit")
        if not again:
            self._write_session_map()
            self._run_phase("begin")

    def settle(self) -> int:
        """Handle all events there are, and go on as if exit() had not been called; the status that it was given."""
        self._drain_all()
        status, self.status = self.status, 0
        self._exited = self._stopping = False
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
        if not self._drain():
            if self.mappings is not None:
                timeout = _LOOK_SECONDS if timeout is None else min(timeout, _LOOK_SECONDS)
            ready = self._epoll.poll(timeout)
            for fd, _ in ready:
                if fd == self._wake:
                    self._stopping = True
                elif fd == self._target_fd:
                    self._target_ended()
            self._drain()
        if self._stopping:
            return False  # what follows can wait until probes are off: `finish` does it
        self._idle()
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            if self.mappings is not None:
                self.mappings.read()
            self.count_deferred()
            self.count_lost()
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
        """exit() of the script: what was produced behind it is passed over, as in bpftrace; END still speaks."""
        self._exited = True
        self.stop(status)

    def unwatch(self, address: int) -> None:
        """unwatch() of the script: take the watchpoints at `address` away, if there are any."""
        from bpfseal.runtime.attach import detach_all

        gone = self._watchpoints.pop(address, [])
        self._links = [link for link in self._links if not any(link is one for one in gone)]
        detach_all(gone)

    @property
    def stopping(self) -> bool:
        return self._stopping

    def finish(self) -> None:
        """Detach, run END, read what is left in the rings. Idempotent."""
        if self._finished:
            return
        self._finished = True
        self._count_missed()
        self._detach()
        self._drain_all()
        if self._deferred is not None:
            self._deferred.wait(self._drain)
            self._drain_all()
        self._exited = self.hurried = False
        self._run_phase("end")
        self._drain_all()
        self.count_deferred(last=True)
        self._drain_all()
        self.count_lost(last=True)
        self._count_skipped()
        self._idle()

    def close(self) -> None:
        """Give back every kernel object and the child. Idempotent; never raises."""
        if self._closed:
            return
        self._closed = True
        self._detach()
        if self.mappings is not None:
            self.mappings.close()
        if self._native is not None:
            self._native.close()
        for ring in self._rings:
            ring.close()
        if self._loaded is not None:
            self._loaded.close()
        if self.child is not None:
            self.child.close()
        if self._target_fd >= 0 and self.child is None:
            os.close(self._target_fd)
        if self._epoll is not None:
            self._epoll.close()
        os.close(self._wake)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- kernel objects ------------------------------------------------------------------------------------------

    def map_fd(self, index: int) -> int:
        """Fd of Bundle.maps[index]; stays the session's."""
        assert self._loaded is not None
        return self._loaded.map_fds[index]

    def program_fd(self, index: int) -> int:
        assert self._loaded is not None
        return self._loaded.prog_fds[index]

    def _attaches(self) -> list[tuple[int, Attach]]:
        return [(i, attach) for i, program in enumerate(self.bundle.programs) for attach in program.attach]

    def _open_rings(self) -> None:
        self._epoll = select.epoll()
        self._epoll.register(self._wake, select.EPOLLIN)
        for index in (self.reader.ring, self.reader.control):
            if index >= 0:
                ring = RingReader(self.map_fd(index), self.bundle.maps[index].max_entries)
                self._rings.append(ring)
                self._epoll.register(ring.fd, select.EPOLLIN)

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

    def _run_phase(self, phase: str) -> None:
        from bpfseal.runtime.attach import run_once

        for index, attach in self._attaches():
            if attach.phase == phase and attach.kind == "test_run":
                run_once(attach, self.program_fd(index))
                self.attached += phase == "begin"
                if phase == "end":
                    self._drain()

    def _hold(self) -> list[bytes]:
        """What the begin probes sent, to be handled once everything is attached, as in bpftrace. exit() among it means
        that nothing needs attaching."""
        events = self.reader.events
        held = [bytes(record) for ring in self._rings for record in ring.read()]
        self._exited = any(events[_EVENT.unpack_from(record)[0]].action == "exit" for record in held)
        return held

    def _replay(self, held: list[bytes]) -> None:
        self._exited = False
        for record in held:
            if not self._exited:
                self._handlers[_EVENT.unpack_from(record)[0]](memoryview(record))

    def _attach_all(self) -> None:
        from bpfseal.runtime.attach import AttachContext, attach

        context = AttachContext(
            pid=self.child.pid if self.child else self.pid,
            child=self.child is not None,
            map_fd=self.map_fd,
        )
        places: set[tuple[int, str]] = set()  # a usdt probe counts once, in however many places it is
        for index, spec in self._attaches():
            if spec.phase == "attach":
                if self._stopping:
                    break
                if spec.kind == "signal":
                    self._signals.append((spec, index))
                elif not self._exited:
                    link = attach(spec, self.program_fd(index), context)
                    self._links.append(link)
                    if spec.kind == "watchpoint":
                        self._watchpoints.setdefault(spec.params.get("address", 0), []).append(link)
                if spec.kind != "usdt" or (index, spec.probe) not in places:
                    self.attached += max(1, len(spec.symbols), len(spec.offsets))
                places.add((index, spec.probe))
            elif spec.phase == "end":
                self.attached += 1
        if self._signals and not self._exited:
            self._listen()

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
            if spec.params.get("signal", 10) == number and not self._stopping:
                run_once(spec, self.program_fd(index))

    def _iterate(self) -> None:
        """Read the iterators to their ends; a trace of iterators alone is over then."""
        iterators = [link for link in self._links if link.iterator >= 0]
        for link in iterators:
            while not self._stopping:
                try:
                    data = os.read(link.iterator, 1 << 16)
                except InterruptedError:
                    continue
                self._drain()
                if not data:
                    break
        if iterators and len(iterators) == len(self._links) and self.child is None:
            self._stopping = True

    def _detach(self) -> None:
        from bpfseal.runtime.attach import detach_all

        if self._previous:
            import signal

            for number, handler in self._previous.items():
                signal.signal(number, handler)
            self._previous.clear()
        links, self._links = self._links, []
        if links:
            detach_all(links)

    # --- events --------------------------------------------------------------------------------------------------

    def _drain(self) -> bool:
        """Handle what is in the rings now, up to a batch of each; whether there was anything."""
        handlers = self._handlers
        number = _EVENT.unpack_from
        total = 0
        for ring in self._rings:
            if self._native is not None and ring is self._rings[0] and not self._exited:
                total += self._drain_natively(ring, self._native)
                continue
            seen = 0
            for record in self._looked_through(ring) if self._last_words else ring.read():
                seen += 1
                if not self._exited:
                    handlers[number(record)[0]](record)
            if seen >= _BUSY_BATCH and ring is self._rings[0]:
                self._go_native(ring)
            total += seen
        return total > 0

    def _looked_through(self, ring: RingReader) -> list[memoryview]:
        """What is in the ring; with exit() among it probes are off before clear() and print(), which come first, are
        done: they would find what probes have done since."""
        batch = [memoryview(bytes(record)) for record in ring.read()]
        if any(_EVENT.unpack_from(record)[0] in self._last_words for record in batch):
            self._detach()
        return batch

    def _go_native(self, ring: RingReader) -> None:
        """More than Python should handle: have the lines written by machine code, where there is some for them."""
        if self._tried_native or self.sink is None or (wanted := self.sink.native()) is None:
            return
        self._tried_native = True
        try:
            if callable(wanted):
                self._native = wanted(ring, self.reader.events)
                return
            from bpfseal.runtime.native import NativeConsumer

            self._native = NativeConsumer(ring, self.reader.events, wanted)
        except (ImportError, OSError, RuntimeError):
            return  # slower, not wrong

    def _drain_natively(self, ring: RingReader, native: Consumer) -> int:
        """As `_drain` for one ring; records that machine code does not know are handled here, in their turn."""
        self._idle()  # what was said before comes first
        total = 0
        for _ in range(_NATIVE_ROUNDS):
            reason, count = native.run()
            total += count
            if reason == 1:
                for record in ring.read(1):
                    total += 1
                    self._handlers[_EVENT.unpack_from(record)[0]](record)
                self._idle()
                if self._exited:
                    break
            elif reason == 0:
                break
        return total

    def _drain_all(self) -> None:
        while self._drain():
            pass

    def _idle(self) -> None:
        if self.sink is not None:
            self.sink.idle()

    def _counters(self) -> list[int]:
        """Slots of the counter map over all CPUs: lost events, then failed updates by index of the map."""
        from bpfseal.runtime import bpf

        index = self.reader.counters
        if index < 0:
            return []
        fd, size = self.map_fd(index), bpf.per_cpu_stride(8) * bpf.possible_cpus()
        items = bpf.map_items(fd, 4, size, self.bundle.maps[index].max_entries)
        return [sum(struct.unpack(f"<{len(value) // 8}Q", value)) for _, value in items]

    def count_lost(self, *, last: bool = False) -> int:
        """Events that the kernel could not put into the ring so far; tells the sink when there are more, and what
        maps were full."""
        self._looked = time.monotonic()
        counters = self._counters()
        if not counters:
            return 0
        new, self.lost = counters[0] - self.lost, counters[0]
        if self.sink is not None:
            if new or last:
                self.sink.lost(new, self.lost, last=last)
            for layout in self.reader.maps:
                failed = counters[1 + layout.index] if 1 + layout.index < len(counters) else 0
                before = self._failed.get(layout.name, 0)
                # Once when it begins, and the rest at the end: a full map may fail a million times a second.
                if failed > before and (last or not before):
                    self.sink.full(layout.name, failed - before, layout.max_entries)
                    self._failed[layout.name] = failed
        return self.lost

    def count_deferred(self, *, last: bool = False) -> Account | None:
        """What became of deferred blocks so far, None for scripts without; tells the sink when more were dropped, and
        at the end of all."""
        if self._deferred is None or (self._finished and not last):
            return self.deferred
        account = self._deferred.end(self._drain) if last else self._deferred.read()
        new = account.dropped - (self.deferred.dropped if self.deferred is not None else 0)
        self.deferred = account
        if self.sink is not None and (new or last):
            self.sink.deferred(account, new, last=last)
        return account

    def _count_missed(self) -> None:
        """Keep what the kernel has counted on links, which are about to go: probes of functions that were reached
        while another such probe was handled on that CPU (bpf_link_info, since Linux 6.7)."""
        if not any(spec.kind in ("kprobe", "kprobe_multi") for _, spec in self._attaches()):
            return
        from bpfseal.runtime.bpf_info import link_info

        for link in self._links:
            for fd in link.fds:
                try:
                    missed = link_info(fd).missed
                except OSError:  # a descriptor that is no link
                    continue
                if missed:
                    self._missed[link.probe] = self._missed.get(link.probe, 0) + missed

    def _count_skipped(self) -> None:
        """Tell of programs that the kernel did not run because they would have interrupted themselves
        (bpf_prog_info.recursion_misses) or another program (`_count_missed`)."""
        from bpfseal.runtime.bpf_info import prog_info

        if self.sink is None or self._loaded is None:
            return
        skipped = dict(self._missed)
        for fd, program in zip(self._loaded.prog_fds, self.bundle.programs, strict=False):
            if program.attach and (misses := prog_info(fd).recursion_misses):
                probe = program.attach[0].probe
                skipped[probe] = skipped.get(probe, 0) + misses
        for probe, times in skipped.items():
            self.sink.skipped(probe, times)

    # --- look-ups for rendering ----------------------------------------------------------------------------------

    def stack_frames(self, value: StackValue) -> list[int]:
        """Return addresses of a stack, innermost first; empty when the kernel could not store it."""
        from bpfseal.runtime import bpf

        name = f"{value.space}_{value.depth}{'_build_id' if value.mode == 'build_id' else ''}"
        if value.id < 0 or name not in self.reader.stacks:
            return []
        index = self.reader.stacks[name]
        raw = bpf.map_lookup(self.map_fd(index), struct.pack("<q", value.id), self.bundle.maps[index].value_size)
        if raw is None:
            return []
        if value.mode == "build_id":
            return [offset for _, offset in _build_ids(raw)]
        frames = struct.unpack(f"<{len(raw) // 8}Q", raw)
        return list(frames[: frames.index(0)] if 0 in frames else frames)[: value.depth]

    def build_id_frames(self, value: StackValue) -> list[tuple[str, int]]:
        """A stack in the mode build_id: (build id in hexadecimal, offset in that file), or ("", address) where the
        kernel found no build id."""
        from bpfseal.runtime import bpf

        index = self.reader.stacks.get(f"{value.space}_{value.depth}_build_id")
        if value.id < 0 or index is None:
            return []
        raw = bpf.map_lookup(self.map_fd(index), struct.pack("<q", value.id), self.bundle.maps[index].value_size)
        return _build_ids(raw)[: value.depth] if raw is not None else []

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


def _build_ids(raw: bytes) -> list[tuple[str, int]]:
    """struct bpf_stack_build_id (include/uapi/linux/bpf.h): s32 status, 20 bytes, u64 offset or address. Status 0 ends
    the stack, 1 has a build id."""
    found = []
    for status, identity, offset in struct.iter_unpack("<i20sQ", raw):
        if status == 0:
            break
        found.append((identity.hex() if status == 1 else "", offset))
    return found


def _pidfd(pid: int) -> int:
    from bpfseal.signer.syscall import syscall

    try:
        return syscall("pidfd_open", pid, 0)
    except OSError as error:
        raise BpfsealError(f"cannot watch process {pid}: {error.strerror}") from None


__all__ = ["Session", "Sink"]
