"""Sealing ahead of time: with a key that outlives the helper, for machines that are elsewhere, kept in files.

The same path as every other seal: the request is decoded, analysed, put to policy and written to the audit log, and
what is signed is a loader that was emitted here. What differs:

* The key is a PEM file's or a token's, and its certificate is given. Whoever trusts the certificate trusts the policy
  of whoever holds the key.
* The loaders are bound to no user, no process and no deadline: boot clocks, pids and users of other machines are not
  known. Trust ends when the certificate leaves the other machine's list.
* Ids are looked up in the type information of the kernel that the file is for, read from a file that the signer names.
* Existing maps cannot be named, and nothing that is good for one boot.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from typing import Any

from msgspec import Struct

from bpfseal.errors import BpfsealError
from bpfseal.signer import harden, loader, protocol
from bpfseal.signer.abi import Abi, excl_field
from bpfseal.signer.audit import AuditLog
from bpfseal.signer.btf import Btf, BtfError
from bpfseal.signer.bundle import SealRequest
from bpfseal.signer.identity import Identity
from bpfseal.signer.kernel_ids import Kernel
from bpfseal.signer.keys import Keys, KeyTrouble, Leaf, SoftKey, open_root
from bpfseal.signer.loader import ExclField, Terms
from bpfseal.signer.peer import want_credentials
from bpfseal.signer.policy import Policy, PolicyFile
from bpfseal.signer.program_target import program_target
from bpfseal.signer.refusal import Refusal
from bpfseal.signer.seal import Examined, Outcome, Sealer
from bpfseal.signer.sealed_file import MAX_CERTIFICATE, MAX_CHAIN, Seal, SealedFile, decode_header, statement
from bpfseal.signer.server import Server
from bpfseal.signer.service import Facts, FixedPolicy, Service

_MAX_BTF = 64 << 20
_RUNNING = "/sys/kernel/btf/vmlinux"


class Signer(Struct, frozen=True):
    """A key with its certificate as a leaf that does not end by itself, and the `chain` behind it (DER, its own
    certificate first)."""

    leaf: Leaf
    chain: tuple[bytes, ...]

    @classmethod
    def open(cls, source: str, path: str) -> Signer:
        """`source` as in `keys.open_root`; `path`: PEM certificates, the key's first. Raises KeyTrouble."""
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        key, _ = open_root(source)
        if key is None:
            raise KeyTrouble("no key to seal with")
        try:
            with open(path, "rb") as file:
                found = x509.load_pem_x509_certificates(file.read(MAX_CERTIFICATE * MAX_CHAIN))
            public = found[0].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            chain = tuple(certificate.public_bytes(Encoding.DER) for certificate in found)
        except OSError as error:
            raise KeyTrouble(f"certificate {path}: {error.strerror}") from None
        except ValueError as error:
            raise KeyTrouble(f"certificate {path}: {error}") from None
        if len(chain) > MAX_CHAIN or any(len(der) > MAX_CERTIFICATE for der in chain):
            raise KeyTrouble(f"certificate {path}: too many certificates, or too long ones")
        if public != key.public:
            raise KeyTrouble(f"certificate {path} is not that of the key")
        # The kernel finds the certificate by issuer and number.
        leaf = Leaf(key, chain[0], found[0].issuer.public_bytes(), found[0].serial_number, 0, 0)
        return cls(leaf, chain)


class Target(Struct, frozen=True):
    """The kernel that files are sealed for. `excl` where its type information has it: then ABI 1 can be served."""

    btf: Btf
    sha256: bytes
    excl: ExclField | None
    running: bool = False

    @classmethod
    def read(cls, path: str) -> Target:
        """Raises BtfError."""
        try:
            with open(path or _RUNNING, "rb") as file:
                data = file.read(_MAX_BTF + 1)
            with open(_RUNNING, "rb") as file:
                running = not path or file.read(_MAX_BTF + 1) == data
        except FileNotFoundError as error:
            if error.filename != _RUNNING or not path:
                raise BtfError(f"type information {path}: {error.strerror}") from None
            running = False
        except OSError as error:
            raise BtfError(f"type information {path}: {error.strerror}") from None
        if len(data) > _MAX_BTF:
            raise BtfError(f"type information {path} is too long")
        types = Btf(data)
        try:
            excl = excl_field(types)
        except BpfsealError:
            excl = None
        return cls(types, hashlib.sha256(data).digest(), excl, running)


