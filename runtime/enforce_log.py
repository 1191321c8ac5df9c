"""`bpfseal enforce log`: decisions out of the kernel's ring, as lines or JSON."""

from __future__ import annotations

import json
import select
import struct
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bpfseal.errors import BpfsealError
from bpfseal.runtime import enforce_layout as layout

if TYPE_CHECKING:
    from bpfseal.signer.client import SignerClient

# enum bpf_prog_type, from 0
_TYPES = tuple(
    """
    unspec socket_filter kprobe sched_cls sched_act tracepoint xdp perf_event cgroup_skb cgroup_sock lwt_in lwt_out
    lwt_xmit sock_ops sk_skb cgroup_device sk_msg raw_tracepoint cgroup_sock_addr lwt_seg6local lirc_mode2
    sk_reuseport flow_dissector cgroup_sysctl raw_tracepoint_writable cgroup_sockopt tracing struct_ops ext lsm
    sk_lookup syscall netfilter
    """.split()
)


@dataclass(frozen=True)
class Decision:
    """One decision. `time` is wall time in seconds; `keyring` a serial number, the name of a system ring, or None for
    what has no signature."""

    time: float
    uid: int
    pid: int
    comm: str
    verdict: str
    reason: str
    keyring: int | str | None
    type: str
    program: str

    @classmethod
    def parse(cls, record: bytes | memoryview) -> Decision:
        ns, uid, tgid, verdict, reason, keyring, kind = struct.unpack_from("<QIIIIII", record)
        behind = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - ns
        return cls(
            time.time() - behind / 1e9,
            uid,
            tgid,
            _text(bytes(record[layout.E_COMM : layout.E_COMM + 16])),
            layout.VERDICTS[verdict] if verdict < len(layout.VERDICTS) else str(verdict),
            layout.REASONS[reason] if reason < len(layout.REASONS) else str(reason),
            ring_name(keyring),
            _TYPES[kind] if kind < len(_TYPES) else str(kind),
            _text(bytes(record[layout.E_NAME : layout.E_NAME + 16])),
        )

    def line(self) -> str:
        """Control characters are escaped: the names are whatever the process chose."""
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.time))
        why = f": {self.reason}" if self.reason else ""
        ring = f", keyring {self.keyring}" if self.keyring is not None else ""
        who = f"{self.comm}[{self.pid}] uid {self.uid}"
        return f"{moment} {self.verdict} {self.type} {self.program or '(no name)'} by {who}{why}{ring}"


def ring_name(number: int) -> int | str | None:
    """A key of the list of keyrings as people know it."""
    if number == layout.NO_RING:
        return None
    return layout.SYSTEM_RINGS[number] if number < len(layout.SYSTEM_RINGS) else number


def _text(raw: bytes) -> str:
    text = raw.split(b"\0", 1)[0].decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _keep(client: SignerClient, decisions: list[Decision]) -> None:
    from bpfseal.signer.protocol import LoadDecision

    client.keep(
        [
            LoadDecision(
                wall_ms=int(d.time * 1000),
                uid=d.uid,
                pid=d.pid,
                comm=d.comm,
                verdict=d.verdict,
                reason=d.reason,
                keyring="" if d.keyring is None else str(d.keyring),
                type=d.type,
                program=d.program,
            )
            for d in decisions
        ]
    )


def show(*, follow: bool, as_json: bool, keep: bool = False, quiet: bool = False) -> int:
    """Print what is in the log and take it out; with `follow` go on until interrupted. `keep`: into the helper's audit
    log too, before it is printed. Raises BpfsealError; what was read and could not be kept is printed all the same."""
    from bpfseal.runtime.enforce_state import State
    from bpfseal.runtime.enforce_switch import system_helper
    from bpfseal.runtime.ring import RingReader

    state = State.open(write=False)
    if state is None:
        raise BpfsealError("enforcement is off: there is no log")
    with state, RingReader(state.log_fd, layout.LOG_BYTES) as ring:
        waiting = select.epoll()
        waiting.register(state.log_fd, select.EPOLLIN)
        try:
            while True:
                decisions = [Decision.parse(record) for record in ring.read()]
                trouble = None
                if keep and decisions:
                    try:
                        with system_helper(None, start=False) as client:
                            _keep(client, decisions)
                    except BpfsealError as error:
                        trouble = error
                if trouble is not None or not quiet:
                    for decision in decisions:
                        sys.stdout.write((json.dumps(vars(decision)) if as_json else decision.line()) + "\n")
                    sys.stdout.flush()
                if trouble is not None:
                    raise trouble
                if not follow and not ring.pending():
                    return 0
                waiting.poll(1.0)
        except KeyboardInterrupt:
            return 0
        finally:
            waiting.close()
