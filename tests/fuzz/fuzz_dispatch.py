"""Fuzzes the helper's dispatcher: sequences of messages into the real event loop, with fixed keys and a real log.

    python tests/fuzz/fuzz_dispatch.py [--runs 10000] [--seed 1] [--seconds 0] [--real]

An input is up to 256 messages on up to three connections: valid ones of every verb, bundles changed field by field or
bit by bit, broken frames, cut and split writes, hang-ups. What must hold:

* nothing but foreseen replies; no internal error, no message that takes over a second;
* every signature is for a bundle that an oracle independent of the analysis finds within the policy, and has its
  record in the log;
* afterwards the log verifies and no descriptor is left.

With atheris installed, `--atheris` turns the choices over to coverage feedback.
"""

from __future__ import annotations

import argparse
import base64
import gc
import os
import random
import signal
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec

from bpfseal.signer import audit_read, protocol
from bpfseal.signer import bundle as wire
from bpfseal.signer.analyse import analyse
from bpfseal.signer.insn import decode
from bpfseal.signer.kernel_ids import Kernel
from bpfseal.signer.peer import want_credentials
from bpfseal.signer.protocol import HEADER
from bpfseal.signer.server import Server
from tests.fuzz.memory import MemorySelector, MemorySocket
from tests.fuzz.service import make_service
from tests.loader import samples
from tests.signer_process.conftest import small_bundle

# What the oracle lets pass: helpers by number (map_lookup_elem, get_smp_processor_id, ringbuf_output), map types.
ORACLE_HELPERS = {1, 2, 3, 5, 6, 8, 14, 15, 125, 130, 131, 132, 133, 134, 160, 195}
ORACLE_MAPS = {2, 27}
_TARGETS = "syscalls:sys_enter_open"


def seeds() -> list[wire.Bundle]:
    """Bundles to start from: some within the policy, some not."""
    bundles = [wire.decode(small_bundle()), wire.decode(small_bundle("syscalls:sys_enter_kill"))]
    attach = (wire.Attach("perf_tracepoint", "tracepoint:syscalls:sys_enter_openat", "syscalls:sys_enter_openat"),)
    for one in (samples.small(), samples.tiny(), samples.many(3, 2)):
        programs = tuple(
            msgspec.structs.replace(
                p,
                attach=attach,
                type=5,
                expected_attach_type=0,
                declared=analyse(decode(p.insns), one.maps, Kernel()).found,
            )
            for p in one.programs
        )
        bundles.append(msgspec.structs.replace(one, programs=programs))
        bundles.append(one)
    return bundles


class Chooser:
    """Source of decisions: a seeded generator, or bytes handed in by a fuzzing engine."""

    def __init__(self, seed: int | bytes) -> None:
        self._random = random.Random(seed)
        self._draw = self._random.random

    def number(self, limit: int) -> int:
        return int(self._draw() * limit)

    def pick(self, options: Any) -> Any:
        return options[int(self._draw() * len(options))]

    def bytes(self, size: int) -> bytes:
        return self._random.randbytes(size)


