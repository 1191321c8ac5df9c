"""Whether a seal's signature is over the loader of its file, by the key of a certificate.

Strict where kernels are lax: the PKCS#7 must be byte for byte the one structure that bpfseal writes (`signer.pkcs7`),
since much of that encoding is not covered by the signature in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bpfseal.errors import BpfsealError
from bpfseal.signer import loader, pkcs7
from bpfseal.signer.bundle import Bundle
from bpfseal.signer.loader import ExclField, Loader, Terms
from bpfseal.signer.sealed_file import Seal, SealedFile, header, statement

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


_LONGEST = 1024  # bytes of an RSA-8192 signature


class BadSeal(BpfsealError):
    """A seal that is not over this file, or not by its certificate."""


def loader_of(file: SealedFile, bundle: Bundle, seal: Seal) -> Loader:
    """The loader that the seal must be over, emitted from the bundle. Raises BadSeal when another was signed."""
    terms = Terms(
        abi=seal.abi,
        excl=ExclField(seal.excl_offset, seal.excl_size) if seal.abi == 1 else None,
        record=seal.record,
        statement=statement(file.bundle, header(file)),
    )
    emitted = loader.emit(bundle, terms)
    if hashlib.sha256(emitted.insns + emitted.metadata).digest() != seal.loader:
        raise BadSeal(
            "the file is not what was sealed, or was sealed by a version of bpfseal with another loader",
            hint="seal it again",
        )
    return emitted


@contextmanager
def _reading() -> Iterator[None]:
    """Certificates of strangers: the library reads them as late as it can, and raises what it likes."""
    try:
        yield
    except BpfsealError:
        raise
    except Exception as error:
        raise BadSeal(f"a certificate in the file cannot be read: {error}") from None


def check(file: SealedFile, bundle: Bundle, seal: Seal) -> Certificate:
    """The signer's certificate, whose key signed the loader of this file. Says nothing of who that is. Raises
    BadSeal."""
    emitted = loader_of(file, bundle, seal)
    certificate = read_certificate(seal.certificates[0])
    with _reading():
        signature = signature_in(seal.signature, certificate)
        _demand_signed_by(certificate, signature, emitted.signed_bytes(seal.abi))
    return certificate


def read_certificate(der: bytes) -> Certificate:
    """Raises BadSeal."""
    from cryptography import x509

    with _reading():
        return x509.load_der_x509_certificate(der)


def signature_in(der: bytes, certificate: Certificate) -> bytes:
    """The bare signature of a PKCS#7, which must be what `signer.pkcs7` writes. Raises BadSeal."""
    family = _family(certificate)
    issuer, number = certificate.issuer.public_bytes(), certificate.serial_number
    if number <= 0:
        raise BadSeal("the certificate's number is not positive")
    # The signature is the last element; its length follows from that of the whole.
    for size in range(min(len(der) - 1, _LONGEST), 0, -1):
        form = pkcs7.tlv(0x04, der[-size:])
        if len(form) < len(der) and der.endswith(form) and _again(der[-size:], family, issuer, number) == der:
            return der[-size:]
    raise BadSeal("the signature is not one that bpfseal makes, or of another certificate")


class _Given:
    """A "key" that signs with what it was given (`pkcs7.SigningKey`)."""

    public = b""

    def __init__(self, family: str, signature: bytes) -> None:
        self.family = family
        self._signature = signature

    def sign(self, data: bytes) -> bytes:
        return self._signature


def _again(signature: bytes, family: str, issuer: bytes, number: int) -> bytes:
    return pkcs7.signed_data(b"", _Given(family, signature), issuer, number)


def _family(certificate: Certificate) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    public = certificate.public_key()
    if isinstance(public, ec.EllipticCurvePublicKey):
        return "ec"
    if isinstance(public, rsa.RSAPublicKey):
        return "rsa"
    raise BadSeal("the certificate's key is neither EC nor RSA")


def _demand_signed_by(certificate: Certificate, signature: bytes, content: bytes) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

    public = certificate.public_key()
    try:
        if isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(signature, content, ec.ECDSA(hashes.SHA256()))
        elif isinstance(public, rsa.RSAPublicKey):
            public.verify(signature, content, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        raise BadSeal("the signature is wrong") from None


def chain_to(seal: Seal, trusted: list[Certificate]) -> str:
    """Why a seal's certificate is not one of `trusted`, nor issued by one through the file's others; empty if it is.
    Signatures and CA flags only: kernels look at no dates either."""
    known = {digest_of(certificate) for certificate in trusted}
    chain = [read_certificate(der) for der in seal.certificates]
    at = chain[0]
    for _ in range(len(chain) + 1):
        if digest_of(at) in known:
            return ""
        issuer = next((one for one in (*trusted, *chain[1:]) if _issued(at, one)), None)
        if issuer is None:
            break
        at = issuer
    return f"signed by {name_of(chain[0])}, which is not the given certificate nor issued by it"


def _issued(certificate: Certificate, issuer: Certificate) -> bool:
    from cryptography import x509

    try:
        certificate.verify_directly_issued_by(issuer)
        return issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except Exception:  # of another issuer, or not to be read
        return False


def digest_of(certificate: Certificate) -> bytes:
    """sha256 of its DER."""
    from cryptography.hazmat.primitives import hashes

    return certificate.fingerprint(hashes.SHA256())


def name_of(certificate: Certificate) -> str:
    """The subject, safe to print, and the first digits of the sha256. Raises BadSeal."""
    with _reading():
        text = "".join(c if c.isprintable() else "?" for c in certificate.subject.rfc4514_string())
    return f"{text or 'no name'} ({digest_of(certificate).hex()[:16]})"
