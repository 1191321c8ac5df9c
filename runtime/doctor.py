"""`bpfseal doctor`: what this kernel and this user can do, and why not."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from dataclasses import asdict
from typing import Any

from bpfseal.errors import BpfsealError, UsageError
from bpfseal.runtime.features import Feature


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(message, hint="bpfseal doctor --help")


def main(argv: list[str]) -> int:
    """`argv` without `bpfseal doctor`. Status 0 if tracing works here, else 1."""
    parser = _Parser(prog="bpfseal doctor", description="What this kernel can do, and why not.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--refresh", action="store_true", help="try everything again instead of using the cache")
    options = parser.parse_args(argv)
    found = examine(refresh=options.refresh)
    if options.json:
        print(json.dumps([asdict(feature) for feature in found], indent=1))
    else:
        _print(found)
    by_name = {feature.name: feature for feature in found}
    return 0 if by_name["rawtracepoint"].ok is not False and by_name["ringbuf"].ok is not False else 1


def examine(*, refresh: bool = False) -> list[Feature]:
    """System, signing and kernel features, in the order of printing."""
    from bpfseal.runtime.features import probe_all

    return [*_system(), *_signing(), *probe_all(refresh=refresh)]


def _print(found: list[Feature]) -> None:
    width = max(len(feature.name) for feature in found)
    colour = sys.stdout.isatty()
    marks = {True: ("yes", "32"), False: ("no ", "31"), None: ("?  ", "33")}
    group = ""
    for feature in found:
        if feature.group != group:
            print(f"{'' if not group else chr(10)}{feature.group}")
            group = feature.group
        text, code = marks[feature.ok]
        mark = f"\x1b[{code}m{text}\x1b[0m" if colour else text
        print(f"  {mark}  {feature.name:<{width}}  {feature.detail or feature.why}".rstrip())


# The system around the kernel


def _text(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return None


def _system() -> list[Feature]:
    uname = os.uname()
    found = [Feature("release", "system", True, f"Linux {uname.release} {uname.machine}")]
    found.append(_privileges())
    lsm = _text("/sys/kernel/security/lsm")
    unmounted = "no securityfs: mount -t securityfs securityfs /sys/kernel/security"
    found.append(Feature("lsms", "system", lsm is not None or None, lsm or "", "" if lsm else unmounted))
    found.append(_lockdown(unmounted))
    jit = _text("/proc/sys/net/core/bpf_jit_enable")
    if jit is not None:
        found.append(Feature("jit", "system", jit != "0", "", "" if jit != "0" else "programs are interpreted: slow"))
    kptr = _text("/proc/sys/kernel/kptr_restrict")
    visible = _kallsyms_visible()
    why = f"/proc/kallsyms has no addresses for this user (kptr_restrict {kptr})"
    found.append(Feature("kernel_symbols", "system", visible, "", "" if visible else why))
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    detail = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB (not counted since Linux 5.11)"
    found.append(Feature("memlock", "system", True, detail))
    return found


_CAPABILITIES = {39: "CAP_BPF", 38: "CAP_PERFMON", 21: "CAP_SYS_ADMIN"}


def _privileges() -> Feature:
    status = _text("/proc/self/status") or ""
    held = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff")), 0)
    have = [name for bit, name in _CAPABILITIES.items() if held >> bit & 1]
    enough = "CAP_SYS_ADMIN" in have or {"CAP_BPF", "CAP_PERFMON"} <= set(have)
    detail = "root" if os.geteuid() == 0 and len(have) == 3 else ", ".join(have)
    why = "run as root, or with CAP_BPF and CAP_PERFMON" + (f" (has {detail})" if have else "")
    return Feature("privileges", "system", enough, detail if enough else "", "" if enough else why)


def _lockdown(unmounted: str) -> Feature:
    text = _text("/sys/kernel/security/lockdown")
    if text is None:
        return Feature("lockdown", "system", None, "", unmounted)
    mode = text.partition("[")[2].partition("]")[0]
    if mode == "confidentiality":
        return Feature("lockdown", "system", False, "", "confidentiality: programs cannot read kernel memory")
    return Feature("lockdown", "system", True, mode)


def _kallsyms_visible() -> bool:
    try:
        with open("/proc/kallsyms") as file:
            return any(not file.readline().startswith("0000000000000000 ") for _ in range(16))
    except OSError:
        return False


# Signing


def _signing() -> list[Feature]:
    """What the helper that would sign for this user says: the system's, or a private one."""
    from bpfseal.signer.client import connect

    group = "signing"
    try:
        with connect() as client:
            status = client.status()
    except BpfsealError as error:
        return [
            Feature("helper", group, False, "", error.message),
            Feature("signing ABI", group, None, "", "the signing helper knows"),
        ]
    helper = Feature("helper", group, True, f"{status.mode}, {status.algorithm}")
    if not status.abi:
        return [helper, Feature("signing ABI", group, False, "", f"none: {status.why}")]
    covers = "instructions; the loader checks its data itself" if status.abi == 1 else "instructions and their data"
    return [helper, Feature("signing ABI", group, True, f"v{status.abi}: signatures cover {covers}"), _enforcement()]


def _enforcement() -> Feature:
    from bpfseal.runtime.enforce_layout import MODES
    from bpfseal.runtime.enforce_state import State

    if os.geteuid() != 0:
        return Feature("enforcement", "signing", None, "", "root can tell")
    try:
        state = State.open(write=False)
    except BpfsealError as error:
        return Feature("enforcement", "signing", None, "", error.message)
    if state is None:
        return Feature("enforcement", "signing", False, "", "off: unsigned programs load too")
    with state:
        mode = state.config().active
    return Feature("enforcement", "signing", bool(mode), MODES[mode], "" if mode else "off")
