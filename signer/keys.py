"""Keys of the helper: a root that issues certificates, and the short-lived leaves that sign loaders.

A leaf is born in this process, lives `life` seconds and is never written anywhere. Its end is enforced twice: by the
key's timeout in the kernel keyring (wall clock) and by this module on the boot clock, which nobody can set back.

The private halves are only ever *used* (`sign`): one export of a key's numbers or bytes would leave a copy in memory
that outlives the key object, so the helper never asks for one.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Struct

from bpfseal.errors import BpfsealError
from bpfseal.signer import pkcs7
from bpfseal.signer.keyring import Rings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import rsa

LEAF_SECONDS = 600
ROOT_SECONDS = 10 * 365 * 86400
# The kernel's timeout runs on the wall clock; when it and the boot clock part by this much, somebody set the clock or
# the machine was suspended, cloned or restored.
CLOCK_SLACK_NS = 2_000_000_000


class KeyTrouble(BpfsealError):
    """A key cannot be made, read or used."""


def _deterministic_ecdsa() -> ec.ECDSA:
    """ECDSA that needs no random numbers (RFC 6979): two clones of one virtual machine cannot betray the key by signing
    different loaders with the same nonce. Plain ECDSA where OpenSSL is older than 3.2."""
    try:
        return ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    except UnsupportedAlgorithm:
        return ec.ECDSA(hashes.SHA256())


_ECDSA = _deterministic_ecdsa()


class SoftKey:
    """A private key in this process's memory (`pkcs7.SigningKey`)."""

    def __init__(self, private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
        self._private = private
        if isinstance(private, ec.EllipticCurvePrivateKey):
            self.family = "ec"
            point = private.public_key().public_numbers()
            if private.curve.name not in ("secp256r1", "secp384r1"):
                raise KeyTrouble(f"curve {private.curve.name} is not one the kernel knows", hint="use P-256 or P-384")
            self.public = pkcs7.ec_public(private.curve.name, point.x, point.y)
        else:
            self.family = "rsa"
            numbers = private.public_key().public_numbers()
            self.public = pkcs7.rsa_public(numbers.n, numbers.e)

    @classmethod
    def generate(cls, family: str) -> SoftKey:
        """A new P-256 ("ec", 0.1 ms) or RSA-2048 ("rsa", 44 ms) key."""
        if family == "ec":
            return cls(ec.generate_private_key(ec.SECP256R1()))
        from cryptography.hazmat.primitives.asymmetric import rsa

        return cls(rsa.generate_private_key(65537, 2048))

    @classmethod
    def read(cls, path: str) -> SoftKey:
        """The key of a PEM file, which must belong to us or root and be closed to everybody else."""
        from cryptography.hazmat.primitives.asymmetric import rsa
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NOFOLLOW | os.O_CLOEXEC)) as file:
                status = os.fstat(file.fileno())
                if status.st_mode & 0o077 or status.st_uid not in (0, os.geteuid()):
                    raise KeyTrouble(f"root key {path} is open to others", hint=f"chmod 600 {path}")
                private = load_pem_private_key(file.read(1 << 16), None)
        except OSError as error:
            raise KeyTrouble(f"root key {path}: {error.strerror}") from None
        except (ValueError, TypeError) as error:
            raise KeyTrouble(f"root key {path}: {error}") from None
        if not isinstance(private, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise KeyTrouble(f"root key {path} is neither EC nor RSA")
        return cls(private)

    def sign(self, data: bytes) -> bytes:
        if isinstance(self._private, ec.EllipticCurvePrivateKey):
            return self._private.sign(data, _ECDSA)
        from cryptography.hazmat.primitives.asymmetric import padding

        return self._private.sign(data, padding.PKCS1v15(), hashes.SHA256())


def open_root(source: str) -> tuple[pkcs7.SigningKey | None, str]:
    """The root key that `source` names and a word for `status`.

    "" makes none: an ephemeral root is generated together with the leaves. A path is a PEM file; a "pkcs11:" URI a key
    in a token (`signer.root_token`).
    """
    if not source:
        return None, "ephemeral"
    if source.startswith("pkcs11:"):
        from bpfseal.signer.root_token import TokenKey

        return TokenKey.open(source), "token"
    return SoftKey.read(source), "file"


class Leaf(Struct):
    """One certified leaf. `ring_key` is its serial in the leaf ring (0: no ring); `until_ns` is on the boot clock."""

    key: pkcs7.SigningKey
    certificate: bytes
    issuer: bytes
    number: int
    born_ns: int
    until_ns: int
    ring_key: int = 0
    id: bytes = b""

    def __post_init__(self) -> None:
        self.id = hashlib.sha256(self.certificate).digest()

    def sign(self, content: bytes) -> bytes:
        """DER PKCS#7 over `content`."""
        return pkcs7.signed_data(content, self.key, self.issuer, self.number)


class Revoked(BpfsealError):
    """The helper was told to stop signing."""


class Keys:
    """The root, the rings, and at most two live leaves.

    `rings` is None where the kernel cannot keep the certificates; `why` then says so. Everything else works the same,
    so that policy and audit do not depend on the kernel.
    """

    def __init__(
        self,
        root: pkcs7.SigningKey,
        family: str,
        life: int,
        *,
        ring: bool = True,
        boot_ns: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._root = root
        self._family = family
        self.life = life
        self._boot_ns = boot_ns
        self._wall_ns = wall_ns
        self._skew = wall_ns() - boot_ns()
        self.root_name = f"bpfseal root {os.urandom(6).hex()}"
        self.root_certificate = pkcs7.certificate(
            self.root_name, root.public, self.root_name, root, _serial(), ROOT_SECONDS, authority=True
        )
        self.rings: Rings | None = Rings.create(self.root_certificate) if ring else None
        self.revoked = False
        self.previous: Leaf | None = None
        self.current: Leaf = self._issue()

    @property
    def algorithm(self) -> str:
        return {"ec": "ECDSA P-256", "rsa": "RSA-2048"}[self._family]

    def root_sign(self, data: bytes) -> bytes:
        """The root's signature over an audit checkpoint (a JSON text, so never a certificate or a loader)."""
        return self._root.sign(data)

    def _issue(self) -> Leaf:
        key = SoftKey.generate(self._family)
        number = _serial()
        subject = f"bpfseal leaf {number & 0xFFFFFFFFFFFF:012x}"
        certificate = pkcs7.certificate(
            subject, key.public, self.root_name, self._root, number, self.life, authority=False
        )
        now = self._boot_ns()
        leaf = Leaf(key, certificate, pkcs7.name(self.root_name), number, now, now + self.life * 1_000_000_000)
        if self.rings is not None:
            leaf.ring_key = self.rings.add(certificate, self.life)
        return leaf

    def _drop(self, leaf: Leaf | None) -> None:
        if leaf is not None and self.rings is not None and leaf.ring_key:
            self.rings.remove(leaf.ring_key)

    def live(self) -> list[Leaf]:
        """The leaves whose signatures load now, newest first."""
        return [] if self.revoked else [leaf for leaf in (self.current, self.previous) if leaf is not None]

    def clock_jumped(self) -> bool:
        """Whether wall and boot clock parted since the last time this was asked."""
        skew = self._wall_ns() - self._boot_ns()
        jumped = abs(skew - self._skew) > CLOCK_SLACK_NS
        self._skew = skew
        return jumped

    def tick(self) -> str:
        """Drop what expired and renew in time; what happened, "" for nothing.

        A leaf signs for the first half of its life and is listed for the second, so that a bundle sealed in its last
        moment still has half a life to be loaded in.
        """
        now = self._boot_ns()
        if self.previous is not None and now >= self.previous.until_ns:
            self._drop(self.previous)
            self.previous = None
        if self.revoked:
            return ""
        if self.clock_jumped():
            self.rotate()
            return "clock"
        if now - self.current.born_ns >= self.life * 500_000_000:
            self._drop(self.previous)
            self.previous, self.current = self.current, self._issue()
            return "scheduled"
        return ""

    def rotate(self) -> None:
        """A new leaf in, then all older ones out: what they signed no longer loads. Ends a revocation."""
        self._drop(self.previous)
        self.previous = None
        old, self.current = self.current, self._issue()
        self._drop(old)
        self.revoked = False

    def revoke(self) -> None:
        """All leaves out, none in: nothing that was signed loads any more, nothing is signed until `rotate`."""
        self.revoked = True
        for leaf in (self.previous, self.current):
            self._drop(leaf)
        self.previous = None

    def leaf(self) -> Leaf:
        """The leaf to sign with. Raises Revoked."""
        if self.revoked:
            raise Revoked("all keys are revoked", hint="an administrator can start again with `bpfseal signer rotate`")
        return self.current

    def seconds_left(self, leaf: Leaf) -> int:
        return 0 if self.revoked else max(0, (leaf.until_ns - self._boot_ns()) // 1_000_000_000)

    def close(self) -> None:
        self.revoke()
        if self.rings is not None:
            self.rings.close()


def _serial() -> int:
    # Positive, 127 bits, top bit set so that the DER length never varies.
    return int.from_bytes(os.urandom(16), "big") >> 1 | 1 << 126
