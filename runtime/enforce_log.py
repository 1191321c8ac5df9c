"""`bpfseal enforce log`: decisions out of the kernel's ring, as lines or JSON."""

from __future__ import annotations

import json
import select
import struct
import sys
import time
from dataclasses import dataclass

from bpfseal.errors import BpfsealError
from bpfseal.runtime import enforce_program as program

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
    """One decision. `time` is wall time in seconds; `keyring` 0 for unsigned loads."""

    time: float
    uid: int
    pid: int
    comm: str
    verdict: str
    reason: str
    keyring: int
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
            _text(bytes(record[program.E_COMM : program.E_COMM + 16])),
            program.VERDICTS[verdict] if verdict < len(program.VERDICTS) else str(verdict),
            program.REASONS[reason] if reason < len(program.REASONS) else str(reason),
            keyring,
            _TYPES[kind] if kind < len(_TYPES) else str(kind),
            _text(bytes(record[program.E_NAME : program.E_NAME + 16])),
        )

    def line(self) -> str:
        """Control characters are escaped: the names are whatever the process chose."""
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.time))
        why = f": {self.reason}" if self.reason else ""
        ring = f", keyring {self.keyring}" if self.keyring else ""
        who = f"{self.comm}[{self.pid}] uid {self.uid}"
        return f"{moment} {self.verdict} {self.type} {self.program or '(no name)'} by {who}{why}{ring}"


def _text(raw: bytes) -> str:
    text = raw.split(b"\0", 1)[0].decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def show(*, follow: bool, as_json: bool) -> int:
    """Print what is in the log and take it out; with `follow` go on until interrupted."""
    from bpfseal.runtime.enforce_state import State
    from bpfseal.runtime.ring import RingReader

    state = State.open()
    if state is None:
        raise BpfsealError("enforcement is off: there is no log")
    with state, RingReader(state.log_fd, program.LOG_BYTES) as ring:
        waiting = select.epoll()
        waiting.register(state.log_fd, select.EPOLLIN)
        try:
            while True:
                for decision in map(Decision.parse, ring.read()):
                    sys.stdout.write((json.dumps(vars(decision)) if as_json else decision.line()) + "\n")
                sys.stdout.flush()
                if not follow and not ring.pending():
                    return 0
                waiting.poll(1.0)
        except KeyboardInterrupt:
            return 0
        finally:
            waiting.close()
