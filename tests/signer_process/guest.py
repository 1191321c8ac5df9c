"""Runs inside a kernel that verifies signatures: `python -m tests.signer_process.guest [slow] [CHECK…]`.

Real helpers, real rings, real loads. Prints one line of JSON per check; test_vm.py, outside, judges them.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from bpfseal.runtime.load import LoadRefused, load
from bpfseal.signer import audit_read, keyring, pkcs7
from bpfseal.signer import bundle as wire
from bpfseal.signer.bundle import SealedBundle
from bpfseal.signer.client import SignerClient, SignerError, start_private
from bpfseal.signer.keys import Keys, SoftKey
from tests.signer_process.conftest import POLICY, as_user, running, small_bundle

SLOW = "slow" in sys.argv
Observed = dict[str, Any]
BUNDLE = wire.decode(small_bundle())


def outcome(sealed: SealedBundle) -> str:
    """ "ok", or the errno's name of a load."""
    try:
        load(BUNDLE, sealed).close()
    except LoadRefused as error:
        return errno.errorcode[error.code]
    return "ok"


def changed(sealed: SealedBundle, **fields: Any) -> SealedBundle:
    return msgspec.structs.replace(sealed, **fields)


def seal(client: SignerClient) -> SealedBundle:
    return client.seal(small_bundle())


def our_keys() -> list[str]:
    return [line for line in Path("/proc/keys").read_text().splitlines() if "bpfseal" in line]


def until(condition: Callable[[], bool], seconds: float = 20) -> float:
    """Seconds until it held, -1 for never."""
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        if condition():
            return time.monotonic() - begin
        time.sleep(0.02)
    return -1


def keyctl_error(operation: int, *args: int) -> str:
    try:
        keyring.keyctl(operation, *args)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


