"""`bpfseal enforce`: require signatures for BPF programs on this kernel.

    bpfseal enforce on [--audit] [--for 10m] [--start-helper]
    bpfseal enforce off | status [--json] | log [-f] [--json]
    bpfseal enforce allow | disallow --cert FILE

Turning it on proves first that this machine's helper can have programs loaded, and afterwards that signed ones still
load and unsigned ones do not; otherwise it is turned off again.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import sys
import time
from typing import TYPE_CHECKING, Any

from bpfseal.errors import BpfsealError, UsageError

if TYPE_CHECKING:
    from bpfseal.runtime.enforce_state import State
    from bpfseal.signer.client import SignerClient
    from bpfseal.signer.protocol import StatusReply


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(message, hint=f"{self.prog} --help")


def _duration(text: str) -> int:
    """Seconds of "90", "90s", "10m", "2h", "1d"."""
    match = re.fullmatch(r"(\d+)([smhd]?)", text)
    seconds = int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]] if match else 0
    if not 0 < seconds <= 366 * 86400:
        raise argparse.ArgumentTypeError(f"not a duration: {text} (try 10m)")
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="bpfseal enforce", description="Require signatures for BPF programs on this kernel.")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True, parser_class=_Parser)
    on = verbs.add_parser("on", help="refuse BPF programs that the signing helper did not sign")
    on.add_argument("--audit", action="store_true", help="refuse nothing, only log what would be refused")
    on.add_argument("--for", dest="seconds", type=_duration, default=0, metavar="TIME", help="end by itself: 90s, 10m")
    on.add_argument("--start-helper", action="store_true", help="start the system's helper if none answers")
    on.add_argument("--socket", help="of the system's helper")
    verbs.add_parser("off", help="take every BPF program again")
    status = verbs.add_parser("status", help="mode, keyrings, counters; status 0 if on, 3 if off")
    status.add_argument("--json", action="store_true")
    for verb, text in (
        ("allow", "take what was sealed ahead of time with a certificate, or signed with it by others"),
        ("disallow", "no longer take it"),
    ):
        sub = verbs.add_parser(verb, help=text)
        sub.add_argument("--cert", required=True, metavar="FILE", help="PEM: the certificate of the signing key itself")
    log = verbs.add_parser("log", help="print decisions and take them out of the log")
    log.add_argument("-f", "--follow", action="store_true", help="wait for more")
    log.add_argument("--json", action="store_true")
    return parser


def main(argv: list[str]) -> int:
    """`argv` without `bpfseal enforce`. Raises BpfsealError."""
    options = _parser().parse_args(argv)
    if os.geteuid() != 0:
        raise BpfsealError("enforcement is the administrator's business", hint="run as root")
    if options.verb == "on":
        return _on(options)
    if options.verb == "off":
        return _off()
    if options.verb == "status":
        return _status(options.json)
    if options.verb in ("allow", "disallow"):
        from bpfseal.runtime.enforce_allow import allow, disallow

        return allow(options.cert) if options.verb == "allow" else disallow(options.cert)
    from bpfseal.runtime.enforce_log import show

    return show(follow=options.follow, as_json=options.json)


def _on(options: argparse.Namespace) -> int:
    from bpfseal.runtime import enforce_program as program
    from bpfseal.runtime.enforce_allow import trusted_rings
    from bpfseal.runtime.enforce_state import State
    from bpfseal.signer.peer import in_initial_pid_namespace

    if not in_initial_pid_namespace():
        # The programs know processes by their pid there, and would not notice the end of the helper.
        raise BpfsealError("enforcement can only be turned on from the machine itself, not from inside a container")
    mode = program.AUDIT if options.audit else program.ENFORCE
    until = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + options.seconds * 10**9 if options.seconds else 0
    with _helper(options.socket, start=options.start_helper) as client:
        helper = _working(client)
        state, fresh = State.open(), False
        if state is not None and not state.attached:  # left over from a start that was cut off
            state.close()
            _off()
            state = None
        if state is None:
            state, fresh = _set_up(client), True
        with state:
            for serial, tgid in state.rings().items():
                if tgid == client.helper_pid and serial != helper.keyring:
                    state.disallow(serial)
            state.allow(helper.keyring, client.helper_pid)
            for ring in trusted_rings():
                state.allow(ring, 0)
            before = state.config()
            state.configure(mode, until)
            try:
                _prove(client, enforcing=mode == program.ENFORCE)
            except BpfsealError:
                if fresh:
                    _off()
                else:
                    state.configure(before.mode, before.until_ns)
                raise
        pid = client.helper_pid
    how = "on" if mode == program.ENFORCE else "on, logging only"
    left = f" for {options.seconds} s" if options.seconds else ""
    print(f"enforcement is {how}{left}: keyring {helper.keyring} of helper {pid}")
    return 0


def _helper(socket: str | None, *, start: bool) -> SignerClient:
    """A connection to the *system's* helper: a private one ends with its client, and its ring with it."""
    from bpfseal.signer.client import SOCKET, SignerError, connect

    path = socket or os.environ.get("BPFSEAL_SOCKET") or SOCKET
    try:
        return connect(path=path)
    except SignerError as error:
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


