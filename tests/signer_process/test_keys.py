"""Life of leaves on made-up clocks, and rings on the running kernel."""

from __future__ import annotations

import ast
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpfseal.signer import keyring, pkcs7
from bpfseal.signer.keyring import Rings
from bpfseal.signer.keys import Keys, KeyTrouble, Revoked, SoftKey, open_root
from bpfseal.signer.start import make_keys

from .conftest import as_user, needs_root

SECOND = 1_000_000_000
SIGNER = Path(keyring.__file__).resolve().parent


def error_of(call: Callable[[], object]) -> int:
    """errno that `call` fails with, 0 if it does not."""
    try:
        call()
    except OSError as error:
        return error.errno or -1
    return 0


def gone(serial: int) -> bool:
    """Whether a key is gone; the kernel takes a moment to collect it."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if error_of(lambda: keyring.describe(serial)):
            return True
        time.sleep(0.02)
    return False


class Clock:
    """Boot and wall clock in nanoseconds that only move when told."""

    def __init__(self) -> None:
        self.boot, self.wall = 5 * SECOND, 1_700_000_000 * SECOND

    def advance(self, seconds: float) -> None:
        self.boot += int(seconds * SECOND)
        self.wall += int(seconds * SECOND)

    def keys(self, *, ring: bool = False, family: str = "ec", life: int = 600) -> Keys:
        root = SoftKey.generate(family)
        return Keys(root, family, life, ring=ring, boot_ns=lambda: self.boot, wall_ns=lambda: self.wall)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_leaf_signs_for_half_its_life_and_is_listed_for_the_other(clock: Clock) -> None:
    keys = clock.keys()
    first = keys.leaf()
    clock.advance(299)
    assert keys.tick() == ""
    assert keys.leaf() is first
    clock.advance(1)
    assert keys.tick() == "scheduled"
    second = keys.leaf()
    assert second is not first
    assert keys.live() == [second, first]
    clock.advance(299)
    assert keys.tick() == ""
    assert keys.live() == [second, first]
    clock.advance(1)
    keys.tick()
    assert first not in keys.live()


def test_never_more_than_two_leaves_and_never_none(clock: Clock) -> None:
    keys = clock.keys()
    for step in range(2000):
        clock.advance((step * 37) % 211)
        keys.tick()
        assert 1 <= len(keys.live()) <= 2
        assert keys.leaf().until_ns > clock.boot


def test_rotation_ends_what_came_before(clock: Clock) -> None:
    keys = clock.keys()
    clock.advance(300)
    keys.tick()
    assert len(keys.live()) == 2
    keys.rotate()
    assert keys.live() == [keys.current]


def test_revocation_lasts_until_rotation(clock: Clock) -> None:
    keys = clock.keys()
    keys.revoke()
    assert keys.live() == []
    with pytest.raises(Revoked, match="revoked"):
        keys.leaf()
    clock.advance(10_000)
    keys.tick()
    with pytest.raises(Revoked):
        keys.leaf()
    keys.rotate()
    assert keys.live() == [keys.leaf()]


@pytest.mark.parametrize("jump", [-3600, 3600, 3])
def test_a_wall_clock_that_jumps_means_new_keys(clock: Clock, jump: int) -> None:
    keys = clock.keys()
    first = keys.leaf()
    clock.wall += jump * SECOND
    assert keys.tick() == "clock"
    assert keys.live() == [keys.leaf()]
    assert keys.leaf() is not first


def test_a_clock_that_drifts_is_no_jump(clock: Clock) -> None:
    keys = clock.keys()
    first = keys.leaf()
    for _ in range(100):
        clock.wall += SECOND // 10
        assert keys.tick() == ""
    assert keys.leaf() is first


def test_descriptions_and_names_are_never_used_twice(clock: Clock) -> None:
    names = {clock.keys().root_name for _ in range(50)}
    assert len(names) == 50


def test_nothing_in_the_helper_exports_a_private_key() -> None:
    """One call of these leaves a copy of the key in memory that outlives the key."""
    for path in SIGNER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("private_numbers", "private_bytes", "private_bytes_raw"), path


def test_there_is_one_signing_call_for_loaders() -> None:
    """Nothing but `Sealer._sign` and the probe of the kernel at start gets at a leaf's `sign`."""
    found = set()
    for path in SIGNER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("sign", "signed_data"):
                found.add((path.name, ast.unparse(node)))
    assert found == {
        ("abi.py", "sign"),
        ("audit.py", "root.sign"),
        ("keys.py", "pkcs7.signed_data"),
        ("keys.py", "self._private.sign"),
        ("keys.py", "self._root.sign"),
        ("pkcs7.py", "issuer_key.sign"),
        ("pkcs7.py", "key.sign"),
        ("root_token.py", "self._private.sign"),
        ("seal.py", "leaf.sign"),
        ("start.py", "keys.current.sign"),
        ("start.py", "plain.current.sign"),
    } - {("abi.py", "sign")}


# Root keys ----------------------------------------------------------------------------------------------------------


def pem(tmp_path: Path, mode: int = 0o600) -> Path:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    path = tmp_path / "root.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(mode)
    return path


