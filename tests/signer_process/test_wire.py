"""Bad clients: every malformed, slow, silent or lying one gets its answer, and nobody else notices."""

from __future__ import annotations

import array
import os
import socket
import struct
import threading
import time

import msgspec
import pytest

from bpfseal.signer import protocol
from bpfseal.signer.bundle import MAX_BUNDLE_BYTES, SealRequest
from bpfseal.signer.client import SealRefused, SignerError
from bpfseal.signer.protocol import HEADER, LARGE, SMALL

from .conftest import Helper, as_user, exchange, needs_root, reply_of, running, small_bundle

HELLO = protocol.frame(protocol.Hello())


def framed(body: bytes, *, length: int | None = None, version: int = protocol.VERSION, kind: int = SMALL) -> bytes:
    return HEADER.pack(len(body) if length is None else length, version, kind) + body


def packed(value: object) -> bytes:
    return framed(msgspec.msgpack.encode(value))


SEAL = {"type": "seal", "request": {"bundle": small_bundle(), "lifetime": 0, "log_level": 0}}

# name → (bytes, part of the answer)
BAD: dict[str, tuple[bytes, str]] = {
    "length-0": (framed(b""), "0 bytes is outside"),
    "length-max": (framed(b"", length=0xFFFFFFFF), "4294967295 bytes is outside"),
    "length-over-small": (framed(b"", length=(1 << 20) + 1), "outside"),
    "length-over-large": (framed(b"", length=protocol.LIMITS[LARGE] + 1, kind=LARGE), "outside"),
    "class-unknown": (framed(b"x", kind=7), "class 7"),
    "version-0": (framed(HELLO[6:], version=0), "version 0"),
    "version-99": (framed(HELLO[6:], version=99), "version 99"),
    "two-frames-in-one": (HELLO + HELLO, "second message"),
    "trailing-bytes": (framed(HELLO[6:] + b"\xc0"), "bad message"),
    "unknown-verb": (packed({"type": "sign-this"}), "bad message"),
    "no-verb": (packed({}), "bad message"),
    "unknown-field": (packed({"type": "hello", "uid": 0}), "bad message"),
    "missing-field": (packed({"type": "seal"}), "bad message"),
    "wrong-type": (packed({"type": "seal", "request": "x"}), "bad message"),
    "wrong-type-inside": (packed({"type": "seal", "request": SEAL["request"] | {"lifetime": "x"}}), "bad message"),
    "identity-in-message": (packed(SEAL | {"uid": 0}), "bad message"),
    "not-a-map": (packed([1, 2, 3]), "bad message"),
    "just-a-number": (packed(7), "bad message"),
    "empty-map-prefix": (framed(b"\x82\xa4type"), "bad message"),
    "array-of-2^32": (framed(b"\xdd\xff\xff\xff\xff"), "bad message"),
    "string-of-2^32": (framed(b"\xdb\xff\xff\xff\xff"), "bad message"),
    "deep-nesting": (framed(b"\x91" * 100_000 + b"\xc0"), "bad message"),
    "deep-nesting-of-maps": (framed(b"\x81\xa1x" * 100_000 + b"\xc0"), "bad message"),
    "duplicate-key": (framed(b"\x82\xa4type\xa5hello\xa4type\xa5hello"), "bad message"),
    "long-form-of-a-string": (framed(b"\x81\xd9\x04type\xa5hello"), "canonical"),
    "long-form-of-an-int": (framed(HELLO[6:7] + b"\xd9\x04type\xa5hello"), "canonical"),
    "bad-utf8-verb": (framed(b"\x81\xa4type\xa5\xff\xfe\xfd\xfc\xfb"), "bad message"),
    "bad-utf8-key": (framed(b"\x82\xa4type\xa5hello\xa2\xff\xfe\xc0"), "bad message"),
    "extension-type": (framed(b"\xc7\x03\x01abc"), "bad message"),
    "reserved-byte": (framed(b"\xc1"), "bad message"),
    "fractional-lifetime": (packed({"type": "seal", "request": SEAL["request"] | {"lifetime": 1.5}}), "bad message"),
    "text": (b"GET / HTTP/1.1\r\n\r\n", "version"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BAD))
def test_malformed(helper: Helper, name: str) -> None:
    data, expected = BAD[name]
    with helper.raw() as sock:
        reply = exchange(sock, data)
        assert isinstance(reply, protocol.Failed), reply
        assert expected in reply.message
        assert exchange(sock, HELLO) is None
    with helper.raw() as sock:
        assert isinstance(exchange(sock, HELLO), protocol.Welcome)