class Messages:
    """Makes the bytes of one message."""

    def __init__(self, choose: Chooser, bundles: list[wire.Bundle]) -> None:
        self.choose = choose
        self.bundles = bundles
        self.makers: list[Callable[[], bytes]] = [
            self.control, self.seal, self.seal_changed, self.seal_changed, self.seal_flipped, self.flipped, self.header,
            self.noise, self.restructured,
        ]  # fmt: skip

    def make(self) -> bytes:
        return self.choose.pick(self.makers)()

    def control(self) -> bytes:
        kinds = (protocol.Hello, protocol.Status, protocol.Certificate, protocol.ListKeys, protocol.Rotate)
        if self.choose.number(30) == 0:
            return protocol.frame(protocol.Revoke())
        return protocol.frame(self.choose.pick(kinds)())

    def _frame(self, data: bytes) -> bytes:
        request = wire.SealRequest(bundle=data, lifetime=self.choose.pick((0, 1, 60, -1, 2**40)))
        if self.choose.number(3):
            return protocol.frame(protocol.Seal(request=request))
        return protocol.frame(protocol.Check(request=request, uid=self.choose.pick((-1, 0, 5, 2**31))))

    def seal(self) -> bytes:
        return self._frame(wire.encode(self.choose.pick(self.bundles)))

    def seal_changed(self) -> bytes:
        """A bundle with one field somewhere replaced by something of the same kind."""
        tree = msgspec.to_builtins(self.choose.pick(self.bundles), builtin_types=(bytes,))
        self._change(tree, 8)
        return self._frame(msgspec.msgpack.encode(tree))

    def _change(self, node: Any, depth: int) -> None:
        if isinstance(node, dict) and node:
            key: Any = self.choose.pick(sorted(node, key=str))
        elif isinstance(node, list) and node:
            key = self.choose.number(len(node))
        else:
            return
        child = node[key]
        if isinstance(child, dict | list) and child and depth and self.choose.number(5):
            self._change(child, depth - 1)
            return
        node[key] = self._other(child)

    def _other(self, value: Any) -> Any:
        choose = self.choose
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return choose.pick(
                (0, 1, value + 1, value ^ 1 << choose.number(33), 2**31, 2**32 - 1, 2**32, 2**63 - 1, -1)
            )
        if isinstance(value, str):
            other = (
                "",
                "x",
                "../x",
                value + "\0",
                "\x1b[2J",
                "tracepoint:syscalls:sys_enter_execve",
                "🐝" * 40,
                value * 3,
            )
            return choose.pick(other)
        if isinstance(value, bytes):
            return self._other_bytes(value)
        if isinstance(value, list):
            return choose.pick(([], value * 2, value[:1], [None], [[]]))
        return choose.pick((None, 0, "", [], {}))

    def _other_bytes(self, value: bytes) -> bytes:
        choose = self.choose
        if not value:
            return choose.bytes(choose.number(64))
        at = choose.number(len(value))
        flipped = value[:at] + bytes((value[at] ^ 1 << choose.number(8),)) + value[at + 1 :]
        insn = struct.pack("<BBhi", choose.number(256), choose.number(256), choose.number(8) - 4, choose.number(256))
        whole = at // 8 * 8
        return choose.pick(
            (flipped, flipped, value[:at], value + value, insn + value, value[:whole] + insn + value[whole + 8 :])
        )

    def seal_flipped(self) -> bytes:
        data = bytearray(wire.encode(self.choose.pick(self.bundles)))
        for _ in range(1 + self.choose.number(4)):
            data[self.choose.number(len(data))] ^= 1 << self.choose.number(8)
        return self._frame(bytes(data))

    def flipped(self) -> bytes:
        data = bytearray(self.choose.pick((self.control, self.seal))())
        for _ in range(1 + self.choose.number(3)):
            data[self.choose.number(len(data))] ^= 1 << self.choose.number(8)
        return bytes(data)

    def header(self) -> bytes:
        sizes = (0, 1, 5, 1 << 20, (1 << 20) + 1, 8 << 20, 2**32 - 1)
        return HEADER.pack(self.choose.pick(sizes), self.choose.number(3), self.choose.number(3)) + self.choose.bytes(4)

    def noise(self) -> bytes:
        return self.choose.bytes(self.choose.number(64))

    def restructured(self) -> bytes:
        """Valid msgpack of the wrong shape."""
        leaf: Any = self.choose.pick((0, None, "", b"", 1.5, [], {}, "seal", 2**64 - 1))
        for _ in range(self.choose.number(40)):
            leaf = self.choose.pick(([leaf], {"type": leaf}, {"type": "seal", "request": leaf}, {"bundle": leaf}))
        body = msgspec.msgpack.encode(leaf)
        return HEADER.pack(len(body), protocol.VERSION, 0) + body