def _set_up(client: SignerClient) -> State:
    """Seal, load, attach and pin the enforcement programs; nothing is enforced yet."""
    from bpfseal.runtime.enforce_program import bundle
    from bpfseal.runtime.enforce_state import mount_bpffs, pin
    from bpfseal.runtime.load import load
    from bpfseal.signer.btf import Btf
    from bpfseal.signer.bundle import encode

    programs = bundle(Btf.vmlinux())
    mount_bpffs()
    sealed = client.seal(encode(programs))
    with load(programs, sealed) as loaded:
        return pin(loaded)


def _prove(client: SignerClient, *, enforcing: bool) -> None:
    """A signed program must load; when enforcing, an unsigned one must not. Raises BpfsealError."""
    from bpfseal.runtime.enforce_helper import harmless
    from bpfseal.runtime.load import LoadRefused, load, seal_locally
    from bpfseal.signer.bundle import encode

    test = harmless()
    try:
        load(test, client.seal(encode(test))).close()
    except LoadRefused as error:
        raise BpfsealError(f"signed programs would not load with enforcement on: {error.message}") from None
    if not enforcing:
        return
    try:
        load(test, seal_locally(test)).close()
    except LoadRefused as error:
        if error.code == errno.EPERM:
            return
        raise
    raise BpfsealError(
        "unsigned programs load in spite of enforcement: the BPF LSM is not active on this kernel",
        hint="boot with lsm=…,bpf (see /sys/kernel/security/lsm)",
    )


def _off() -> int:
    from bpfseal.runtime import enforce_program as program
    from bpfseal.runtime.enforce_state import State, unpin

    state = State.open()
    if state is not None:
        with state:
            state.configure(program.OFF, 0)
    try:
        found = unpin()
    except OSError as error:
        raise BpfsealError(f"enforcement cannot be taken off: {error.strerror}") from None
    print("enforcement is off" if found else "enforcement was off")
    return 0


def _status(as_json: bool) -> int:
    from bpfseal.runtime import enforce_program as program
    from bpfseal.runtime.ahead import trust
    from bpfseal.runtime.enforce_state import State

    state = State.open()
    if state is None or not state.attached:
        print(json.dumps({"mode": "off"}) if as_json else "enforcement is off")
        return 3
    with state:
        config, rings = state.config(), state.rings()
    active = config.active
    left = config.seconds_left
    if as_json:
        facts = {
            "mode": program.MODES[active],
            "seconds_left": left,
            "keyrings": [{"serial": serial, "helper": tgid} for serial, tgid in sorted(rings.items())],
            "allowed": config.allowed,
            "refused": config.refused,
            "would_refuse": config.would,
            "log_lost": config.lost,
        }
        print(json.dumps(facts))
        return 0 if active else 3
    texts = {program.OFF: "off (its time is over)", program.AUDIT: "on, logging only", program.ENFORCE: "on"}
    print(f"enforcement is {texts[active]}" + (f", {left:.0f} s left" if active and left is not None else ""))
    names = {serial: name for name, serial in trust.rings().items()}
    for serial, tgid in sorted(rings.items()):
        print(f"keyring {serial}" + (f" of helper {tgid}" if tgid else f" {names.get(serial, '')}".rstrip()))
    if not rings:
        print("no keyring is on the list: nothing loads until a helper runs and `bpfseal enforce on` hands it over")
    counts = f"{config.allowed} allowed, {config.refused} refused, {config.would} would be refused"
    print(counts + (f", {config.lost} not logged" if config.lost else ""))
    return 0 if active else 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
