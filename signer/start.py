"""Bringing a helper up: read everything, make the keys, give up every right, then serve.

The order matters (and `signer.harden` depends on it): imports → policy, log, socket → keys and rings → the probe of
the kernel's signing ABI, which needs bpf(2) → lock memory, drop identity and rights → ready.
"""

from __future__ import annotations

import errno
import os
import socket

from bpfseal.errors import BpfsealError
from bpfseal.signer.abi import Abi, probe
from bpfseal.signer.audit import AuditLog
from bpfseal.signer.keys import LEAF_SECONDS, Keys, SoftKey, open_root
from bpfseal.signer.peer import in_initial_pid_namespace, want_credentials
from bpfseal.signer.policy import Policy, PolicyFile
from bpfseal.signer.seal import Sealer
from bpfseal.signer.server import Server
from bpfseal.signer.service import Facts, FixedPolicy, PolicySource, Service

SOCKET_FD = 3


def say(line: str) -> None:
    """One line for whoever started the helper: a terminal or the journal."""
    try:
        os.write(2, f"bpfseal signer: {line}\n".encode())
    except OSError:
        pass


def make_keys(root: str, life: int) -> tuple[Keys, Abi, str]:
    """Keys that this kernel's keyring takes, and the signing ABI. The string says where the root comes from.

    P-256 first; RSA-2048 where the kernel can verify but has no ECDSA. Where it cannot verify at all, keys without a
    ring: policy and audit go on.
    """
    fixed, source = open_root(root)
    trouble = ""
    for family in ("ec", "rsa"):
        try:
            keys = Keys(fixed or SoftKey.generate(family), family, life)
        except OSError as error:
            if error.errno == errno.EDQUOT:
                raise BpfsealError(
                    "the kernel's key quota of this user is used up", hint="see /proc/key-users"
                ) from None
            trouble = trouble or f"the keyring does not take certificates ({error.strerror})"
            plain = Keys(fixed or SoftKey.generate("ec"), "ec", life, ring=False)
            verifies = probe(plain.current.sign, 0)
            if not verifies.can_verify:
                return plain, verifies, source
            continue
        assert keys.rings is not None
        abi = probe(keys.current.sign, keys.rings.leaf)
        return keys, abi, source
    plain = Keys(fixed or SoftKey.generate("ec"), "ec", life, ring=False)
    return plain, Abi(0, None, trouble), source


def private(arguments: list[str]) -> None:
    """Entry of a private helper, started by `client.start_private`: serves the socket at descriptor 3."""
    settings = dict(item.split("=", 1) for item in arguments)
    try:
        _private(settings)
    except BpfsealError as error:
        say(f"error: {error.message}" + (f" ({error.hint})" if error.hint else ""))
        raise SystemExit(1) from None


def _private(settings: dict[str, str]) -> None:
    os.umask(0o077)
    parent = int(settings["parent"])
    parent_fd = os.pidfd_open(parent)
    if os.getppid() != parent:
        return
    sock = socket.socket(fileno=SOCKET_FD)
    want_credentials(sock)
    policy: PolicySource = FixedPolicy(
        PolicyFile(settings["policy"]).current() if settings["policy"] else Policy.default_private(os.getuid())
    )
    audit = AuditLog(settings["audit"])
    keys, abi, root = make_keys("", LEAF_SECONDS)
    facts = Facts("private", os.getpid(), root, settings["policy"] or "built in", ())
    sealer = Sealer(keys, abi, bind_tgid=in_initial_pid_namespace())
    service = Service(facts, keys, sealer, policy, audit, admins=frozenset((os.getuid(),)))
    server = Server(service, single=sock)
    server.watch_end(parent_fd)
    try:
        server.run()
    finally:
        server.close()
        service.close()
