"""Our DER against the builders and readers of `cryptography` and openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.hazmat.primitives.serialization import pkcs7 as reference

from bpfseal.signer import pkcs7
from bpfseal.signer.keys import SoftKey


def certified(family: str) -> tuple[SoftKey, x509.Certificate, x509.Certificate, int]:
    root, leaf = SoftKey.generate(family), SoftKey.generate(family)
    number = 1 << 126 | 77
    root_der = pkcs7.certificate("the root", root.public, "the root", root, 1 << 126, 3600, authority=True)
    leaf_der = pkcs7.certificate("a leaf", leaf.public, "the root", root, number, 600, authority=False)
    load = x509.load_der_x509_certificate
    return leaf, load(leaf_der), load(root_der), number


@pytest.mark.parametrize("family", ["ec", "rsa"])
def test_certificates_read_back(family: str) -> None:
    _, certificate, root, number = certified(family)
    certificate.verify_directly_issued_by(root)
    root.verify_directly_issued_by(root)
    assert certificate.serial_number == number
    assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).total_seconds() == 600
    constraints = {c: c.extensions.get_extension_for_class(x509.BasicConstraints).value.ca for c in (root, certificate)}
    assert constraints == {root: True, certificate: False}
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    identifier = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    authority = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert authority == identifier


def test_year_2050_needs_the_long_form() -> None:
    key = SoftKey.generate("ec")
    der = pkcs7.certificate("x", key.public, "x", key, 5, 60 * 366 * 86400, authority=True)
    assert x509.load_der_x509_certificate(der).not_valid_after_utc.year > 2050


def test_rsa_signature_is_the_builders_byte_for_byte() -> None:
    leaf, certificate, _, number = certified("rsa")
    content = bytes(range(256)) * 80
    options = [reference.PKCS7Options.Binary, reference.PKCS7Options.DetachedSignature]
    options += [reference.PKCS7Options.NoAttributes, reference.PKCS7Options.NoCerts]
    private = leaf._private
    assert isinstance(private, rsa.RSAPrivateKey)
    builder = reference.PKCS7SignatureBuilder().set_data(content).add_signer(certificate, private, hashes.SHA256())
    assert pkcs7.signed_data(content, leaf, pkcs7.name("the root"), number) == builder.sign(Encoding.DER, options)


@pytest.mark.parametrize("family", ["ec", "rsa"])
@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_openssl_verifies_and_notices_changes(family: str, tmp_path: Path) -> None:
    leaf, certificate, root, number = certified(family)
    content = b"loader and metadata" * 100
    (tmp_path / "s.p7").write_bytes(pkcs7.signed_data(content, leaf, pkcs7.name("the root"), number))
    (tmp_path / "leaf.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (tmp_path / "root.pem").write_bytes(root.public_bytes(Encoding.PEM))
    command = ["openssl", "smime", "-verify", "-binary", "-inform", "DER", "-in", "s.p7", "-content", "c"]
    command += ["-certfile", "leaf.pem", "-CAfile", "root.pem", "-purpose", "any", "-nointern", "-out", "/dev/null"]
    outcomes = []
    for text in (content, content[:-1] + b"!"):
        (tmp_path / "c").write_bytes(text)
        outcomes.append(subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0)
    assert outcomes == [True, False]


def test_ecdsa_signs_deterministically() -> None:
    leaf, _, _, number = certified("ec")
    name = pkcs7.name("the root")
    one, two, other = (pkcs7.signed_data(text, leaf, name, number) for text in (b"a", b"a", b"b"))
    assert one == two != other


@pytest.mark.parametrize(("value", "der"), [(0, "020100"), (127, "02017f"), (128, "02020080"), (256, "02020100")])
def test_integers(value: int, der: str) -> None:
    assert pkcs7.integer(value).hex() == der


@pytest.mark.parametrize("size", [0, 127, 128, 255, 256, 65535, 65536])
def test_lengths(size: int) -> None:
    """The length octets say what follows, in the shortest form."""
    element = pkcs7.tlv(0x04, bytes(size))
    first, rest = element[1], element[2:]
    count = first & 0x7F if first & 0x80 else 0
    length = int.from_bytes(rest[:count], "big") if count else first
    assert length == size == len(rest) - count
    assert not count or (rest[0] and size >= 0x80)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_public_keys(curve: ec.EllipticCurve) -> None:
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    private = ec.generate_private_key(curve)
    assert load_der_public_key(SoftKey(private).public) == private.public_key()


def test_rsa_public_key_and_padding() -> None:
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    key = SoftKey.generate("rsa")
    public = load_der_public_key(key.public)
    assert isinstance(public, rsa.RSAPublicKey)
    public.verify(key.sign(b"text"), b"text", padding.PKCS1v15(), hashes.SHA256())