BAD_BUNDLES = {
    "empty": b"",
    "garbage": os.urandom(100),
    "nested-deep": b"\x91" * 50_000,
    "not-canonical": small_bundle() + b"\x00",
    "cut": small_bundle()[:-1],
    "version": small_bundle().replace(b"\xa7version\x02", b"\xa7version\x01"),
}


@pytest.mark.parametrize("name", sorted(BAD_BUNDLES))
def test_bad_bundles_are_refused_with_a_record(helper: Helper, name: str) -> None:
    with helper.client() as client, pytest.raises(SealRefused) as caught:
        client.seal(BAD_BUNDLES[name])
    assert caught.value.record > 0
    assert "bundle" in caught.value.message


def test_bundle_over_the_limit(helper: Helper) -> None:
    with helper.client() as client:
        with pytest.raises(SignerError, match="over the limit"):
            client.seal(bytes(MAX_BUNDLE_BYTES + 1))
        with pytest.raises(SignerError, match="outside"):
            client.check(bytes(MAX_BUNDLE_BYTES + 10_000))


def test_a_large_bundle_is_read_whole(helper: Helper) -> None:
    with helper.client() as client, pytest.raises(SealRefused, match="bundle"):
        client.seal(bytes(MAX_BUNDLE_BYTES))


def test_byte_by_byte(helper: Helper) -> None:
    with helper.raw() as sock:
        for byte in HELLO:
            sock.sendall(bytes([byte]))
            time.sleep(0.001)
        assert isinstance(reply_of(sock), protocol.Welcome)


def test_half_a_message_ends_after_two_seconds(helper: Helper) -> None:
    with helper.raw() as sock:
        begin = time.monotonic()
        reply = exchange(sock, HELLO[:8])
        assert isinstance(reply, protocol.Failed)
        assert "not complete" in reply.message
        assert 1.5 < time.monotonic() - begin < 4


def test_length_larger_than_sent(helper: Helper) -> None:
    with helper.raw() as sock:
        reply = exchange(sock, framed(b"\x81", length=5000))
        assert isinstance(reply, protocol.Failed)
        assert "not complete" in reply.message


def test_gone_before_the_answer(helper: Helper) -> None:
    for _ in range(200):
        sock = helper.raw()
        sock.sendall(packed(SEAL))
        sock.close()
    with helper.client() as client:
        assert client.seal(small_bundle()).record


def test_answer_never_read(helper: Helper) -> None:
    """A client that does not take its answers costs nobody else anything, and loses its connection."""
    socks = [helper.raw() for _ in range(10)]
    for sock in socks:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.sendall(packed(SEAL))
    with helper.client() as client:
        begin = time.monotonic()
        client.status()
        assert time.monotonic() - begin < 2
    for sock in socks:
        sock.close()


# Descriptors ----------------------------------------------------------------------------------------------------------


def send_with_descriptors(sock: socket.socket, data: bytes, count: int) -> None:
    with open("/dev/null", "rb") as null:
        rights = array.array("i", [null.fileno()] * count)
        sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


@pytest.mark.parametrize("count", [1, 2, 253])
def test_sent_descriptors_are_refused_and_closed(helper: Helper, count: int) -> None:
    with helper.client() as client:
        client.hello()
        before = helper.open_files()
        for _ in range(60):
            with helper.raw() as sock:
                send_with_descriptors(sock, HELLO, count)
                reply = reply_of(sock)
                assert isinstance(reply, protocol.Failed)
                assert "descriptors" in reply.message
        client.status()
        assert helper.open_files() <= before + 1


# Credentials ----------------------------------------------------------------------------------------------------------


