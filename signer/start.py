"""Bringing a helper up: read everything, make the keys, give up every right, then serve.

The order matters (and `signer.harden` depends on it): imports → policy, log, socket → keys and rings → the probe of
the kernel's signing ABI, which needs bpf(2) → lock memory, drop identity and rights → ready.
"""

from __future__ import annotations

import errno
import gc
import os
import socket
from collections.abc import Callable

from msgspec.structs import replace

from bpfseal.errors import BpfsealError
from bpfseal.signer import harden
from bpfseal.signer.abi import Abi, probe
from bpfseal.signer.audit import AuditLog
from bpfseal.signer.executable import Executables
from bpfseal.signer.kallsyms import KernelSymbols
from bpfseal.signer.keys import LEAF_SECONDS, Keys, SoftKey, open_root
from bpfseal.signer.peer import in_initial_pid_namespace, want_credentials
from bpfseal.signer.policy import Policy, PolicyFile
from bpfseal.signer.seal import Sealer
from bpfseal.signer.server import Server
from bpfseal.signer.service import Facts, FixedPolicy, PolicySource, Service
from bpfseal.signer.sync import background_syncs
from bpfseal.signer.syscall import syscall
from bpfseal.signer.system import Settings, Supervisor, account, listen

SOCKET_FD = 3
# What is read after start: the peers' cgroups and our own memory figures, BTF of modules loaded later.
READABLE = ("/proc", "/sys/kernel/btf")


def say(line: str) -> None:
    """One line for whoever started the helper: a terminal or the journal."""
    try:
        os.write(2, f"bpfseal signer: {line}\n".encode())
    except OSError:
        pass


def _nothing(line: str) -> None:
    """Private helpers keep quiet."""


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
    _or_say_why(lambda: _private(settings))


def main(arguments: list[str]) -> None:
    """Entry of the system's helper, started by `bpfseal signer run` in isolated mode."""
    given = dict(item.split("=", 1) for item in arguments)
    admins = tuple(int(uid) for uid in given.pop("admins").split(",") if uid)
    token_dirs = tuple(filter(None, given.pop("token_dirs").split("\n")))
    life, executables = int(given.pop("life")), given.pop("executables") == "1"
    settings = Settings(life=life, admins=admins, token_dirs=token_dirs, executables=executables, **given)
    _or_say_why(lambda: system(settings))


def _or_say_why(run: Callable[[], None]) -> None:
    try:
        run()
    except BpfsealError as error:
        say(f"error: {error.message}" + (f" ({error.hint})" if error.hint else ""))
        raise SystemExit(1) from None
    except OSError as error:
        say(f"error: {error}")
        raise SystemExit(1) from None


def _private(settings: dict[str, str]) -> None:
    os.umask(0o077)
    parent = int(settings["parent"])
    sock = socket.socket(fileno=SOCKET_FD)
    syscall("close_range", SOCKET_FD + 1, 0xFFFFFFFF, 0)
    parent_fd = os.pidfd_open(parent)
    if os.getppid() != parent:
        return
    want_credentials(sock)
    if settings.get("key"):
        from bpfseal.signer.ahead import serve

        gc.enable()
        serve(sock, parent_fd, settings)
        return
    uid = os.getuid()
    given = settings["policy"]
    policy = FixedPolicy(
        PolicyFile(given).current() if given else Policy.default_private(uid, unsafe=settings["unsafe"] == "1")
    )
    audit = AuditLog(settings["audit"])
    keys, abi, root = make_keys("", LEAF_SECONDS)
    scratch = harden.scratch_uid() if os.geteuid() == 0 else None
    confinement = harden.Confinement(
        uid=scratch,
        gid=scratch,
        writable=(os.path.dirname(audit.path),),
        readable=READABLE,
        death_signal=settings["death_signal"] == "1",
    )
    service, server = _serve(
        confinement,
        Facts("private", os.getpid(), root, given or "built in"),
        keys,
        abi,
        policy,
        audit,
        frozenset((uid,)),
        single=sock,
    )
    server.watch_end(parent_fd)
    server.run()
    server.close()
    service.close()


def system(settings: Settings) -> None:
    """Run the system's helper until it is told to stop."""
    os.umask(0o077)
    supervisor = Supervisor()
    uid, gid = account(settings.user)
    policy = PolicyFile(settings.policy)
    policy.current()
    audit = AuditLog(settings.audit, anchor=settings.anchor, syncs=background_syncs())
    listener = listen(settings.socket)
    try:
        keys, abi, root = make_keys(settings.root, settings.life)
        confinement = harden.Confinement(
            uid=uid,
            gid=gid,
            writable=(os.path.dirname(audit.path),),
            readable=(*READABLE, os.path.dirname(os.path.abspath(settings.policy)), *settings.token_dirs),
            listening=True,
            token=root == "token",
            look=settings.executables,
        )
        admins = frozenset((0, os.geteuid() if uid is None else uid, *settings.admins))
        facts = Facts("system", os.getpid(), root, settings.policy)
        service, server = _serve(
            confinement, facts, keys, abi, policy, audit, admins, listener=listener, heartbeat=supervisor.heartbeat
        )
        service.open()
        say(f"ready at {settings.socket}" + (f"; this kernel verifies nothing: {abi.why}" if not abi.version else ""))
        supervisor.tell("READY=1")
        server.run()
        supervisor.tell("STOPPING=1")
        server.close()
        service.close()
    finally:
        listener.close()


def _serve(
    confinement: harden.Confinement,
    facts: Facts,
    keys: Keys,
    abi: Abi,
    policy: PolicySource,
    audit: AuditLog,
    admins: frozenset[int],
    *,
    single: socket.socket | None = None,
    listener: socket.socket | None = None,
    heartbeat: Callable[[], None] | None = None,
) -> tuple[Service, Server]:
    """Put the parts together, then confine this process."""
    sealer = Sealer(keys, abi, bind_tgid=in_initial_pid_namespace())
    # A private helper's user owns both sides: nothing is gained by holding a guard against its function.
    symbols, journal = (KernelSymbols(), say) if facts.mode == "system" else (None, _nothing)
    service = Service(facts, keys, sealer, policy, audit, admins=admins, symbols=symbols, say=say, journal=journal)
    executables = Executables() if confinement.look else None
    server = Server(service, single=single, listener=listener, heartbeat=heartbeat, executables=executables)
    service.facts = replace(facts, hardening=harden.confine(confinement))
    # What there is now stays: the collector, off while things were imported, need never look at it again.
    gc.freeze()
    gc.enable()
    return service, server
