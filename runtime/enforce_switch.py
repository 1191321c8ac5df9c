"""Turning enforcement on and off.

Turning it on proves first that this machine's helper can have programs loaded, and afterwards that signed ones still
load and unsigned ones do not; otherwise it is turned off again.
"""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bpfseal.errors import BpfsealError
from bpfseal.runtime.enforce_layout import AUDIT, BY_CGROUP, BY_TAG, ENFORCE, GUARD, OFF, SYSTEM_RINGS

if TYPE_CHECKING:
    from bpfseal.runtime.enforce_state import State
    from bpfseal.signer.client import SignerClient
    from bpfseal.signer.protocol import StatusReply


@dataclass(frozen=True)
class Request:
    """How enforcement shall be from now on. seconds: until it ends by itself, 0 for never; system_rings: numbers of
    `SYSTEM_RINGS`; tags: 16 hexadecimal digits each; cgroups: ids (v2)."""

    audit: bool = False
    seconds: int = 0
    start_helper: bool = False
    socket: str | None = None
    system_rings: tuple[int, ...] = ()
    tags: tuple[str, ...] = ()
    cgroups: tuple[int, ...] = ()
    guard: bool = False

    @property
    def flags(self) -> int:
        return BY_TAG * bool(self.tags) | BY_CGROUP * bool(self.cgroups) | GUARD * self.guard


def on(request: Request) -> int:
    """Raises BpfsealError, with enforcement as it was."""
    from bpfseal.signer.peer import in_initial_pid_namespace

    if not in_initial_pid_namespace():
        # The programs know processes by their pid there, and would not notice the end of the helper.
        raise BpfsealError("enforcement can only be turned on from the machine itself, not from inside a container")
    mode = AUDIT if request.audit else ENFORCE
    until = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + request.seconds * 10**9 if request.seconds else 0
    with system_helper(request.socket, start=request.start_helper) as client:
        helper = _working(client)
        state, fresh = open_for_change(client), False
        if state is not None and not state.attached:  # left over from a start that was cut off
            state.close()
            off()
            state = None
        if state is not None and request.guard and not state.guardable:
            state.close()
            raise BpfsealError("enforcement is on without the guard's programs", hint="turn it off first")
        if state is None:
            state, fresh = _set_up(client, guarded=request.guard), True
        with state:
            before, excepted = state.config(), state.exceptions()
            _list_rings(state, client.helper_pid, helper.keyring, request.system_rings)
            state.set_exceptions(request.tags, request.cgroups)
            state.configure(mode, until, request.flags)
            try:
                _prove(client, enforcing=mode == ENFORCE, cgroups=bool(request.cgroups))
            except BpfsealError:
                if fresh:
                    off()
                else:
                    state.set_exceptions(*excepted)
                    state.configure(before.mode, before.until_ns, before.flags)
                raise
        pid = client.helper_pid
    how = "on" if mode == ENFORCE else "on, logging only"
    left = f" for {request.seconds} s" if request.seconds else ""
    print(f"enforcement is {how}{', guarded' if request.guard else ''}{left}: keyring {helper.keyring} of helper {pid}")
    return 0


def _list_rings(state: State, helper: int, ring: int, system: tuple[int, ...]) -> None:
    """The helper's ring, those of certificates that were allowed, the system's by choice. The helper's old rings go."""
    from bpfseal.runtime.enforce_allow import trusted_rings

    for serial, tgid in state.rings().items():
        if (tgid == helper and serial != ring) or (serial < len(SYSTEM_RINGS) and serial not in system):
            state.disallow(serial)
    state.allow(ring, helper)
    for serial in (*trusted_rings(), *system):
        state.allow(serial, 0)


def open_for_change(client: SignerClient | None = None) -> State | None:
    """The state with write access. Where enforcement is guarded, `client` (default: the system's helper) has to seal a
    program first, which this process loads: that is what the guard asks for. Raises BpfsealError."""
    from bpfseal.runtime.enforce_state import Guarded, State

    try:
        return State.open()
    except Guarded:
        if client is None:
            with system_helper(None, start=False) as found:
                return open_for_change(found)
        _load_signed(client)
        return State.open()


