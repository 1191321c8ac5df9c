"""Reading audit logs back: verification, display, export.

`verify` works on raw bytes and trusts nothing in them. What it can and cannot show: every change *inside* the log is
found through the chain; a log that was cut at its end, or written anew as a whole, is only found with something from
outside of it: an anchor ("SEQUENCE:HASH" from `status` or the journal, or an anchor file), or the public key of a
root that lives on (PEM, token), which signs checkpoints.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

from msgspec import Struct, field

from bpfseal.errors import BpfsealError
from bpfseal.signer.audit import checkpoint_text
from bpfseal.signer.audit_tail import GENESIS

_REQUIRED: dict[str, tuple[type, ...]] = {
    "seq": (int,),
    "prev": (str,),
    "wall": (int, float),
    "boot_ns": (int,),
    "boot": (str,),
    "event": (str,),
}


class Finding(Struct, frozen=True):
    """Something wrong. `kind` is one of: unreadable, edited, missing, reordered, duplicated, torn, time, checkpoint,
    truncated, replaced, start."""

    kind: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}: {self.text}"


class Report(Struct):
    """What verification found. `head` is the last good record; `anchored_to` the last one that something outside the
    log or a trusted root vouches for, 0 for none; `notes` are remarks, not defects."""

    records: int = 0
    head: int = 0
    head_hash: str = GENESIS
    anchored_to: int = 0
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.findings


def segments(path: str) -> list[str]:
    """The files of a log, oldest first: rotated ones (NAME-SEQUENCE.jsonl), then NAME.jsonl. `path` may name the
    directory of a log that is called audit.jsonl."""
    if os.path.isdir(path):
        path = os.path.join(path, "audit.jsonl")
    folder, name = os.path.split(os.path.abspath(path))
    stem = name.removesuffix(".jsonl") + "-"
    try:
        old = sorted(
            entry
            for entry in os.listdir(folder)
            if entry.startswith(stem) and entry.endswith(".jsonl") and entry[len(stem) : -6].isdigit()
        )
    except OSError as error:
        raise BpfsealError(f"audit log {path}: {error.strerror}") from None
    files = [os.path.join(folder, entry) for entry in (*old, name)]
    if not os.path.exists(files[-1]) and not old:
        raise BpfsealError(f"audit log {path}: No such file or directory")
    return [file for file in files if os.path.exists(file)]


def lines(path: str) -> Iterator[tuple[str, bytes, bool]]:
    """(place, bytes without the newline, whether the newline was there) of every line of all segments."""
    for file in segments(path):
        try:
            with open(file, "rb") as stream:
                for number, line in enumerate(stream, 1):
                    yield f"{os.path.basename(file)}:{number}", line.rstrip(b"\n"), line.endswith(b"\n")
        except OSError as error:
            raise BpfsealError(f"audit log {file}: {error.strerror}") from None


def parse(line: bytes) -> dict[str, Any] | None:
    """A record, or None for anything else."""
    try:
        record = json.loads(line.decode("ascii"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    for name, kind in _REQUIRED.items():
        value = record.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            return None
    return record


def parse_anchor(text: str) -> tuple[int, str]:
    """ "SEQUENCE:HASH" as `status` prints it."""
    seq, colon, digest = text.strip().replace(" ", ":").partition(":")
    if not colon or not seq.isdigit() or len(digest) != 64:
        raise BpfsealError(f"{text!r} is not an anchor", hint="SEQUENCE:HASH, as `bpfseal signer status` prints it")
    return int(seq), digest


class _Verifier:
    def __init__(self, anchors: dict[int, str], root_key: bytes | None) -> None:
        self.report = Report()
        self.anchors = anchors
        self.root_key = root_key
        self.roots: dict[str, bytes] = {}
        self.unread: list[tuple[str, bytes]] = []
        self.clocks: dict[str, int] = {}
        self.last_place = "start"
        self.hash_at: dict[int, str] = {}
        self.trusted_checkpoint = 0

    def find(self, kind: str, where: str, text: str) -> None:
        self.report.findings.append(Finding(kind, where, text))

    def line(self, where: str, line: bytes) -> None:
        record = parse(line)
        if record is None:
            self.unread.append((where, line))
            return
        self._account_for_unread(record)
        self._chain(where, record)
        self._clock(where, record)
        self._roots(where, record)
        report = self.report
        report.records += 1
        report.head, report.head_hash = record["seq"], hashlib.sha256(line).hexdigest()
        self.last_place = where
        if record["seq"] in self.anchors:
            self.hash_at[record["seq"]] = report.head_hash
        if record["event"] == "checkpoint":
            self._checkpoint(where, record)

    def _account_for_unread(self, record: dict[str, Any]) -> None:
        """Half a record that a crash left is known by its hash to the record after it."""
        if not self.unread and "torn" not in record:
            return
        data = b"\n".join(line for _, line in self.unread)
        where = self.unread[0][0] if self.unread else self.last_place
        if self.unread and record.get("torn") == hashlib.sha256(data).hexdigest():
            self.report.notes.append(f"{where}: {len(data)} bytes of an unfinished record (crash or full disk)")
        elif self.unread:
            self.find("unreadable", where, f"{len(data)} bytes that are no record")
        else:
            self.find("missing", where, "the unfinished record that the next one speaks of is gone")
        self.unread = []

    def _chain(self, where: str, record: dict[str, Any]) -> None:
        report, seq = self.report, record["seq"]
        expected = report.head + 1
        linked = record["prev"] == report.head_hash
        if not report.records:
            if seq != 1 or record["prev"] != GENESIS:
                self.find("start", where, f"the log begins with record {seq}: what came before is not here")
            return
        if seq == expected and linked:
            return
        if seq == expected:
            self.find("edited", self.last_place, f"record {report.head} is not the one that record {seq} follows")
        elif seq > expected:
            self.find("missing", where, f"records {expected} to {seq - 1} are gone")
        elif seq == report.head:
            self.find("duplicated", where, f"record {seq} appears twice")
        else:
            self.find("reordered", where, f"record {seq} comes after record {report.head}")

    def _clock(self, where: str, record: dict[str, Any]) -> None:
        last = self.clocks.get(record["boot"], 0)
        if record["boot_ns"] < last:
            self.find("time", where, "the boot clock ran backwards")
        self.clocks[record["boot"]] = max(last, record["boot_ns"])

    def _roots(self, where: str, record: dict[str, Any]) -> None:
        if record["event"] != "start" or not isinstance(record.get("root"), str):
            return
        try:
            certificate = base64.b64decode(record["root"], validate=True)
        except ValueError:
            self.find("unreadable", where, "the root certificate is not one")
            return
        self.roots[hashlib.sha256(certificate).hexdigest()] = certificate

    def _checkpoint(self, where: str, record: dict[str, Any]) -> None:
        certificate = self.roots.get(str(record.get("root")))
        if certificate is None:
            self.find("checkpoint", where, "signed by a root that no start record names")
            return
        text = checkpoint_text(record["seq"], record["prev"], str(record.get("log")))
        trusted = check_signature(certificate, str(record.get("signature")), text, self.root_key)
        if trusted is None:
            self.find("checkpoint", where, "its signature is wrong")
        elif trusted:
            self.trusted_checkpoint = record["seq"]

    def end(self) -> Report:
        report = self.report
        if self.unread:
            where = self.unread[0][0]
            size = sum(len(line) for _, line in self.unread)
            self.find("torn", where, f"the log ends with {size} bytes of an unfinished record")
        for seq, digest in sorted(self.anchors.items()):
            if seq > report.head:
                self.find("truncated", self.last_place, f"ends at record {report.head}, the anchor knows {seq}")
            elif seq and self.hash_at.get(seq) != digest:
                self.find("replaced", f"record {seq}", "is not the record that the anchor knows")
            else:
                report.anchored_to = max(report.anchored_to, seq)
        report.anchored_to = max(report.anchored_to, self.trusted_checkpoint)
        if report.good and report.anchored_to < report.head:
            report.notes.append(
                f"records after {report.anchored_to} are not anchored: nothing outside this log says that they are all"
                if report.anchored_to
                else "not anchored: nothing outside this log says that it was not cut or written anew"
            )
        return report


def check_signature(certificate: bytes, signature: str, text: bytes, root_key: bytes | None) -> bool | None:
    """None for a bad signature, True for one of the trusted `root_key` (SubjectPublicKeyInfo), False for one of the
    certificate's own key."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        public = x509.load_der_x509_certificate(certificate).public_key()
        raw = base64.b64decode(signature, validate=True)
        if isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(raw, text, ec.ECDSA(hashes.SHA256()))
        elif isinstance(public, rsa.RSAPublicKey):
            public.verify(raw, text, padding.PKCS1v15(), hashes.SHA256())
        else:
            return None
    except (ValueError, InvalidSignature):
        return None
    return root_key is not None and public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == root_key


def read_root_key(path: str) -> bytes:
    """SubjectPublicKeyInfo (DER) of a certificate or public key in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    try:
        with open(path, "rb") as file:
            data = file.read(1 << 20)
        certificate = b"BEGIN CERTIFICATE" in data
        public = x509.load_pem_x509_certificate(data).public_key() if certificate else load_pem_public_key(data)
        return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except OSError as error:
        raise BpfsealError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise BpfsealError(f"{path}: {error}") from None


def read_anchor_file(path: str) -> dict[int, str]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return dict(parse_anchor(line) for line in file if line.strip())
    except OSError as error:
        raise BpfsealError(f"anchor file {path}: {error.strerror}") from None


def verify(path: str, *, anchors: dict[int, str] | None = None, root_key: bytes | None = None) -> Report:
    """Check a whole log, rotated files included. Raises BpfsealError only when it cannot be read at all."""
    verifier = _Verifier(anchors or {}, root_key)
    for where, line, _ in lines(path):
        verifier.line(where, line)
    return verifier.end()


def records(path: str) -> Iterator[dict[str, Any]]:
    """All records that can be read, unverified."""
    for _, line, _ in lines(path):
        record = parse(line)
        if record is not None:
            yield record
