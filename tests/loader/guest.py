"""Runs inside a test kernel that verifies signatures: `python -m tests.loader.guest [brief|normal|slow] [CHECK…]`.

Prints one line of JSON per check: {"check": name, "seconds": …, …what was observed…}. The judgement is in
test_signed.py, outside.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import msgspec

from bpfseal.runtime import bpf
from bpfseal.runtime.load import LoadRefused, load
from bpfseal.signer import abi
from bpfseal.signer.bundle import Bundle, SealedBundle
from bpfseal.signer.keyring import keyctl
from bpfseal.signer.keys import Keys, SoftKey
from bpfseal.signer.loader import Terms, emit
from tests.loader import attacks, samples
from tests.loader.attacks import Kernel
from tests.loader.conftest import objects_named, open_fds


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long the long checks take: distance of flipped bits, random contexts, seconds of racing, naive loads to
    beat."""

    step: int
    contexts: int
    race: int
    beaten: int


EFFORTS = {"brief": Effort(145, 20, 3, 1), "normal": Effort(27, 100, 8, 1), "slow": Effort(1, 10_000, 300, 3)}
EFFORT = EFFORTS[next((a for a in sys.argv if a in EFFORTS), "normal")]
LIFE = 3600
Observed = dict[str, Any]


def ring(life: int = LIFE) -> Keys:
    """A key and a ring of its own."""
    return Keys(SoftKey.generate("ec"), "ec", life)


def signing(keys: Keys, found: abi.Abi) -> Kernel:
    assert keys.rings is not None
    return Kernel(Terms(abi=found.version, excl=found.excl), keys.current.sign, keys.rings.leaf)


def sealed(kernel: Kernel, bundle: Bundle) -> SealedBundle:
    loader = emit(bundle, kernel.terms)
    return SealedBundle(
        loader=loader.insns,
        metadata=loader.metadata,
        signature=kernel.signature(loader),
        abi=kernel.abi,
        keyring=kernel.keyring,
        certificate=b"",
        record=0,
        ctx_size=loader.ctx_size,
        deadline_ns=kernel.terms.deadline_ns,
    )


def refusal(kernel: Kernel, bundle: Bundle, change: Callable[[SealedBundle], SealedBundle] | None = None) -> Observed:
    """Errno name, stage and message of a load that must fail."""
    seal = sealed(kernel, bundle)
    try:
        load(bundle, change(seal) if change else seal).close()
    except LoadRefused as error:
        return {"errno": errno.errorcode[error.code], "stage": error.stage.name, "message": error.message}
    return {"errno": "none"}


