"""`bpfseal run`: a trace from a file that `bpfseal build` made.

Where the file has a seal of a certificate that this machine trusts, that is what is loaded, and no helper is asked.
Otherwise the bundle goes to the signing helper, as that of a script that was just compiled.
"""

from __future__ import annotations

import hashlib
import os
import sys

from bpfseal.errors import BpfsealError, UsageError
from bpfseal.runtime.ahead import place, store
from bpfseal.runtime.ahead.build import _take
from bpfseal.signer.bundle import Bundle, SealedBundle
from bpfseal.signer.sealed_file import Seal, SealedFile

HELP = """\
usage: bpfseal run [--cert FILE] [--pin DIR] [TRACE OPTIONS] FILE.bpfseal

  --cert FILE   trust this certificate (PEM) for this run, where nothing enforces which count
  --pin DIR     load and pin programs and maps there (on a BPF file system), attach nothing
  -c, -p, -o, -f, -q, -v, --signing, --policy, --flamegraph …   as for a trace (bpfseal --help)
"""


def main(argv: list[str]) -> int:
    """`argv` without `bpfseal run`. Raises BpfsealError."""
    if not argv or "-h" in argv or "--help" in argv:
        sys.stdout.write(HELP)
        return 0 if argv else 2
    cert, argv = _take(argv, "--cert")
    pin, argv = _take(argv, "--pin")
    from bpfseal.runtime import options as option_parser

    options = option_parser.parse(argv)
    if options.file is None or options.program is not None or options.params:
        raise UsageError("one sealed file is wanted", hint="bpfseal run --help")
    file, bundle = store.read(options.file)
    try:
        place.demand(file)
    except place.WrongPlace as error:
        raise BpfsealError(f"{options.file}: {error.message}", hint=error.hint) from None
    from bpfseal.compiler.layout import decode
    from bpfseal.runtime.build import Built, Request
    from bpfseal.runtime.sealing import Sealer, Signing

    reader = decode(bundle.reader)
    built = Built(file.bundle, bundle, reader, reader.warnings)
    for warning in reader.warnings if options.warnings else ():
        sys.stderr.write(warning + "\n")
    signing = Signing(options.signing, options.policy, options.lifetime, options.unsafe)
    with Sealer(signing) as sealer:
        sealed, why = (None, "") if options.signing == "off" else presealed(file, bundle, cert)
        if sealed is None:
            if file.seals and (options.verbose or options.signing == "require"):
                sys.stderr.write(f"bpfseal: {options.file}: {why}: asking the signing helper\n")
            sealed = sealer.seal(built.data, quiet=options.quiet)
        if pin:
            return _pin(bundle, sealed, pin)
        from bpfseal.runtime.api import Trace
        from bpfseal.runtime.trace_command import run

        trace = Trace(Request(text="", pid=options.pid, command=options.command), signing, pcap=options.pcap)
        trace.built = built
        try:
            trace.load(sealed=sealed, log_level=1 if options.verbose else 0)
            return run(options, built, trace)
        finally:
            trace.abandon()


def presealed(file: SealedFile, bundle: Bundle, cert: str = "") -> tuple[SealedBundle | None, str]:
    """A seal of the file's that this kernel takes, or why there is none. Raises BpfsealError for one that is not over
    this file."""
    from bpfseal.runtime.ahead import trust

    if not file.seals:
        return None, "it is not sealed"
    given = _given(cert) if cert else {}
    known = trust.rings()
    why = "its certificate is not trusted on this machine"
    for seal in sorted(file.seals, key=lambda seal: -seal.abi):
        der = seal.certificates[0]
        digest = hashlib.sha256(der).digest()
        ring = known.get(trust.name_of(digest), 0)
        if not ring and digest in given:
            ring = trust.own(der, digest)
        if not ring:
            continue
        sealed = _with(file, bundle, seal, ring)
        from bpfseal.runtime.load import refusal_of

        refused = refusal_of(sealed)
        if refused is None:
            return sealed, ""
        why = refused.message
    return None, why


def _given(path: str) -> set[bytes]:
    from bpfseal.runtime.ahead.signature import digest_of
    from bpfseal.runtime.ahead.verify import read_pem

    return {digest_of(certificate) for certificate in read_pem(path)}


def _with(file: SealedFile, bundle: Bundle, seal: Seal, ring: int) -> SealedBundle:
    from bpfseal.runtime.ahead.signature import loader_of

    emitted = loader_of(file, bundle, seal)
    return SealedBundle(
        loader=emitted.insns,
        metadata=emitted.metadata,
        signature=seal.signature,
        abi=seal.abi,
        keyring=ring,
        certificate=hashlib.sha256(seal.certificates[0]).digest(),
        record=seal.record,
        ctx_size=emitted.ctx_size,
        deadline_ns=0,
    )


def _pin(bundle: Bundle, sealed: SealedBundle, folder: str) -> int:
    """All programs and maps under their names, or none. Raises BpfsealError."""
    from bpfseal.runtime import bpf
    from bpfseal.runtime.load import load

    made: list[str] = []
    try:
        with load(bundle, sealed) as loaded:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            names = [m.name for m in bundle.maps] + [p.name for p in bundle.programs]
            for name, fd in zip(names, (*loaded.map_fds, *loaded.prog_fds), strict=True):
                path = os.path.join(folder, name.replace(".", "_"))  # a BPF file system takes no dots
                bpf.obj_pin(fd, path)
                made.append(path)
    except OSError as error:
        for path in made:
            os.unlink(path)
        raise BpfsealError(
            f"cannot pin under {folder}: {error.strerror}", hint="it has to be on a BPF file system (/sys/fs/bpf)"
        ) from None
    for path in made:
        sys.stdout.write(path + "\n")
    return 0