def off() -> int:
    """Raises BpfsealError."""
    from bpfseal.runtime.enforce_state import unpin

    state = open_for_change()
    if state is not None:
        with state:
            state.configure(OFF, 0)
    try:
        found = unpin()
    except OSError as error:
        raise BpfsealError(f"enforcement cannot be taken off: {error.strerror}") from None
    print("enforcement is off" if found else "enforcement was off")
    return 0


def system_helper(socket: str | None, *, start: bool) -> SignerClient:
    """A connection to the *system's* helper: a private one ends with its client, and its ring with it."""
    from bpfseal.signer.client import SOCKET, SignerError, connect

    path = socket or os.environ.get("BPFSEAL_SOCKET") or SOCKET
    client = None
    try:
        client = connect(path=path)
        client.hello()  # a socket may still be there while its helper is ending
        return client
    except SignerError as error:
        if client is not None:
            client.close()
        if not start:
            raise BpfsealError(
                f"{error.message}: with enforcement on, nobody could load a BPF program any more",
                hint="start it (`systemctl start bpfseal-signer`, or `bpfseal signer run`), or give --start-helper",
            ) from None
    from bpfseal.runtime.enforce_helper import start_helper

    start_helper(path)
    return connect(path=path)


def _working(client: SignerClient) -> StatusReply:
    status = client.status()
    if not status.abi:
        raise BpfsealError(f"this kernel cannot verify signatures, so nothing can be enforced: {status.why}")
    if status.revoked:
        raise BpfsealError("the helper's keys are revoked", hint="`bpfseal signer rotate` starts again")
    if not status.keyring:
        raise BpfsealError("the signing helper has no keyring")
    return status


def _set_up(client: SignerClient, *, guarded: bool) -> State:
    """Seal, load, attach and pin the enforcement programs; nothing is enforced yet."""
    from bpfseal.runtime.attach import AttachError
    from bpfseal.runtime.enforce_bundle import bundle
    from bpfseal.runtime.enforce_state import mount_bpffs, pin
    from bpfseal.runtime.load import load
    from bpfseal.signer.btf import Btf
    from bpfseal.signer.bundle import encode

    programs = bundle(Btf.vmlinux(), guarded=guarded)
    mount_bpffs()
    sealed = client.seal(encode(programs))
    try:
        with load(programs, sealed) as loaded:
            return pin(loaded)
    except AttachError as error:
        raise BpfsealError(
            f"the enforcement programs cannot be attached: {os.strerror(error.code)}",
            hint="is bpf among the active LSMs? cat /sys/kernel/security/lsm",
        ) from None


def _prove(client: SignerClient, *, enforcing: bool, cgroups: bool) -> None:
    """A signed program must load; when enforcing, an unsigned one must not. Raises BpfsealError."""
    from bpfseal.runtime.enforce_helper import harmless
    from bpfseal.runtime.load import LoadRefused, load, seal_locally

    try:
        _load_signed(client)
    except LoadRefused as error:
        raise BpfsealError(f"signed programs would not load with enforcement on: {error.message}") from None
    if not enforcing:
        return
    test = harmless()
    try:
        load(test, seal_locally(test)).close()
    except LoadRefused as error:
        if error.code == errno.EPERM:
            return
        raise
    if cgroups:
        raise BpfsealError(
            "this shell itself is in an excepted cgroup", hint="leave out --except-cgroup, or run elsewhere"
        )
    raise BpfsealError(
        "unsigned programs load in spite of enforcement: the BPF LSM is not active on this kernel",
        hint="boot with lsm=…,bpf (see /sys/kernel/security/lsm)",
    )


def _load_signed(client: SignerClient) -> None:
    """Have a harmless program sealed, and load it. Raises LoadRefused."""
    from bpfseal.runtime.enforce_helper import harmless
    from bpfseal.runtime.load import load
    from bpfseal.signer.bundle import encode

    test = harmless()
    load(test, client.seal(encode(test))).close()
