"""What client and helper say to each other over a unix stream socket.

Frame: `!IBB` (body length, protocol version, class) and then the body, one msgpack message. Class 0 messages are small
(1 MiB at most), class 1 carries a bundle (8 MiB and a little). The limits apply to the announced length, before
anything is allocated. A client sends one request and waits for its reply.

Messages are decoded strictly and must be canonical: encoding the decoded message again gives the same bytes, which
rules out duplicate keys, trailing bytes, unknown fields and over-long integers at once. There is no field in which a
client says who it is; that comes from the kernel, with each message (`signer.peer`).
"""

from __future__ import annotations

import struct
from typing import Annotated, TypeAlias, TypeVar

import msgspec

from bpfseal.errors import BpfsealError
from bpfseal.signer.bundle import Record, SealedBundle, SealRequest
from bpfseal.signer.limits import MAX_BUNDLE_BYTES
from bpfseal.signer.sealed_file import Seal as FileSeal

VERSION = 1
HEADER = struct.Struct("!IBB")
SMALL, LARGE = 0, 1
LIMITS = {SMALL: 1 << 20, LARGE: MAX_BUNDLE_BYTES + 4096}
# A sealed bundle holds the bundle's bytes again, rearranged, and the loader.
REPLY_LIMIT = 2 * MAX_BUNDLE_BYTES + (1 << 20)


ShortText: TypeAlias = Annotated[str, msgspec.Meta(max_length=96)]


class ProtocolError(BpfsealError):
    """The other side does not speak the protocol; the connection is of no more use."""


# Requests ---------------------------------------------------------------------------------------------------------


class Hello(Record, frozen=True, tag="hello"):
    """First message of every connection."""


class Status(Record, frozen=True, tag="status"):
    pass


class Certificate(Record, frozen=True, tag="certificate"):
    pass


class Seal(Record, frozen=True, tag="seal"):
    request: SealRequest


class Check(Record, frozen=True, tag="check"):
    """A dry run: would this be sealed? Administrators may ask on behalf of another user; uid -1 means oneself."""

    request: SealRequest
    uid: int = -1
    gid: int = -1
    groups: tuple[int, ...] = ()


class Rotate(Record, frozen=True, tag="rotate"):
    pass


class Revoke(Record, frozen=True, tag="revoke"):
    pass


class ListKeys(Record, frozen=True, tag="keys"):
    pass


class LoadDecision(Record, frozen=True):
    """What enforcement decided about one load. `wall_ms` is wall time in ms; `keyring` a serial number or a name, empty
    for what has no signature."""

    wall_ms: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
    uid: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    pid: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    comm: ShortText
    verdict: ShortText
    reason: ShortText
    keyring: ShortText
    type: ShortText
    program: ShortText


class Decisions(Record, frozen=True, tag="decisions"):
    """For the audit log: decisions that an administrator's `bpfseal enforce log` read from the kernel. The record says
    who reported them; the helper has not seen them itself."""

    decisions: Annotated[tuple[LoadDecision, ...], msgspec.Meta(min_length=1, max_length=256)]


Request: TypeAlias = Hello | Status | Certificate | Seal | Check | Rotate | Revoke | ListKeys | Decisions

# Replies ----------------------------------------------------------------------------------------------------------


class Welcome(Record, frozen=True, tag="welcome"):
    """`mode` is "private" or "system"; `abi` the signing ABI of the kernel (0: none, `why` says why)."""

    mode: str
    pid: int
    abi: int
    why: str = ""


class StatusReply(Record, frozen=True, tag="status-reply"):
    """State of the helper. `sealed` and `refused` count the caller's own requests; `totals` is filled for
    administrators only. `head` and `head_hash` are the audit log's last record: an anchor outside the log."""

    mode: str
    pid: int
    abi: int
    why: str
    algorithm: str
    root: str
    keyring: int
    certificate: bytes
    leaf_seconds: int
    leaf_left: int
    revoked: bool
    policy: str
    policy_trouble: str
    audit: str
    head: int
    head_hash: str
    sealed: int
    refused: int
    uptime: int
    rss_kib: int
    locked_kib: int
    hardening: tuple[str, ...] = ()
    totals: tuple[tuple[str, int], ...] = ()


class CertificateReply(Record, frozen=True, tag="certificate-reply"):
    """DER certificates."""

    leaf: bytes
    root: bytes


class SealReply(Record, frozen=True, tag="sealed"):
    sealed: SealedBundle
    rule: str
    notes: tuple[str, ...] = ()


class FileSealed(Record, frozen=True, tag="file-sealed"):
    """Seals for a file, one for each signing ABI."""

    seals: tuple[FileSeal, ...]
    rule: str
    notes: tuple[str, ...] = ()


class Verdict(Record, frozen=True, tag="verdict"):
    """Answer of a dry run. `reasons` say what is refused and why, or what is worth knowing."""

    allowed: bool
    rule: str
    reasons: tuple[str, ...]


class KeyInfo(Record, frozen=True):
    certificate: bytes
    serial: int
    seconds_left: int
    signing: bool


class KeyList(Record, frozen=True, tag="key-list"):
    keyring: int
    keys: tuple[KeyInfo, ...]


class Done(Record, frozen=True, tag="done"):
    certificate: bytes = b""


class Refused(Record, frozen=True, tag="refused"):
    """Not sealed: analysis or policy said no. It is in the audit log as record `record`."""

    message: str
    rule: str = ""
    reasons: tuple[str, ...] = ()
    hint: str = ""
    record: int = 0


class Failed(Record, frozen=True, tag="failed"):
    """The helper could not do it: bad message, no right to ask, limits, log or key trouble."""

    message: str
    hint: str = ""


Reply: TypeAlias = (
    Welcome | StatusReply | CertificateReply | SealReply | FileSealed | Verdict | KeyList | Done | Refused | Failed
)  # fmt: skip

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request, strict=True)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply, strict=True)
_Message = TypeVar("_Message", Request, Reply)


def frame(message: Request | Reply) -> bytes:
    """The bytes of one message, header included."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body), VERSION, LARGE if len(body) > LIMITS[SMALL] else SMALL) + body


def _decode(decoder: msgspec.msgpack.Decoder[_Message], body: bytes | bytearray | memoryview) -> _Message:
    # msgspec lets errors outside its own hierarchy through (bad UTF-8), so everything means "bad message".
    try:
        message = decoder.decode(body)
        canonical = _encoder.encode(message) == body
    except Exception as error:
        raise ProtocolError(f"bad message: {error}") from None
    if not canonical:
        raise ProtocolError("bad message: the encoding is not canonical")
    return message


def decode_request(body: bytes | bytearray | memoryview) -> Request:
    return _decode(_requests, body)


def decode_reply(body: bytes | bytearray | memoryview) -> Reply:
    return _decode(_replies, body)


def parse_header(header: bytes | bytearray | memoryview) -> int:
    """Body length that a request's header announces. Raises ProtocolError for what no client of ours sends."""
    length, version, size_class = HEADER.unpack_from(header)
    if version != VERSION:
        raise ProtocolError(f"protocol version {version} is not {VERSION}")
    limit = LIMITS.get(size_class)
    if limit is None:
        raise ProtocolError(f"message class {size_class} is unknown")
    if not 0 < length <= limit:
        raise ProtocolError(f"message of {length} bytes is outside 1 … {limit}")
    return int(length)
