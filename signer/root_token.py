"""A root key that lives in a PKCS#11 token and never enters this process. Needs the optional package python-pkcs11."""

from __future__ import annotations

import hashlib
import os
from typing import Any
from urllib.parse import unquote

from bpfseal.signer import pkcs7
from bpfseal.signer.keys import KeyTrouble


def parse_uri(uri: str) -> dict[str, str]:
    """The parts of a "pkcs11:token=…;object=…?module-path=…&pin-source=…" URI (RFC 7512, as far as it is used here)."""
    path, _, query = uri.removeprefix("pkcs11:").partition("?")
    out: dict[str, str] = {}
    for item in (*path.split(";"), *query.split("&")):
        key, equals, value = item.partition("=")
        if not item:
            continue
        if not equals or key not in ("token", "object", "module-path", "pin-source"):
            raise KeyTrouble(f"pkcs11 URI: {item!r} is not understood")
        out[key] = unquote(value)
    for needed in ("token", "object", "module-path", "pin-source"):
        if needed not in out:
            raise KeyTrouble(f"pkcs11 URI: {needed} is missing")
    return out


def _read_pin(path: str) -> str:
    try:
        with open(path, encoding="utf-8", opener=lambda p, f: os.open(p, f | os.O_NOFOLLOW | os.O_CLOEXEC)) as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise KeyTrouble(f"PIN file {path} is open to others", hint=f"chmod 600 {path}")
            return file.read(256).strip()
    except OSError as error:
        raise KeyTrouble(f"PIN file {path}: {error.strerror}") from None


class TokenKey:
    """A key in a token (`pkcs7.SigningKey`): EC (P-256, P-384) or RSA."""

    def __init__(self, session: Any, private: Any, public: Any) -> None:
        import pkcs11
        from pkcs11.util.ec import encode_ec_public_key
        from pkcs11.util.rsa import encode_rsa_public_key

        self._session = session
        self._private = private
        self._mechanism = pkcs11.Mechanism
        if private.key_type == pkcs11.KeyType.EC:
            self.family = "ec"
            self.public = bytes(encode_ec_public_key(public))
        elif private.key_type == pkcs11.KeyType.RSA:
            self.family = "rsa"
            self.public = pkcs7.sequence(pkcs7.RSA_ENCRYPTION, pkcs7.bit_string(bytes(encode_rsa_public_key(public))))
        else:
            raise KeyTrouble(f"token key of type {private.key_type} is neither EC nor RSA")

    @classmethod
    def open(cls, uri: str) -> TokenKey:
        parts = parse_uri(uri)
        try:
            import pkcs11
        except ImportError:
            raise KeyTrouble("keys in a token need python-pkcs11", hint="pip install python-pkcs11") from None
        pin = _read_pin(parts["pin-source"])
        try:
            token = pkcs11.lib(parts["module-path"]).get_token(token_label=parts["token"])
            session = token.open(user_pin=pin)
            private = session.get_key(pkcs11.ObjectClass.PRIVATE_KEY, label=parts["object"])
            public = session.get_key(pkcs11.ObjectClass.PUBLIC_KEY, label=parts["object"])
        except (pkcs11.PKCS11Error, RuntimeError) as error:
            raise KeyTrouble(f"token {parts['token']}: {error or type(error).__name__}") from None
        return cls(session, private, public)

    def sign(self, data: bytes) -> bytes:
        if self.family == "rsa":
            return bytes(self._private.sign(data, mechanism=self._mechanism.SHA256_RSA_PKCS))
        raw = bytes(self._private.sign(hashlib.sha256(data).digest(), mechanism=self._mechanism.ECDSA))
        half = len(raw) // 2
        return pkcs7.sequence(
            pkcs7.integer(int.from_bytes(raw[:half], "big")), pkcs7.integer(int.from_bytes(raw[half:], "big"))
        )
