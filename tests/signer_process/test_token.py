"""Root keys in a PKCS#11 token (SoftHSM), through the real helper."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from bpfseal.signer.keys import Keys, KeyTrouble, open_root
from bpfseal.signer.root_token import parse_uri

from .conftest import POLICY, running, small_bundle

LIBRARY = next(
    (p for p in ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so") if os.path.exists(p)), ""
)
needs_softhsm = pytest.mark.skipif(
    not LIBRARY or not shutil.which("softhsm2-util") or find_spec("pkcs11") is None,
    reason="SoftHSM or python-pkcs11 is not installed",
)


def softhsm(folder: Path, kind: str) -> tuple[str, dict[str, str]]:
    """A token with one key pair; its URI and the environment that finds it. `kind`: EC:secp256r1, RSA:2048, …"""
    import pkcs11
    from pkcs11.util.ec import encode_named_curve_parameters

    tokens = folder / "tokens"
    tokens.mkdir(mode=0o755)
    folder.chmod(0o755)
    config = folder / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
    env = {"SOFTHSM2_CONF": str(config)}
    command = ["softhsm2-util", "--init-token", "--free", "--label", "bpfseal", "--so-pin", "0000", "--pin", "4711"]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | env)
    os.environ |= env
    library = pkcs11.lib(LIBRARY)
    library.reinitialize()
    with library.get_token(token_label="bpfseal").open(rw=True, user_pin="4711") as session:
        what, _, size = kind.partition(":")
        if what == "RSA":
            session.generate_keypair(pkcs11.KeyType.RSA, int(size), store=True, label="root")
        else:
            curve = session.create_domain_parameters(
                pkcs11.KeyType.EC, {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters(size)}, local=True
            )
            curve.generate_keypair(store=True, label="root")
    pin = folder / "pin"
    pin.touch(0o600)
    pin.write_text("4711\n")
    return f"pkcs11:token=bpfseal;object=root?module-path={LIBRARY}&pin-source={pin}", env


@needs_softhsm
@pytest.mark.parametrize("kind", ["EC:secp256r1", "EC:secp384r1", "RSA:2048"])
def test_certificates_by_a_token(tmp_path: Path, kind: str) -> None:
    from cryptography import x509

    uri, _ = softhsm(tmp_path, kind)
    root, source = open_root(uri)
    assert source == "token"
    assert root is not None
    keys = Keys(root, "ec", 600, ring=False)
    load = x509.load_der_x509_certificate
    load(keys.leaf().certificate).verify_directly_issued_by(load(keys.root_certificate))
    keys.rotate()
    load(keys.leaf().certificate).verify_directly_issued_by(load(keys.root_certificate))


def token_for_helper(folder: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """Options and environment of a helper that runs as the owner of a token's files."""
    folder.chmod(0o755)
    uri, env = softhsm(folder, "EC:secp256r1")
    options = ("--root", uri, "--token-dir", str(folder))
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 65534, -1)
        options += ("--user", "nobody")
    return options, env


@needs_softhsm
def test_helper_with_a_token() -> None:
    """After it gave up files and system calls it can still rotate: the token's library goes on working."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        options, env = token_for_helper(Path(folder))
        with running(POLICY, *options, env=env) as helper, helper.client() as client:
            assert client.status().root == "token"
            first = client.seal(small_bundle()).certificate
            client.rotate()
            assert client.seal(small_bundle()).certificate != first
            assert dict(client.status().totals)["internal_errors"] == 0


@needs_softhsm
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("token=bpfseal", "token=other"), "token other"),
        (("object=root", "object=other"), "token bpfseal"),
        (("libsofthsm2.so", "nothing.so"), "token bpfseal"),
        (("/pin", "/nopin"), "PIN file"),
    ],
)
def test_wrong_uris(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    uri, _ = softhsm(tmp_path, "EC:secp256r1")
    with pytest.raises(KeyTrouble, match=message):
        open_root(uri.replace(*change))


@needs_softhsm
def test_wrong_pin_and_open_pin_file(tmp_path: Path) -> None:
    uri, _ = softhsm(tmp_path, "EC:secp256r1")
    (tmp_path / "pin").write_text("1111")
    with pytest.raises(KeyTrouble, match="token bpfseal"):
        open_root(uri)
    (tmp_path / "pin").chmod(0o644)
    with pytest.raises(KeyTrouble, match="open to others"):
        open_root(uri)


@pytest.mark.parametrize("text", ["pkcs11:", "pkcs11:token=a", "pkcs11:token=a;what=b", "pkcs11:token"])
def test_uris_that_are_none(text: str) -> None:
    with pytest.raises(KeyTrouble, match="URI"):
        parse_uri(text)


def test_uri_with_escapes() -> None:
    parts = parse_uri("pkcs11:token=my%20token;object=r%3Bt?module-path=/m.so&pin-source=/p")
    assert (parts["token"], parts["object"]) == ("my token", "r;t")
