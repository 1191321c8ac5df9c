"""`bpfseal verify`: whether a file's seals are good, and those of a certificate. Offline, without privileges.

Exit status 0: every seal is good, and with --cert at least one is of that certificate; 1: not.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from bpfseal.errors import BpfsealError, UsageError
from bpfseal.runtime.ahead import signature, store

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from bpfseal.signer.bundle import Bundle
    from bpfseal.signer.sealed_file import SealedFile


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(message, hint=f"{self.prog} --help")


def main(argv: list[str]) -> int:
    """`argv` without `bpfseal verify`. Raises BpfsealError."""
    parser = _Parser(prog="bpfseal verify", description="Check the seals of a file.")
    parser.add_argument("file", metavar="FILE.bpfseal")
    parser.add_argument("--cert", metavar="FILE", help="PEM: the signer's certificate, or its issuer's")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    trusted = read_pem(options.cert) if options.cert else []
    file, bundle = store.read(options.file)
    found = judge(file, bundle, trusted)
    good = bool(found) and all(not line["trouble"] for line in found)
    if trusted:
        good = good and any(line["trusted"] for line in found)
    if options.json:
        print(json.dumps({"file": options.file, "good": good, "seals": found}))
        return 0 if good else 1
    if not found:
        print(f"{options.file}: not sealed")
    for line in found:
        verdict = line["trouble"] or (line["distrust"] if trusted and not line["trusted"] else "good")
        print(f"{options.file}: ABI v{line['abi']}, {line['signer'] or '?'}: {verdict}")
    sys.stdout.flush()
    return 0 if good else 1


def judge(file: SealedFile, bundle: Bundle, trusted: list[Certificate]) -> list[dict[str, Any]]:
    """For each seal: abi, signer, trouble ("" if it is good), trusted, distrust (why not). Raises nothing for what
    is in a file."""
    found: list[dict[str, Any]] = []
    for seal in file.seals:
        line: dict[str, Any] = {"abi": seal.abi, "signer": "", "trouble": "", "trusted": False, "distrust": ""}
        try:
            line["signer"] = signature.name_of(signature.read_certificate(seal.certificates[0]))
            signature.check(file, bundle, seal)
            if trusted:
                line["distrust"] = signature.chain_to(seal, trusted)
                line["trusted"] = not line["distrust"]
        except BpfsealError as error:
            line["trouble"] = error.message
        found.append(line)
    return found


def read_pem(path: str) -> list[Certificate]:
    """The certificates of a PEM file. Raises BpfsealError."""
    from cryptography import x509

    try:
        with open(path, "rb") as file:
            return x509.load_pem_x509_certificates(file.read(1 << 20))
    except OSError as error:
        raise BpfsealError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise BpfsealError(f"{path}: {error}") from None
