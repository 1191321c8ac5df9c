"""Keys, objects of clang's, and the command line with an audit log of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.loader.conftest import bpf_permitted

__all__ = ["bpf_permitted"]

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@dataclass(frozen=True)
class Pair:
    """A private key and its self-signed certificate, PEM files."""

    key: Path
    cert: Path


def make_pair(folder: Path, name: str, kind: str = "ec") -> Pair:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    private = ec.generate_private_key(ec.SECP256R1()) if kind == "ec" else rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    pair = Pair(folder / f"{name}.key", folder / f"{name}.pem")
    pair.key.touch(0o600)
    pair.key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    pair.cert.write_bytes(certificate.public_bytes(Encoding.PEM))
    return pair


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("keys"), "signer")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("keys"), "other", "rsa")


def compile_object(name: str, out: Path, text: str = "") -> Path:
    """`name`.bpf.c of this directory, or C `text`, to an object."""
    clang = shutil.which("clang")
    if clang is None or not Path("/usr/include/bpf/bpf_helpers.h").exists():
        pytest.skip("no clang, or no libbpf-dev")
    source = HERE / f"{name}.bpf.c"
    if text:
        source = out / f"{name}.bpf.c"
        source.write_text(text)
    made = out / f"{name}.bpf.o"
    include = f"-I/usr/include/{os.uname().machine}-linux-gnu"
    subprocess.run([clang, "-g", "-O2", "-target", "bpf", include, "-c", str(source), "-o", str(made)], check=True)
    return made


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def build(name: str, text: str = "") -> Path:
        return compile_object(name, tmp_path_factory.mktemp("objects"), text)

    return build


@dataclass(frozen=True)
class Cli:
    env: dict[str, str]
    audit: Path

    def __call__(self, *words: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "bpfseal", *map(str, words)],
            capture_output=True, text=True, timeout=120, env=self.env, cwd=ROOT, check=False,
        )  # fmt: skip
        assert done.returncode == status, (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    audit = tmp_path / "audit" / "audit.jsonl"
    env = os.environ | {"BPFSEAL_SOCKET": str(tmp_path / "none"), "BPFSEAL_AUDIT": str(audit), "PYTHONPATH": str(ROOT)}
    return Cli(env, audit)