class Checks:
    """Every public method is a check; they run in the order of definition. Starting a helper takes seconds on an
    emulated kernel, so that most of them share one."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.client = start_private(audit=f"{self.folder}/log/audit.jsonl")

    def first_seal(self) -> Observed:
        client = self.client
        welcome = client.hello()
        sealed = seal(client)
        state = client.status()
        return {
            "release": os.uname().release,
            "abi": welcome.abi,
            "why": welcome.why,
            "load": outcome(sealed),
            "hardening": list(state.hardening),
            "algorithm": state.algorithm,
            "locked": state.locked_kib >= state.rss_kib,
            "listed": len(our_keys()),
            "same ring": client.keys().keyring == sealed.keyring,
        }

    def rotate(self) -> Observed:
        client = self.client
        old = seal(client)
        client.rotate()
        new = seal(client)
        return {"old": outcome(old), "new": outcome(new), "keys": len(client.keys().keys)}

    def revoke(self) -> Observed:
        client = self.client
        old = seal(client)
        client.revoke()
        after = outcome(old)
        try:
            seal(client)
            told = "ok"
        except SignerError as error:
            told = error.message
        client.rotate()
        return {"old": after, "told": told, "again": outcome(seal(client))}

    def clock_set_back(self) -> Observed:
        client = self.client
        old = seal(client)
        now, begin = time.time(), time.monotonic()
        time.clock_settime(time.CLOCK_REALTIME, now - 3600)
        try:
            new = seal(client)
            return {
                "rotated": new.certificate != old.certificate,
                "old": outcome(old),
                "new": outcome(new),
                "left": client.keys().keys[0].seconds_left,
            }
        finally:
            time.clock_settime(time.CLOCK_REALTIME, now + time.monotonic() - begin)

    def root_without_the_ring(self) -> Observed:
        """F10: what root may do to rings and keys it does not possess."""
        client = self.client
        sealed = seal(client)
        ring, key = sealed.keyring, client.keys().keys[0].serial
        mine = keyring.add_key("keyring", "attacker", b"", -2)
        attempts = {
            "timeout": (15, 100_000), "setperm": (5, 0x3F3F3F3F), "chown": (4, 0, 0), "revoke": (3,),
            "invalidate": (21,),
        }  # fmt: skip
        out = {}
        for name, (operation, *args) in attempts.items():
            for what, target in (("ring", ring), ("key", key)):
                out[f"{name} {what}"] = keyctl_error(operation, target, *args)
        out |= {
            "clear ring": keyctl_error(7, ring),
            "link into ring": keyctl_error(8, mine, ring),
            "unlink from ring": keyctl_error(9, key, ring),
            "link ring": keyctl_error(8, ring, mine),
            "link key": keyctl_error(8, key, mine),
        }
        own = SoftKey.generate("ec")
        certificate = pkcs7.certificate("x", own.public, "x", own, 9, 60, authority=True)
        try:
            keyring.add_key("asymmetric", "x", certificate, ring)
            out["add to ring"] = "ok"
        except OSError as error:
            out["add to ring"] = errno.errorcode[error.errno or 0]
        return {"attempts": out, "load": outcome(sealed)}

    def scheduled_rotation(self) -> Observed:
        """A leaf of 12 s: signs for 6, verifies for 12."""
        with running(POLICY, "--key-life", "12") as helper, helper.client() as client:
            first = seal(client)
            seen = {len(client.keys().keys)}
            switched = until(lambda: seal(client).certificate != first.certificate)
            seen.add(len(client.keys().keys))
            overlap = outcome(first)
            ended = until(lambda: outcome(first) != "ok")
            return {
                "switched": switched,
                "overlap": overlap,
                "ended": ended,
                "after": outcome(first),
                "new": outcome(seal(client)),
                "keys": max(seen),
            }

    def timeout_of_the_key(self) -> Observed:
        """The kernel's own clock on the key, with the helper stopped so that it cannot help."""
        sealed = seal(self.client)
        version = sealed.abi
        keys = Keys(SoftKey.generate("ec"), "ec", 8)
        assert keys.rings is not None
        signed = sealed.loader + (sealed.metadata if version == 2 else b"")
        mine = changed(sealed, signature=keys.current.sign(signed), keyring=keys.rings.leaf)
        before = outcome(mine)
        time.sleep(8.6)
        after = outcome(mine)
        keys.close()
        return {"before": before, "after": after}

    def foreign_keys(self) -> Observed:
        """Signatures by keys that are not in the ring, with their certificates embedded."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.serialization import Encoding
        from cryptography.hazmat.primitives.serialization import pkcs7 as builder

        sealed = seal(self.client)
        signed = sealed.loader + (sealed.metadata if sealed.abi == 2 else b"")
        keys = Keys(SoftKey.generate("ec"), "ec", 600)
        assert keys.rings is not None

        def embed(key: SoftKey, *certificates: bytes) -> bytes:
            options = [builder.PKCS7Options.Binary, builder.PKCS7Options.DetachedSignature]
            first, *rest = [x509.load_der_x509_certificate(c) for c in certificates]
            build = builder.PKCS7SignatureBuilder().set_data(signed)
            build = build.add_signer(first, key._private, hashes.SHA256())  # type: ignore[arg-type]
            for certificate in rest:
                build = build.add_certificate(certificate)
            return build.sign(Encoding.DER, [*options, builder.PKCS7Options.NoAttributes])

        def attempt(signature: bytes) -> str:
            return outcome(changed(sealed, signature=signature, keyring=keys.rings.leaf))  # type: ignore[union-attr]

        rings, keys.rings = keys.rings, None
        unlisted = keys._issue()
        keys.rings = rings
        listed = keys.current
        child = SoftKey.generate("ec")
        leaf_name = x509.load_der_x509_certificate(listed.certificate).subject.rfc4514_string().removeprefix("CN=")
        of_leaf = pkcs7.certificate("child", child.public, leaf_name, listed.key, 77, 600, authority=False)
        alone = SoftKey.generate("ec")
        self_signed = pkcs7.certificate("me", alone.public, "me", alone, 78, 600, authority=True)
        out = {
            "listed": attempt(listed.sign(signed)),
            "listed, embedded": attempt(embed(listed.key, listed.certificate)),
            "unlisted": attempt(unlisted.sign(signed)),
            "unlisted, embedded": attempt(embed(unlisted.key, unlisted.certificate)),
            "unlisted, with its root": attempt(embed(unlisted.key, unlisted.certificate, keys.root_certificate)),
            "leaf of a leaf": attempt(embed(child, of_leaf)),
            "leaf of a leaf, whole chain": attempt(embed(child, of_leaf, listed.certificate, keys.root_certificate)),
            "self-signed": attempt(embed(alone, self_signed)),
        }
        try:
            keys.rings.add(of_leaf, 60)
            out["leaf of a leaf into the ring"] = "ok"
        except OSError as error:
            out["leaf of a leaf into the ring"] = errno.errorcode[error.errno or 0]
        keys.rings.remove(listed.ring_key)
        out["leaf of a leaf that is out"] = attempt(embed(child, of_leaf, listed.certificate))
        keys.close()
        return out

    def system_helper(self) -> Observed:
        """Users without rights over the ring; what a killed helper leaves (F9); replay after a restart (P1)."""
        policy = POLICY.replace("uid = 0", "uid = [0, 1234]")
        with running(policy) as helper:

            def act() -> str:
                with helper.client() as client:
                    return outcome(seal(client))

            out: Observed = {"CAP_BPF": as_user_with_bpf(1234, act), "no capability": as_user(1234, 0, act)}
            with helper.client() as client:
                old = seal(client)
                out["before"] = outcome(old)
                helper.process.kill()
                helper.process.wait()
                out["seconds"] = until(lambda: outcome(old) != "ok")
                out["after"] = outcome(old)
                try:
                    seal(client)
                    out["told"] = "ok"
                except SignerError as error:
                    out["told"] = error.message
            helper.start()
            with helper.client() as client:
                new = seal(client)
                out |= {
                    "old": outcome(old),
                    "old on the new ring": outcome(changed(old, keyring=new.keyring)),
                    "new": outcome(new),
                    "log": audit_read.verify(str(helper.audit)).good,
                }
        return out

    def two_users(self) -> Observed:
        """Different rules, different answers, and no use of one user's seal by another."""
        rule = '[[rule]]\nuid = {uid}\nprobes = "tracepoint:syscalls:sys_enter_{call}"\nclasses = "basic"\n'
        rules = rule.format(uid=1234, call="openat") + rule.format(uid=1235, call="kill")
        out: Observed = {}
        with running("version = 1\n" + rules) as helper:

            def ask(call: str) -> str:
                with helper.client() as client:
                    try:
                        return outcome(client.seal(small_bundle(f"syscalls:sys_enter_{call}")))
                    except SignerError as error:
                        return error.message

            def give() -> str:
                with helper.client() as client:
                    return base64.b64encode(msgspec.msgpack.encode(seal(client))).decode()

            for uid in (1234, 1235):
                for call in ("openat", "kill"):
                    out[f"{uid} {call}"] = as_user_with_bpf(uid, lambda call=call: ask(call))  # type: ignore[misc]
            given = as_user_with_bpf(1234, give)
            theirs = msgspec.msgpack.decode(base64.b64decode(given), type=SealedBundle)
            out["seal of another user"] = as_user_with_bpf(1235, lambda: outcome(theirs))
            out["seal of another process"] = as_user_with_bpf(1234, lambda: outcome(theirs))
        return out

    def roots(self) -> Observed:
        """Root keys of every kind the helper takes."""
        from cryptography.hazmat.primitives.asymmetric import ec, rsa
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        out: Observed = {}
        made = {
            "P-384": ec.generate_private_key(ec.SECP384R1()),
            "RSA-2048": rsa.generate_private_key(65537, 2048),
        }
        for name, key in made.items():
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "root.pem"
                path.touch(0o600)
                path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
                with running(POLICY, "--root", str(path)) as helper, helper.client() as client:
                    out[name] = [client.status().root, outcome(seal(client))]
                    client.rotate()
                    out[name].append(outcome(seal(client)))
        return out

    def token(self) -> Observed:
        from tests.signer_process.test_token import token_for_helper

        with tempfile.TemporaryDirectory() as folder:
            options, env = token_for_helper(Path(folder))
            with running(POLICY, *options, env=env) as helper, helper.client() as client:
                out = [client.status().root, outcome(seal(client))]
                client.rotate()
                return {"token": [*out, outcome(seal(client))]}

    def rsa(self) -> Observed:
        """RSA-2048 leaves, for kernels without ECDSA."""
        sealed = seal(self.client)
        keys = Keys(SoftKey.generate("rsa"), "rsa", 600)
        assert keys.rings is not None
        signed = sealed.loader + (sealed.metadata if sealed.abi == 2 else b"")
        result = outcome(changed(sealed, signature=keys.current.sign(signed), keyring=keys.rings.leaf))
        keys.close()
        return {"load": result}

    def rotations_under_load(self) -> Observed:
        """P4: no failed load of a fresh seal, never more than two leaves."""
        client, failed, most, count = self.client, 0, 0, 1000 if SLOW else 25
        for _ in range(count):
            client.rotate()
            most = max(most, len(client.keys().keys))
            failed += outcome(seal(client)) != "ok"
        return {"failed": failed, "most": most}

    def nothing_left(self) -> Observed:
        self.client.close()
        return {"seconds": until(lambda: not our_keys()), "left": our_keys()}


def as_user_with_bpf(uid: int, action: Callable[[], str]) -> str:
    """Like `as_user`, keeping CAP_PERFMON (38) and CAP_BPF (39)."""
    libc = ctypes.CDLL(None)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            libc.prctl(8, 1, 0, 0, 0)
            os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(uid, uid, uid)
            both = 1 << (38 - 32) | 1 << (39 - 32)
            libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(0, 0, 0, both, both, 0))
            answer = action()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        return pipe.read()


def main() -> None:
    checks = Checks()
    wanted = [a for a in sys.argv[1:] if a != "slow"]
    for name in [n for n in vars(Checks) if not n.startswith("_")]:
        if wanted and name not in wanted:
            continue
        started = time.monotonic()
        try:
            observed = getattr(checks, name)()
        except Exception:
            observed = {"error": traceback.format_exc()}
        print(json.dumps({"check": name, "took": round(time.monotonic() - started, 2), **observed}), flush=True)


if __name__ == "__main__":
    main()