class AheadSealer(Sealer):
    """Seals files. `abis`: signing ABIs to seal for."""

    def __init__(self, keys: Keys, signer: Signer, target: Target, abis: tuple[int, ...]) -> None:
        super().__init__(keys, Abi(0, None, "this helper seals files"), bind_tgid=False)
        self.signer = signer
        self.target = target
        self.abis = abis

    def seal(self, who: Identity, request: SealRequest, examined: Examined, number: int) -> Outcome:
        bundle, decision = examined.bundle, examined.decision
        if bundle is None or decision is None or not decision.allowed:
            raise BpfsealError("not allowed")
        file = self._header(request)
        for spec in bundle.maps:
            if spec.id:
                raise Refusal("map-existing", f"map {spec.name} exists on one machine only", attribute="id")
        for program in bundle.programs:
            if program_target(program.attach_module) is not None:
                raise Refusal("attach-btf", f"{program.name} is for another program", attribute="attach_module")
            if program.attach_module and not self.target.running:
                raise Refusal(
                    "attach-btf",
                    f"{program.attach_btf} is in module {program.attach_module}, which only its own kernel can look up",
                    attribute="attach_module",
                )
        words = statement(request.bundle, request.file)
        now = int(time.time())
        seals: list[Seal] = []
        for abi in self.abis:
            excl = self.target.excl if abi == 1 else None
            emitted = loader.emit(bundle, Terms(abi=abi, excl=excl, record=number, statement=words))
            seals.append(
                Seal(
                    abi=abi,
                    record=number,
                    loader=hashlib.sha256(emitted.insns + emitted.metadata).digest(),
                    signature=self._sign(self.signer.leaf, emitted, abi),
                    certificates=self.signer.chain,
                    excl_offset=excl.offset if excl else 0,
                    excl_size=excl.size if excl else 0,
                    rule=decision.rule,
                    signed_at=now,
                )
            )
        record: dict[str, Any] = examined.record | {
            "file": words.hex(),
            "kernel": {"release": file.kernel.release, "btf": file.kernel.btf.hex()},
            "sealed": [seal.loader.hex() for seal in seals],
            "key": self.signer.leaf.id.hex(),
            "abi": list(self.abis),
            "bound_to_process": False,
        }
        reply = protocol.FileSealed(seals=tuple(seals), rule=decision.rule, notes=tuple(decision.reasons))
        return Outcome(reply, "seal", record, allowed=True)

    def _header(self, request: SealRequest) -> SealedFile:
        """Raises BpfsealError for a header that does not say what this helper looked at."""
        if not request.file:
            raise BpfsealError("this helper seals files only")
        file = decode_header(request.file)
        if file.bound and file.kernel.btf != self.target.sha256:
            raise BpfsealError(
                f"the file is for kernel {file.kernel.release}, whose type information is another than the given",
                hint="give that kernel's /sys/kernel/btf/vmlinux with --btf",
            )
        if file.kernel.boot:
            raise BpfsealError("the file holds addresses of one boot of one machine", hint="it can be run unsealed")
        return file


def serve(sock: socket.socket, parent_fd: int, settings: dict[str, str]) -> None:
    """A private helper that seals files for the process at the other end of `sock`, until that ends. Settings: key,
    certificate, btf, abis ("1,2", "" for all that the type information allows), policy, unsafe, audit."""
    want_credentials(sock)
    uid = os.getuid()
    given = settings["policy"]
    unsafe = settings["unsafe"] == "1"
    policy = FixedPolicy(PolicyFile(given).current() if given else Policy.default_private(uid, unsafe=unsafe))
    signer = Signer.open(settings["key"], settings["certificate"])
    target = Target.read(settings["btf"])
    abis = tuple(int(abi) for abi in settings["abis"].split(",") if abi) or ((1, 2) if target.excl else (2,))
    if 1 in abis and target.excl is None:
        raise BpfsealError("ABI 1 needs the type information of a kernel that has it (Linux 6.18 to 7.2)", hint="--btf")
    audit = AuditLog(settings["audit"])
    # Its root signs the checkpoints of the audit log; nothing is added to any keyring of this machine.
    keys = Keys(SoftKey.generate("ec"), "ec", 86400, ring=False)
    token = settings["key"].startswith("pkcs11:")
    scratch = harden.scratch_uid() if os.geteuid() == 0 and not token else None
    confinement = harden.Confinement(
        uid=scratch,
        gid=scratch,
        writable=(os.path.dirname(audit.path),),
        readable=("/proc", "/sys/kernel/btf", *filter(None, settings.get("token_dirs", "").split("\n"))),
        token=token,
        death_signal=settings["death_signal"] == "1",
    )
    facts = Facts("ahead", os.getpid(), "token" if token else "file", given or "built in")
    sealer = AheadSealer(keys, signer, target, abis)
    service = Service(facts, keys, sealer, policy, audit, admins=frozenset((uid,)), kernel=Kernel(lambda: target.btf))
    server = Server(service, single=sock)
    service.facts = Facts(facts.mode, facts.pid, facts.root, facts.policy_name, harden.confine(confinement))
    server.watch_end(parent_fd)
    server.run()
    server.close()
    service.close()


__all__ = ["AheadSealer", "Signer", "Target", "serve"]