def within_policy(data: bytes) -> str:
    """The oracle: why a bundle must not be signed, by an independent look at its raw fields. "" if it may be."""
    tree = msgspec.msgpack.decode(data)
    for entry in tree["maps"]:
        if entry["type"] not in ORACLE_MAPS:
            return f"map type {entry['type']}"
    for program in tree["programs"]:
        # `probe` is for people; where a program goes is said by kind and target.
        places = [(attach["kind"], attach["target"]) for attach in program["attach"]]
        if not places or any(k != "perf_tracepoint" or not t.startswith(_TARGETS) for k, t in places):
            return f"places {places}"
        code, at = program["insns"], 0
        if len(code) > 64 * 8:
            return "size"
        while at < len(code):
            op, registers, _, imm = struct.unpack_from("<BBhi", code, at)
            source = registers >> 4
            if op == 0x18:
                if source not in (0, 4, 5, 6):
                    return f"ld_imm64 kind {source}"
                at += 8
            elif op in (0x85, 0x8D):
                if op == 0x8D or source == 2:
                    return "kfunc or register call"
                if source == 0 and imm not in ORACLE_HELPERS:
                    return f"helper {imm}"
            at += 8
    return ""


@dataclass
class Outcome:
    """What a campaign saw."""

    messages: int = 0
    replies: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        self.messages += other.messages
        self.replies += other.replies
        self.slowest = max(self.slowest, other.slowest)
        self.wrong += other.wrong


class Campaign:
    """The helper's loop in this process, without a listening socket: over memory, or over real socket pairs."""

    def __init__(self, folder: Path, *, real: bool = False) -> None:
        self.path = folder / "log" / "audit.jsonl"
        self.said: list[str] = []
        self.service = make_service(self.path, self.said.append)
        self.server = Server(self.service, single=socket.socketpair()[0])
        for number in (signal.SIGINT, signal.SIGTERM):  # the loop took them: a campaign ends when it is told to
            signal.signal(number, signal.default_int_handler)
        self.real = real
        self.pidfd = os.pidfd_open(os.getpid())
        self.numbers = 0
        if not real:
            self.server._selector = MemorySelector(self.server._selector)  # type: ignore[assignment]
        self.bundles = seeds()
        self.seen = Outcome()

    def connect(self) -> Line:
        if self.real:
            ours, theirs = socket.socketpair()
            want_credentials(theirs)
            self.server._adopt(theirs, keep=False)
            ours.setblocking(False)
            return RealLine(ours)
        self.numbers += 1
        memory = MemorySocket(self.pidfd, self.numbers)
        self.server._adopt(memory, keep=False)  # type: ignore[arg-type]
        return MemoryLine(memory)

    def one(self, choose: Chooser, limit: int = 256) -> None:
        """One input: messages on up to eight connections at once, so that the helper answers them in batches."""
        messages = Messages(choose, self.bundles)
        lines = [self.connect() for _ in range(1 + choose.number(8))]
        for _ in range((1 + choose.number(limit)) // len(lines) + 1):
            begin = time.process_time()
            sent = []
            for line in lines:
                data = messages.make()
                cut = choose.number(len(data) + 1) if choose.number(8) == 0 else len(data)
                sent.append(data if line.send(data[:cut]) and line.send(data[cut:]) else b"")
            self._settle(lines)
            for index, (line, data) in enumerate(zip(lines, sent, strict=True)):
                if not data or not self._reply(line, data):
                    line.close()
                    lines[index] = self.connect()
            self.seen.slowest = max(self.seen.slowest, time.process_time() - begin)
            self.seen.messages += len(lines)
        for line in lines:
            line.close()
        if choose.number(8) == 0:
            self.service._keys.rotate()
        self._settle(lines)

    def _settle(self, lines: list[Line]) -> None:
        """Turns until everything that was sent is read and everything that was read is answered."""
        self.server.turn(0)
        if self.real:
            self.server.turn(0)
        syncs = self.service._audit.syncs
        while self.server._queue or syncs or any(line.unread() for line in lines):
            self.service.collect()  # a selector over memory does not see that the disk is done
            self.server.turn(0)

    def _reply(self, line: Line, data: bytes) -> bool:
        """Whether the connection is still good."""
        answer = line.read()
        if not answer:
            return False  # closed, or waits for the rest of a message that never comes
        reply = protocol.decode_reply(answer[HEADER.size : HEADER.size + HEADER.unpack_from(answer)[0]])
        self.seen.replies[type(reply).__name__] += 1
        if isinstance(reply, protocol.SealReply):
            request = protocol.decode_request(data[HEADER.size :])
            assert isinstance(request, protocol.Seal)
            if why := within_policy(request.request.bundle):
                self.seen.wrong.append(f"{why}: {base64.b64encode(request.request.bundle).decode()}")
        elif isinstance(reply, protocol.Failed) and "internal" in reply.message:
            self.seen.wrong.append(f"{self.said[-1]}: {base64.b64encode(data).decode()}")
        return not isinstance(reply, protocol.Failed) or "message" not in reply.message

    def finish(self) -> Outcome:
        self.server.close()
        self.service.close()
        os.close(self.pidfd)
        report = audit_read.verify(str(self.path))
        self.seen.wrong += [str(finding) for finding in report.findings]
        seals = sum(record["event"] == "seal" for record in audit_read.records(str(self.path)))
        if seals < self.seen.replies["SealReply"]:
            self.seen.wrong.append(f"{self.seen.replies['SealReply']} signatures, {seals} records")
        return self.seen


class Line(Protocol):
    """The client's end of a connection."""

    def send(self, data: bytes) -> bool: ...

    def read(self) -> bytes: ...

    def unread(self) -> bool:
        """Whether the helper has something to read."""

    def close(self) -> None: ...


class RealLine:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send(self, data: bytes) -> bool:
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError, BlockingIOError):
            return False
        return True

    def read(self) -> bytes:
        try:
            return self.sock.recv(1 << 22)
        except (BlockingIOError, ConnectionResetError):
            return b""

    def unread(self) -> bool:
        return False

    def close(self) -> None:
        self.sock.close()


