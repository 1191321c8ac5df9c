"""`bpfseal enforce`: require signatures for BPF programs on this kernel.

    bpfseal enforce on [--audit] [--for 10m] [--start-helper] [--trust RING] [--except-tag TAG] [--except-cgroup DIR]
                       [--guard]
    bpfseal enforce off | status [--json] | log [-f] [--json] [--keep]
    bpfseal enforce allow | disallow --cert FILE

What turning on and off does is in `enforce_switch`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any

from bpfseal.errors import BpfsealError, UsageError
from bpfseal.runtime.enforce_layout import BY_CGROUP, BY_TAG, ENFORCE, GUARD, MODES, OFF, SYSTEM_RINGS

if TYPE_CHECKING:
    from bpfseal.runtime.enforce_switch import Request


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


def _tag(text: str) -> str:
    """As bpftool prints it: 16 hexadecimal digits."""
    if not re.fullmatch(r"[0-9a-fA-F]{16}", text):
        raise argparse.ArgumentTypeError(f"not a program's tag: {text} (16 hexadecimal digits, see bpftool prog)")
    return text.lower()


def _cgroup(path: str) -> int:
    """Its id: the inode number of its directory, in the unified hierarchy."""
    try:
        found, mount = os.stat(path), path
        while not os.path.ismount(mount) and os.path.dirname(os.path.abspath(mount)) != mount:
            mount = os.path.dirname(os.path.abspath(mount))
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path}: {error.strerror}") from None
    if not os.path.exists(os.path.join(path, "cgroup.procs")) or os.path.exists(os.path.join(path, "tasks")):
        raise argparse.ArgumentTypeError(f"{path} is no directory of a cgroup (v2)")
    if os.path.samefile(path, mount):
        raise argparse.ArgumentTypeError(f"{path} is the root of all cgroups: that would be everybody")
    return found.st_ino


def _request(options: argparse.Namespace) -> Request:
    from bpfseal.runtime.enforce_switch import Request

    return Request(
        audit=options.audit,
        seconds=options.seconds,
        start_helper=options.start_helper,
        socket=options.socket,
        system_rings=tuple(sorted({SYSTEM_RINGS.index(name) for name in options.trust})),
        tags=tuple(options.except_tag),
        cgroups=tuple(options.except_cgroup),
        guard=options.guard,
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="bpfseal enforce", description="Require signatures for BPF programs on this kernel.")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True, parser_class=_Parser)
    on = verbs.add_parser("on", help="refuse BPF programs that the signing helper did not sign")
    on.add_argument("--audit", action="store_true", help="refuse nothing, only log what would be refused")
    on.add_argument("--for", dest="seconds", type=_duration, default=0, metavar="TIME", help="end by itself: 90s, 10m")
    on.add_argument("--start-helper", action="store_true", help="start the system's helper if none answers")
    on.add_argument("--socket", help="of the system's helper")
    on.add_argument(
        "--trust",
        action="append",
        choices=SYSTEM_RINGS,
        default=[],
        help="also take what is signed by a key of this ring of the system",
    )
    on.add_argument(
        "--except-tag", action="append", type=_tag, default=[], metavar="TAG", help="a program that needs no signature"
    )
    on.add_argument(
        "--except-cgroup",
        action="append",
        type=_cgroup,
        default=[],
        metavar="DIR",
        help="processes in this cgroup (v2), or below, need no signature",
    )
    on.add_argument("--guard", action="store_true", help="refuse changes that do not go through the signing helper")
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
    log.add_argument("--keep", action="store_true", help="put them into the signing helper's audit log as well")
    log.add_argument("--quiet", action="store_true", help="with --keep: print nothing")
    return parser


def main(argv: list[str]) -> int:
    """`argv` without `bpfseal enforce`. Raises BpfsealError."""
    options = _parser().parse_args(argv)
    if os.geteuid() != 0:
        raise BpfsealError("enforcement is the administrator's business", hint="run as root")
    if options.verb in ("on", "off"):
        from bpfseal.runtime import enforce_switch as switch

        return switch.off() if options.verb == "off" else switch.on(_request(options))
    if options.verb == "status":
        return _status(options.json)
    if options.verb in ("allow", "disallow"):
        from bpfseal.runtime.enforce_allow import allow, disallow

        return allow(options.cert) if options.verb == "allow" else disallow(options.cert)
    from bpfseal.runtime.enforce_log import show

    return show(follow=options.follow, as_json=options.json, keep=options.keep, quiet=options.keep and options.quiet)


def _status(as_json: bool) -> int:
    from bpfseal.runtime.ahead import trust
    from bpfseal.runtime.enforce_log import ring_name
    from bpfseal.runtime.enforce_state import State

    state = State.open(write=False)
    if state is None or not state.attached:
        print(json.dumps({"mode": "off"}) if as_json else "enforcement is off")
        return 3
    with state:
        config, rings = state.config(), state.rings()
        tags, cgroups = state.exceptions()
    active = config.active
    left = config.seconds_left
    if as_json:
        facts = {
            "mode": MODES[active],
            "seconds_left": left,
            "keyrings": [{"serial": ring_name(serial), "helper": tgid} for serial, tgid in sorted(rings.items())],
            "except_tags": tags if config.flags & BY_TAG else [],
            "except_cgroups": cgroups if config.flags & BY_CGROUP else [],
            "guard": bool(config.flags & GUARD),
            "allowed": config.allowed,
            "refused": config.refused,
            "would_refuse": config.would,
            "excepted": config.excepted,
            "changes_refused": config.guarded,
            "log_lost": config.lost,
        }
        print(json.dumps(facts))
        return 0 if active else 3
    how = "on" if active == ENFORCE else "on, logging only"
    how = "off (its time is over)" if active == OFF else how + (", guarded" if config.flags & GUARD else "")
    print(f"enforcement is {how}" + (f", {left:.0f} s left" if active and left is not None else ""))
    names = {serial: name for name, serial in trust.rings().items()}
    for serial, tgid in sorted(rings.items()):
        print(f"keyring {ring_name(serial)}" + (f" of helper {tgid}" if tgid else f" {names.get(serial, '')}".rstrip()))
    if not rings:
        print("no keyring is on the list: nothing loads until a helper runs and `bpfseal enforce on` hands it over")
    for tag in tags:
        print(f"no signature needed: program {tag}")
    for cgroup in cgroups:
        print(f"no signature needed: in the cgroup with id {cgroup}, and below")
    counts = f"{config.allowed} allowed, {config.refused} refused, {config.would} would be refused"
    counts += f", {config.excepted} by exception" if config.excepted else ""
    counts += f", {config.guarded} changes refused" if config.guarded else ""
    print(counts + (f", {config.lost} not logged" if config.lost else ""))
    return 0 if active else 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
