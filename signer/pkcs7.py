"""The two DER structures the kernel reads: an X.509 certificate and a detached PKCS#7 signature. Writing only.

`cryptography` has builders for both, but they cost 40 ms of imports in a process that has to be ready in 150, cannot
take a key that lives in a token, and cannot be told to sign deterministically. Both structures have one fixed shape
here, so they are assembled by concatenation. Tests compare the result with the builders' byte for byte (RSA) and read
it back with `cryptography.x509` and openssl.

Shapes: RFC 5280 (certificate), RFC 2315 (SignedData, version 1). What the kernel accepts: no signed attributes,
detached content (crypto/asymmetric_keys/pkcs7_parser.c); the signer is found by issuer and serial number.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Protocol

_SEQUENCE, _SET, _INTEGER, _BIT_STRING, _OCTETS, _NULL, _OID = 0x30, 0x31, 0x02, 0x03, 0x04, 0x05, 0x06
_UTF8, _UTC_TIME, _GENERALIZED_TIME, _BOOLEAN = 0x0C, 0x17, 0x18, 0x01


def tlv(tag: int, *parts: bytes) -> bytes:
    """One DER element: tag, shortest length, contents."""
    size = sum(map(len, parts))
    if size < 0x80:
        head = bytes((tag, size))
    else:
        length = size.to_bytes((size.bit_length() + 7) // 8, "big")
        head = bytes((tag, 0x80 | len(length))) + length
    return head + b"".join(parts)


def integer(value: int) -> bytes:
    """A non-negative INTEGER."""
    return tlv(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    out = bytearray()
    for arc in (first * 40 + second, *rest):
        chunk = [arc & 0x7F]
        while arc := arc >> 7:
            chunk.append(0x80 | (arc & 0x7F))
        out += bytes(reversed(chunk))
    return tlv(_OID, bytes(out))


def sequence(*parts: bytes) -> bytes:
    return tlv(_SEQUENCE, *parts)


def bit_string(data: bytes, unused: int = 0) -> bytes:
    return tlv(_BIT_STRING, bytes((unused,)), data)


NULL = tlv(_NULL)
_SHA256 = sequence(oid("2.16.840.1.101.3.4.2.1"), NULL)
_DATA = oid("1.2.840.113549.1.7.1")
_SIGNED_DATA = oid("1.2.840.113549.1.7.2")
_ONE = integer(1)
_SIGNED_DATA_HEAD = _ONE + tlv(_SET, _SHA256) + sequence(_DATA)  # version, digest algorithms, detached content

# (signatureAlgorithm of a certificate, digestEncryptionAlgorithm of a SignerInfo). The kernel's PKCS#7 parser wants
# plain rsaEncryption for the latter (pkcs7_sig_note_pkey_algo).
ECDSA_SHA256 = sequence(oid("1.2.840.10045.4.3.2"))
RSA_SHA256 = sequence(oid("1.2.840.113549.1.1.11"), NULL)
RSA_ENCRYPTION = sequence(oid("1.2.840.113549.1.1.1"), NULL)

_EC_PUBLIC_KEY = oid("1.2.840.10045.2.1")
_CURVES = {"secp256r1": oid("1.2.840.10045.3.1.7"), "secp384r1": oid("1.3.132.0.34")}


class SigningKey(Protocol):
    """What a certificate or signature needs of a key, wherever the key lives.

    `family` is "ec" or "rsa"; `public` the DER SubjectPublicKeyInfo; `sign` returns the signature over
    sha256(data): DER ECDSA-Sig-Value or PKCS#1 v1.5.
    """

    family: str
    public: bytes

    def sign(self, data: bytes) -> bytes: ...


def ec_public(curve: str, x: int, y: int) -> bytes:
    """SubjectPublicKeyInfo of an EC point on `curve` (secp256r1, secp384r1)."""
    size = {"secp256r1": 32, "secp384r1": 48}[curve]
    point = b"\x04" + x.to_bytes(size, "big") + y.to_bytes(size, "big")
    return sequence(sequence(_EC_PUBLIC_KEY, _CURVES[curve]), bit_string(point))


def rsa_public(n: int, e: int) -> bytes:
    """SubjectPublicKeyInfo of an RSA key."""
    return sequence(RSA_ENCRYPTION, bit_string(sequence(integer(n), integer(e))))


def name(common_name: str) -> bytes:
    """A Name with one commonName."""
    return sequence(tlv(_SET, sequence(oid("2.5.4.3"), tlv(_UTF8, common_name.encode()))))


def _moment(seconds: float) -> bytes:
    """RFC 5280 4.1.2.5: UTCTime through 2049, GeneralizedTime from 2050."""
    parts = time.gmtime(seconds)
    if parts.tm_year < 2050:
        return tlv(_UTC_TIME, time.strftime("%y%m%d%H%M%SZ", parts).encode())
    return tlv(_GENERALIZED_TIME, time.strftime("%Y%m%d%H%M%SZ", parts).encode())


def _extension(dotted: str, value: bytes, critical: bool = False) -> bytes:
    flag = (tlv(_BOOLEAN, b"\xff"),) if critical else ()
    return sequence(oid(dotted), *flag, tlv(_OCTETS, value))


def _key_identifier(public: bytes) -> bytes:
    # Any unique value will do (RFC 5280 4.2.1.2): 160 bits of sha256 over the whole SubjectPublicKeyInfo.
    import hashlib

    return hashlib.sha256(public).digest()[:20]


def certificate(
    subject: str, public: bytes, issuer: str, issuer_key: SigningKey, serial: int, seconds: int, *, authority: bool
) -> bytes:
    """A DER certificate for `public`, signed by `issuer_key`, valid from now for `seconds`.

    The kernel ignores dates and CA flags; they are set for humans and other tools. It does need the key
    identifiers: a restricted ring finds the issuer by them.
    """
    now = time.time()
    usage = bit_string(b"\x06", 1) if authority else bit_string(b"\x80", 7)  # keyCertSign+cRLSign, digitalSignature
    constraints = sequence(tlv(_BOOLEAN, b"\xff")) if authority else sequence()
    extensions = sequence(
        _extension("2.5.29.19", constraints, critical=True),
        _extension("2.5.29.15", usage, critical=True),
        _extension("2.5.29.14", tlv(_OCTETS, _key_identifier(public))),
        _extension("2.5.29.35", sequence(tlv(0x80, _key_identifier(issuer_key.public)))),
    )
    algorithm = ECDSA_SHA256 if issuer_key.family == "ec" else RSA_SHA256
    body = sequence(
        tlv(0xA0, integer(2)),
        integer(serial),
        algorithm,
        name(issuer),
        sequence(_moment(now), _moment(now + seconds)),
        name(subject),
        public,
        tlv(0xA3, extensions),
    )
    return sequence(body, algorithm, bit_string(issuer_key.sign(body)))


@lru_cache(maxsize=4)
def _issuer_and_serial(issuer: bytes, serial: int) -> bytes:
    return sequence(issuer, integer(serial))


def signed_data(content: bytes, key: SigningKey, issuer: bytes, serial: int) -> bytes:
    """DER of a detached PKCS#7 signature over `content`: no attributes, no certificates.

    `issuer` is the DER Name of the signer certificate's issuer. Nothing outside `signer.seal` and the key
    self-test calls this.
    """
    encryption = ECDSA_SHA256 if key.family == "ec" else RSA_ENCRYPTION
    signer = sequence(
        _ONE,
        _issuer_and_serial(issuer, serial),
        _SHA256,
        encryption,
        tlv(_OCTETS, key.sign(content)),
    )
    return sequence(
        _SIGNED_DATA,
        tlv(0xA0, sequence(_SIGNED_DATA_HEAD, tlv(_SET, signer))),
    )
