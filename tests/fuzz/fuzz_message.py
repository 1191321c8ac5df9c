"""Fuzzes single messages: header, strict decoding, and for what decodes the service behind it, log and keys included.

What a connection does with pieces and sequences of messages is in fuzz_dispatch; this is the same helper without
connections, and so many times as fast. Most inputs are changed as bytes, the others as values, some of them in the
bundle (which fuzz_bundle is for). Every signature is held against the independent oracle of fuzz_dispatch. Options: see
tests/fuzz/loop.py.
"""

from __future__ import annotations

import functools
import os
import random
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bpfseal.signer import audit_read, protocol
from bpfseal.signer import bundle as wire
from bpfseal.signer.identity import Identity
from bpfseal.signer.protocol import HEADER, ProtocolError
from tests.fuzz.fuzz_dispatch import seeds as bundles
from tests.fuzz.fuzz_dispatch import within_policy
from tests.fuzz.loop import impossible, mutate, run
from tests.fuzz.service import make_service
from tests.fuzz.values import changed

WHO = Identity(os.getuid(), os.getgid(), pid=os.getpid(), cgroup_path="/fuzz")
ROUND = 100_000  # messages for one log
_DIGITS = re.compile(r"\d+")


class Helper:
    """A service with a log in memory, replaced by a fresh one every ROUND messages, the log having been verified."""

    def __init__(self) -> None:
        self.count = self.sealed = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def handle(self, request: protocol.Request) -> protocol.Reply:
        if self.count % ROUND == 0:
            self.renew()
        self.count += 1
        replies: list[protocol.Reply] = []
        self.service.handle([(WHO, request)], lambda _, reply: replies.append(reply))
        (reply,) = replies
        self.sealed += isinstance(reply, protocol.SealReply)
        return reply

    def renew(self) -> None:
        self.finish()
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._folder = tempfile.TemporaryDirectory(dir=memory)
        self.sealed = 0
        self.path = Path(self._folder.name) / "log" / "audit.jsonl"
        self.service = make_service(self.path)

    def finish(self) -> None:
        if self._folder is None:
            return
        self.service.close()
        report = audit_read.verify(str(self.path))
        assert report.good, report.findings
        assert sum(r["event"] == "seal" for r in audit_read.records(str(self.path))) == self.sealed
        self._folder.cleanup()
        self._folder = None


HELPER = Helper()


def target(data: bytes) -> str:
    try:
        if len(data) < HEADER.size:
            return "short"
        length = protocol.parse_header(data)
        if len(data) != HEADER.size + length:
            return "length"
        request = protocol.decode_request(memoryview(data)[HEADER.size :])
    except ProtocolError as error:
        return _DIGITS.sub("#", str(error))[:24]
    reply = HELPER.handle(request)
    assert protocol.decode_reply(protocol.frame(reply)[HEADER.size :]) == reply
    if isinstance(reply, protocol.Failed):
        return "failed" if "internal" not in reply.message else impossible(AssertionError(reply.message))
    if isinstance(reply, protocol.SealReply):
        assert isinstance(request, protocol.Seal)
        assert not (why := within_policy(request.request.bundle)), why
        return "sealed"
    if isinstance(reply, protocol.Refused | protocol.Verdict):
        assert reply.reasons or isinstance(reply, protocol.Verdict)
        return f"{type(reply).__name__} {reply.rule}"
    return type(reply).__name__


def _seeds() -> list[bytes]:
    plain = (protocol.Hello(), protocol.Status(), protocol.Certificate(), protocol.ListKeys(), protocol.Rotate())
    found = [protocol.frame(message) for message in plain]
    for bundle in bundles():
        request = wire.SealRequest(bundle=wire.encode(bundle))
        found += [protocol.frame(protocol.Seal(request=request)), protocol.frame(protocol.Check(request=request))]
    return found


@functools.lru_cache(maxsize=8192)
def _decoded(data: bytes) -> protocol.Request | None:
    try:
        return protocol.decode_request(data[HEADER.size :])
    except ProtocolError:
        return None


@functools.lru_cache(maxsize=1024)
def _bundle(data: bytes) -> wire.Bundle | None:
    try:
        return wire.decode(data)
    except wire.BundleError:
        return None


def change(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Bytes changed, most of the time with the header put right again; or a value, in the bundle if there is one."""
    found = _decoded(data) if rng.random() < 0.2 else None
    if found is None:
        if rng.random() < 0.2:
            return mutate(rng, data, others)
        body = mutate(rng, data[HEADER.size :], others)
        return HEADER.pack(len(body), protocol.VERSION, protocol.SMALL) + body
    if isinstance(found, protocol.Seal | protocol.Check) and rng.random() < 0.5:
        bundle = _bundle(found.request.bundle)
        if bundle is not None:
            try:
                inner = wire.encode(changed(rng, bundle, others))
            except (OverflowError, UnicodeEncodeError):
                return data
            return protocol.frame(type(found)(request=wire.SealRequest(bundle=inner)))
    try:
        return protocol.frame(changed(rng, found, others))
    except (OverflowError, UnicodeEncodeError):
        return data


SEEDS = _seeds()

if __name__ == "__main__":
    status = run("message", target, SEEDS, change)
    HELPER.finish()
    raise SystemExit(status)
