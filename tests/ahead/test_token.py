"""Files sealed with a key in a PKCS#11 token (SoftHSM), which never leaves it."""

from __future__ import annotations

import datetime
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfseal.runtime.ahead.seal import seal
from bpfseal.runtime.ahead.verify import judge, read_pem
from bpfseal.signer.bundle import decode
from bpfseal.signer.keys import open_root
from tests.signer_process.test_token import needs_softhsm, softhsm

from .test_file import unsealed


@pytest.fixture
def environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@needs_softhsm
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["EC:secp256r1", "RSA:2048"])
def test_a_key_in_a_token_seals_files(kind: str, environment: None, tmp_path: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key

    with tempfile.TemporaryDirectory() as folder:
        uri, _ = softhsm(Path(folder), kind)
        key, _ = open_root(uri)
        assert key is not None
        # Certified by somebody else, as a token's key would be.
        authority = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "token")]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")]))
            .public_key(load_der_public_key(key.public))  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + datetime.timedelta(days=1))
            .sign(authority, hashes.SHA256())
        )
        pem = tmp_path / "token.pem"
        pem.write_bytes(certificate.public_bytes(Encoding.PEM))
        file, _ = seal(
            unsealed(),
            key=uri,
            certificate=str(pem),
            audit=str(tmp_path / "audit" / "audit.jsonl"),
            token_dirs=(folder,),
        )
    lines = judge(file, decode(file.bundle), read_pem(str(pem)))
    assert lines
    assert all(line["trusted"] and not line["trouble"] for line in lines)