class Checks:
    """Every public method is a check; they run in the order of definition."""

    def __init__(self) -> None:
        self.keys = ring()
        assert self.keys.rings is not None
        started = time.monotonic()
        self.abi = abi.probe(self.keys.current.sign, self.keys.rings.leaf)
        self.probe_seconds = time.monotonic() - started
        self.kernel = signing(self.keys, self.abi)

    def which_abi(self) -> Observed:
        excl = self.abi.excl
        return {
            "release": os.uname().release,
            "probe_seconds": self.probe_seconds,
            "version": self.abi.version,
            "excl": (excl.offset, excl.size) if excl else None,
            "why": self.abi.why,
        }

    def signed_load_counts(self) -> Observed:
        bundle = samples.small()
        deadline = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 60 * 10**9
        kernel = attacks.with_terms(self.kernel, uid=os.getuid(), tgid=os.getpid(), deadline_ns=deadline)
        started = time.monotonic()
        seal = sealed(kernel, bundle)
        sealed_at = time.monotonic()
        with load(bundle, seal) as loaded:
            loaded_at = time.monotonic()
            for _ in range(5):
                bpf.prog_run(loaded.prog_fds[0], bytes(16))
            value = bpf.map_lookup(loaded.map_fds[0], bytes(4), 8)
        return {
            "count": int.from_bytes(value or b"", "little"),
            "seal_ms": 1e3 * (sealed_at - started),
            "load_ms": 1e3 * (loaded_at - sealed_at),
        }

    def modules(self) -> Observed:
        """A program on a function of a kernel module, whose BTF the loader finds by name."""
        from bpfseal.signer.btf import FUNC, Btf

        for module in sorted(os.listdir("/sys/kernel/btf")):
            if module == "vmlinux":
                continue
            types = Btf.module(module)
            vmlinux = len(Btf.vmlinux())
            for name, id in types.all_named(FUNC):
                if id < vmlinux or Btf.vmlinux().find(name, FUNC):
                    continue
                program = samples.program(
                    "fentry", samples.counting(), 26, expected_attach_type=24,
                    attach_btf=name, attach_btf_id=id, attach_module=module,
                )  # fmt: skip
                bundle = samples.bundle((program,), (samples.counter_map(),))
                try:
                    load(bundle, sealed(self.kernel, bundle)).close()
                except LoadRefused as error:
                    if error.stage.name == "PROGRAM":  # not every function can be traced: try another
                        continue
                    raise
                wrong = samples.bundle((msgspec.structs.replace(program, attach_btf_id=id - 1),), bundle.maps)
                return {"loaded": f"{module}:{name}", "wrong": refusal(self.kernel, wrong)}
        return {"loaded": "", "wrong": {}}

    def linked(self) -> Observed:
        """Programs that the loader attaches: what they count without the client having done anything."""
        targets = (("btf_trace_sys_enter", 23), ("vfs_read", 24), ("vfs_read", 25), ("bpf_lsm_inode_getattr", 27))
        bundle = samples.linked(*targets, id_of=samples.kernel_id)
        with load(bundle, sealed(self.kernel, bundle)) as loaded:
            with open("/etc/passwd", "rb", buffering=0) as file:
                for _ in range(100):
                    os.stat("/")
                    file.read(1)
            counts = [int.from_bytes(bpf.map_lookup(fd, bytes(4), 8) or b"", "little") for fd in loaded.map_fds]
            return {"counts": counts, "links": sorted(loaded.links)}

    def other_key(self) -> Observed:
        """A key that is not in the ring, a ring that does not exist, a signature that is none."""
        stranger = ring()
        foreign = dataclasses.replace(self.kernel, sign=stranger.current.sign)
        gone = dataclasses.replace(self.kernel, keyring=0x7FFFFFF0)
        junk = dataclasses.replace(self.kernel, sign=lambda content: b"not a signature")
        bundle = samples.tiny()
        observed = {name: refusal(k, bundle) for name, k in (("foreign", foreign), ("gone", gone), ("junk", junk))}
        stranger.close()
        return observed

    def key_life(self) -> Observed:
        """Loads after the key's timeout, after its revocation, and after somebody invalidated the ring."""
        bundle = samples.tiny()
        short = ring(1)
        assert short.rings is not None
        timed = signing(short, self.abi)
        before = refusal(timed, bundle)
        time.sleep(1.6)
        after = refusal(timed, bundle)
        short.close()
        revoking = ring()
        revoked_kernel = signing(revoking, self.abi)
        keyctl(3, revoking.current.ring_key)
        revoked = refusal(revoked_kernel, bundle)
        revoking.close()
        return {"before": before, "after": after, "revoked": revoked}

    def changed_metadata(self) -> Observed:
        def flip(seal: SealedBundle) -> SealedBundle:
            return msgspec.structs.replace(seal, metadata=attacks.flip(seal.metadata, 8 * len(seal.metadata) - 1))

        return refusal(self.kernel, samples.tiny(), flip)

    def changed_loader(self) -> Observed:
        def flip(seal: SealedBundle) -> SealedBundle:
            return msgspec.structs.replace(seal, loader=attacks.flip(seal.loader, 300))

        return refusal(self.kernel, samples.tiny(), flip)

    def terms(self) -> Observed:
        """The seal's own terms, through the ordinary load."""
        bundle = samples.tiny()
        past = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - 1
        changes: dict[str, dict[str, int]] = {"deadline": {"deadline_ns": past}, "uid": {"uid": 1}, "tgid": {"tgid": 1}}
        return {name: refusal(attacks.with_terms(self.kernel, **c), bundle) for name, c in changes.items()}

    def replay(self) -> Observed:
        """A held loader descriptor: again, after revocation, past its deadline, elsewhere. Naive form first."""
        keys = ring()
        kernel = signing(keys, self.abi)
        key = keys.current.ring_key
        naive = attacks.run_once_more(kernel, attacks.without_terms, lambda: keyctl(3, key))
        again = attacks.run_once_more(self.kernel, emit, lambda: None)
        keys.close()

        soon = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 1_500_000_000
        late = attacks.with_terms(self.kernel, deadline_ns=soon)
        late_naive = attacks.run_once_more(late, attacks.without_terms, lambda: time.sleep(1.6))
        late = attacks.with_terms(self.kernel, deadline_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 1_500_000_000)
        held = attacks.run_elsewhere(late, emit, lambda: time.sleep(1.6))
        bound_pid = attacks.with_terms(self.kernel, tgid=os.getpid())
        bound_uid = attacks.with_terms(self.kernel, uid=0)

        def become_another() -> None:
            os.setresuid(1000, 0, 0)

        return {
            "revoked": {"naive": naive, "ours": again},
            "deadline": {"naive": late_naive, "ours": held},
            "process": {
                "naive": attacks.run_elsewhere(bound_pid, attacks.without_terms, lambda: None),
                "ours": attacks.run_elsewhere(bound_pid, emit, lambda: None),
            },
            "user": {
                "naive": attacks.run_elsewhere(bound_uid, attacks.without_terms, become_another),
                "ours": attacks.run_elsewhere(bound_uid, emit, become_another),
            },
        }

    def shared_map(self) -> Observed:
        return {
            "naive": attacks.rewrite_a_shared_map(self.kernel, attacks.without_exclusivity),
            "ours": attacks.rewrite_a_shared_map(self.kernel, emit),
        }

    def exclusive_map(self) -> Observed:
        return {"write": attacks.write_to_an_exclusive_map(self.kernel), "early_hash": attacks.hash_before_freeze()}

    def swapped_slot(self) -> Observed:
        seconds = 300 if self.abi.version == 1 else 4
        naive = attacks.swap_the_slot(
            self.kernel,
            attacks.with_two_references,
            trials=100_000,
            seconds=seconds,
            enough=EFFORT.beaten,
            dwell=10,
        )
        ours = attacks.swap_the_slot(self.kernel, emit, trials=20_000, seconds=EFFORT.race, dwell=10)
        return {"naive": dict(naive), "ours": dict(ours)}

    def random_contexts(self) -> Observed:
        counts = attacks.random_contexts(self.kernel, EFFORT.contexts)
        return {"counts": dict(counts)}

    def failures_leave_nothing(self) -> Observed:
        """Every nested call fails once; descriptors, maps and programs afterwards are those of before."""
        import resource

        tag = os.urandom(3).hex()
        bundle = samples.named(samples.many(4, 3), tag)
        loader = emit(bundle, self.kernel.terms)
        signature = self.kernel.signature(loader)
        before = open_fds()
        outcomes = []
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for room in range(7):
            with (
                attacks.metadata_map(loader.metadata, loader.insns, ask_hash=self.abi.version == 1) as meta,
                bpf.Fd(attacks.load_loader(self.kernel, loader.insns, meta, signature)) as program,
            ):
                used = set(open_fds())
                free = [n for n in range(len(used) + room + 1) if n not in used]
                resource.setrlimit(resource.RLIMIT_NOFILE, (free[room], hard))
                returned, result = attacks.run(program.number, bundle, loader.ctx_size)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            outcomes.append([errno.errorcode.get(-returned, "0"), result.stage.name, result.index])
        left: list[str] = []
        for _ in range(100):
            left = objects_named(tag)
            if not left:
                break
            time.sleep(0.05)
        return {"outcomes": outcomes, "fds": open_fds() == before, "left": left}

    def flipped_bits(self) -> Observed:
        return {
            name: dict(value) if isinstance(value, dict) else value
            for name, value in vars(attacks.flip_bits(self.kernel, EFFORT.step)).items()
        }


def main() -> None:
    checks = Checks()
    wanted = [a for a in sys.argv[1:] if a not in EFFORTS]
    for name in [n for n in vars(Checks) if not n.startswith("_")]:
        if wanted and name not in wanted:
            continue
        started = time.monotonic()
        try:
            observed = getattr(checks, name)()
        except Exception:
            observed = {"error": traceback.format_exc()}
        print(json.dumps({"check": name, "seconds": round(time.monotonic() - started, 2), **observed}), flush=True)
    checks.keys.close()


if __name__ == "__main__":
    main()