class MemoryLine:
    def __init__(self, sock: MemorySocket) -> None:
        self.sock = sock

    def send(self, data: bytes) -> bool:
        if data:
            self.sock.pieces.append(data)
        return not self.sock.closed

    def read(self) -> bytes:
        answer = bytes(self.sock.sent)
        self.sock.sent.clear()
        return answer

    def unread(self) -> bool:
        return bool(self.sock.pieces) and not self.sock.closed

    def close(self) -> None:
        if not self.sock.closed:
            self.sock.pieces.append(b"")


ROUND = 50_000  # messages between two checks of the whole log


def run(runs: int, seed: int, seconds: float = 0, *, real: bool = False, tell: float = 0) -> Outcome:
    """`runs` messages or so (or `seconds`), from `seed`; a line every `tell` seconds."""
    began = told = time.monotonic()
    stop = began + seconds if seconds else float("inf")
    total, number = Outcome(), 0
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # nothing here is about durable storage
    while total.messages < runs and time.monotonic() < stop and not total.wrong:
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            campaign = Campaign(Path(folder), real=real)
            most = min(ROUND, runs - total.messages)
            while campaign.seen.messages < most and time.monotonic() < stop and not campaign.seen.wrong:
                try:
                    campaign.one(Chooser(seed * 1_000_003 + number))
                except Exception as error:
                    error.add_note(f"input {seed * 1_000_003 + number} of seed {seed}")
                    raise
                number += 1
            total.add(campaign.finish())
        if tell and time.monotonic() - told > tell:
            told = time.monotonic()
            print(f"{total.messages} messages in {told - began:.0f} s, {dict(total.replies)}", flush=True)
    return total


def with_atheris() -> None:
    import atheris

    campaign = Campaign(Path(tempfile.mkdtemp()))

    def test(data: bytes) -> None:
        campaign.one(Chooser(data), limit=16)
        if campaign.seen.wrong:
            raise AssertionError(campaign.seen.wrong[0])

    atheris.Setup(sys.argv, test)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--real", action="store_true", help="over socket pairs instead of in memory")
    options = parser.parse_args()
    begin = time.monotonic()
    gc.freeze()
    gc.set_threshold(50_000)
    seen = run(
        options.runs if not options.seconds else sys.maxsize, options.seed, options.seconds, real=options.real, tell=30
    )
    took = time.monotonic() - begin
    print(f"{seen.messages} messages in {took:.0f} s, slowest {seen.slowest * 1e3:.0f} ms, {dict(seen.replies)}")
    for wrong in seen.wrong[:5]:
        print("WRONG", wrong)
    return 1 if seen.wrong or seen.slowest > 1 else 0


if __name__ == "__main__":
    if "--atheris" in sys.argv:
        sys.argv.remove("--atheris")
        with_atheris()
    else:
        raise SystemExit(main())
