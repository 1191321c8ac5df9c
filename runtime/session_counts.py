"""What did not happen: events that were lost, updates of full maps, deferred blocks that were dropped, probes that the
kernel passed over. The sink is told when there is more, and at the end."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bpfseal.runtime.deferred import Account, Deferred
    from bpfseal.runtime.session import Session
    from bpfseal.runtime.session_sink import Sink


class Counts:
    """`lost`: events so far; `deferred`: the account as last read, None for scripts without deferred blocks."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.lost = 0
        self.deferred: Account | None = None
        self._work: Deferred | None = None
        self._failed: dict[str, int] = {}
        self._missed: dict[str, int] = {}
        if session.reader.deferred >= 0:
            from bpfseal.runtime.deferred import Deferred

            self._work = Deferred(session.reader, session.map_fd)

    def _counters(self) -> list[int]:
        """Slots of the counter map over all CPUs: lost events, then failed updates by index of the map."""
        from bpfseal.runtime import bpf

        session = self._session
        index = session.reader.counters
        if index < 0:
            return []
        fd, size = session.map_fd(index), bpf.per_cpu_stride(8) * bpf.possible_cpus()
        items = bpf.map_items(fd, 4, size, session.bundle.maps[index].max_entries)
        return [sum(struct.unpack(f"<{len(value) // 8}Q", value)) for _, value in items]

    def count_lost(self, sink: Sink | None, *, last: bool = False) -> int:
        """Events that the kernel could not put into the ring so far; tells when there are more, and what maps were
        full."""
        counters = self._counters()
        if not counters:
            return 0
        new, self.lost = counters[0] - self.lost, counters[0]
        if sink is not None:
            if new or last:
                sink.lost(new, self.lost, last=last)
            for layout in self._session.reader.maps:
                failed = counters[1 + layout.index] if 1 + layout.index < len(counters) else 0
                before = self._failed.get(layout.name, 0)
                # Once when it begins, and the rest at the end: a full map may fail a million times a second.
                if failed > before and (last or not before):
                    sink.full(layout.name, failed - before, layout.max_entries)
                    self._failed[layout.name] = failed
        return self.lost

    def count_deferred(self, sink: Sink | None, *, last: bool = False) -> Account | None:
        """What became of deferred blocks so far, None for scripts without; tells when more were dropped, and at the
        end of all."""
        if self._work is None:
            return None
        drain = self._session.events.drain
        account = self._work.end(drain) if last else self._work.read()
        new = account.dropped - (self.deferred.dropped if self.deferred is not None else 0)
        self.deferred = account
        if sink is not None and (new or last):
            sink.deferred(account, new, last=last)
        return account

    def wait_for_deferred(self) -> None:
        """Give blocks that are pending a moment to run."""
        if self._work is not None:
            self._work.wait(self._session.events.drain)
            self._session.events.drain_all()

    def keep_missed(self) -> None:
        """While links are there, which have counts of their own."""
        self._missed = self._session.probes.missed()

    def tell_skipped(self, sink: Sink | None) -> None:
        """Of programs that the kernel did not run because they would have interrupted themselves
        (bpf_prog_info.recursion_misses) or another program (`keep_missed`)."""
        from bpfseal.runtime.bpf_info import prog_info

        if sink is None:
            return
        skipped = dict(self._missed)
        for number, program in enumerate(self._session.bundle.programs):
            try:
                misses = prog_info(self._session.program_fd(number)).recursion_misses if program.attach else 0
            except OSError:
                break  # the kernel does not say
            if misses:
                probe = program.attach[0].probe
                skipped[probe] = skipped.get(probe, 0) + misses
        for probe, times in skipped.items():
            sink.skipped(probe, times)
