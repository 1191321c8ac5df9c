"""`bpfseal enforce allow` and `disallow`: certificates whose signatures count beside the helper's.

For what was sealed ahead of time (`bpfseal seal`) and for loaders that others sign, such as bpftool's light skeletons.
Each certificate has a keyring of its own, locked, with nothing else in it (`runtime.ahead.trust`).
"""

from __future__ import annotations

from bpfseal.errors import BpfsealError
from bpfseal.runtime.ahead import trust


def trusted_rings() -> list[int]:
    """Serials of the rings of all certificates that were allowed since boot."""
    return sorted(trust.rings().values())


def allow(path: str) -> int:
    """Raises BpfsealError."""
    from bpfseal.runtime.enforce_switch import open_for_change

    der, digest = _certificate(path)
    ring = trust.add(der, digest)
    state = open_for_change()
    if state is None or not state.attached:
        print(f"keyring {ring} {trust.name_of(digest)}: to be allowed when enforcement is turned on")
        return 0
    with state:
        state.allow(ring, 0)
    print(f"keyring {ring} {trust.name_of(digest)} is allowed")
    return 0


def disallow(path: str) -> int:
    """0, or 1 if the certificate was not allowed. Raises BpfsealError."""
    from bpfseal.runtime.enforce_switch import open_for_change

    _, digest = _certificate(path)
    serial = trust.rings().get(trust.name_of(digest), 0)
    state = open_for_change()
    if serial and state is not None:
        with state:
            state.disallow(serial)
    if not trust.remove(digest):
        print("it was not allowed")
        return 1
    print(f"keyring {serial} is gone: what was loaded stays loaded")
    return 0


def _certificate(path: str) -> tuple[bytes, bytes]:
    """DER and sha256 of the one certificate of a PEM file. An authority's would vouch for whatever it ever issued, as
    long as the signature brings the certificate along, so it is refused. Raises BpfsealError."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    from bpfseal.runtime.ahead.signature import digest_of
    from bpfseal.runtime.ahead.verify import read_pem

    found = read_pem(path)[0]
    try:
        authority = found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        authority = False
    if authority and found.issuer != found.subject:
        raise BpfsealError(
            "that is the certificate of an authority, not of a signing key", hint="give the signer's own"
        )
    return found.public_bytes(Encoding.DER), digest_of(found)