def test_root_from_pem(tmp_path: Path) -> None:
    key, source = open_root(str(pem(tmp_path)))
    assert source == "file"
    assert key is not None
    assert key.family == "ec"
    again, _ = open_root(str(tmp_path / "root.pem"))
    assert again is not None
    assert again.public == key.public


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_root_key_open_to_others(tmp_path: Path, mode: int) -> None:
    with pytest.raises(KeyTrouble, match="open to others"):
        open_root(str(pem(tmp_path, mode)))


def test_root_key_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(pem(tmp_path))
    with pytest.raises(KeyTrouble):
        open_root(str(tmp_path / "link"))


@pytest.mark.parametrize(
    "content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"\xff" * 99]
)
def test_root_key_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "root.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyTrouble):
        open_root(str(path))


# Rings --------------------------------------------------------------------------------------------------------------


def kernel_takes(family: str) -> bool:
    key = SoftKey.generate(family)
    try:
        Rings.create(pkcs7.certificate("r", key.public, "r", key, 9, 60, authority=True)).close()
    except OSError:
        return False
    return True


needs_rings = pytest.mark.skipif(not kernel_takes("rsa"), reason="this kernel takes no RSA certificates into keyrings")


def certify(subject: SoftKey, name: str, issuer: SoftKey, issuer_name: str, number: int) -> bytes:
    return pkcs7.certificate(name, subject.public, issuer_name, issuer, number, 600, authority=False)


@pytest.fixture
def ringed() -> Iterator[tuple[SoftKey, Rings]]:
    root = SoftKey.generate("rsa")
    rings = Rings.create(pkcs7.certificate("r", root.public, "r", root, 1, 600, authority=True))
    yield root, rings
    rings.close()


@needs_rings
def test_the_leaf_ring_takes_only_what_the_root_issued(ringed: tuple[SoftKey, Rings]) -> None:
    root, rings = ringed
    leaf, foreign = SoftKey.generate("rsa"), SoftKey.generate("rsa")
    rings.add(certify(leaf, "leaf", root, "r", 2), 60)
    attempts = {
        "self-signed": pkcs7.certificate("f", foreign.public, "f", foreign, 3, 600, authority=True),
        "same issuer name, other key": certify(foreign, "x", foreign, "r", 4),
        "leaf of a leaf": certify(foreign, "x", leaf, "leaf", 5),
    }
    for what, certificate in attempts.items():
        assert error_of(lambda c=certificate: rings.add(c, 60)) == errno.ENOKEY, what


@needs_rings
def test_nothing_can_be_added_beside_the_root(ringed: tuple[SoftKey, Rings]) -> None:
    _, rings = ringed
    other = SoftKey.generate("rsa")
    certificate = pkcs7.certificate("o", other.public, "o", other, 6, 60, authority=True)
    error = error_of(lambda: keyring.add_key("asymmetric", "other", certificate, rings.root))
    assert error in (errno.EPERM, errno.EACCES)


@needs_rings
def test_possessors_cannot_extend_a_key(ringed: tuple[SoftKey, Rings]) -> None:
    root, rings = ringed
    serial = rings.add(certify(SoftKey.generate("rsa"), "leaf", root, "r", 2), 60)
    for operation, value in ((15, 3600), (5, 0x3F3F3F3F)):  # set_timeout, setperm
        for target in (serial, rings.leaf):
            assert error_of(lambda o=operation, t=target, v=value: keyring.keyctl(o, t, v)) == errno.EACCES


@needs_rings
def test_removed_keys_are_gone(ringed: tuple[SoftKey, Rings]) -> None:
    root, rings = ringed
    serial = rings.add(certify(SoftKey.generate("rsa"), "leaf", root, "r", 2), 60)
    rings.remove(serial)
    rings.remove(serial)
    assert gone(serial)


@needs_rings
def test_keys_in_a_real_ring(clock: Clock) -> None:
    keys = clock.keys(ring=True, family="rsa")
    try:
        assert keys.rings is not None
        first = keys.leaf().ring_key
        assert "bpfseal-leaf-key" in keyring.describe(first)
        clock.advance(300)
        keys.tick()
        assert keys.leaf().ring_key not in (0, first)
        keys.rotate()
        assert gone(first)
    finally:
        keys.close()
    assert gone(keys.rings.leaf)
    assert gone(keys.rings.root)


@needs_rings
def test_rings_die_with_their_process() -> None:
    """They hang on the process keyring and nothing else."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        root = SoftKey.generate("rsa")
        rings = Rings.create(pkcs7.certificate("r", root.public, "r", root, 1, 600, authority=True))
        os.write(write, f"{rings.root} {rings.leaf}".encode())
        os.kill(os.getpid(), 9)
    serials = [int(word) for word in os.read(read, 100).split()]
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)
    assert len(serials) == 2
    assert all(gone(serial) for serial in serials)


def has_room(ring: int, number: int) -> bool:
    error = error_of(lambda: keyring.add_key("user", f"filler-{number}", b"x", ring))
    assert error in (0, errno.EDQUOT)
    return error == 0


@needs_root
def test_a_used_up_key_quota_is_named() -> None:
    """Of an ordinary user: 200 keys by default."""

    def act() -> str:
        ring = keyring.add_key("keyring", "full", b"", -2)
        number = 0
        while has_room(ring, number):
            number += 1
        make_keys("", 600)
        return "made"

    assert as_user(4321, 4321, act) == "BpfsealError: the kernel's key quota of this user is used up"
