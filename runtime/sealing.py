"""Who seals a bundle: the system helper, a private one, or nobody (`--signing=off`)."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec

from bpfseal.errors import BpfsealError
from bpfseal.signer.bundle import SealedBundle

if TYPE_CHECKING:
    from bpfseal.signer.client import SignerClient


class Signing(msgspec.Struct, frozen=True):
    """mode require|auto|off; policy: file for a private helper; lifetime: seconds asked for, 0 the policy's."""

    mode: str = "auto"
    policy: str | None = None
    lifetime: int = 0
    unsafe: bool = False


class Sealer:
    """Seals bundles by one mode; keeps the helper's connection open while the session lives, since the loader is bound
    to the helper's ring only until it has loaded."""

    def __init__(self, signing: Signing) -> None:
        self.signing = signing
        self._client: SignerClient | None = None

    @property
    def client(self) -> SignerClient | None:
        """The connection to the helper that seals; None before `start` and without one."""
        return self._client

    def start(self) -> None:
        """Begin to start the helper, so that it is ready when the compiler is. Errors surface in `seal`."""
        if self.signing.mode != "off" and self._client is None:
            from bpfseal.signer.client import connect

            self._client = connect(policy=self.signing.policy, unsafe=self.signing.unsafe)

    def seal(self, data: bytes, *, quiet: bool = False) -> SealedBundle:
        """The sealed form of canonical bundle bytes. Raises BpfsealError when refused, or when `require` cannot be
        kept."""
        if self.signing.mode == "off":
            from bpfseal.runtime.load import seal_locally
            from bpfseal.signer.bundle import decode

            return seal_locally(decode(data))
        self.start()
        assert self._client is not None
        sealed = self._client.seal(data, lifetime=self.signing.lifetime)
        if sealed.abi == 0:
            why = self._client.why_unverified()
            if self.signing.mode == "require":
                raise BpfsealError(
                    f"this kernel cannot verify signatures: {why}",
                    hint="--signing=auto loads all the same; policy and audit still apply",
                )
            if not quiet:
                sys.stderr.write(f"bpfseal: note: this kernel cannot verify signatures ({why}); loading all the same\n")
        return sealed

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def __enter__(self) -> Sealer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
