"""`bpfseal seal`: signatures into a file, by a helper of its own with the key that is named.

bpfseal seal --key PEM|pkcs11:URI --cert FILE [--policy FILE] [-o FILE] FILE.bpfseal|OBJECT.bpf.o
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from bpfseal.errors import UsageError
from bpfseal.runtime.ahead import build, store
from bpfseal.signer.sealed_file import MAX_SEALS, SealedFile, header


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(message, hint=f"{self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bpfseal seal",
        description="Have a file analysed, put to policy, recorded and signed for machines that trust the certificate.",
    )
    parser.add_argument("file", metavar="FILE.bpfseal|OBJECT.bpf.o")
    parser.add_argument("--key", required=True, metavar="PEM|pkcs11:URI", help="what to sign with")
    parser.add_argument("--cert", required=True, metavar="FILE", help="its certificate (PEM), then its issuers'")
    parser.add_argument("-o", dest="output", metavar="FILE", help="where to (default: the same file)")
    parser.add_argument(
        "--policy", default="", metavar="FILE", help="what may be signed (default: what changes nothing)"
    )
    parser.add_argument("--unsafe", action="store_true", help="sign what changes other programs, without a --policy")
    parser.add_argument("--audit", default="", metavar="FILE", help="audit log (default: that of private helpers)")
    parser.add_argument("--btf", default="", metavar="FILE", help="type information of the kernel it is for")
    parser.add_argument("--release", default="", metavar="NAME", help="objects: what that kernel calls itself")
    parser.add_argument("--abi", action="append", choices=("1", "2"), default=[], help="only for this signing ABI")
    parser.add_argument(
        "--token-dir", action="append", default=[], metavar="DIR", help="what the token's library reads"
    )
    return parser


def main(argv: list[str]) -> int:
    """`argv` without `bpfseal seal`. Raises BpfsealError."""
    options = _parser().parse_args(argv)
    out = options.output
    if build.is_object(options.file):
        file = build.from_object(options.file, options.btf, options.release)
        out = out or build._name(options.file)
    else:
        file, _ = store.read(options.file)
        out = out or options.file
    sealed, rule = seal(
        file,
        key=options.key,
        certificate=options.cert,
        policy=options.policy,
        unsafe=options.unsafe,
        audit=options.audit,
        btf=options.btf,
        abis=tuple(options.abi),
        token_dirs=tuple(options.token_dir),
    )
    store.write(out, sealed)
    abis = ", ".join(f"v{seal.abi}" for seal in sealed.seals[len(sealed.seals) - _new(file, sealed) :])
    sys.stdout.write(f"{out}: sealed for ABI {abis} by rule {rule}, audit record {sealed.seals[-1].record}\n")
    return 0


def _new(before: SealedFile, after: SealedFile) -> int:
    return sum(seal not in before.seals for seal in after.seals)


def seal(
    file: SealedFile,
    *,
    key: str,
    certificate: str,
    policy: str = "",
    unsafe: bool = False,
    audit: str = "",
    btf: str = "",
    abis: tuple[str, ...] = (),
    token_dirs: tuple[str, ...] = (),
) -> tuple[SealedFile, str]:
    """The file with new seals and the rule of the policy that allowed them. Seals of the same certificate are replaced,
    others stay. Raises BpfsealError (SealRefused)."""
    import msgspec

    from bpfseal.signer.client import start_private

    settings = [
        f"key={key if key.startswith('pkcs11:') else os.path.abspath(key)}",
        f"certificate={os.path.abspath(certificate)}",
        f"btf={os.path.abspath(btf) if btf else ''}",
        f"abis={','.join(sorted(set(abis)))}",
        "token_dirs=" + "\n".join(map(os.path.abspath, token_dirs)),
    ]
    with start_private(policy, unsafe=unsafe, audit=audit, ahead=settings) as helper:
        reply = helper.seal_file(file.bundle, header(file))
    signer = reply.seals[0].certificates[0]
    others = tuple(seal for seal in file.seals if seal.certificates[0] != signer)
    if len(others) + len(reply.seals) > MAX_SEALS:
        raise UsageError(f"the file has {len(file.seals)} seals already")
    return msgspec.structs.replace(file, seals=(*others, *reply.seals)), reply.rule