def test_a_connection_used_by_another_process() -> None:
    """The socket of one process in the hands of another: refused, and both are in the audit log."""
    with running() as helper:
        sock = helper.raw()
        assert isinstance(exchange(sock, HELLO), protocol.Welcome)
        child = os.fork()
        if child == 0:
            reply = exchange(sock, packed(SEAL))
            os._exit(0 if isinstance(reply, protocol.Failed) and "on a connection of process" in reply.message else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert exchange(sock, HELLO) is None
        sock.close()
        text = helper.audit.read_text()
        (record,) = [line for line in text.splitlines() if "foreign-message" in line and f'"pid":{child}' in line]
        assert f'"connected_pid":{os.getpid()}' in record


def test_credentials_change_in_the_middle_of_a_message(helper: Helper) -> None:
    sock = helper.raw()
    sock.sendall(HELLO[:7])
    child = os.fork()
    if child == 0:
        sock.sendall(HELLO[7:])
        os._exit(0)
    os.waitpid(child, 0)
    reply = reply_of(sock)
    sock.close()
    assert isinstance(reply, protocol.Failed)
    assert f"message of process {child}" in reply.message


@needs_root
def test_forged_credentials(helper: Helper) -> None:
    """Only root may name another process; the connection's own identity still has to match."""
    with helper.raw() as sock:
        forged = struct.pack("iII", 1, 0, 0)
        sock.sendmsg([HELLO], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, forged)])
        reply = reply_of(sock)
        assert isinstance(reply, protocol.Failed)
        assert "message of process 1 " in reply.message


@needs_root
def test_real_and_effective_user_differ(helper: Helper) -> None:
    """A set-uid program speaks as one user and connected as another: refused."""

    def act() -> str:
        with helper.raw() as sock:
            reply = exchange(sock, HELLO)
        return type(reply).__name__ + ": " + getattr(reply, "message", "")

    def mixed() -> str:
        os.setresuid(12345, 0, 0)
        return act()

    assert as_user(0, 0, act).startswith("Welcome")
    assert "uid 12345" in as_user(0, 0, mixed)


# Load ----------------------------------------------------------------------------------------------------------------


def test_slow_and_idle_clients_do_not_slow_the_others() -> None:
    with running() as helper:
        slow = [helper.raw() for _ in range(100)]
        idle = [helper.raw() for _ in range(100)]
        for sock in slow:
            sock.sendall(HELLO[:3])
        with helper.client() as client:
            client.hello()
            begin = time.monotonic()
            for _ in range(50):
                client.seal(small_bundle())
            assert time.monotonic() - begin < 5
            deadline = time.monotonic() + 6
            while time.monotonic() < deadline and helper.open_files() > 130:
                client.status()
                time.sleep(0.2)
            assert helper.open_files() < 130
        for sock in (*slow, *idle):
            sock.close()


def test_one_user_cannot_have_all_connections(helper: Helper) -> None:
    socks = [helper.raw() for _ in range(300)]
    try:
        time.sleep(0.3)
        reply = exchange(socks[-1], HELLO)
        assert isinstance(reply, protocol.Failed)
        assert "connections of one user" in reply.message
        assert isinstance(exchange(socks[0], HELLO), protocol.Welcome)
    finally:
        for sock in socks:
            sock.close()


def test_many_large_messages_of_one_user_at_once() -> None:
    with running() as helper:
        socks = [helper.raw() for _ in range(8)]
        answers = []
        for sock in socks:
            sock.sendall(HEADER.pack(MAX_BUNDLE_BYTES, protocol.VERSION, LARGE) + bytes(100))
        for sock in socks:
            sock.settimeout(5)
            answers.append(reply_of(sock))
            sock.close()
        text = [answer.message for answer in answers if isinstance(answer, protocol.Failed)]
        assert sum("too many large messages" in message for message in text) >= 4


def test_many_clients_at_once(helper: Helper) -> None:
    errors: list[str] = []

    def work() -> None:
        try:
            with helper.client() as client:
                for _ in range(10):
                    client.seal(small_bundle())
        except SignerError as error:
            errors.append(error.message)

    threads = [threading.Thread(target=work) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_fork_storm(helper: Helper) -> None:
    """Processes that connect, send and die at once leave no record with another user's ids."""
    for _ in range(100):
        child = os.fork()
        if child == 0:
            with helper.raw() as sock:
                sock.sendall(packed(SEAL))
            os._exit(0)
        os.waitpid(child, 0)
    with helper.client() as client:
        client.status()
    assert '"uid":65534' not in helper.audit.read_text()


def test_no_field_of_any_message_says_who_asks() -> None:
    """Identity comes from the kernel; only the dry run on behalf of others names a user."""
    for kind in protocol.Request.__args__:  # type: ignore[attr-defined]
        names = set(kind.__struct_fields__)
        if kind is not protocol.Check:
            assert names.isdisjoint({"uid", "gid", "pid", "user", "exe", "cgroup"}), kind
    assert set(SealRequest.__struct_fields__) == {"bundle", "lifetime", "log_level", "file"}
